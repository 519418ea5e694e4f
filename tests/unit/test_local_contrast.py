"""Local contrast against the formula computed by SciPy, and what it must not see."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import gaussian_filter

from pgdefect.vision.images.local_contrast import local_contrast

RNG = np.random.default_rng(5)


def photograph(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Smooth structures under fine noise, on most of the value range."""
    noise = RNG.standard_normal((height, width, channels))
    smooth = sum(
        gaussian_filter(noise, (sigma, sigma, 0), mode="wrap") * sigma for sigma in (1, 4, 12)
    )
    low, high = smooth.min(), smooth.max()
    return np.rint(20 + 180 * (smooth - low) / (high - low)).astype(np.uint8)


def by_scipy(pixels: np.ndarray, fraction: float) -> np.ndarray:
    """The docstring's formula in double precision."""
    height, width, _ = pixels.shape
    sigma = fraction * math.sqrt(height * width)
    # mode "reflect" repeats the border pixel: (d c b a | a b c d | d c b a).

    def surroundings(plane: np.ndarray) -> np.ndarray:
        return gaussian_filter(plane, sigma, mode="reflect", truncate=8)

    values = pixels / 255
    d = values - np.stack([surroundings(values[..., c]) for c in range(values.shape[2])], axis=2)
    v = np.sqrt(surroundings((d**2).mean(axis=2)))[..., None]
    return 0.5 + 0.2 * d / (v + v.mean() / 2 + 0.001)


@pytest.mark.parametrize("size", [(64, 64), (63, 80), (96, 49), (51, 51), (17, 200), (300, 5)])
@pytest.mark.parametrize("fraction", [0.03, 0.1, 0.37, 1.0])
def test_equals_the_formula_by_scipy(size: tuple[int, int], fraction: float) -> None:
    """From a sigma of a pixel on: SciPy samples the Gaussian, which differs where it is narrower
    than the pixels, and cosines are damped by the continuous one.
    """
    assert fraction * math.sqrt(math.prod(size)) >= 1
    pixels = photograph(*size)
    result = local_contrast(pixels, fraction)
    expected = by_scipy(pixels, fraction)
    atol = 1e-3 * np.ptp(expected)
    np.testing.assert_allclose(result, expected, rtol=0, atol=atol)


def test_a_change_of_gain_hardly_matters() -> None:
    pixels = photograph(96, 80)
    full = local_contrast(pixels, 0.1)
    dimmed = local_contrast(np.rint(pixels * 0.5).astype(np.uint8), 0.1)
    assert np.abs(pixels - pixels * 0.5).max() > 50
    # Rounding to whole values is what is left, and the floor.
    assert np.abs(dimmed - full).max() < 0.1 * np.ptp(full)
    assert np.abs(dimmed - full).mean() < 0.02 * np.ptp(full)


def test_an_offset_does_not_matter() -> None:
    pixels = photograph(75, 96)
    full = local_contrast(pixels, 0.1)
    np.testing.assert_allclose(local_contrast(pixels + np.uint8(50), 0.1), full, atol=1e-4)
    cast = local_contrast(pixels + np.array([0, 20, 40], np.uint8), 0.1)
    np.testing.assert_allclose(cast, full, atol=1e-4)


def test_a_slow_fall_of_light_hardly_matters() -> None:
    pixels = photograph(128, 128).astype(float)
    light = np.linspace(1.0, 0.4, 128)[:, None]
    lit = np.rint(pixels * light[..., None]).astype(np.uint8)
    full, fallen = (local_contrast(p.astype(np.uint8), 0.05) for p in (pixels, lit))
    correlation = np.corrcoef(full.ravel(), fallen.ravel())[0, 1]
    raw = np.corrcoef(pixels.ravel(), lit.ravel().astype(float))[0, 1]
    assert correlation > 0.97 > raw


@pytest.mark.parametrize("value", [0, 1, 128, 255])
@pytest.mark.parametrize("shape", [(64, 64, 3), (1, 1, 1), (33, 500, 3)])
def test_a_constant_image_is_a_half(value: int, shape: tuple[int, int, int]) -> None:
    result = local_contrast(np.full(shape, value, np.uint8), 0.1)
    np.testing.assert_allclose(result, 0.5, atol=1e-3)


def test_a_constant_color_is_a_half() -> None:
    pixels = np.broadcast_to(np.array([200, 100, 7], np.uint8), (70, 50, 3))
    np.testing.assert_allclose(local_contrast(pixels, 0.1), 0.5, atol=1e-3)


def test_gray_is_one_channel_and_has_the_same_values() -> None:
    gray = photograph(60, 81, 1)
    single = local_contrast(gray, 0.1)
    triple = local_contrast(np.repeat(gray, 3, axis=2), 0.1)
    assert single.shape == triple.shape == (60, 81, 1)
    np.testing.assert_array_equal(triple, single)
    # One pixel of color takes the other way, to nearly the same values.
    tinted = np.repeat(gray, 3, axis=2)
    tinted[0, 0, 0] ^= 1
    colored = local_contrast(tinted, 0.1)
    assert colored.shape == (60, 81, 3)
    np.testing.assert_allclose(colored, np.broadcast_to(single, (60, 81, 3)), atol=0.01)


def test_colors_keep_their_differences() -> None:
    """All channels are measured in one unit: twice the difference stays twice."""
    steps = RNG.integers(0, 40, (64, 70))
    pixels = np.stack([80 + 2 * steps, 80 + steps, 200 - steps], axis=2).astype(np.uint8)
    red, green, blue = np.moveaxis(local_contrast(pixels, 0.1) - 0.5, 2, 0)
    assert np.abs(red).max() > 0.2
    np.testing.assert_allclose(red, 2 * green, atol=1e-4)
    np.testing.assert_allclose(blue, -green, atol=1e-4)


def test_noise_on_a_flat_region_is_not_blown_up() -> None:
    """The floor in the mean variation: flat regions stay flatter than textured ones."""
    pixels = np.full((96, 96, 1), 128, np.uint8)
    pixels[:, 48:] += RNG.integers(0, 80, (96, 48, 1), dtype=np.uint8)
    pixels[:, :48] += RNG.integers(0, 2, (96, 48, 1), dtype=np.uint8)
    result = local_contrast(pixels, 0.05)
    assert result[:, :24].std() < 0.1 * result[:, 72:].std()


@st.composite
def images(draw: st.DrawFn) -> np.ndarray:
    height, width = draw(
        st.sampled_from([(1, 1), (1, 300), (300, 1), (2, 3), (16, 16), (5, 61), (64, 33)])
    )
    channels = draw(st.sampled_from([1, 3]))
    return draw(arrays(np.uint8, (height, width, channels)))


@given(images(), st.floats(1e-4, 1.0))
def test_any_image_gives_finite_values(pixels: np.ndarray, fraction: float) -> None:
    height, width, channels = pixels.shape
    gray = channels == 1 or bool((pixels == pixels[..., :1]).all())
    before = pixels.copy()
    result = local_contrast(pixels, fraction)
    assert result.dtype == np.float32
    assert result.shape == (height, width, 1 if gray else 3)
    assert np.isfinite(result).all()
    np.testing.assert_array_equal(pixels, before)
