"""Defects that never happened, drawn on photographs of normal parts.

==========  =========================================================================
cut_paste   a patch of the same or another normal image pasted elsewhere, turned and
            brightened or darkened (CutPaste, arXiv 2104.04015)
perlin      a texture from another normal image, altered, showing through a mask of Perlin
            noise (DRAEM, arXiv 2108.07610)
scratch     a thin, slightly bent line of uneven width, darker or brighter
spot        a blob with soft edges that covers half of the texture beneath
==========  =========================================================================

How large a defect is and how much it stands out are asked for and measured: `SIZES` are
shares of the image's area, `CONTRASTS` the mean absolute difference in gray levels (of 255)
between the altered and the original image inside the mask. Both are absolute, so that
figures of two products, and the measure of any other tool, can be compared.

Everything is NumPy. anomalib's PerlinAnomalyGenerator does a part of this and needs torch,
which only training may cost, and textures from a download; imgaug-like libraries neither hit
a given size nor a given contrast. A place is drawn at random over the whole image: what is
part and what is background is not known here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pgdefect.core.errors import ImageError

Kind = Literal["cut_paste", "perlin", "scratch", "spot"]
Size = Literal["small", "medium", "large"]
Contrast = Literal["low", "medium", "high"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SIZES: dict[Size, float] = {"small": 0.001, "medium": 0.005, "large": 0.02}
CONTRASTS: dict[Contrast, float] = {"low": 15.0, "medium": 30.0, "high": 60.0}
MIN_PIXELS, MIN_SIDE = 4, 16

Rgb = NDArray[np.uint8]
Mask = NDArray[np.uint8]
_Field = NDArray[np.float64]

_ATTEMPTS = 60
_CONTRAST_TOLERANCE = 0.1
_CHANGED = 0.7
_SCRATCH_RATIO = (30.0, 80.0)
_LUMA = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class SimulatedDefect:
    """image: uint8 `(height, width, 3)`; mask: uint8 `(height, width)`, 255 on the defect.

    Outside the mask the image is its original, bit for bit. area is the mask's share of the
    image, gray_difference the mean absolute difference in gray levels inside it.
    """

    image: Rgb
    mask: Mask
    area: float
    gray_difference: float


def generator(seed: int, sha256: str, number: int) -> np.random.Generator:
    """The random numbers of one defect: same seed, source file and number, same numbers."""
    return np.random.default_rng(np.random.SeedSequence([seed, int(sha256, 16), number]))


def simulate_defect(
    image: Rgb,
    kind: Kind,
    size: Size,
    contrast: Contrast,
    rng: np.random.Generator,
    *,
    texture: Rgb | None = None,
) -> SimulatedDefect:
    """Draw one defect on an image, uint8 `(height, width, 3)`, of any size from 16 × 16 on.

    `texture` is another normal image, of any size, that cut_paste and perlin take pixels
    from; without it they take them from the image itself. An image whose three channels are
    equal keeps them equal. Area and gray difference hit their targets to a tenth.

    Raises:
        ImageError: the image is too small for a defect of that size, or none of 60 places
            and shapes gave that contrast.
    """
    height, width, _ = image.shape
    pixels = round(SIZES[size] * height * width)
    if pixels < MIN_PIXELS or min(height, width) < MIN_SIDE:
        raise ImageError(
            f"an image of {width} × {height} pixels is too small for a {size} defect "
            f"({SIZES[size]:.1%} of its area); {MIN_PIXELS} pixels of defect and sides of "
            f"{MIN_SIDE} are needed"
        )
    gray = _is_gray(image)
    donor = image if texture is None else _like(texture, gray)
    shape, layer = _DRAW[kind]
    for attempt in range(_ATTEMPTS):
        found = shape(rng, (height, width), pixels, attempt)
        if found is None:
            continue
        alpha, inside = found
        box = _place(rng, (height, width), alpha.shape)
        original = image[box].astype(np.float64)
        paint, tint = layer(rng, _Site(image, donor, gray, box, original, inside))
        drawn = _blend(
            original[inside], alpha[inside], paint[inside], tint, CONTRASTS[contrast], rng
        )
        if drawn is None:
            continue
        out = image.copy()
        out[box][inside] = drawn
        mask = np.zeros((height, width), dtype=np.uint8)
        mask[box][inside] = 255
        count = int(np.count_nonzero(inside))
        difference = _difference(drawn, original[inside])
        return SimulatedDefect(out, mask, count / (height * width), difference)
    raise ImageError(
        f"no {size} {kind} defect of {contrast} contrast ({CONTRASTS[contrast]:g} gray levels) "
        f"could be drawn on an image of {width} × {height} pixels in {_ATTEMPTS} attempts. "
        "Leave that kind out"
    )


# -- shapes: opacity `(rows, cols)` in a box, and which of its pixels are the defect ---------


_Shape = tuple[_Field, NDArray[np.bool_]]


def _rectangle(
    rng: np.random.Generator, size: tuple[int, int], pixels: int, attempt: int
) -> _Shape | None:
    aspect = np.exp(rng.uniform(np.log(0.35), np.log(2.9)))
    angle = rng.choice([0.0, rng.uniform(0, np.pi)])
    along, across = np.sqrt(pixels * aspect) / 2, np.sqrt(pixels / aspect) / 2
    grid = _grid(size, along, across, angle, attempt)
    if grid is None:
        return None
    u, v, stretch = grid
    depth = np.minimum(along * stretch - np.abs(u), across / stretch - np.abs(v))
    return _cut(depth, pixels, lambda beyond: np.clip(beyond + 0.6, 0, 1))


def _noise_mask(
    rng: np.random.Generator, size: tuple[int, int], pixels: int, attempt: int
) -> _Shape | None:
    aspect = np.exp(rng.uniform(np.log(0.5), np.log(2.0)))
    room = rng.uniform(3.0, 5.0)
    along, across = np.sqrt(room * pixels * aspect) / 2, np.sqrt(room * pixels / aspect) / 2
    grid = _grid(size, along, across, 0.0, attempt)
    if grid is None:
        return None
    u, v, stretch = grid
    cell = max(2.0, min(along, across) * rng.uniform(0.5, 0.9))
    noise = perlin_noise(rng, (u.shape[0], u.shape[1]), cell)
    edge = np.maximum(np.abs(u) / (along * stretch), np.abs(v) * stretch / across)
    depth = noise / max(float(noise.std()), 1e-9) - 2.5 * edge**3
    return _cut(depth, pixels, lambda beyond: np.clip(0.5 + 3 * beyond, 0, 1))


def _blob(
    rng: np.random.Generator, size: tuple[int, int], pixels: int, attempt: int
) -> _Shape | None:
    aspect, angle = rng.uniform(1.0, 1.9), rng.uniform(0, np.pi)
    along, across = np.sqrt(pixels * aspect / np.pi), np.sqrt(pixels / aspect / np.pi)
    grid = _grid(size, 1.35 * along, 1.35 * across, angle, attempt)
    if grid is None:
        return None
    u, v, stretch = grid
    u, v = u / (along * stretch), v * stretch / across
    turn = np.arctan2(v, u)
    rim = 1.0 + sum(
        rng.normal(0, 0.14 / order) * np.cos(order * turn + rng.uniform(0, 2 * np.pi))
        for order in range(2, 6)
    )
    soft = rng.uniform(0.3, 0.8)

    def opacity(beyond: _Field) -> _Field:
        t = np.clip(beyond / (soft * max(float(beyond.max()), 1e-9)), 0, 1)
        return 0.15 + 0.85 * t * t * (3 - 2 * t)

    return _cut(1.0 - np.hypot(u, v) / np.maximum(rim, 0.3), pixels, opacity)


def _line(
    rng: np.random.Generator, size: tuple[int, int], pixels: int, attempt: int
) -> _Shape | None:
    length = min(np.sqrt(pixels * rng.uniform(*_SCRATCH_RATIO)), 0.85 * np.hypot(*size))
    breadth, angle = pixels / length, rng.uniform(0, np.pi)
    bend, sway = rng.normal(0, 0.06) * length, rng.normal(0, [0.015, 0.006, 0.003]) * length
    room = breadth + abs(bend) + 2 * float(np.abs(sway).sum()) + 1
    grid = _grid(size, length / 2 + 1, room, angle, attempt)
    if grid is None:
        return None
    u, v, stretch = grid
    t = np.clip(u / (length * stretch / 2), -1, 1)
    course = bend * (t * t - 1 / 3) + sum(
        shift * np.sin((order + 1) * np.pi * t + rng.uniform(0, 2 * np.pi))
        for order, shift in enumerate(sway)
    )
    # Thinner towards the ends, and uneven along the way.
    knots = rng.uniform(0.55, 1.25, 9)
    uneven = np.interp(t, np.linspace(-1, 1, len(knots)), knots) * (1.05 - t**4)
    beyond_end = np.maximum(np.abs(u) - length * stretch / 2, 0)
    depth = uneven * breadth / 2 - np.abs(v - course / stretch) - 4 * beyond_end
    return _cut(depth, pixels, lambda beyond: np.clip(0.45 + beyond, 0, 1))


def _grid(
    size: tuple[int, int], along: float, across: float, angle: float, attempt: int
) -> tuple[_Field, _Field, float] | None:
    """Coordinates of a box that holds a shape of these half-axes, turned; None if too large.

    Past two thirds of the attempts the shape is laid along the image's longer side and
    stretched by the factor returned, until it fits: an image may be a narrow strip.
    """
    height, width = size
    stretch = 1.0
    if attempt >= 2 * _ATTEMPTS // 3:
        upright = height > width
        angle = np.pi / 2 if upright else 0.0
        stretch = max(1.0, across / ((min(size) - 3) / 2))
        stretch = min(stretch, (max(size) - 3) / 2 / along)
    along, across = along * stretch, across / stretch
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    rows = int(np.ceil(2 * (along * abs(sin) + across * abs(cos)))) + 2
    cols = int(np.ceil(2 * (along * abs(cos) + across * abs(sin)))) + 2
    if rows > height or cols > width:
        return None
    y, x = np.mgrid[:rows, :cols].astype(np.float64)
    # Off a pixel's middle by different amounts, so that few distances are equal.
    y, x = y - (rows - 1) / 2 + 0.137, x - (cols - 1) / 2 + 0.071
    return x * cos + y * sin, y * cos - x * sin, stretch


def _cut(depth: _Field, pixels: int, opacity: Callable[[_Field], _Field]) -> _Shape | None:
    """The `pixels` deepest pixels, and their opacity by depth beyond the rim."""
    if depth.size < pixels:
        return None
    rim = np.partition(depth, depth.size - pixels, axis=None)[depth.size - pixels]
    inside = depth >= rim
    if abs(int(np.count_nonzero(inside)) - pixels) > max(1.0, 0.1 * pixels):
        return None
    alpha = np.where(inside, opacity(np.where(inside, depth - rim, 0.0)), 0.0)
    return alpha, inside


def _place(
    rng: np.random.Generator, size: tuple[int, int], box: tuple[int, ...]
) -> tuple[slice, slice]:
    top = int(rng.integers(size[0] - box[0] + 1))
    left = int(rng.integers(size[1] - box[1] + 1))
    return slice(top, top + box[0]), slice(left, left + box[1])


# -- layers: what shows where the defect is opaque, and the color of what is added ------------


@dataclass(frozen=True)
class _Site:
    """The box a defect is drawn in: `original` are its pixels, `inside` the defect's."""

    image: Rgb
    donor: Rgb
    gray: bool
    box: tuple[slice, slice]
    original: _Field
    inside: NDArray[np.bool_]


def _pasted(rng: np.random.Generator, at: _Site) -> tuple[_Field, _Field]:
    patch = _crop(rng, at, at.image if rng.random() < 0.5 else at.donor)
    patch = patch[:: rng.choice([-1, 1]), :: rng.choice([-1, 1])]
    mean = patch.mean(axis=(0, 1))
    return mean + (patch - mean) * rng.uniform(0.8, 1.2), np.ones(3)


def _texture(rng: np.random.Generator, at: _Site) -> tuple[_Field, _Field]:
    patch = _crop(rng, at, at.donor)
    mean = patch.mean(axis=(0, 1))
    for change in rng.choice(4, size=2, replace=False):
        match change:
            case 0:
                patch = 2 * mean - patch
            case 1:
                patch = mean + (patch - mean) * rng.uniform(1.4, 2.2)
            case 2:
                patch = 255 * (np.clip(patch, 0, 255) / 255) ** np.exp(rng.normal(0, 0.5))
            case 3:
                step = rng.uniform(16, 40)
                patch = np.floor(patch / step) * step + step / 2
    return patch, _tint(rng, at.gray)


def _groove(rng: np.random.Generator, at: _Site) -> tuple[_Field, _Field]:
    return at.original, _tint(rng, at.gray)


def _cover(rng: np.random.Generator, at: _Site) -> tuple[_Field, _Field]:
    return 0.5 * at.original + 0.5 * at.original[at.inside].mean(axis=0), _tint(rng, at.gray)


def _crop(rng: np.random.Generator, at: _Site, source: Rgb) -> _Field:
    """A box like the site's from another image, or from elsewhere in its own.

    From its own also where the other image is smaller than the box.
    """
    rows, cols = at.inside.shape
    if source.shape[0] < rows or source.shape[1] < cols:
        source = at.image
    for _ in range(10):
        y, x = _place(rng, (source.shape[0], source.shape[1]), (rows, cols))
        apart = abs(y.start - at.box[0].start) >= rows or abs(x.start - at.box[1].start) >= cols
        if source is not at.image or apart:
            break
    return source[y, x].astype(np.float64)


def _tint(rng: np.random.Generator, gray: bool) -> _Field:
    """What one gray level more is in red, green and blue."""
    tint = np.ones(3) if gray else np.clip(1 + rng.normal(0, 0.2, 3), 0.4, 1.8)
    return tint / float(tint @ _LUMA)


_DRAW: dict[
    Kind,
    tuple[
        Callable[[np.random.Generator, tuple[int, int], int, int], _Shape | None],
        Callable[[np.random.Generator, _Site], tuple[_Field, _Field]],
    ],
] = {
    "cut_paste": (_rectangle, _pasted),
    "perlin": (_noise_mask, _texture),
    "scratch": (_line, _groove),
    "spot": (_blob, _cover),
}


# -- contrast -----------------------------------------------------------------------------


def _blend(
    original: _Field,
    alpha: _Field,
    paint: _Field,
    tint: _Field,
    target: float,
    rng: np.random.Generator,
) -> NDArray[np.uint8] | None:
    """Pixels `(n, 3)` that differ from the original by `target` gray levels on average.

    A layer that differs by more is made more transparent; one that differs by less is
    brightened or darkened. None where neither reaches the target.
    """
    opacity = alpha[:, None]
    change = opacity * (paint - original)
    more = opacity * tint

    def drawn(share: float, levels: float) -> NDArray[np.uint8]:
        values = np.clip(original + share * change + levels * more, 0, 255)
        return np.asarray(np.rint(values), dtype=np.uint8)

    def measured(share: float, levels: float) -> float:
        return _difference(drawn(share, levels), original)

    if measured(1.0, 0.0) >= target:
        found = drawn(_bisect(lambda share: measured(share, 0.0), target, 1.0), 0.0)
        return found if _fits(found, original, target) else None
    lean = float((alpha * np.sign(change @ _LUMA)).sum())
    first = np.sign(lean) if abs(lean) > 0.2 * alpha.sum() else rng.choice([-1.0, 1.0])
    for sign in (first, -first):
        if measured(1.0, sign * 255.0) >= target:
            levels = _bisect(lambda x, s=sign: measured(1.0, s * x), target, 255.0)  # type: ignore[misc]
            found = drawn(1.0, sign * levels)
            if _fits(found, original, target):
                return found
    return None


def _bisect(measure: Callable[[float], float], target: float, high: float) -> float:
    low = 0.0
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (middle, high) if measure(middle) < target else (low, middle)
    return high


def _fits(drawn: NDArray[np.uint8], original: _Field, target: float) -> bool:
    changed = float((drawn != original).any(axis=1).mean())
    off = abs(_difference(drawn, original) - target)
    return changed >= _CHANGED and off <= _CONTRAST_TOLERANCE * target


def _difference(drawn: NDArray[Any], original: _Field) -> float:
    return float(np.abs((drawn - original) @ _LUMA).mean())


# -- helpers --------------------------------------------------------------------------------


def perlin_noise(rng: np.random.Generator, shape: tuple[int, int], cell: float) -> _Field:
    """Gradient noise `(rows, cols)` around 0 in three octaves; `cell` pixels a period.

    Perlin, *Improving Noise*, 2002: random gradients on a lattice, faded by
    6t⁵ − 15t⁴ + 10t³.
    """
    total = np.zeros(shape)
    for octave in range(3):
        y, x = (np.arange(length) * 2**octave / cell for length in shape)
        angles = rng.uniform(0, 2 * np.pi, (int(y[-1]) + 2, int(x[-1]) + 2))
        row, col = y.astype(int)[:, None], x.astype(int)[None, :]
        dy, dx = (y - y.astype(int))[:, None], (x - x.astype(int))[None, :]

        def toward(down: int, right: int, at: Any = (angles, row, col, dy, dx)) -> _Field:
            angles, row, col, dy, dx = at
            angle = angles[row + down, col + right]
            dot: _Field = np.sin(angle) * (dy - down) + np.cos(angle) * (dx - right)
            return dot

        fade_y, fade_x = (t**3 * (t * (6 * t - 15) + 10) for t in (dy, dx))
        top = toward(0, 0) + fade_x * (toward(0, 1) - toward(0, 0))
        bottom = toward(1, 0) + fade_x * (toward(1, 1) - toward(1, 0))
        total += 0.5**octave * (top + fade_y * (bottom - top))
    return total


def _is_gray(image: Rgb) -> bool:
    return bool((image[..., :1] == image[..., 1:]).all())


def _like(texture: Rgb, gray: bool) -> Rgb:
    """A texture for a gray image is gray too."""
    if not gray or _is_gray(texture):
        return texture
    level = np.asarray(Image.fromarray(texture).convert("L"))
    return np.repeat(level[:, :, None], 3, axis=2)
