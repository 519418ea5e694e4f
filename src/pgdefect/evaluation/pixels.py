"""Pixel figures in bounded memory: every image becomes three short rows of counts.

Scores are counted in a few thousand bins. Half of them are equally wide; a quarter holds
equal shares of all map cells, which resolves the bulk where outliers stretch the range; in
the last quarter the share of cells above shrinks by a constant factor from bin to bin, which
resolves the upper tail, where thresholds lie. What binning can change is not guessed but
bounded from the counts, see `PixelFigures.error`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pgdefect.evaluation import curves
from pgdefect.evaluation.figures import f1_max, image_auroc, require

__all__ = ["BINS", "FPR_LIMIT", "ImagePixels", "PixelCounts", "PixelFigures", "score_edges"]

FPR_LIMIT = 0.3
BINS = 8192
_TAIL = 1e-7
_MOST_CELLS = 4_000_000
_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=np.int8)


def score_edges(maps: Iterable[NDArray[np.floating]], bins: int = BINS) -> NDArray[np.float32]:
    """Borders between bins, ascending float32 `(at most bins - 1,)`, from all anomaly maps."""
    cells = np.concatenate([np.asarray(m, dtype=np.float32).reshape(-1) for m in maps])
    cells = np.sort(cells[:: -(-len(cells) // _MOST_CELLS)])
    wide = np.linspace(cells[0], cells[-1], bins // 2)
    below = np.linspace(0.0, 1.0, bins // 4, endpoint=False)
    above = np.geomspace(1.0, _TAIL, bins - len(wide) - len(below) - 1)
    # Interpolated between the cells' scores: pixels have scores in between.
    levels = np.concatenate([below, 1.0 - above]) * (len(cells) - 1)
    shares = np.interp(levels, np.arange(len(cells)), cells)
    return np.unique(np.concatenate([wide, shares]).astype(np.float32))


@dataclass(frozen=True)
class PixelFigures:
    """The pixel figures of a set of images.

    Attributes:
        error: no figure is further than this from the one over unbinned scores. Within a bin the
            true ROC and PRO curves stay in the rectangle between its corners, so that the area is
            off by half the rectangles' at most; F1 at the bins' edges is reached, and inside a bin
            it could at best gain all its defective and none of its normal pixels.
    """

    pixel_auroc: float
    pixel_f1_max: float
    pixel_f1_max_threshold: float
    aupro: float
    error: float


@dataclass(frozen=True)
class ImagePixels:
    """One image's counts `(bins,)`: of its normal pixels, of its defective pixels, and of the
    summed fractions of its defect regions; and how many regions it has.
    """

    normal: NDArray[np.float32]
    defective: NDArray[np.float32]
    overlap: NDArray[np.float32]
    regions: int


class PixelCounts:
    """Counts of pixel scores, image by image."""

    def __init__(self, edges: NDArray[np.float32]) -> None:
        require("pixel figures", "scipy")
        self.edges = edges
        self.bins = len(edges) + 1
        self._images: list[ImagePixels] = []
        self._totals = [np.zeros(self.bins) for _ in range(3)]

    def count(self, scores: NDArray[np.floating], mask: NDArray[np.bool_] | None) -> ImagePixels:
        """Count one image: `scores` and `mask`, both `(height, width)`; None: all normal.

        Regions are the mask's connected components, diagonal neighbors included, as in
        MVTec's and anomalib's AUPRO. An empty mask has none. Changes nothing, so that several
        threads can count.
        """
        from scipy.ndimage import label

        bins = np.searchsorted(self.edges, scores.astype(np.float32, copy=False), side="right")
        normal = np.bincount((bins if mask is None else bins[~mask]).reshape(-1), None, self.bins)
        none = np.zeros(self.bins, dtype=np.float32)
        if mask is None or not mask.any():
            return ImagePixels(normal.astype(np.float32), none, none, 0)
        labels, regions = label(mask, structure=_EIGHT_NEIGHBOURS)
        region, inside = labels[mask], bins[mask]
        share = 1.0 / np.bincount(region, minlength=regions + 1).clip(1)
        return ImagePixels(
            normal.astype(np.float32),
            np.bincount(inside, None, self.bins).astype(np.float32),
            np.bincount(inside, share[region], self.bins).astype(np.float32),
            int(regions),
        )

    def add(self, image: ImagePixels) -> None:
        """Take one image's counts in."""
        self._images.append(image)
        for total, row in zip(
            self._totals, (image.normal, image.defective, image.overlap), strict=True
        ):
            total += row

    def __len__(self) -> int:
        return len(self._images)

    @property
    def has_both(self) -> bool:
        """Whether there are normal and defective pixels."""
        return bool(self._totals[0].any() and self._totals[1].any())

    def summed(
        self, groups: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Normal, defective and overlap counts of groups of images, each `(groups, bins)`.

        `groups` `(images,)` numbers each image's group from 0, in the order of adding.
        """
        shape = (int(groups.max()) + 1, self.bins)
        normal, defective, overlap = (np.zeros(shape, dtype=np.float32) for _ in range(3))
        for group, image in zip(groups, self._images, strict=True):
            normal[group] += image.normal
            defective[group] += image.defective
            overlap[group] += image.overlap
        return normal, defective, overlap

    @property
    def regions(self) -> NDArray[np.float64]:
        """Defect regions of each image, `(images,)`."""
        return np.array([image.regions for image in self._images], dtype=np.float64)

    def figures(self) -> PixelFigures:
        """The figures of all images added. Raises UsageError unless `has_both`."""
        normal, defective, overlap = self._totals
        counts = np.concatenate([normal, defective])
        kept = counts > 0
        scores = np.tile(np.arange(self.bins, dtype=np.float64), 2)[kept]
        truth = np.repeat([False, True], self.bins)[kept]
        auroc = image_auroc(scores, truth, counts[kept])
        best, position = f1_max(scores, truth, counts[kept])
        edge = int(np.floor(position))
        return PixelFigures(
            pixel_auroc=auroc,
            pixel_f1_max=best,
            pixel_f1_max_threshold=float(self.edges[edge]) if edge >= 0 else 0.0,
            aupro=float(curves.aupro(normal, overlap, self.regions.sum(), FPR_LIMIT)),
            error=self._error(best),
        )

    def _error(self, best_f1: float) -> float:
        normal, defective, overlap = self._totals
        rate = normal / normal.sum()
        area = 0.5 * float((rate * defective / defective.sum()).sum())
        counted = curves.from_above(rate) - rate < FPR_LIMIT
        region_area = float((rate * overlap / self.regions.sum())[counted].sum()) / FPR_LIMIT
        hits, alarms = curves.from_above(defective), curves.from_above(normal) - normal
        f1 = float((2 * hits / (hits + alarms + hits[0])).max()) - best_f1
        return max(area, 0.5 * region_area, f1)
