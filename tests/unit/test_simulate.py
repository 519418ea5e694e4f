"""Defects drawn on arrays: where asked, as large and as strong as asked, again the same."""

from __future__ import annotations

from collections import Counter
from functools import cache
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pgdefect.core.errors import ImageError
from pgdefect.usecases.simulate.draw_simulated import recipes
from pgdefect.vision.defects.simulate import (
    CONTRASTS,
    KINDS,
    SIZES,
    SimulatedDefect,
    generator,
    perlin_noise,
    simulate_defect,
)
from tests.synthetic import normal_part

DIGEST = "ab" * 32
LUMA = np.array([0.299, 0.587, 0.114])
CELLS = list(product(KINDS, SIZES, CONTRASTS))
each_kind = pytest.mark.parametrize("kind", KINDS)


def textured(seed: int, height: int, width: int, *, gray: bool = False) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    channels = 1 if gray else 3
    values = 120 + 15 * rng.standard_normal((height, width, channels))
    values += 20 * np.sin(np.arange(width) / 5)[None, :, None]
    image = np.clip(values, 0, 255).astype(np.uint8)
    return np.repeat(image, 3, axis=2) if gray else image


def check(drawn: SimulatedDefect, image: NDArray[np.uint8], size: str, contrast: str) -> None:
    """What holds of every defect."""
    height, width, _ = image.shape
    assert drawn.image.shape == image.shape
    assert drawn.image.dtype == drawn.mask.dtype == np.uint8
    assert drawn.mask.shape == (height, width)
    assert set(np.unique(drawn.mask)) == {0, 255}
    inside = drawn.mask == 255
    changed = (drawn.image != image).any(axis=2)
    assert not changed[~inside].any()
    assert changed[inside].mean() >= 0.7
    target = SIZES[size] * height * width  # type: ignore[index]
    assert abs(inside.sum() - target) <= max(1.5, 0.1 * target + 0.5)
    assert drawn.area == pytest.approx(inside.mean())
    difference = np.abs((drawn.image.astype(float) - image) @ LUMA)[inside].mean()
    assert drawn.gray_difference == pytest.approx(difference)
    assert difference == pytest.approx(CONTRASTS[contrast], rel=0.1)  # type: ignore[index]


@cache
def part(seed: int) -> NDArray[np.uint8]:
    image, _ = normal_part(seed, (128, 160))
    image.setflags(write=False)
    return image


@pytest.mark.parametrize(("kind", "size", "contrast"), CELLS)
def test_size_and_contrast_are_what_was_asked_for(kind: str, size: str, contrast: str) -> None:
    for number in range(3):
        image, texture = part(number), part(number + 100)
        before = image.copy()
        drawn = simulate_defect(
            image, kind, size, contrast, generator(0, DIGEST, number), texture=texture
        )
        check(drawn, image, size, contrast)
        np.testing.assert_array_equal(image, before)


@each_kind
def test_the_same_seed_source_and_number_draw_the_same(kind: str) -> None:
    image = textured(1, 96, 120)

    def drawn(seed: int = 3, digest: str = DIGEST, number: int = 5) -> SimulatedDefect:
        return simulate_defect(image, kind, "large", "medium", generator(seed, digest, number))

    first = drawn()
    again = drawn()
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.mask, again.mask)
    others = [drawn(seed=4), drawn(digest="cd" * 32), drawn(number=6)]
    assert all((other.image != first.image).any() for other in others)


@each_kind
@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(16, 200),
    width=st.integers(16, 200),
    seed=st.integers(0, 2**31 - 1),
    gray=st.booleans(),
    contrast=st.sampled_from(list(CONTRASTS)),
)
def test_any_image_large_enough_takes_a_defect(
    kind: str, height: int, width: int, seed: int, gray: bool, contrast: str
) -> None:
    image = textured(seed % 7, height, width, gray=gray)
    texture = textured(seed % 5 + 10, width, height)
    drawn = simulate_defect(
        image, kind, "large", contrast, generator(seed, DIGEST, 0), texture=texture
    )
    check(drawn, image, "large", contrast)
    if gray:
        assert (drawn.image == drawn.image[..., :1]).all()


@pytest.mark.parametrize("level", [0, 3, 128, 255])
@each_kind
def test_an_image_of_one_level_takes_a_defect_too(kind: str, level: int) -> None:
    image = np.full((90, 110, 3), level, dtype=np.uint8)
    drawn = simulate_defect(image, kind, "medium", "high", generator(0, DIGEST, 1))
    check(drawn, image, "medium", "high")


@pytest.mark.parametrize("shape", [(40, 2000), (2000, 40), (16, 700)], ids=str)
@pytest.mark.parametrize("size", SIZES)
@each_kind
def test_a_narrow_strip_takes_a_defect(kind: str, size: str, shape: tuple[int, int]) -> None:
    image = textured(2, *shape)
    drawn = simulate_defect(image, kind, size, "medium", generator(0, DIGEST, 2))
    check(drawn, image, size, "medium")


@pytest.mark.parametrize(
    ("shape", "size"), [((15, 400), "large"), ((1, 1), "large"), ((60, 50), "small")], ids=str
)
@each_kind
def test_an_image_that_is_too_small_is_refused(
    kind: str, shape: tuple[int, int], size: str
) -> None:
    with pytest.raises(ImageError, match=f"{shape[1]} × {shape[0]} pixels is too small"):
        simulate_defect(textured(0, *shape), kind, size, "low", generator(0, DIGEST, 0))


def test_a_texture_smaller_than_the_defect_is_not_needed() -> None:
    image, texture = textured(1, 300, 300), textured(2, 20, 20)
    for kind in ("cut_paste", "perlin"):
        for number in range(5):
            drawn = simulate_defect(
                image, kind, "large", "low", generator(0, DIGEST, number), texture=texture
            )
            check(drawn, image, "large", "low")


def test_a_scratch_is_thin_and_a_spot_is_soft() -> None:
    image = textured(3, 256, 256, gray=True)
    for number in range(5):
        scratch = simulate_defect(image, "scratch", "medium", "high", generator(0, DIGEST, number))
        rows, cols = np.nonzero(scratch.mask)
        reach = np.hypot(np.ptp(rows), np.ptp(cols))
        assert reach**2 > 15 * len(rows)
        spot = simulate_defect(image, "spot", "large", "high", generator(0, DIGEST, number))
        change = np.abs(spot.image.astype(int) - image)[..., 0]
        inside = spot.mask == 255
        core = inside.copy()
        for axis, shift in product((0, 1), (-4, 4)):
            core &= np.roll(inside, shift, axis=axis)
        assert change[core].mean() > 1.5 * change[inside & ~core].mean()


def test_perlin_noise_is_smooth_and_centered() -> None:
    noise = perlin_noise(np.random.default_rng(0), (300, 400), 50)
    assert noise.shape == (300, 400)
    assert abs(noise.mean()) < 0.2
    assert 0.1 < noise.std() < 0.6
    assert np.abs(np.diff(noise, axis=0)).max() < 0.15


# -- what is drawn ---------------------------------------------------------------------------


def test_recipes_are_balanced() -> None:
    plan = recipes(KINDS, 120, 0)
    assert len({recipe.path for recipe in plan}) == 120
    assert set(Counter(recipe.kind for recipe in plan).values()) == {30}
    assert set(Counter(recipe.size for recipe in plan).values()) == {40}
    assert set(Counter(recipe.contrast for recipe in plan).values()) == {40}
    whole = recipes(KINDS, 72, 0)
    assert set(Counter((r.kind, r.size, r.contrast) for r in whole).values()) == {2}


def test_more_recipes_begin_with_the_same_and_kinds_do_not_touch_each_other() -> None:
    plan = recipes(KINDS, 120, 7)
    assert recipes(KINDS, 50, 7) == plan[:50]
    assert recipes(["spot"], 30, 7) == [recipe for recipe in plan if recipe.kind == "spot"]
    assert {recipe.path for recipe in recipes(KINDS, 50, 8)}.isdisjoint(r.path for r in plan)
