"""Exact k-center greedy selection at matrix-product speed.

Greedy k-center (Gonzalez 1985; Sener & Savarese, arXiv 1708.00489) picks, again and
again, the point farthest from everything picked so far. Done plainly, each pick costs a
pass over all points, which is bound by memory. The same sequence is cheap because:

- Distances to the picks only shrink, so a distance computed long ago is an upper bound.
  Only the points with the largest bounds can be picked next and are brought up to date;
  what is already covered closer than the final radius stays stale for good.
- Picks are made from one small distance matrix of such candidates for as long as the
  best of them is at least as far as the largest bound outside.
- A stale point catches up with all the picks it missed in one matrix product.

Squared distances are ``|x|² - 2 x·c + |c|²`` in float32. Centring the data leaves them as
they are and keeps the cancellation small, but points nearer to each other than about a
thousandth of their distance from the mean are ordered by rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from pgdefect.core.errors import MissingExtra
from pgdefect.core.threads import one_blas_thread_each
from pgdefect.core.types import Float32

if TYPE_CHECKING:
    import torch

__all__ = ["CoresetResult", "k_center_greedy"]

_Indices = npt.NDArray[np.int64]

# Measured on 102,400 patch embeddings of 152 and 65 dimensions: half or double of each
# costs up to 25 %. A block of products (1 MiB) stays in a core's L2 cache.
_ROWS = 512
_CENTERS = 512
_CANDIDATES = 1024
_PICKED = np.float32(-np.inf)


@dataclass(frozen=True, slots=True, eq=False)
class CoresetResult:
    """The picks in the order they were made, and how well they cover the data.

    ``indices``: int64, ``(num_centers,)``, distinct rows of the embeddings; every prefix
    is the coreset of that size. ``covering_radius``: the largest Euclidean distance of
    any row to its nearest pick.
    """

    indices: _Indices
    covering_radius: float


def k_center_greedy(
    embeddings: npt.NDArray[Any],
    num_centers: int,
    *,
    seed: int = 0,
    first: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    device: str | None = None,
) -> CoresetResult:
    """Pick ``num_centers`` rows, each the farthest from those before it.

    ``embeddings``: ``(num_points, embedding_dim)``, any real dtype, in memory or mapped
    from a file; computed in float32, converted block by block and never copied whole.
    The first pick is ``first``, or drawn with ``seed``; the rest follow, so that equal
    arguments give equal results (on another machine, up to ties within float32 rounding).
    Among equal rows each is picked once all others are covered: indices never repeat.

    Beyond the input it needs about 24 bytes a point, ``4 (embedding_dim + 1)`` a
    center, and blocks: 6 MiB and 2 MiB a thread at 152 dimensions.

    ``progress(done, total)`` is called after every block of picks and ends with
    ``(num_centers, num_centers)``. ``device`` names a torch device (``"cuda"``) for the
    matrix products; without it NumPy computes them and torch is not needed.

    Raises:
        ValueError: for embeddings that are not a matrix of finite numbers, or are too large to
            square in float32 (about 1e17), and for ``num_centers`` outside 1…num_points;
            MissingExtra if ``device`` is given and torch is not installed.
    """
    _check(embeddings, num_centers)
    points = _Points(embeddings)
    if device is None:
        products: _Products = _NumpyProducts(num_centers, points.dim)
        threads = one_blas_thread_each()
    else:
        products = _TorchProducts(num_centers, points.dim, device)
        threads = _full_precision()
    with threads as num_workers, ThreadPoolExecutor(num_workers) as pool:
        return _Selection(points, products, num_centers, num_workers, pool).run(
            int(np.random.default_rng(seed).integers(points.size)) if first is None else first,
            progress,
        )


def _check(embeddings: npt.NDArray[Any], num_centers: int) -> None:
    if embeddings.ndim != 2 or embeddings.shape[1] == 0:
        raise ValueError(
            f"embeddings must be (num_points, embedding_dim), got shape {embeddings.shape}"
        )
    if embeddings.dtype.kind not in "fiu":
        raise ValueError(f"embeddings must be real numbers, got dtype {embeddings.dtype}")
    if not 1 <= num_centers <= len(embeddings):
        raise ValueError(
            f"num_centers must lie between 1 and the number of points, {len(embeddings)}, "
            f"got {num_centers}"
        )


class _Points:
    """Centred float32 rows of the embeddings, read on demand."""

    def __init__(self, embeddings: npt.NDArray[Any]) -> None:
        self.embeddings = embeddings
        self.size, self.dim = embeddings.shape
        limit = float(np.sqrt(np.finfo(np.float32).max / (16 * self.dim)))
        total = np.zeros(self.dim)
        for start in range(0, self.size, _ROWS):
            block = embeddings[start : start + _ROWS]
            if not -limit <= float(block.min()) <= float(block.max()) <= limit:
                row = start + int(np.argmin((np.abs(block.astype(float)) <= limit).all(axis=1)))
                raise ValueError(
                    f"embeddings must be finite and at most {limit:.1g} in size, so that "
                    f"float32 holds their squared distances; row {row} is not"
                )
            block = block.astype(np.float32, copy=False)
            total += np.ones(len(block), dtype=np.float32) @ block
        self.mean = (total / self.size).astype(np.float32)

    def load(self, indices: _Indices, out: Float32) -> Float32:
        """Write the rows to the leading columns of ``out``; their squared norms."""
        rows = out[:, : self.dim]
        np.subtract(self.embeddings[indices], self.mean, out=rows, casting="same_kind")
        norms: Float32 = np.einsum("ij,ij->i", rows, rows)
        return norms

    def distance_to_nearest(self, index: int, centers: _Indices) -> float:
        """Euclidean, by differences in float64."""
        point = self.embeddings[index].astype(np.float64)
        nearest = np.inf
        for start in range(0, len(centers), _ROWS):
            block = self.embeddings[centers[start : start + _ROWS]] - point
            nearest = min(nearest, float(np.einsum("ij,ij->i", block, block).min()))
        return float(np.sqrt(nearest))


class _Products(Protocol):
    """Products of rows ``(x, 1)`` with the centers so far, ``(-2c, |c|²)``."""

    def append(self, centers: Float32) -> None: ...

    def smallest(self, rows: Float32, first: int) -> Float32:
        """For each row the smallest product with the centers from ``first`` on."""
        ...


class _NumpyProducts:
    def __init__(self, num_centers: int, dim: int) -> None:
        self._centers = np.empty((num_centers, dim + 1), dtype=np.float32)
        self._size = 0

    def append(self, centers: Float32) -> None:
        self._centers[self._size : self._size + len(centers)] = centers
        self._size += len(centers)

    def smallest(self, rows: Float32, first: int) -> Float32:
        smallest = np.full(len(rows), np.inf, dtype=np.float32)
        buffer = np.empty(min(_CENTERS, self._size - first) * len(rows), dtype=np.float32)
        for start in range(first, self._size, _CENTERS):
            centers = self._centers[start : min(start + _CENTERS, self._size)]
            # Centers by rows: NumPy reduces the first axis several times faster.
            block = buffer[: len(centers) * len(rows)].reshape(len(centers), len(rows))
            np.matmul(centers, rows.T, out=block)
            np.minimum(smallest, block.min(axis=0), out=smallest)
        return smallest


class _TorchProducts:
    def __init__(self, num_centers: int, dim: int, device: str) -> None:
        self._centers = _torch().empty((num_centers, dim + 1), device=device)
        self._size = 0

    def append(self, centers: Float32) -> None:
        stop = self._size + len(centers)
        self._centers[self._size : stop] = self._put(centers)
        self._size = stop

    def smallest(self, rows: Float32, first: int) -> Float32:
        columns = self._put(rows).T
        blocks = self._centers[first : self._size].split(8 * _CENTERS)
        smallest = [(centers @ columns).amin(dim=0) for centers in blocks]
        result: Float32 = _torch().stack(smallest).amin(dim=0).cpu().numpy()
        return result

    def _put(self, array: Float32) -> torch.Tensor:
        tensor: torch.Tensor = _torch().from_numpy(array)
        return tensor.to(self._centers.device)


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingExtra("selecting a coreset on a device", "torch", "train") from error
    return torch


@contextmanager
def _full_precision() -> Iterator[int]:
    """Keep torch from rounding float32 products to TF32 or bfloat16."""
    torch = _torch()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield 1
    finally:
        torch.set_float32_matmul_precision(before)


class _Selection:
    """One run's state: an upper bound of each point's squared distance to the picks.

    ``_bounds[i]`` accounts for the first ``_seen[i]`` picks; a picked point's is -inf.
    """

    def __init__(
        self,
        points: _Points,
        products: _Products,
        num_centers: int,
        num_workers: int,
        pool: ThreadPoolExecutor,
    ) -> None:
        self._num_workers = num_workers
        self._pool = pool
        self._points = points
        self._products = products
        self._bounds = np.full(points.size, np.inf, dtype=np.float32)
        self._seen = np.zeros(points.size, dtype=np.int32)
        self._picks = np.empty(num_centers, dtype=np.int64)
        self._done = 0

    def run(self, first: int, progress: Callable[[int, int], None] | None) -> CoresetResult:
        num_centers = len(self._picks)
        report = progress or (lambda done, total: None)
        self._add(np.array([first]))
        self._refresh(np.arange(self._points.size))
        # Points at equal distance differ by rounding; without slack, many would fall
        # below the bound outside and be picked one at a time.
        slack = float(np.finfo(np.float32).eps) * max(float(self._bounds.max()), 0.0)
        report(self._done, num_centers)

        num_refresh = _CANDIDATES
        while self._done < num_centers:
            floor, stale = self._largest(num_refresh)
            self._refresh(stale)
            candidates = stale[self._bounds[stale] >= floor]
            if len(candidates) < 0.7 * _CANDIDATES:
                num_refresh = min(self._points.size, num_refresh * 3 // 2)
            elif len(candidates) > 1.2 * _CANDIDATES:
                num_refresh = max(_CANDIDATES, num_refresh * 2 // 3)
            if len(candidates) > _CANDIDATES:
                bounds = self._bounds[candidates]
                order = np.argpartition(bounds, -_CANDIDATES - 1)
                floor = max(floor, float(bounds[order[-_CANDIDATES - 1]]))
                candidates = candidates[order[-_CANDIDATES:]]
            if len(candidates):
                self._pick_among(candidates, floor - slack)
                report(self._done, num_centers)
        return CoresetResult(self._picks, self._covering_radius())

    def _largest(self, count: int) -> tuple[float, _Indices]:
        """The unpicked points with the ``count`` largest bounds; the largest elsewhere."""
        size = self._points.size
        split = size - min(count, size - self._done)
        order = np.argpartition(self._bounds, split - 1)
        return float(self._bounds[order[split - 1]]), order[split:]

    def _refresh(self, indices: _Indices) -> None:
        """Bring bounds up to date with all picks."""
        # Sorted, a block's points have missed about the same picks: one range serves all,
        # and a pick applied twice does no harm.
        indices = indices[np.argsort(self._seen[indices], kind="stable")]
        size = min(_ROWS, max(_ROWS // 4, len(indices) // (2 * self._num_workers)))
        blocks = iter([indices[start : start + size] for start in range(0, len(indices), size)])

        def work(_: int) -> None:
            rows = np.ones((size, self._points.dim + 1), dtype=np.float32)
            for block in blocks:
                self._refresh_block(block, rows[: len(block)])

        if self._num_workers > 1 and len(indices) > size:
            list(self._pool.map(work, range(self._num_workers)))
        else:
            work(0)
        self._seen[indices] = self._done

    def _refresh_block(self, block: _Indices, rows: Float32) -> None:
        first = int(self._seen[block[0]])
        if first == self._done:
            return
        distances = self._points.load(block, rows)
        distances += self._products.smallest(rows, first)
        np.maximum(distances, 0, out=distances)
        self._bounds[block] = np.minimum(self._bounds[block], distances)

    def _pick_among(self, candidates: _Indices, floor: float) -> None:
        """Pick from up-to-date candidates until the best is nearer than ``floor``."""
        distances = self._squared_distances(candidates)
        bounds = self._bounds[candidates]
        picks: list[int] = []
        while len(picks) < len(self._picks) - self._done:
            best = int(bounds.argmax())
            if bounds[best] < floor or bounds[best] == _PICKED:
                break
            picks.append(best)
            np.minimum(bounds, distances[best], out=bounds)
            bounds[best] = _PICKED
        self._bounds[candidates] = bounds
        self._add(candidates[picks])
        self._seen[candidates] = self._done

    def _squared_distances(self, indices: _Indices) -> Float32:
        rows = np.ones((len(indices), self._points.dim + 1), dtype=np.float32)
        norms = self._points.load(indices, rows)
        distances = _as_centers(rows, norms) @ rows.T
        distances += norms
        np.maximum(distances, 0, out=distances)
        return distances

    def _add(self, picks: _Indices) -> None:
        rows = np.ones((len(picks), self._points.dim + 1), dtype=np.float32)
        norms = self._points.load(picks, rows)
        self._products.append(_as_centers(rows, norms))
        self._picks[self._done : self._done + len(picks)] = picks
        self._done += len(picks)
        self._bounds[picks] = _PICKED

    def _covering_radius(self) -> float:
        if self._done == self._points.size:
            return 0.0
        while True:
            floor, stale = self._largest(_ROWS)
            self._refresh(stale)
            farthest = int(stale[self._bounds[stale].argmax()])
            if self._bounds[farthest] >= floor:
                break
        return self._points.distance_to_nearest(farthest, self._picks)


def _as_centers(rows: Float32, norms: Float32) -> Float32:
    """``(-2x, |x|²)``: its product with ``(y, 1)`` is the squared distance less ``|y|²``."""
    centers = rows * np.float32(-2)
    centers[:, -1] = norms
    return centers
