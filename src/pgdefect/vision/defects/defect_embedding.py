"""Defect embeddings: one vector for what is wrong in an image, not for what it shows.

The usual image embedding is the mean over patches, and a defect covers few of them. Here each
patch is weighted by its anomaly (*Anomaly Clustering*, arXiv 2112.11573), and pooled with these
weights are

- the residual: each patch minus its nearest vector of the memory bank, in the extractor's own
  space: what is there that should not be;
- the appearance: the deep layers of the backbone at the same places, from a second look at the
  photograph (`pgdefect.vision.defects.defect_view`), minus their mean over normal images.

Each is whitened, scaled to length 1 and laid beside the others. Whitening makes the directions
in which normal images vary count for little. Anomaly is the patch score and, to find the defect
within what scored high, how unlike normal images the deep layers are there.
All statistics are of normal images, and each detector has its own: what was trained before, or
in which order, does not matter. Whitening is symmetric (ZCA: Bell & Sejnowski 1997), which of all
whitenings turns vectors least (Kessy, Lewin & Strimmer 2018, arXiv 1512.00809): the axes stay
those of the network, the same for all, so that embeddings of several categories and bank versions
of one extractor compare.
What each of it is worth: ``python -m benchmarks defects``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgdefect.core.types import DefectSpace, Float32, Whitening
from pgdefect.vision.defects.defect_view import Features, interpolation

__all__ = ["ComparedImage", "anomaly", "anomaly_weights", "defect_embedding", "fit_defect_space"]

RESIDUAL_SHRINKAGE, DEEP_SHRINKAGE = 0.1, 0.2
"""Added to the eigenvalues of a covariance, as a share of their mean."""
RESIDUAL_WEIGHT = 0.5
"""Of the residual in the embedding; each deep layer has 1."""
UNLIKENESS_WEIGHT = 0.5
"""Of a deep layer's unlikeness against the patch score, both standardized."""
TEMPERATURE = 1.0
"""Of the softmax, in standard deviations of normal patches' anomaly: it means the same under
any bank, metric and backbone."""
MAX_PATCHES = 384
MAX_DIM = 320
"""Of each part; wider layers are projected on as many directions, the same for all detectors."""


@dataclass(frozen=True)
class ComparedImage:
    """A normal image compared with a bank that does not know it.

    Attributes:
        patches, nearest: `(rows * cols, raw_dim)`, raw, and the raw bank vectors nearest to them.
        scores: `(rows, cols)`.
        features: of the second look, or none.
    """

    patches: Float32
    nearest: Float32
    scores: Float32
    features: Features


def fit_whitening(
    vectors: NDArray[np.floating[Any]], shrinkage: float, *, center: bool = True
) -> Whitening:
    """The whitening of normal vectors `(num_vectors, dim)`.

    With V diag(w) V^T their covariance a vector x becomes V (w + s mean(w))^(-1/2) V^T
    (x - center): directions without variance stay finite. Without `center` the center is 0: a
    residual of 0 means *like the bank*.
    """
    values = np.asarray(vectors, dtype=np.float64)
    mean = values.mean(axis=0)
    values = values - mean
    projection = _projection(values.shape[1])
    if projection is not None:
        values = values @ projection.T
    variances, axes = np.linalg.eigh(values.T @ values / max(len(values) - 1, 1))
    # Identical vectors only: any scale keeps the result finite.
    floor = shrinkage * float(variances.mean()) or 1.0
    components = (axes / np.sqrt(variances.clip(0.0) + floor)) @ axes.T
    if projection is not None:
        components = components @ projection
    return Whitening(
        np.asarray(mean if center else np.zeros_like(mean), dtype=np.float32),
        np.ascontiguousarray(components, dtype=np.float32),
    )


def _projection(dim: int) -> NDArray[np.float64] | None:
    """Random orthonormal directions `(MAX_DIM, dim)` that only the layer's width decides; None
    for one that is not too wide.
    """
    if dim <= MAX_DIM:
        return None
    drawn = np.random.default_rng(dim).standard_normal((dim, MAX_DIM))
    return np.asarray(np.linalg.qr(drawn)[0].T)


def fit_defect_space(
    compared: Sequence[ComparedImage], features: Sequence[Features]
) -> DefectSpace:
    """A detector's space, from normal images: `features` are of these and more."""
    residual = fit_whitening(
        np.concatenate([image.patches - image.nearest for image in compared]),
        RESIDUAL_SHRINKAGE,
        center=False,
    )
    whitenings = tuple(
        fit_whitening(
            np.concatenate([one.reshape(-1, one.shape[-1]) for one in layer]), DEEP_SHRINKAGE
        )
        for layer in zip(*features, strict=True)
    )
    unlikeness = [
        np.concatenate([one.ravel() for one in layer])
        for layer in zip(*(_unlikeness(whitenings, one) for one in features), strict=True)
    ]
    settings = {
        "unlikeness_mean": [float(values.mean()) for values in unlikeness],
        "unlikeness_std": [float(values.std()) or 1.0 for values in unlikeness],
    }
    space = DefectSpace(residual, whitenings, settings)
    score_std = float(np.concatenate([image.scores.ravel() for image in compared]).std())
    everything = np.concatenate(
        [anomaly(space, image.scores, score_std, image.features).ravel() for image in compared]
    )
    temperature = TEMPERATURE * (float(everything.std()) or 1.0)
    return DefectSpace(residual, whitenings, {**settings, "temperature": temperature})


def anomaly(space: DefectSpace, scores: Float32, score_std: float, features: Features) -> Float32:
    """How anomalous each patch is, `(rows, cols)`, in standard deviations of normal ones.

    Args:
        scores: `(rows, cols)`.
        score_std: of the bank's normal patch scores.
    """
    found = scores.astype(np.float64) / max(score_std, 1e-12)
    for n, unlike in enumerate(_unlikeness(space.deep, features)):
        down, across = map(interpolation, unlike.shape, scores.shape)
        drawn_out = down @ unlike @ across.T
        mean, std = space.settings["unlikeness_mean"][n], space.settings["unlikeness_std"][n]
        found += UNLIKENESS_WEIGHT * (drawn_out - mean) / std
    return np.asarray(found, dtype=np.float32)


def anomaly_weights(
    space: DefectSpace, anomaly: Float32, where: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Softmax of the anomaly within `where`, both `(rows, cols)`; sums to 1.

    Of more than 384 patches the rest weigh nothing.
    """
    inside = np.flatnonzero(where)
    values = anomaly.reshape(-1)[inside].astype(np.float64)
    worst = np.argsort(-values, kind="stable")[:MAX_PATCHES]
    weights = np.zeros(anomaly.size)
    weights[inside[worst]] = np.exp(
        (values[worst] - values[worst[0]]) / space.settings["temperature"]
    )
    return np.asarray((weights / weights.sum()).reshape(anomaly.shape))


def defect_embedding(
    space: DefectSpace,
    weights: NDArray[np.float64],
    patches: Float32,
    nearest: Float32,
    features: Features,
) -> Float32:
    """The defect embedding `(embedding_dim,)`, of unit length.

    Args:
        weights: `(rows, cols)`.
        patches: `(rows, cols, raw_dim)`.
        nearest: `(num_weighed, raw_dim)`, the raw bank vectors nearest to the patches whose weight
            is not 0, in their order.
    """
    weighed = weights > 0
    residual = weights[weighed] @ (patches[weighed] - nearest)
    parts = [RESIDUAL_WEIGHT * _whitened(residual, space.residual)]
    for layer, whitening in zip(features[1:], space.deep[1:], strict=True):
        # Pooling what is drawn out to the patches, without drawing it out.
        down, across = map(interpolation, layer.shape[:2], weights.shape)
        parts.append(_whitened(np.tensordot(down.T @ weights @ across, layer, axes=2), whitening))
    vector = np.concatenate(parts)
    norm = float(np.linalg.norm(vector))
    if norm == 0.0:
        # Exactly as the bank knows it: any direction will do, and a zero vector has none.
        return np.full(len(vector), len(vector) ** -0.5, dtype=np.float32)
    return np.asarray(vector / norm, dtype=np.float32)


def _whitened(vector: NDArray[np.floating[Any]], whitening: Whitening) -> NDArray[np.float64]:
    """Whitened, and of length 1 unless it is 0."""
    found = whitening.components @ (vector - whitening.center)
    norm = float(np.linalg.norm(found))
    return np.asarray(found / norm if norm > 0.0 else found, dtype=np.float64)


def _unlikeness(whitenings: Sequence[Whitening], features: Features) -> list[Float32]:
    """How far each cell is from normal ones (Mahalanobis), `(rows, cols)`, by layer.

    Of all layers but the deepest, whose cells are too large to say where a defect is.
    """
    return [
        np.asarray(
            np.linalg.norm((layer - one.center) @ one.components.T, axis=-1), dtype=np.float32
        )
        for layer, one in zip(features[:-1], whitenings[:-1], strict=True)
    ]
