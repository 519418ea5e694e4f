"""What a database holds, in a form that two can be compared by."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import psycopg
from psycopg import sql

from pgdefect.db.connection.engine import Database

TRAIL = ("audit", "audit_head")
"""What a restoration adds an entry to."""
DEFINITIONS = """
    SELECT 'table', t.relname::text, a.attname::text,
           format_type(a.atttypid, a.atttypmod) || ' ' || a.attnotnull || ' ' || a.attstorage::text
           || ' ' || coalesce(pg_get_expr(d.adbin, d.adrelid), '')
    FROM pg_class t JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum > 0
    LEFT JOIN pg_attrdef d ON d.adrelid = t.oid AND d.adnum = a.attnum
    WHERE t.relnamespace = 'pgdefect'::regnamespace AND t.relkind IN ('r', 'p')
      AND NOT a.attisdropped
    UNION ALL
    SELECT 'partition', c.relname, p.relname, pg_get_expr(c.relpartbound, c.oid)
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_class p ON p.oid = i.inhparent
    WHERE c.relnamespace = 'pgdefect'::regnamespace AND c.relkind = 'r'
    UNION ALL
    SELECT 'index', c.relname, x.indisvalid::text, pg_get_indexdef(c.oid)
    FROM pg_class c JOIN pg_index x ON x.indexrelid = c.oid
    WHERE c.relnamespace = 'pgdefect'::regnamespace
    UNION ALL
    SELECT 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid)
    FROM pg_constraint WHERE connamespace = 'pgdefect'::regnamespace
    UNION ALL
    SELECT 'trigger', tgrelid::regclass::text, tgname, pg_get_triggerdef(oid)
    FROM pg_trigger WHERE NOT tgisinternal
    UNION ALL
    SELECT 'function', oid::regprocedure::text, obj_description(oid, 'pg_proc'),
           pg_get_functiondef(oid)
    FROM pg_proc WHERE pronamespace IN ('pgdefect'::regnamespace, 'defect'::regnamespace)
    UNION ALL
    SELECT 'view', relname, obj_description(oid, 'pg_class'), pg_get_viewdef(oid)
    FROM pg_class WHERE relnamespace = 'defect'::regnamespace AND relkind = 'v'
    UNION ALL
    SELECT 'sequence', relname, '', pg_sequence_last_value(oid)::text
    FROM pg_class WHERE relnamespace = 'pgdefect'::regnamespace AND relkind = 'S'
    ORDER BY 1, 2, 3, 4"""


def definitions(database: Database) -> list[tuple[Any, ...]]:
    """Tables, partitions, indexes, constraints, triggers, functions, views, sequences."""
    with psycopg.connect(database.url) as connection:
        return connection.execute(DEFINITIONS).fetchall()


def columns(database: Database) -> dict[str, list[str]]:
    """Columns of every table of ours that is no partition."""
    with psycopg.connect(database.url) as connection:
        rows = connection.execute(
            "SELECT c.relname, array_agg(a.attname::text ORDER BY a.attname) FROM pg_class c "
            "JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped "
            "WHERE c.relnamespace = 'pgdefect'::regnamespace AND c.relkind IN ('r', 'p') "
            "AND NOT c.relispartition GROUP BY 1"
        ).fetchall()
    return dict(rows)


def digests(
    database: Database, of: dict[str, list[str]] | None = None, without: Iterable[str] = ()
) -> dict[str, tuple[int, str]]:
    """Of every table, or of some columns of some: how many rows, and a checksum over all."""
    found = {}
    with psycopg.connect(database.url) as connection:
        for table, names in (of or columns(database)).items():
            if table in without:
                continue
            query = sql.SQL(
                "SELECT count(*), md5(coalesce(string_agg(h, '' ORDER BY h), '')) "
                "FROM (SELECT md5(ROW({})::text) AS h FROM pgdefect.{}) t"
            ).format(sql.SQL(", ").join(map(sql.Identifier, names)), sql.Identifier(table))
            row = connection.execute(query).fetchone()
            assert row is not None
            found[table] = (row[0], row[1])
    return found
