"""Local contrast normalization: what a change of exposure or light does not change. Pure NumPy.

Each pixel is compared with its surroundings and measured in units of their variation, as in
Jarrett et al., *What is the best multi-stage architecture for object recognition?*, 2009, with
a floor in the image's own mean variation so that flat regions stay flat.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pgdefect.core.types import Float32

__all__ = ["local_contrast"]

GAIN = 0.2
"""Values of the result a local standard deviation is worth: photographs have about as much."""
FLOOR_OF_MEAN, FLOOR = 0.5, 1e-3
NEGLIGIBLE = 1e-6


def local_contrast(pixels: NDArray[np.uint8], fraction: float) -> Float32:
    """An image `(height, width, channels)` as float32 around 0.5, light evened out.

    Surroundings are weighted by a Gaussian of standard deviation `fraction` times the square
    root of the area. With d the difference of a pixel to its surroundings' mean and v the
    root of the surroundings' mean of d² over all channels, the result is
    0.5 + 0.2 d / (v + mean(v) / 2 + 0.001), in units of the value range 0..1. Colours keep
    their differences; a uniform cast does not.
    """
    height, width = pixels.shape[:2]
    if pixels.shape[2] == 3 and (pixels[..., :1] == pixels[..., 1:]).all():
        pixels = pixels[..., :1]  # a third of the work
    planes = pixels.transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    sigma = fraction * math.sqrt(height * width)
    down, across = _cosines(height, sigma), _cosines(width, sigma)
    difference = planes - _blur(planes, down, across)
    squares = (difference**2).mean(axis=0, keepdims=True)
    variation = np.sqrt(_blur(squares, down, across).clip(0.0))
    scale = GAIN / (variation + (FLOOR_OF_MEAN * float(variation.mean()) + FLOOR))
    result: Float32 = 0.5 + (difference * scale).transpose(1, 2, 0)
    return result


def _blur(
    planes: Float32, down: tuple[Float32, Float32], across: tuple[Float32, Float32]
) -> Float32:
    """Gaussian blur with mirrored borders: cosines are its eigenvectors, and few matter."""
    rows, row_weights = down
    cols, col_weights = across
    waves = (rows @ planes @ cols.T) * (row_weights[:, None] * col_weights)
    result: Float32 = rows.T @ waves @ cols
    return result


@lru_cache(maxsize=512)
def _cosines(length: int, sigma: float) -> tuple[Float32, Float32]:
    """The cosines `(count, length)` that a blur of `sigma` pixels leaves, and what it leaves."""
    wave = math.pi * sigma / length
    count = min(length, math.ceil(math.sqrt(-2 * math.log(NEGLIGIBLE)) / wave) + 1)
    k = np.arange(count)
    basis = np.cos(np.pi * k[:, None] * (np.arange(length) + 0.5) / length)
    basis *= np.sqrt(np.where(k == 0, 1.0, 2.0) / length)[:, None]
    return basis.astype(np.float32), np.exp(-0.5 * (k * wave) ** 2).astype(np.float32)
