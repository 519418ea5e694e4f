"""A small PatchCore after amazon-science/patchcore-inspection, to make and check its files.

It follows ``patchcore/patchcore.py`` and ``common.py`` step by step, unfolding and averaging
where pgdefect convolves, and searches and saves with the real FAISS.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from torch.nn import functional

from pgdefect.core.types import Float32


def embed(
    maps: Mapping[str, Any], layers: Sequence[str], layer_dim: int, dim: int, size: int = 3
) -> tuple[Float32, tuple[int, int]]:
    """Patch embeddings `(n * rows * cols, dim)` of feature maps, and the grid."""
    unfolder = torch.nn.Unfold(size, stride=1, padding=(size - 1) // 2)
    patches = []
    grid = tuple(maps[layers[0]].shape[-2:])
    for layer in layers:
        value = maps[layer]
        count, channels, rows, cols = value.shape
        unfolded = unfolder(value).reshape(count, channels, size, size, rows, cols)
        if (rows, cols) != grid:
            flat = unfolded.reshape(-1, 1, rows, cols)
            drawn = functional.interpolate(flat, size=grid, mode="bilinear", align_corners=False)
            unfolded = drawn.reshape(count, channels, size, size, *grid)
        each = unfolded.permute(0, 4, 5, 1, 2, 3).reshape(count * grid[0] * grid[1], 1, -1)
        patches.append(functional.adaptive_avg_pool1d(each, layer_dim)[:, 0])
    stacked = torch.stack(patches, dim=1).reshape(len(patches[0]), 1, -1)
    pooled = functional.adaptive_avg_pool1d(stacked, dim)[:, 0]
    return np.ascontiguousarray(pooled.numpy(), dtype=np.float32), grid


class FaissBank:
    """The bank of a model: squared distances to the nearest vector, and the two files."""

    def __init__(self, vectors: Float32) -> None:
        self.index = faiss.IndexFlatL2(vectors.shape[1])
        self.index.add(vectors)

    def image_score(self, patches: Float32) -> float:
        distances, _ = self.index.search(patches, 1)
        return float(distances.mean(axis=-1).max())

    def save(self, folder: Path, params: Mapping[str, Any], prepend: str = "") -> Path:
        folder.mkdir(exist_ok=True)
        faiss.write_index(self.index, str(folder / f"{prepend}nnscorer_search_index.faiss"))
        with (folder / f"{prepend}patchcore_params.pkl").open("wb") as file:
            pickle.dump(dict(params), file, pickle.HIGHEST_PROTOCOL)
        return folder


def params_of(
    backbone: str, layers: Sequence[str], side: int, layer_dim: int, dim: int
) -> dict[str, Any]:
    """What ``PatchCore.save_to_path`` pickles."""
    return {
        "backbone.name": backbone,
        "layers_to_extract_from": tuple(layers),
        "input_shape": (3, side, side),
        "pretrain_embed_dimension": layer_dim,
        "target_embed_dimension": dim,
        "patchsize": 3,
        "patchstride": 1,
        "anomaly_scorer_num_nn": 1,
    }
