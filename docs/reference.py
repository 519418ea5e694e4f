"""Pages made from the database's own comments, and from the models: analysts.md, schema.md."""

from __future__ import annotations

import inspect
import re
from typing import Any

import psycopg
from sqlalchemy import Table
from sqlalchemy.dialects import postgresql

from pgdefect.db.schema.models import Base

GENERATED = "<!-- Made by `make docs` from {}; do not edit. -->"

INTRODUCTION = """
# In psql

Everything that pgdefect knows can be asked for in SQL: from psql, DBeaver, Metabase, pandas.
Views and functions are in the schema `defect`, which holds no data of its own; the tables
behind it are in `pgdefect` ([schema](schema.md)). `pgdefect db psql` opens psql on the
database, `pgdefect db url` prints its URL for other programs. In psql, `\\dv defect.*` lists
the views, `\\df defect.*` the functions; `\\d+` and, best after `\\x`, `\\df+` explain one.

Five functions to remember:

```sql
SELECT * FROM defect.similar_images('scratch/003.png', k => 10);       -- what is it like?
SELECT * FROM defect.nearest_normal(inspection => 1);                  -- what should it look like?
SELECT * FROM defect.what_if(detector => 1, threshold => 0.08);        -- what would it cost?
SELECT defect.review('scratch/003.png', label => 'normal');            -- what is it really?
SELECT * FROM defect.inspect('scratch/003.png', bank => 1);            -- what would that bank say?
```

- **An image** is named by its id, the end of its path, or the start of its sha256 (8
  characters or more). Where none or several are called so, the error lists what was found.
- **Labels.** `label` and `defect_type` are the data set's word. A review never overwrites them,
  nor the detector's verdict: `known_label` and `known_defect_type` are the newest review's
  word, else the data set's, and counts, filters, votes and figures go by them at once.
- **Scores.** The raw score is a distance in the bank's metric; larger is worse. The normalized
  score lies between 0 and 1, with 0.5 at the threshold and 0.25 for an ordinary normal image, so
  that categories compare.
- **Boxes** are `x,y,width,height` in pixels of the photograph.
- **Times** are `timestamptz`; days begin at midnight in the session's time zone.
- **Errors** have SQLSTATEs of their own: `PD400` for an invalid argument, `PD404` for something
  that does not exist, `PD409` for a conflict with what is stored; the hint says what to do.
- Only `set_threshold`, `rejudge`, `review` and `withdraw_review` write. The others need no more
  than the right to read, and what they set for a search holds for their own call and no longer.

Questions of every day, with their answers: [the cookbook](cookbook.md).

**Kept patches.** `pgdefect inspect --keep-patches` keeps every patch embedding of an image, in
half precision, so that `defect.inspect` can ask any bank about it later, without the file. It is
off by default for its size: rows x columns x (2 x dimensions + 8) bytes an image, which is
0.32 MB for a grid of 32 x 32 and 152 dimensions. `SELECT * FROM defect.kept_patches` shows what
there is.
""".strip()


def analysts_page(connection: psycopg.Connection[Any]) -> str:
    """The page for analysts: every view with its columns, every function with its arguments."""
    lines = [GENERATED.format("the comments in the database"), "", INTRODUCTION, "", "## Views"]
    for name, comment in connection.execute(
        "SELECT relname, obj_description(oid, 'pg_class') FROM pg_class "
        "WHERE relnamespace = 'defect'::regnamespace AND relkind = 'v' ORDER BY 1"
    ).fetchall():
        lines += ["", f"### defect.{name}", "", *_explained(comment)]
        lines += ["", "| column | type | meaning |", "|---|---|---|"]
        for column, kind, says in connection.execute(
            "SELECT attname, format_type(atttypid, atttypmod), col_description(attrelid, attnum) "
            "FROM pg_attribute WHERE attrelid = to_regclass('defect.' || quote_ident(%s)) "
            "AND attnum > 0 ORDER BY attnum",
            [name],
        ).fetchall():
            lines.append(f"| `{column}` | {_short_type(kind)} | {says or ''} |")
    lines += ["", "## Functions"]
    for name, arguments, result, comment in connection.execute(
        "SELECT proname, pg_get_function_arguments(oid), pg_get_function_result(oid), "
        "obj_description(oid, 'pg_proc') FROM pg_proc "
        "WHERE pronamespace = 'defect'::regnamespace ORDER BY proname, oid"
    ).fetchall():
        lines += ["", f"### defect.{name}", "", "```text"]
        lines += [*_signature(name, arguments, result), "```", "", *_explained(comment)]
    return "\n".join(lines) + "\n"


def examples(comment: str) -> list[str]:
    """The statements that a comment gives as its example."""
    example = comment.partition("Example: ")[2].strip()
    return [statement for statement in example.split(";\n") if statement]


def _explained(comment: str | None) -> list[str]:
    text, _, example = (comment or "").partition("Example: ")
    lines = [text.strip()]
    if example:
        lines += ["", "```sql", example.strip(), "```"]
    return lines


def _signature(name: str, arguments: str, result: str) -> list[str]:
    """A line per argument and per column of the result."""
    inputs = [f"    {part}" for part in _split(arguments)]
    lines = [f"defect.{name}({'' if inputs else ')'}"]
    if inputs:
        lines += [",\n".join(inputs), ")"]
    if columns := re.fullmatch(r"TABLE\((.*)\)", result, re.DOTALL):
        lines += ["→", ",\n".join(f"    {part}" for part in _split(columns[1]))]
    else:
        lines += [f"→ {result}"]
    return [re.sub(r"('[^']*'|NULL)::[a-z ]+", r"\1", _short_type(line)) for line in lines]


def _split(listing: str) -> list[str]:
    """At commas outside of brackets and quotes."""
    return [part.strip() for part in re.findall(r"(?:'[^']*'|\([^)]*\)|[^,])+", listing)]


def _short_type(text: str) -> str:
    return text.replace("timestamp with time zone", "timestamptz")


def schema_page() -> str:
    """The tables and what refers to what, as a diagram and in words."""
    tables = sorted(Base.metadata.tables.values(), key=lambda table: table.name)
    words = {mapper.local_table: mapper.class_ for mapper in Base.registry.mappers}
    lines = [
        GENERATED.format("`src/pgdefect/db/schema/models.py`"),
        "",
        "# Schema",
        "",
        "The tables of the schema `pgdefect`. Solid lines are foreign keys; dotted ones are",
        "references without, into and out of partitioned tables, whose writers check them.",
        "Analysts ask the views and functions of the schema `defect` instead:",
        "[analysts.md](analysts.md).",
        "",
        "```mermaid",
        "erDiagram",
    ]
    for table in tables:
        lines += _relations(table)
    for table in tables:
        lines += [f"    {table.name} {{"]
        for column in table.columns:
            kind = str(column.type.compile(dialect=postgresql.dialect())).lower()
            keys = [
                key
                for key, holds in (("PK", column.primary_key), ("FK", bool(column.foreign_keys)))
                if holds
            ]
            lines.append(f"        {_mermaid(kind)} {column.name} {', '.join(keys)}".rstrip())
        lines += ["    }"]
    lines += ["```", ""]
    for table in tables:
        said = inspect.cleandoc(words[table].__doc__ or "")
        partitioned = table.dialect_options["postgresql"].get("partition_by")
        by = f"\n\nPartitioned by `{partitioned}`." if partitioned else ""
        lines += [f"**{table.name}**: {said}{by}", ""]
    return "\n".join(lines).rstrip() + "\n"


_REFERS = {
    "bank_id": "memory_bank",
    "image_id": "image",
    "extractor_id": "extractor",
    "detector_id": "detector",
}


def _relations(table: Table) -> list[str]:
    lines = []
    for column in table.columns:
        many = "||" if list(table.primary_key.columns) == [column] else "o{"
        targets = [key.column.table.name for key in column.foreign_keys]
        for target in targets:
            lines.append(f"    {target} ||--{many} {table.name} : {column.name}")
        if not targets and column.name in _REFERS:
            lines.append(f"    {_REFERS[column.name]} ||..{many} {table.name} : {column.name}")
    return lines


def _mermaid(kind: str) -> str:
    return kind.replace("timestamp with time zone", "timestamptz").replace(" ", "_")
