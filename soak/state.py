"""What a database and its files hold, in a form that two can be compared by.

Ids, times and what HNSW's random graphs decide are left out; whatever refers to a row by its id
refers here to what the row is called. So two runs of the same commands must give the same.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from psycopg import sql

_DETECTOR = (
    "(SELECT c.name || ' ' || d.kind || ' ' || d.version FROM pgdefect.detector d "
    "JOIN pgdefect.category c ON c.id = d.category_id WHERE d.id = t.{})"
)
_IMAGE = (
    "(SELECT c.name || ' ' || r.path || ' ' || i.path FROM pgdefect.image i "
    "JOIN pgdefect.category c ON c.id = i.category_id "
    "JOIN pgdefect.image_root r ON r.id = i.root_id WHERE i.id = t.{})"
)
CALLED = {
    "category_id": "(SELECT name FROM pgdefect.category k WHERE k.id = t.{})",
    "root_id": "(SELECT path FROM pgdefect.image_root k WHERE k.id = t.{})",
    "extractor_id": "(SELECT fingerprint FROM pgdefect.extractor k WHERE k.id = t.{})",
    "image_id": _IMAGE,
    "detector_id": _DETECTOR,
    "bank_id": _DETECTOR,
}
"""What a row is called that a column of this name refers to; {} stands for the column."""
BINARY = {
    "vector": "vector_send({})",
    "halfvec": "halfvec_send({})",
    "halfvec[]": "array_send({})",
    "real[]": "array_send({})",
}
"""Types whose values are many numbers: writing them as text takes long."""
RANDOM = {
    ("memory_bank", "ef_search"),
    ("memory_bank", "ef_search_recall"),
    ("memory_bank", "ef_search_fast"),
    ("inspection", "event_key"),
    ("audit", "hash"),
    ("audit_head", "hash"),
}
"""Columns that are measured on an HNSW graph, which Postgres builds at random, random keys, and
hashes of times."""

_COLUMNS = """
    SELECT c.relname::text, a.attname::text, format_type(a.atttypid, NULL)
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
    WHERE c.relnamespace = 'pgdefect'::regnamespace AND c.relkind IN ('r', 'p')
      AND NOT c.relispartition AND a.attnum > 0 AND NOT a.attisdropped
    ORDER BY 1, a.attnum"""
_RELATIONS = """
    SELECT c.relkind::text, n.nspname::text, c.relname::text, c.relpersistence::text,
           c.relispartition, x.indisvalid AND x.indisready AND x.indislive
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN pg_index x ON x.indexrelid = c.oid
    WHERE n.nspname IN ('pgdefect', 'defect') OR c.relpersistence <> 'p'"""


@dataclass(frozen=True)
class State:
    """What there is: of each table the number of rows and a checksum over them; tables, indexes
    and other relations, numbers in their names aside; files by path with a checksum; remarks of
    those who examined it.
    """

    rows: dict[str, tuple[int, str]]
    relations: Counter[str]
    files: dict[str, str] = field(default_factory=dict)
    remarks: Counter[str] = field(default_factory=Counter)

    @property
    def num_rows(self) -> int:
        return sum(count for count, _ in self.rows.values())


def differences(expected: State, found: State) -> list[str]:
    """What one has and the other has not, a line each; none where they are the same."""
    lines = []
    for table in sorted(expected.rows.keys() | found.rows.keys()):
        (n, _), (m, _) = pair = [one.rows.get(table, (0, "")) for one in (expected, found)]
        if n != m:
            lines.append(f"table {table}: {n} rows expected, {m} found")
        elif pair[0] != pair[1]:
            lines.append(f"table {table}: other values in its {n} rows")
    for what, before, after in (
        ("relation", expected.relations, found.relations),
        ("remark", expected.remarks, found.remarks),
    ):
        lines += [f"{what} lacking: {n} × {name}" for name, n in sorted((before - after).items())]
        lines += [f"{what} left over: {n} × {name}" for name, n in sorted((after - before).items())]
    for path in sorted(expected.files.keys() | found.files.keys()):
        if path not in found.files:
            lines.append(f"file lacking: {path}")
        elif path not in expected.files:
            lines.append(f"file left over: {path}")
        elif expected.files[path] != found.files[path]:
            lines.append(f"file differs: {path}")
    return lines


def database_state(url: str) -> tuple[dict[str, tuple[int, str]], Counter[str]]:
    """Rows and relations of a database."""
    rows = {}
    with psycopg.connect(url) as connection:
        columns: dict[str, list[str]] = {}
        for table, column, kind in connection.execute(_COLUMNS).fetchall():
            if (expression := _value(table, column, kind)) is not None:
                columns.setdefault(table, []).append(expression)
        for table, expressions in columns.items():
            query = sql.SQL(
                "SELECT count(*), md5(coalesce(string_agg(h, '' ORDER BY h), '')) "
                "FROM (SELECT md5(ROW({})::text) AS h FROM pgdefect.{} t) s"
            ).format(sql.SQL(", ".join(expressions)), sql.Identifier(table))
            row = connection.execute(query).fetchone()
            assert row is not None
            rows[table] = (row[0], row[1])
        found = connection.execute(_RELATIONS).fetchall()
    relations = Counter(
        f"{kind} {schema if persistence == 'p' else 'temporary or unlogged'}."
        f"{re.sub(r'(?<=_)[0-9]+', 'N', name)}"
        + (" attached" if attached else "")
        + (" INVALID" if valid is False else "")
        for kind, schema, name, persistence, attached, valid in found
    )
    return rows, relations


def _value(table: str, column: str, kind: str) -> str | None:
    """What stands for a column's value; None where it is left out."""
    quoted = '"' + column.replace('"', '""') + '"'
    if kind.startswith("timestamp") or (table, column) in RANDOM:
        return None
    if (table, column) == ("detector", "settings"):
        return "t.settings - 'run'"  # A random token.
    if (table, column) == ("detector", "metrics"):
        return "t.metrics - 'near_duplicates'"  # Measured on an HNSW graph.
    if (table, column) == ("audit", "object"):
        return "regexp_replace(t.object, '[0-9]+', 'N')"
    if column == "id":
        return _DETECTOR.format(quoted) if table == "memory_bank" else None
    if column in CALLED:
        return CALLED[column].format(quoted)
    if kind in BINARY:
        return BINARY[kind].format(f"t.{quoted}")
    return f"t.{quoted}"


def files_in(folder: Path) -> dict[str, str]:
    """Every file and empty folder below, by path, with the sha256 of its content."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.is_dir() and not any(path.iterdir()):
            found[name + "/"] = ""
    return found


def amcheck(program: Path, url: str) -> list[str]:
    """What pg_amcheck says of every table and B-tree; nothing where all is well."""
    login = psycopg.conninfo.conninfo_to_dict(url)
    options = [f"--host={login['host']}", f"--port={login['port']}", f"--username={login['user']}"]
    done = subprocess.run(
        [program, *options, "--heapallindexed", str(login["dbname"])],
        capture_output=True,
        text=True,
        timeout=600,
    )
    said = (done.stdout + done.stderr).strip().splitlines()
    return [f"pg_amcheck: {line}" for line in said] or (
        [f"pg_amcheck: exit code {done.returncode}"] if done.returncode else []
    )
