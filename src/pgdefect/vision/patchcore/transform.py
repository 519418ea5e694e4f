"""The embedding transform: Euclidean neighborhoods under cosine distance.

PatchCore is Euclidean, and cosine distance throws magnitude away. With
``y = normalize([(x - mean) P, constant])`` the cosine distance of two vectors whose
centered norms are small against the constant is ``|x1 - x2|^2 / (2 constant^2)``, so
ranking by it nearly ranks by Euclidean distance, and pgvector's cosine index serves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pgdefect.core.errors import UsageError
from pgdefect.core.types import EmbeddingTransform, Float32
from pgdefect.core.wording import option

__all__ = [
    "DEFAULT_PCA_DIM",
    "apply_transform",
    "fit_transform",
    "transformed_dim",
]

DEFAULT_PCA_DIM = 192
"""All of the small networks' dimensions (152 to 168), and the leading ones of wide networks, whose
banks would be large. The axes of little variance are where small defects show (docs/accuracy.md).
"""
LEAST_VARIANCE = 1e-4
"""Of the largest: an axis of hardly any variance holds rounding, which whitening would blow up."""
CONSTANT_OVER_MEDIAN_NORM = 2.0
COVERED_NORMS = 0.999
"""Share of patches with norms of at most the constant: a longer vector turns by more than 45°,
where cosine distance hardly grows any more."""
BLOCK = 16_384

Embeddings = NDArray[np.float16] | NDArray[np.float32]


def fit_transform(
    embeddings: Embeddings,
    *,
    kind: Literal["none", "unit", "centered"] = "centered",
    pca_dim: int | None = DEFAULT_PCA_DIM,
    whiten: float = 0.0,
    scales: Float32 | None = None,
) -> EmbeddingTransform:
    """Fit the transform on raw patch embeddings `(num_patches, raw_dim)`.

    pca_dim is capped at raw_dim; None keeps every dimension. whiten divides each principal
    axis by its variance to the power of whiten / 2: 0 leaves the distances as they are, 1 gives
    every axis the same variance, so that what normal patches seldom do counts more. scales
    `(raw_dim,)` are what raw dimensions are multiplied by before anything else.

    Sums are in double precision over blocks, so that the input may be half precision or
    memory-mapped: beyond it the memory is O(raw_dim²) and 4 bytes a patch.
    """
    if kind != "centered":
        return EmbeddingTransform(kind)
    raw_dim = embeddings.shape[1]
    if pca_dim is not None and pca_dim < 1:
        raise UsageError(f"{option('pca_dim')} must be at least 1, not {pca_dim}")
    mean = sum(block.sum(axis=0, dtype=np.float64) for block in _blocks(embeddings))
    mean = np.asarray(mean / len(embeddings), dtype=np.float32)
    components: Float32 | None = None
    if whiten > 0.0 or scales is not None or (pca_dim is not None and pca_dim < raw_dim):
        covariance = np.zeros((raw_dim, raw_dim))
        for block in _blocks(embeddings):
            centered = block - mean
            if scales is not None:
                centered *= scales
            covariance += centered.T @ centered
        values, vectors = np.linalg.eigh(covariance)
        components = np.ascontiguousarray(vectors[:, ::-1][:, :pca_dim].T, dtype=np.float32)
        # An eigenvector's sign is arbitrary; fix it so that equal input gives equal banks.
        largest = np.abs(components).argmax(axis=1)
        components *= np.sign(components[np.arange(len(components)), largest])[:, None]
        if whiten > 0.0 and values[-1] > 0.0:
            variances = (values[::-1][:pca_dim] / values[-1]).clip(LEAST_VARIANCE)
            components *= (variances ** (-whiten / 2)).astype(np.float32)[:, None]
        if scales is not None:
            components *= scales
    unscaled = EmbeddingTransform("centered", mean, components, None)
    norms = np.concatenate(
        [np.linalg.norm(_project(unscaled, block), axis=1) for block in _blocks(embeddings)]
    )
    # Identical patches only: any positive constant keeps the vectors away from zero.
    constant = (
        max(
            CONSTANT_OVER_MEDIAN_NORM * float(np.median(norms)),
            float(np.quantile(norms, COVERED_NORMS)),
        )
        or 1.0
    )
    return EmbeddingTransform("centered", mean, components, constant)


def apply_transform(transform: EmbeddingTransform, embeddings: Float32) -> Float32:
    """Raw `(n, raw_dim)` to searched vectors `(n, transformed_dim)`, float32.

    Same rule in SQL: pgdefect.transformed_patches.

    Raises:
        ValueError: for zero vectors under ``unit``: pgvector cannot index them.
    """
    if transform.kind == "none":
        return np.ascontiguousarray(embeddings, dtype=np.float32)
    if transform.kind == "unit":
        norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
        if not norms.all():
            raise ValueError("a zero vector has no cosine distance; use the centered transform")
        return np.asarray(embeddings / norms, dtype=np.float32)
    assert transform.constant is not None
    projected = _project(transform, embeddings)
    result = np.empty((len(projected), projected.shape[1] + 1), dtype=np.float32)
    result[:, :-1] = projected
    result[:, -1] = transform.constant
    result /= np.sqrt(np.einsum("nd,nd->n", result, result))[:, None]
    return result


def transformed_dim(transform: EmbeddingTransform, raw_dim: int) -> int:
    """Dimension of the searched vectors."""
    if transform.kind != "centered":
        return raw_dim
    return 1 + (raw_dim if transform.components is None else len(transform.components))


def _blocks(embeddings: Embeddings) -> Iterator[Float32]:
    for start in range(0, len(embeddings), BLOCK):
        yield embeddings[start : start + BLOCK].astype(np.float32, copy=False)


def _project(transform: EmbeddingTransform, embeddings: Float32) -> Float32:
    assert transform.mean is not None
    if transform.components is None:
        return embeddings.astype(np.float32) - transform.mean
    # (x - mean) P as x P - mean P: one product, no centered copy.
    offset = transform.components @ transform.mean
    return np.asarray(embeddings.astype(np.float32, copy=False) @ transform.components.T - offset)
