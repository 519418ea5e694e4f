"""Memory banks without some parts, to score normal images as a bank without their part would.

Leaving a part's vectors out of a finished bank is not that: the coreset was picked to cover the
part, and what it picked there instead of elsewhere is missing. So the parts are dealt into folds,
and for each fold a coreset is picked from the images of the others (cross-fitting).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set

import numpy as np

from pgdefect.core.distance import as_stored
from pgdefect.core.types import Float32, MemoryBank
from pgdefect.usecases.train.options import TrainOptions
from pgdefect.vision.patchcore.coreset import k_center_greedy
from pgdefect.vision.patchcore.patch_spool import PatchSpool
from pgdefect.vision.patchcore.transform import BLOCK, apply_transform

__all__ = ["FOLDS", "deal_parts", "vectors_without"]

FOLDS, ALONE = 5, 10
"""So many folds; or each part alone in one where there are no more than `ALONE`, of which each is a
large share of what the bank knows."""
MAX_PATCHES = 100_000
"""Drawn for a fold's coreset to be picked from, beside what the whole bank picked."""


def deal_parts(
    parts: Sequence[Sequence[int]], scored: Set[int], seed: int
) -> Iterator[tuple[set[int], list[int]]]:
    """Folds of parts: `FOLDS`, or each part alone where there are `ALONE` or fewer.

    Args:
        parts: Numbers of the images that show each part.
        scored: Numbers of the images to score; a part without any stays in all banks.
        seed: Draws the order.

    Yields:
        Numbers of the images to leave out, whole parts, and of those of them to score.
    """
    dealt = [part for part in parts if not scored.isdisjoint(part)]
    order = np.random.default_rng(seed).permutation(len(dealt)).tolist()
    # The largest first, each into the fold that holds the least.
    order.sort(key=lambda n: -len(dealt[n]))
    number = len(dealt) if len(dealt) <= ALONE else FOLDS
    folds: list[set[int]] = [set() for _ in range(number)]
    for n in order:
        min(folds, key=len).update(dealt[n])
    for fold in folds:
        if fold:
            yield fold, sorted(fold & scored)


def vectors_without(
    bank: MemoryBank,
    image_ids: Sequence[int],
    spool: PatchSpool,
    out: Set[int],
    options: TrainOptions,
) -> Float32:
    """What the bank would hold without some images: `(num_vectors, dim)`, transformed.

    The coreset is picked from the bank's own vectors of the other images and `MAX_PATCHES` more
    of their patches, in the same density as the bank's.

    Args:
        bank: Of all images.
        image_ids: The spool's images, in order.
        spool: Their raw patches.
        out: Numbers of the images to leave out; some remain.
        options: The training's.
    """
    ends = np.cumsum([rows * cols for rows, cols in spool.grids[: len(image_ids)]])
    owner = np.repeat(np.arange(len(image_ids)), np.diff(ends, prepend=0))
    left = np.flatnonzero(~np.isin(owner, list(out)))
    picked = ~np.isin(bank.image_ids, [image_ids[n] for n in out])
    rng = np.random.default_rng(options.seed)
    drawn = left
    if len(left) > MAX_PATCHES:
        drawn = np.sort(rng.choice(left, MAX_PATCHES, replace=False))
    own = bank.embeddings[picked] if len(drawn) < len(left) else bank.embeddings[:0]
    flat = spool.patches_of(0, len(image_ids))
    candidates = np.empty((len(own) + len(drawn), bank.embeddings.shape[1]), dtype=np.float32)
    candidates[: len(own)] = own
    for start in range(0, len(drawn), BLOCK):
        block = flat[drawn[start : start + BLOCK]].astype(np.float32)
        first = len(own) + start
        candidates[first : first + len(block)] = as_stored(
            apply_transform(bank.transform, block), options.precision
        )
    number = max(1, round(len(bank.embeddings) * len(left) / len(owner)))
    if len(bank.embeddings) == options.max_vectors:
        number = options.max_vectors
    coreset = k_center_greedy(candidates, min(number, len(candidates)), seed=options.seed)
    return candidates[coreset.indices]
