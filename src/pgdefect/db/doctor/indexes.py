"""Indexes that are broken or idle, statistics that are missing, rows that are dead."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection, text

from pgdefect.db.doctor.findings import Finding, fix_command, psql, size, sql_repair
from pgdefect.db.schema.indexes import invalid_indexes

UNUSED_BYTES = 1 << 20
UNUSED_DAYS = 7
ANALYZE_BYTES = 128 << 10
CHANGED_ROWS = 1_000
CHANGED_SHARE = 0.2


def check_invalid(connection: Connection) -> Iterator[Finding]:
    """Indexes that an interrupted build left unusable; one being built now is none."""
    for index in invalid_indexes(connection):
        what = f"invalid {index.method} index of {index.table}"
        if index.rebuild is None:
            yield Finding(
                "warning",
                "invalid-index",
                f"pgdefect.{index.name}",
                f"{what}: some partition has no such index",
                psql(f"REINDEX TABLE pgdefect.{index.table}"),
            )
            continue
        yield Finding(
            "fault",
            "invalid-index",
            f"pgdefect.{index.name}",
            f"{what}: left by a {'rebuild' if index.is_copy else 'build'} that was interrupted, "
            "never used by a search and kept up at every insert",
            fix_command(),
            sql_repair(index.rebuild),
        )


def check_unused(connection: Connection) -> Iterator[Finding]:
    """Indexes nothing has read since the statistics began, where that is long enough ago."""
    rows = connection.execute(
        text("""
        SELECT quote_ident(s.indexrelname), s.relname, pg_relation_size(s.indexrelid), m.amname,
               d.stats_reset
        FROM pg_stat_user_indexes s
        JOIN pg_index x USING (indexrelid)
        JOIN pg_class c ON c.oid = s.indexrelid
        JOIN pg_am m ON m.oid = c.relam
        JOIN pg_stat_database d ON d.datname = current_database()
        WHERE s.schemaname = 'pgdefect' AND s.idx_scan = 0 AND x.indisvalid
          AND NOT x.indisunique
          AND pg_relation_size(s.indexrelid) >= :bytes
          AND coalesce(d.stats_reset, pg_postmaster_start_time())
              < now() - make_interval(days => :days)
        ORDER BY 3 DESC, 1"""),
        {"bytes": UNUSED_BYTES, "days": UNUSED_DAYS},
    )
    for name, table, count, method, since in rows:
        started = f"since {since:%Y-%m-%d}" if since else "since the server started"
        yield Finding(
            "note",
            "unused-index",
            f"pgdefect.{name}",
            f"{size(count)} on {table}, not read {started}; "
            + (
                "its bank or extractor may be out of use"
                if method == "hnsw"
                else "it slows every insert; replicas count their own reads"
            ),
            "pgdefect detectors"
            if method == "hnsw"
            else psql(f"DROP INDEX CONCURRENTLY pgdefect.{name}"),
        )


def check_statistics(connection: Connection) -> Iterator[Finding]:
    """Tables whose planner statistics are missing or old.

    Rows that one transaction adds and analyses, as training and `db restore` do, are counted as
    changes when it commits; ANALYZE saw them all the same where its count of rows is today's.
    """
    rows = connection.execute(
        text("""
        SELECT quote_ident(s.relname), s.n_mod_since_analyze, s.n_live_tup,
               NOT EXISTS (SELECT FROM pg_stats p
                           WHERE p.schemaname = s.schemaname AND p.tablename = s.relname) AS never
        FROM pg_stat_user_tables s
        JOIN pg_class c ON c.oid = s.relid
        WHERE s.schemaname = 'pgdefect' AND c.relkind = 'r'
          AND has_table_privilege(s.relid, 'SELECT')
          AND pg_relation_size(s.relid) >= :bytes
          AND NOT (s.analyze_count > 0 AND s.n_tup_upd = 0 AND s.n_tup_del = 0
                   AND abs(c.reltuples - s.n_live_tup) <= :share * s.n_live_tup)
        ORDER BY 1"""),
        {"bytes": ANALYZE_BYTES, "share": CHANGED_SHARE},
    )
    for name, changed, live, never in rows:
        if never:
            message = "never analysed: the planner guesses, and may not use an index"
        elif changed >= CHANGED_ROWS and changed > CHANGED_SHARE * live:
            message = f"{changed:,} rows have changed since it was analysed, of {live:,}"
        else:
            continue
        yield Finding(
            "warning",
            "old-statistics",
            f"pgdefect.{name}",
            message,
            fix_command(),
            sql_repair(f"ANALYZE pgdefect.{name}"),
        )


def check_dead_rows(connection: Connection) -> Iterator[Finding]:
    """Tables with many dead rows, which HNSW searches walk through until a vacuum."""
    rows = connection.execute(
        text("""
        SELECT quote_ident(s.relname), s.n_dead_tup, s.n_live_tup,
               EXISTS (SELECT FROM pg_index x JOIN pg_class c ON c.oid = x.indexrelid
                       JOIN pg_am m ON m.oid = c.relam
                       WHERE x.indrelid = s.relid AND m.amname = 'hnsw')
        FROM pg_stat_user_tables s
        WHERE s.schemaname = 'pgdefect' AND s.n_dead_tup >= :rows
          AND s.n_dead_tup > :share * (s.n_live_tup + s.n_dead_tup)
        ORDER BY 1"""),
        {"rows": CHANGED_ROWS, "share": CHANGED_SHARE},
    )
    for name, dead, live, has_hnsw in rows:
        effect = "a search by HNSW walks through them" if has_hnsw else "they take space"
        yield Finding(
            "warning",
            "dead-rows",
            f"pgdefect.{name}",
            f"{dead:,} dead rows beside {live:,}: {effect} until a vacuum",
            fix_command(),
            sql_repair(f"VACUUM (ANALYZE) pgdefect.{name}"),
            "a transaction that began before may still see these rows (SELECT pid, xact_start, "
            "query FROM pg_stat_activity ORDER BY backend_xmin): try again when it has ended",
        )
