"""Nearest neighbors among stored images: by picture, by defect, by region, under filters."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Literal

import numpy as np
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb

from pgdefect.core.errors import NotFound
from pgdefect.core.types import Float32, Label, Neighbor, Region, SearchBy, StoredImage
from pgdefect.db.connection.engine import Database, Vector, driver
from pgdefect.db.search.queries import STORED_IMAGE, stored_image

_REGION = "g.id, g.x, g.y, g.width, g.height, g.peak_score, g.mean_score, g.area, g.num_patches"
_REGION_WIDTH = 9


@dataclass(frozen=True)
class SearchFilter:
    """Which stored images a search may return; None does not restrict.

    Attributes:
        label, defect_type: the known ones, a review's before the data set's.
        has_defect_type: only images whose defect type is known.
        since, until: stored at or after, stored before.
        attributes: what an image's attributes contain.
        max_distance: a cosine distance, 0 to 2.
        except_images, except_sha256: left out with all copies of their files.
        except_part: so is every image of a part that `except_images` show. Images with simulated
            defects are found only if `simulated`, or by `split`.
    """

    category: str | None = None
    label: Label | str | None = None
    defect_type: str | None = None
    has_defect_type: bool = False
    split: str | None = None
    part: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    attributes: dict[str, Any] | None = None
    max_distance: float | None = None
    except_images: tuple[int, ...] = ()
    except_part: bool = False
    except_sha256: tuple[str, ...] = ()
    simulated: bool = False

    def to_json(self) -> dict[str, Any]:
        """What differs from no restriction, as `pgdefect.nearest` takes it."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("since", "until"):
            if found[name] is not None:
                found[name] = found[name].astimezone().isoformat()
        return {name: value for name, value in found.items() if value not in (None, False, ())}


@dataclass(frozen=True)
class SearchPlan:
    """How a search goes and why: along the index, or over all rows that pass the filter.

    Attributes:
        scanned: rows that pass, estimated by the server unless `counted`, up to a bound.
        walked: vectors that the index would visit, estimated, each at `walk_cost` times a scanned
            one's cost.
        table_rows: all of `partition`'s.
    """

    way: Literal["index", "exact"]
    partition: str
    table_rows: int
    scanned: int
    counted: bool
    walked: int
    walk_cost: int
    ef_search: int
    condition: str

    def __str__(self) -> str:
        passing = f"{'' if self.counted else 'about '}{self.scanned:,} of {self.table_rows:,} rows"
        walk = (
            f"about {self.walked:,} vectors, each costing as much as {self.walk_cost} scanned rows"
        )
        if self.way == "exact":
            return (
                f"exact scan of {self.partition}: {passing} pass the filter; "
                f"a walk along the index would visit {walk}"
            )
        return (
            f"index {self.partition}_hnsw with ef_search {self.ef_search}: {passing} pass the "
            f"filter; the walk visits {walk}"
        )


@dataclass(frozen=True)
class StoredRegion:
    """A stored region with its image and embedding `(embedding_dim,)`."""

    region: Region
    image: StoredImage
    extractor_id: int
    embedding: Float32


def nearest(
    database: Database,
    by: SearchBy,
    extractor_id: int,
    query: Float32,
    k: int,
    where: SearchFilter,
    *,
    exact: bool = False,
    fold: bool = True,
) -> list[Neighbor]:
    """The k stored images nearest to a vector `(dim,)` of one extractor, nearest first.

    Always k where k pass the filter; with `fold` near-duplicates, of one file, of one part or
    with the same vector, count as one.

    Raises:
        NotFound: there is no such extractor, or it has made no defect embeddings yet;
        Conflict: the query has another number of dimensions.
    """
    with database.connect() as connection:
        rows = driver(connection).execute(
            f"SELECT n.distance, n.copies, {_REGION}, {STORED_IMAGE} "
            "JOIN pgdefect.nearest(%s, %s, %s, %s, %s, %s, %s) WITH ORDINALITY "
            "n(image_id, region_id, distance, copies, rank) ON n.image_id = i.id "
            "LEFT JOIN pgdefect.defect_region g "
            "ON g.extractor_id = %s AND g.id = n.region_id ORDER BY n.rank",
            [
                by,
                extractor_id,
                Vector(query),
                k,
                Jsonb(where.to_json()),
                exact,
                fold,
                extractor_id,
            ],
            binary=True,
        )
        return [
            Neighbor(
                rank,
                stored_image(row[2 + _REGION_WIDTH :]),
                row[0],
                _region(row[2 : 2 + _REGION_WIDTH]),
                row[1],
            )
            for rank, row in enumerate(rows.fetchall(), start=1)
        ]


def explain_nearest(
    database: Database,
    by: SearchBy,
    extractor_id: int,
    k: int,
    where: SearchFilter,
    *,
    exact: bool = False,
    fold: bool = True,
) -> SearchPlan:
    """How `nearest` goes about the same question; raises as it does."""
    with database.connect() as connection:
        row = (
            driver(connection)
            .execute(
                "SELECT way, partition, table_rows, scanned, counted, walked, walk_cost, "
                "ef_search, condition FROM "
                "pgdefect.search_plan(%s, %s, %s, %s, %s, %s, count => true)",
                [by, extractor_id, k, Jsonb(_without_distance(where)), exact, fold],
            )
            .fetchone()
        )
    assert row is not None
    return SearchPlan(*row)


@dataclass(frozen=True)
class MissingEmbeddings:
    """Stored images that a search cannot list, because what it compares was not made of them.

    Attributes:
        missing: how many of the newest images `looked_at`.
        categories: whose they are.
    """

    missing: int
    looked_at: int
    categories: tuple[str, ...]


def missing_embeddings(
    database: Database, by: SearchBy, extractor_id: int, category: str | None
) -> MissingEmbeddings:
    """What a search among the images of a category, or of all with this extractor, cannot list."""
    with database.connect() as connection:
        row = (
            driver(connection)
            .execute(
                "SELECT missing, looked_at, categories "
                "FROM pgdefect.missing_embeddings(%s, %s, %s)",
                [by, extractor_id, category],
            )
            .fetchone()
        )
    assert row is not None
    return MissingEmbeddings(row[0], row[1], tuple(row[2] or ()))


def stored_region(database: Database, region_id: int) -> StoredRegion:
    """A region by its id. Raises NotFound."""
    with database.connect() as connection:
        row = (
            driver(connection)
            .execute(
                f"SELECT g.extractor_id, g.embedding::real[], {_REGION}, {STORED_IMAGE} "
                "JOIN pgdefect.defect_region g ON g.image_id = i.id WHERE g.id = %s",
                [region_id],
                binary=True,
            )
            .fetchone()
        )
    if row is None:
        raise NotFound(
            f"there is no region {region_id}; pgdefect inspect stores those of anomalous images"
        )
    region = _region(row[2 : 2 + _REGION_WIDTH])
    assert region is not None
    return StoredRegion(
        region,
        stored_image(row[2 + _REGION_WIDTH :]),
        row[0],
        np.asarray(row[1], dtype=np.float32),
    )


def _without_distance(where: SearchFilter) -> dict[str, Any]:
    return {name: value for name, value in where.to_json().items() if name != "max_distance"}


def _region(row: TupleRow) -> Region | None:
    if row[0] is None:
        return None
    return Region(row[0], tuple(row[1:5]), *row[5:])
