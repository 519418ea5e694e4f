"""Defect embeddings."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pgdefect.types import DefectSpace, Float32

__all__ = ["defect_embedding", "fit_defect_space", "weighed_patches"]

NEGLIGIBLE = 1e-4


def fit_defect_space(patches: Float32, nearest: Float32) -> DefectSpace:
    residuals = patches - nearest
    scale = 1.0 / residuals.std(axis=0).clip(1e-6)
    dim = residuals.shape[1]
    return DefectSpace(
        np.zeros(dim, dtype=np.float32),
        np.diag(scale).astype(np.float32),
        dim,
        {"temperature": 0.01},
    )


def weighed_patches(
    space: DefectSpace, scores: Float32, mask: NDArray[np.bool_]
) -> NDArray[np.int64]:
    inside = np.flatnonzero(mask)
    lead = scores[inside].max() - scores[inside]
    return inside[lead <= -np.log(NEGLIGIBLE) * space.settings["temperature"]]


def defect_embedding(
    space: DefectSpace, patches: Float32, nearest: Float32, scores: Float32
) -> Float32:
    weights = np.exp((scores - scores.max()).astype(np.float64) / space.settings["temperature"])
    residual = weights @ (patches - nearest) / weights.sum()
    vector = space.components @ (residual - space.center)
    return np.asarray(vector / (np.linalg.norm(vector) or 1.0), dtype=np.float32)
