"""Partitions: a table for each bank or extractor, and the HNSW index that each has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from sqlalchemy import Connection, text

from pgdefect.core.distance import metric_named
from pgdefect.db.connection.engine import is_locked
from pgdefect.db.schema.hnsw import (
    PGVECTOR_DEFAULT,
    Build,
    HnswIndex,
    bank_index,
    extractor_index,
)

SEARCHED = {"memory_bank_patch", "image_embedding", "defect_embedding", "defect_region"}
"""Parents whose vectors are searched by HNSW: each partition needs a valid index."""
UNSEARCHED = {"memory_bank_raw"}
"""Parents with vectors that no search touches."""
ALWAYS = {"memory_bank_patch", "image_embedding"}
"""Parents that have a partition for every bank, or every extractor."""


class Leaf(NamedTuple):
    """A table that is a partition, or was one: its name says of which parent and number.

    Attributes:
        owned: whether the bank or extractor of that number exists.
        vector: its first column of vectors and that one's type.
        dim: how long they are, where a CHECK gives it.
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


PARENTS = """
    SELECT c.oid, c.relname, a.attname AS key
    FROM pg_partitioned_table p
    JOIN pg_class c ON c.oid = p.partrelid
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = p.partattrs[0]
    WHERE c.relnamespace = 'pgdefect'::regnamespace AND p.partstrat = 'l'
      AND a.attname IN ('bank_id', 'extractor_id')"""

_LEAVES = f"""
WITH parent AS ({PARENTS}), leaf AS (
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


def unindexed(connection: Connection) -> Iterator[tuple[Leaf, str | None]]:
    """Searched partitions that have no HNSW index, not even an invalid one, and what makes it.

    None stands for the statement where a partition's dimension is unknown. A partition that is
    being loaded gets its index at the end of that.
    """
    for leaf in leaves(connection):
        if leaf.parent not in SEARCHED or leaf.vector is None or leaf.hnsw or not leaf.owned:
            continue
        if leaf.parent == "image_embedding" and is_locked(connection, loading(leaf.number)):
            continue
        wanted = wanted_index(connection, leaf)
        yield leaf, wanted and wanted.create(leaf.table)


def loading(extractor_id: int) -> str:
    """What the lock is called that a load of image embeddings holds."""
    return f"loading embeddings of extractor {extractor_id}"


def wanted_index(connection: Connection, leaf: Leaf) -> HnswIndex | None:
    """A partition's index as training would make it; None where its dimension is unknown."""
    dim = leaf.dim or connection.scalar(
        text(f"SELECT vector_dims({leaf.vector}) FROM pgdefect.{leaf.table} LIMIT 1")
    )
    if dim is None:
        return None
    if leaf.key != "bank_id":
        return extractor_index(dim)
    kind, metric = connection.execute(
        text("SELECT indexed_type, metric FROM pgdefect.memory_bank WHERE id = :id"),
        {"id": leaf.number},
    ).one()
    return bank_index(kind, dim, metric_named(metric))


_DEFINITIONS = """
SELECT c.relname, substring(pg_get_expr(x.indexprs, x.indrelid) FROM '(halfvec|vector)\\('),
       substring(pg_get_expr(x.indexprs, x.indrelid) FROM '\\((\\d+)\\)')::integer, o.opcname,
       coalesce((SELECT option_value FROM pg_options_to_table(c.reloptions)
                 WHERE option_name = 'm')::integer, :m),
       coalesce((SELECT option_value FROM pg_options_to_table(c.reloptions)
                 WHERE option_name = 'ef_construction')::integer, :ef_construction)
FROM pg_index x
JOIN pg_class c ON c.oid = x.indexrelid
JOIN pg_am a ON a.oid = c.relam
JOIN pg_opclass o ON o.oid = x.indclass[0]
WHERE x.indrelid = to_regclass(:table) AND a.amname = 'hnsw' AND x.indisvalid
  AND x.indexprs IS NOT NULL"""


def present_indexes(connection: Connection, leaf: Leaf) -> dict[str, HnswIndex]:
    """The valid HNSW indexes of a partition that are over a cast of its vectors, by name."""
    parameters = {"table": f"pgdefect.{leaf.table}"} | PGVECTOR_DEFAULT._asdict()
    return {
        name: HnswIndex(kind, dim, operator_class, Build(m, ef_construction))
        for name, kind, dim, operator_class, m, ef_construction in connection.execute(
            text(_DEFINITIONS), parameters
        )
    }
