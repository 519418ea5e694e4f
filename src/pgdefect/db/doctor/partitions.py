"""Partitions: each belongs to a bank or an extractor, and those that are searched have an index.

What is expected is read from the catalog: every parent in schema ``pgdefect`` that is
partitioned by list, and the tables that are, were or look like its partitions.
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection, text

from pgdefect.core.wording import command
from pgdefect.db.doctor.findings import Finding, fix_command, psql, sql_repair
from pgdefect.db.schema.hnsw import HnswIndex, index_name
from pgdefect.db.schema.indexes import concurrently
from pgdefect.db.schema.partitions import (
    ALWAYS,
    PARENTS,
    SEARCHED,
    Leaf,
    leaves,
    present_indexes,
    unindexed,
    wanted_index,
)


def check_orphans(connection: Connection) -> Iterator[Finding]:
    """Partitions that no bank or extractor names, and those cut off from their parent."""
    for leaf in leaves(connection):
        if not leaf.owned:
            yield Finding(
                "fault",
                "orphaned-partition",
                f"pgdefect.{leaf.table}",
                f"{leaf.owner} does not exist; its table was left behind and takes space",
                fix_command(),
                sql_repair(*_cut_off(connection, leaf), f"DROP TABLE pgdefect.{leaf.table}"),
            )
        elif not leaf.attached:
            remedy = (
                command("delete", detector=leaf.number, yes=True)
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
    for parent, key in connection.execute(text(f"SELECT relname, key FROM ({PARENTS}) p")):
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
                f"{command('delete', detector=number, yes=True)}, then train the category again"
                if key == "bank_id"
                else psql(
                    f"CREATE TABLE pgdefect.{parent}_{number} PARTITION OF pgdefect.{parent} "
                    f"FOR VALUES IN ({number})"
                ),
            )


def check_hnsw(connection: Connection) -> Iterator[Finding]:
    """Searched partitions without an HNSW index; an invalid one is another check's."""
    for leaf, statement in unindexed(connection):
        yield Finding(
            "fault",
            "missing-hnsw",
            f"pgdefect.{leaf.table}",
            "no HNSW index: each search reads the whole table",
            fix_command() if statement else "pgdefect train the category again",
            sql_repair(concurrently(statement), f"ANALYZE pgdefect.{leaf.table}")
            if statement
            else None,
        )


def check_hnsw_definitions(connection: Connection) -> Iterator[Finding]:
    """HNSW indexes that training would build otherwise today: an older version built them.

    The repair builds the new one beside its users, then drops the old one; interrupted, it is
    found again, whatever it had come to. Indexes of other names are somebody's own.
    """
    for leaf in leaves(connection):
        if leaf.parent not in SEARCHED or leaf.vector is None or not (leaf.hnsw and leaf.owned):
            continue
        name = index_name(leaf.table)
        present, wanted = present_indexes(connection, leaf), wanted_index(connection, leaf)
        ours = {one: present[one] for one in (name, f"{name}_new") if one in present}
        if not ours or wanted is None or ours == {name: wanted}:
            continue
        have = ours.get(name, wanted)
        usable = have._replace(build=wanted.build) == wanted
        yield Finding(
            "warning" if usable else "fault",
            "hnsw-definition",
            f"pgdefect.{name}",
            f"built as {have}, and this pgdefect builds {wanted}: "
            + (
                "searches are slower or find less"
                if usable
                else "no search can use it, and each reads the whole table"
            )
            if have != wanted
            else "a rebuild was interrupted before its last step",
            fix_command(),
            sql_repair(*_rebuild(leaf, name, wanted, {n for n, o in ours.items() if o == wanted})),
        )


def _rebuild(leaf: Leaf, name: str, wanted: HnswIndex, ready: set[str]) -> list[str]:
    """Statements after which the index called `name` is the wanted one, and alone.

    Args:
        ready: the indexes, of this name and of `name`_new, that are as wanted.
    """
    new = f"{name}_new"
    if name in ready:
        return [f"DROP INDEX CONCURRENTLY IF EXISTS pgdefect.{new}"]
    build = [
        f"DROP INDEX CONCURRENTLY IF EXISTS pgdefect.{new}",
        concurrently(wanted.create(leaf.table, new)),
    ]
    return [
        *(build if new not in ready else []),
        f"DROP INDEX CONCURRENTLY IF EXISTS pgdefect.{name}",
        f"ALTER INDEX pgdefect.{new} RENAME TO {name}",
        f"ANALYZE pgdefect.{leaf.table}",
    ]
