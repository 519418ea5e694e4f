"""Nearest normal patches of an image: in the database, or in memory. One interface, two ways.

Both give the same image score: a distance to what the HNSW index finds is an upper bound of the
true one, and the largest are looked up exactly until those that make the image score are proven.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, Protocol

import numpy as np

from pgdefect.core.distance import Metric, nearest_vectors, row_distances
from pgdefect.core.errors import NotFound
from pgdefect.core.types import BankInfo, Float32, Int32, PatchScores
from pgdefect.db.connection.engine import Database
from pgdefect.db.search.queries import (
    bank_vectors,
    every_other,
    near_vectors,
    prove_worst,
    read_bank,
    support_positions,
)
from pgdefect.vision.patchcore.scoring import reweighted

__all__ = ["BankSearch", "PatchSearch", "SqlSearch", "open_search", "score_image"]

SearchKind = Literal["hnsw", "fast", "exact"]


class PatchSearch(Protocol):
    """Finds the nearest bank vector of transformed patches; safe to call from threads."""

    metric: Metric
    num_neighbors: int
    worst_share: float

    def nearest(
        self, vectors: Float32, grid: tuple[int, int], num_threads: int = 1
    ) -> tuple[Int32, Float32]:
        """Positions and distances `(n,)` for patches `(n, dim)` of one image of `grid` patches.

        The distances that the image score is made of are exact; smaller ones may be upper bounds.
        """
        ...

    def support(self, position: int) -> Float32:
        """The `num_neighbors` bank vectors nearest to one of the bank, itself first."""
        ...


class SqlSearch:
    """Searches the bank's HNSW index; the right way for one image or a few.

    Every other patch is asked for, like the black squares of a chessboard, and all of an image
    are compared with whatever was found for any: patches side by side resemble one another.

    ef: HNSW's candidate list, all of which is taken; None takes the bank's calibrated one.
    """

    def __init__(self, database: Database, bank: BankInfo, ef: int | None = None) -> None:
        self.database = database
        self.bank = bank
        self.ef = ef
        self.metric = bank.metric
        self.num_neighbors = bank.num_neighbors
        self.worst_share = bank.worst_share

    def nearest(
        self, vectors: Float32, grid: tuple[int, int], num_threads: int = 1
    ) -> tuple[Int32, Float32]:
        asked = every_other(grid)

        def search(part: slice) -> tuple[Int32, Float32]:
            with self.database.connect() as connection:
                return near_vectors(connection, self.bank, vectors[asked[part]], ef=self.ef)

        found = _in_parts(search, len(asked), num_threads)
        candidates, first = np.unique(
            np.concatenate([positions for positions, _ in found]), return_index=True
        )
        near = np.concatenate([near for _, near in found])[first]
        nearest, distances = nearest_vectors(vectors, near, self.metric)
        with self.database.connect() as connection:
            return prove_worst(
                connection,
                self.bank,
                vectors,
                candidates[nearest],
                distances,
                num_worst=count_worst(self.worst_share, len(vectors)),
            )

    def support(self, position: int) -> Float32:
        with self.database.connect() as connection:
            found = support_positions(connection, self.bank, position, self.bank.num_neighbors)
            return bank_vectors(connection, self.bank, found)


class BankSearch:
    """Compares with every vector of a bank in memory; the right way for many images.

    vectors: `(num_vectors, dim)`, as stored.
    """

    def __init__(
        self, vectors: Float32, metric: Metric, num_neighbors: int, worst_share: float = 0.0
    ) -> None:
        self.vectors = vectors
        self.metric = metric
        self.num_neighbors = num_neighbors
        self.worst_share = worst_share

    def nearest(
        self, vectors: Float32, grid: tuple[int, int], num_threads: int = 1
    ) -> tuple[Int32, Float32]:
        def search(part: slice) -> tuple[Int32, Float32]:
            return nearest_vectors(vectors[part], self.vectors, self.metric)

        found = _in_parts(search, len(vectors), num_threads)
        positions = np.empty(len(vectors), dtype=np.int32)
        distances = np.empty(len(vectors), dtype=np.float32)
        for part, (some, apart) in enumerate(found):
            positions[part :: len(found)], distances[part :: len(found)] = some, apart
        return positions, distances

    def support(self, position: int) -> Float32:
        one = np.broadcast_to(self.vectors[position], self.vectors.shape)
        distances = row_distances(one, self.vectors, self.metric)
        distances[position] = -1.0
        return self.vectors[np.argsort(distances, kind="stable")[: self.num_neighbors]]


def open_search(database: Database, bank: BankInfo, kind: SearchKind) -> PatchSearch:
    """A search over a stored bank; ``exact`` loads it.

    ``fast`` and ``hnsw`` differ in how many patches get their true nearest vector (recall
    0.95 and 0.99 at calibration), so in the anomaly map; the image score is the same.

    Raises:
        NotFound: where the bank in the database is not whole any more.
    """
    if kind == "hnsw":
        return SqlSearch(database, bank)
    if kind == "fast":
        return SqlSearch(database, bank, bank.ef_search_fast)
    vectors = read_bank(database, bank)
    if len(vectors) != bank.num_vectors:
        raise NotFound(
            f"memory bank {bank.id} has {len(vectors):,} of {bank.num_vectors:,} vectors; "
            "it was deleted in the meantime"
        )
    return BankSearch(vectors, bank.metric, bank.num_neighbors, bank.worst_share)


def count_worst(share: float, num_patches: int) -> int:
    """How many of an image's patches its score is the mean of."""
    return max(1, round(share * num_patches))


def score_image(
    search: PatchSearch, vectors: Float32, grid: tuple[int, int], num_threads: int = 1
) -> PatchScores:
    """Score an image from its transformed patches `(rows * cols, dim)`.

    Same rule in SQL: defect.inspect.
    """
    positions, distances = search.nearest(vectors, grid, num_threads)
    worst = int(distances.argmax())
    num_worst = count_worst(search.worst_share, len(distances))
    score = float(np.sort(distances)[-num_worst:].mean(dtype=np.float64))
    if search.num_neighbors > 1:
        support = search.support(int(positions[worst]))
        query = np.broadcast_to(vectors[worst], support.shape)
        score = reweighted(score, row_distances(query, support, search.metric), search.metric)
    row, col = divmod(worst, grid[1])
    return PatchScores(distances.reshape(grid), positions.reshape(grid), row, col, score)


def _in_parts(
    search: Callable[[slice], tuple[Int32, Float32]], num_patches: int, num_threads: int
) -> list[tuple[Int32, Float32]]:
    """Search parts of one image's patches at once, each on a connection or core of its own."""
    num_parts = max(1, min(num_threads, num_patches))
    # Every so many: neighbors are alike, and a part of hard ones would take longest.
    parts = [slice(part, None, num_parts) for part in range(num_parts)]
    with ThreadPoolExecutor(num_parts, "pgdefect-part") as pool:
        others = [pool.submit(search, part) for part in parts[1:]]
        return [search(parts[0]), *(other.result() for other in others)]
