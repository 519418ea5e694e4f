"""Defect embeddings: one vector for what is wrong in an image, not for what it shows.

The usual image embedding is the mean over patches, and a defect covers few of them. Here
patches are weighted by their anomaly (*Anomaly Clustering*, arXiv 2112.11573), and two things
are pooled with these weights, whitened, scaled to length 1 and laid side by side:

- the residual: each patch minus its nearest vector of the memory bank, in the extractor's own
  space: what is there that should not be;
- the appearance: the backbone's deepest layer at the same places (``context``), or, where the
  extractor does not give it, the patch itself (``patch``), minus its mean over normal images.

Whitening makes the directions in which normal images vary count for little. It is estimated on
normal images alone and belongs to the extractor: no label and no defect goes into it, so that
embeddings of several categories and bank versions of one extractor compare. What each of it is
worth: ``python -m benchmarks defects``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgdefect.types import DefectSpace, Float32, Whitening

__all__ = ["defect_embedding", "fit_defect_space", "fit_whitening", "weighed_patches"]

SHRINKAGE = {"residual": 0.1, "patch": 0.1, "context": 0.3}
"""Added to the eigenvalues of the covariance, as a share of their mean."""
TEMPERATURE = {"residual": 1.5, "patch": 1.0, "context": 0.5}
"""Of the softmax over patch scores, in standard deviations of a bank's normal patch scores: it
means the same under any bank, metric and backbone."""
MAX_DIM = 512
"""Of each half; deeper networks' are cut to the directions of the most variance."""
NEGLIGIBLE = 1e-3
MAX_PATCHES = 256


def fit_whitening(
    vectors: NDArray[np.floating[Any]], shrinkage: float, *, center: bool
) -> Whitening:
    """The whitening of normal vectors `(num_vectors, dim)`.

    With V diag(w) V^T their covariance a vector x becomes (x - center) V / sqrt(w + s mean(w)):
    directions without variance stay finite. Without `center` the center is 0: a residual of 0
    means *like the bank*.
    """
    values = np.asarray(vectors, dtype=np.float64)
    mean = values.mean(axis=0)
    values = values - mean
    variances, axes = np.linalg.eigh(values.T @ values / max(len(values) - 1, 1))
    # Identical vectors only: any scale keeps the result finite.
    floor = shrinkage * float(variances.mean()) or 1.0
    kept = slice(None, -MAX_DIM - 1, -1)
    components = (axes / np.sqrt(variances.clip(0.0) + floor))[:, kept].T
    return Whitening(
        np.asarray(mean if center else np.zeros_like(mean), dtype=np.float32),
        np.ascontiguousarray(components, dtype=np.float32),
    )


def fit_defect_space(patches: Float32, nearest: Float32, context: Float32 | None) -> DefectSpace:
    """An extractor's space from patches of normal images that are not in the bank.

    patches, nearest: `(num_patches, raw_dim)`, raw, and the raw bank vectors nearest to them;
    context: `(num_patches, context_dim)` at the same places, or None.
    """
    kind = "patch" if context is None else "context"
    appearance = fit_whitening(
        patches if context is None else context, SHRINKAGE[kind], center=True
    )
    residual = fit_whitening(patches - nearest, SHRINKAGE["residual"], center=False)
    return DefectSpace(
        residual,
        appearance,
        kind,  # type: ignore[arg-type]
        {"temperature": {name: TEMPERATURE[name] for name in ("residual", kind)}},
    )


def weighed_patches(
    space: DefectSpace, scores: Float32, score_std: float, where: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Those patches among `where` whose weight is not negligible, at most the 256 worst.

    scores, where: `(num_patches,)`; the indices come in rising order. score_std: of the bank's
    normal patch scores.
    """
    inside = np.flatnonzero(where)
    worst_first = inside[np.argsort(-scores[inside], kind="stable")][:MAX_PATCHES]
    reach = -np.log(NEGLIGIBLE) * max(space.settings["temperature"].values()) * score_std
    return np.sort(worst_first[scores[worst_first] >= scores[worst_first[0]] - reach])


def defect_embedding(
    space: DefectSpace,
    patches: Float32,
    nearest: Float32,
    context: Float32 | None,
    scores: Float32,
    score_std: float,
) -> Float32:
    """The defect embedding of the patches given, `(embedding_dim,)`, of unit length.

    patches, nearest: `(num_patches, raw_dim)`, raw; context: `(num_patches, context_dim)`, needed
    where the space's appearance is one; scores: `(num_patches,)`.
    """
    appearance = patches if space.appearance_of == "patch" else context
    assert appearance is not None
    temperature = space.settings["temperature"]
    vector = np.concatenate(
        [
            _pooled(whitening, vectors, scores, temperature[kind] * score_std)
            for whitening, vectors, kind in (
                (space.residual, patches - nearest, "residual"),
                (space.appearance, appearance, space.appearance_of),
            )
        ]
    )
    norm = float(np.linalg.norm(vector))
    if norm == 0.0:
        # Exactly as the bank knows it: any direction will do, and a zero vector has none.
        return np.full(len(vector), len(vector) ** -0.5, dtype=np.float32)
    return np.asarray(vector / norm, dtype=np.float32)


def _pooled(
    whitening: Whitening, vectors: Float32, scores: Float32, temperature: float
) -> NDArray[np.float64]:
    """The weighted mean of vectors `(n, dim)`, whitened, of length 1 unless it is 0."""
    lead = (scores - scores.max()).astype(np.float64)
    weights = np.exp(lead / max(temperature, 1e-12))
    mean = weights @ vectors / weights.sum()
    whitened = whitening.components @ (mean - whitening.center)
    norm = float(np.linalg.norm(whitened))
    return np.asarray(whitened / norm if norm > 0.0 else whitened, dtype=np.float64)
