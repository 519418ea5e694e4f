"""Partitions: each belongs to a bank or an extractor, and those that are searched have an index.

What is expected is read from the catalog: every parent in schema ``pgdefect`` that is
partitioned by list, and the tables that are, were or look like its partitions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from sqlalchemy import Connection, text

from pgdefect.db.doctor.findings import FIX, Finding, psql, sql_repair

SEARCHED = {"memory_bank_patch", "image_embedding", "defect_embedding", "defect_region"}
"""Parents whose vectors are searched by HNSW: each partition needs a valid index."""
UNSEARCHED = {"memory_bank_raw"}
"""Parents with vectors that no search touches."""
ALWAYS = {"memory_bank_patch", "image_embedding"}
"""Parents that have a partition for every bank, or every extractor."""


class Leaf(NamedTuple):
    """A table that is a partition, or was one: its name says of which parent and number.

    owned: whether the bank or extractor of that number exists. vector: its first column of
    vectors and that one's type; dim: how long they are, where a CHECK says so.
    """

    parent: str
    key: str
    table: str
    number: int
    attached: bool
    owned: bool
    vector: str | None
    vector_type: str | None
    dim: int | None
    hnsw: bool
    bytes: int

    @property
    def owner(self) -> str:
        return f"{'memory bank' if self.key == 'bank_id' else 'extractor'} {self.number}"


_PARENTS = """
    SELECT c.oid, c.relname, a.attname AS key
    FROM pg_partitioned_table p
    JOIN pg_class c ON c.oid = p.partrelid
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = p.partattrs[0]
    WHERE c.relnamespace = 'pgdefect'::regnamespace AND p.partstrat = 'l'
      AND a.attname IN ('bank_id', 'extractor_id')"""

_LEAVES = f"""
WITH parent AS ({_PARENTS}), leaf AS (
    SELECT parent.relname AS parent, parent.key, c.oid, c.relname,
           coalesce(substring(pg_get_expr(c.relpartbound, c.oid) FROM '\\d+'),
                    substring(c.relname FROM '\\d+$'))::bigint AS number,
           coalesce(NOT i.inhdetachpending, false) AS attached
    FROM parent
    JOIN pg_class c ON c.relnamespace = 'pgdefect'::regnamespace AND c.relkind = 'r'
    LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
    WHERE i.inhparent = parent.oid
       OR (i.inhparent IS NULL AND c.relname ~ ('^' || parent.relname || '_\\d{{1,18}}$'))
)
SELECT leaf.parent, leaf.key, leaf.relname, leaf.number, leaf.attached,
       CASE leaf.key WHEN 'bank_id'
           THEN EXISTS (SELECT FROM pgdefect.memory_bank b WHERE b.id = leaf.number)
           ELSE EXISTS (SELECT FROM pgdefect.extractor e WHERE e.id = leaf.number) END,
       v.attname, v.typname,
       (SELECT substring(pg_get_constraintdef(k.oid) FROM 'vector_dims\\(.*\\) = (\\d+)')::integer
        FROM pg_constraint k
        WHERE k.conrelid = leaf.oid AND pg_get_constraintdef(k.oid) ~ 'vector_dims' LIMIT 1),
       EXISTS (SELECT FROM pg_index x JOIN pg_class xc ON xc.oid = x.indexrelid
               JOIN pg_am m ON m.oid = xc.relam
               WHERE x.indrelid = leaf.oid AND m.amname = 'hnsw'),
       pg_total_relation_size(leaf.oid)
FROM leaf
LEFT JOIN LATERAL (
    SELECT a.attname, t.typname FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
    WHERE a.attrelid = leaf.oid AND a.attnum > 0 AND NOT a.attisdropped
      AND t.typname IN ('vector', 'halfvec')
    ORDER BY a.attnum LIMIT 1
) v ON true
ORDER BY leaf.parent, leaf.number"""


def leaves(connection: Connection) -> list[Leaf]:
    """Every partition and every table that is called as one."""
    # A detached table keeps no bound; its name is what is left of it.
    return [Leaf(*row) for row in connection.execute(text(_LEAVES))]


def check_orphans(connection: Connection) -> Iterator[Finding]:
    """Partitions that no bank or extractor names, and those cut off from their parent."""
    for leaf in leaves(connection):
        if not leaf.owned:
            yield Finding(
                "fault",
                "orphaned-partition",
                f"pgdefect.{leaf.table}",
                f"{leaf.owner} does not exist; its table was left behind and takes space",
                FIX,
                sql_repair(*_cut_off(connection, leaf), f"DROP TABLE pgdefect.{leaf.table}"),
            )
        elif not leaf.attached:
            remedy = (
                f"pgdefect delete --detector {leaf.number} --yes"
                if leaf.key == "bank_id"
                else psql(
                    f"ALTER TABLE pgdefect.{leaf.parent} ATTACH PARTITION "
                    f"pgdefect.{leaf.table} FOR VALUES IN ({leaf.number})"
                )
            )
            yield Finding(
                "fault",
                "detached-partition",
                f"pgdefect.{leaf.table}",
                f"{leaf.owner} exists and its table is cut off, as a deletion that was "
                "interrupted leaves it; nothing finds its vectors",
                remedy,
            )


def _cut_off(connection: Connection, leaf: Leaf) -> list[str]:
    """What takes a table from its parent without stopping readers of others."""
    state = connection.scalar(
        text("SELECT inhdetachpending FROM pg_inherits WHERE inhrelid = to_regclass(:table)"),
        {"table": f"pgdefect.{leaf.table}"},
    )
    if state is None:
        return []
    return [
        f"ALTER TABLE pgdefect.{leaf.parent} DETACH PARTITION pgdefect.{leaf.table} "
        + ("FINALIZE" if state else "CONCURRENTLY")
    ]


def check_missing(connection: Connection) -> Iterator[Finding]:
    """Banks and extractors without the partition that each of them has."""
    there = {(leaf.parent, leaf.number) for leaf in leaves(connection)}
    for parent, key in connection.execute(text(f"SELECT relname, key FROM ({_PARENTS}) p")):
        if parent not in ALWAYS:
            continue
        owner = "memory_bank" if key == "bank_id" else "extractor"
        for number in connection.scalars(text(f"SELECT id FROM pgdefect.{owner} ORDER BY id")):
            if (parent, number) in there:
                continue
            yield Finding(
                "fault",
                "missing-partition",
                f"pgdefect.{parent}_{number}",
                f"{owner.replace('_', ' ')} {number} has lost its table and cannot be searched",
                f"pgdefect delete --detector {number} --yes, then pgdefect train the category"
                if key == "bank_id"
                else psql(
                    f"CREATE TABLE pgdefect.{parent}_{number} PARTITION OF pgdefect.{parent} "
                    f"FOR VALUES IN ({number})"
                ),
            )


def check_hnsw(connection: Connection) -> Iterator[Finding]:
    """Searched partitions without an HNSW index; an invalid one is another check's."""
    for leaf in leaves(connection):
        if leaf.parent not in SEARCHED or leaf.vector is None or leaf.hnsw or not leaf.owned:
            continue
        statement = hnsw_statement(connection, leaf)
        yield Finding(
            "fault",
            "missing-hnsw",
            f"pgdefect.{leaf.table}",
            "no HNSW index: each search reads the whole table",
            FIX if statement else "pgdefect train the category again",
            sql_repair(statement, f"ANALYZE pgdefect.{leaf.table}") if statement else None,
        )


def hnsw_statement(connection: Connection, leaf: Leaf) -> str | None:
    """What makes a partition's index as training would; None where its dimension is unknown."""
    from pgdefect.db.banks import INDEX_OPTIONS
    from pgdefect.distance import COSINE, index_expression, indexed_type, metric_named

    dim = leaf.dim or connection.scalar(
        text(f"SELECT vector_dims({leaf.vector}) FROM pgdefect.{leaf.table} LIMIT 1")
    )
    if dim is None:
        return None
    kind, metric, options = indexed_type("half", dim), COSINE, ""
    if leaf.key == "bank_id":
        row = connection.execute(
            text("SELECT indexed_type, metric FROM pgdefect.memory_bank WHERE id = :id"),
            {"id": leaf.number},
        ).one()
        kind, metric, options = row[0], metric_named(row[1]), f" WITH ({INDEX_OPTIONS})"
    expression = index_expression(kind, dim)
    expression = re.sub(r"^\w+", str(leaf.vector), expression)
    return (
        f"CREATE INDEX CONCURRENTLY {leaf.table}_hnsw ON pgdefect.{leaf.table} "
        f"USING hnsw (({expression}) {metric.operator_class(kind)}){options}"
    )
