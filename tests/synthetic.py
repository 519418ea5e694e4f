"""Photographs of parts that never were: drilled plates with defects, made from a seed.

They let anyone try pgdefect, and the tests run, without a data set. A defective part is
its normal twin, the part of the same seed, with one defect added: both share texture,
pose, light and camera noise, and the mask is where they differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pgdefect.core.errors import DatasetError

DefectType = Literal["scratch", "stain", "chip"]
Texture = Literal["brushed", "woven"]
DEFECT_TYPES: tuple[DefectType, ...] = get_args(DefectType)
MIN_SIDE = 64

_FIELD = NDArray[np.float64]
_OVERSAMPLING = 2
_VISIBLE = 0.12
_MIN_MASK_PIXELS = 12
_ATTEMPTS = 40
_HOLES = ((0.13, 0.15), (0.87, 0.15), (0.13, 0.85), (0.87, 0.85), (0.5, 0.5))
_METAL = np.array([0.985, 1.0, 1.015])
_CLOTH = np.array([0.90, 0.98, 1.04])
_STAIN = np.array([0.62, 0.47, 0.30])
_BENCH = np.array([0.085, 0.09, 0.10])


def normal_part(
    seed: int, size: tuple[int, int] = (256, 256), *, texture: Texture = "brushed"
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A part without defect: image uint8 `(height, width, 3)` and its empty mask.

    `size` is `(height, width)`, each at least 64 pixels. Raises ValueError for a smaller
    size, a negative seed or an unknown texture.
    """
    image = _photograph(_part(seed, size, texture), None)
    return image, np.zeros(size, dtype=np.bool_)


def defective_part(
    seed: int,
    defect_type: DefectType,
    size: tuple[int, int] = (256, 256),
    *,
    texture: Texture = "brushed",
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """`normal_part(seed)` with one defect: the image, and a bool mask `(height, width)`.

    Outside the mask the image equals its normal twin. Raises ValueError as `normal_part`
    does, and for an unknown defect type.
    """
    if defect_type not in DEFECT_TYPES:
        raise ValueError(f"unknown defect type {defect_type!r}; choose from {DEFECT_TYPES}")
    part = _part(seed, size, texture)
    defect = _place_defect(part, defect_type)
    return _photograph(part, defect), defect.mask


def write_dataset(
    root: Path,
    *,
    num_train: int = 40,
    num_test_normal: int = 10,
    num_per_defect: int = 6,
    seed: int = 0,
    size: tuple[int, int] = (256, 256),
    texture: Texture = "brushed",
    least_difference: float = 0.0,
) -> Path:
    """Write one category in MVTec's layout under `root` and return `root`.

    `train/good`, `test/good` and `test/<defect type>` hold `000.png` and on,
    `ground_truth/<defect type>/000_mask.png` the masks in black and white. No two
    images show the same part.

    Args:
        least_difference: how much a defect changes its normal twin at least, in gray levels
            summed over all pixels. Parts whose defect is fainter are passed over: at 128 × 128 a
            short scratch changes a patch by less than the camera's noise, and whether a detector
            tells it is luck.

    Raises:
        DatasetError: `root` holds files already.
    """
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DatasetError(
            f"{str(root)!r} exists and is not an empty folder. "
            "Name a new folder, or remove this one first."
        )
    groups: list[tuple[str, DefectType | None, int]] = [
        ("train/good", None, num_train),
        ("test/good", None, num_test_normal),
        *((f"test/{kind}", kind, num_per_defect) for kind in DEFECT_TYPES),
    ]
    for group, (folder, kind, number) in enumerate(groups):
        for index in range(number):
            seeds = _seeds(seed, group, index)
            stem = f"{index:03d}"
            if kind is None:
                image, _ = normal_part(next(seeds), size, texture=texture)
            else:
                while True:
                    part = _part(next(seeds), size, texture)
                    defect = _place_defect(part, kind)
                    image, mask = _photograph(part, defect), defect.mask
                    if not least_difference:
                        break
                    difference = np.abs(image - _photograph(part, None).astype(np.float64))
                    if difference.mean(2).sum() >= least_difference:
                        break
                _write(root / "ground_truth" / kind / f"{stem}_mask.png", mask * np.uint8(255))
            _write(root / folder / f"{stem}.png", image)
    return root


def _seeds(*words: int) -> Iterator[int]:
    """Seeds of parts to try in turn."""
    yield int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])
    for attempt in count():
        yield int(np.random.SeedSequence([*words, attempt]).generate_state(1, np.uint64)[0])


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """A part before the shot. Fields are float64 on the oversampled, unposed canvas."""

    seed: int
    size: tuple[int, int]
    unit: float
    surface: _FIELD
    plate: _FIELD
    holes: _FIELD
    corners: tuple[float, float, float, float]
    pose: tuple[float, float, float]
    light: _FIELD
    noise: _FIELD
    tint: _FIELD


@dataclass(frozen=True, slots=True, eq=False)
class _Defect:
    """`opacity` and `color` lay the defect over the posed part; `mask` is where it shows."""

    opacity: _FIELD
    color: _FIELD
    multiply: bool
    mask: NDArray[np.bool_]


def _part(seed: int, size: tuple[int, int], texture: Texture) -> _Part:
    height, width = size
    if min(size) < MIN_SIDE:
        raise ValueError(f"a part needs at least {MIN_SIDE} × {MIN_SIDE} pixels, got {size}")
    if texture not in get_args(Texture):
        raise ValueError(f"unknown texture {texture!r}; choose from {get_args(Texture)}")
    rng = np.random.default_rng([seed, 0])
    shape = (height * _OVERSAMPLING, width * _OVERSAMPLING)
    unit = min(size) / 256
    inset = 0.07 * min(shape)
    corners = (inset, inset, shape[1] - inset, shape[0] - inset)

    plate = _draw(shape, lambda draw: draw.rounded_rectangle(corners, 0.05 * min(shape), 255))
    surface = _brushed(rng, shape, unit) if texture == "brushed" else _woven(rng, shape, unit)
    holes, rims = _drill(shape, corners)
    bevel = plate - _blur(plate, 3.0 * unit)
    surface = np.clip(surface + 0.35 * bevel + rims, 0.0, 1.4)

    pose = (rng.normal(0, 1.0), rng.normal(0, 1.6 * unit), rng.normal(0, 1.6 * unit))
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    slope = rng.normal(0, 0.035, 2)
    light = rng.normal(1.0, 0.035) * (1 - 0.17 * (x**2 + y**2) + slope[0] * x + slope[1] * y)
    noise = rng.normal(0, 0.011, (height, width, 1)) + rng.normal(0, 0.004, (height, width, 3))
    tint = (_METAL if texture == "brushed" else _CLOTH) * rng.normal(1.0, 0.004, 3)
    return _Part(seed, size, unit, surface, plate, holes, corners, pose, light, noise, tint)


def _brushed(rng: np.random.Generator, shape: tuple[int, int], unit: float) -> _FIELD:
    grain = rng.normal(0, 1, shape)
    fine, coarse = _streak(grain, 28 * unit), _streak(rng.normal(0, 1, shape), 150 * unit)
    cloud = _blur(rng.normal(0, 1, shape), 28 * unit)
    return 0.60 + 0.042 * _unit(fine) + 0.030 * _unit(coarse) + 0.010 * _unit(cloud)


def _woven(rng: np.random.Generator, shape: tuple[int, int], unit: float) -> _FIELD:
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float64)
    pitch = 15.0 * unit
    x += 1.2 * unit * _unit(_blur(rng.normal(0, 1, shape), 20 * unit))
    y += 1.2 * unit * _unit(_blur(rng.normal(0, 1, shape), 20 * unit))
    over = (np.floor(x / pitch) + np.floor(y / pitch)) % 2
    across = np.abs(np.sin(np.pi * y / pitch)) * (0.55 + 0.45 * np.abs(np.sin(np.pi * x / pitch)))
    along = np.abs(np.sin(np.pi * x / pitch)) * (0.55 + 0.45 * np.abs(np.sin(np.pi * y / pitch)))
    fiber = _unit(_streak(rng.normal(0, 1, shape), 12 * unit))
    weave = np.where(over > 0.5, 1.05 * across, 0.85 * along)
    return 0.30 + 0.27 * _blur(weave, 0.8 * unit) + 0.022 * fiber


def _drill(shape: tuple[int, int], corners: tuple[float, ...]) -> tuple[_FIELD, _FIELD]:
    left, top, right, bottom = corners
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float64)
    holes, rims = np.zeros(shape), np.zeros(shape)
    for index, (across, down) in enumerate(_HOLES):
        radius = min(shape) * (0.095 if index == len(_HOLES) - 1 else 0.036)
        dx, dy = x - (left + across * (right - left)), y - (top + down * (bottom - top))
        away = np.hypot(dx, dy)
        holes = np.maximum(holes, np.clip(radius - away + 0.5, 0, 1))
        sink = np.clip((1.38 * radius - away) / 2, 0, 1) * np.clip(away - radius + 0.5, 0, 1)
        rims += sink * (0.15 * (dx + dy) / (np.sqrt(2) * np.maximum(away, 1)) - 0.05)
    return holes, rims


def _photograph(part: _Part, defect: _Defect | None) -> NDArray[np.uint8]:
    body = _shoot(part, part.plate * (1 - part.holes))[:, :, None]
    shadow = _shoot(part, _blur(part.plate, 7 * part.unit))[:, :, None]
    depth = _shoot(part, part.plate * part.holes)[:, :, None]
    scene = _shoot(part, part.surface)[:, :, None] * part.tint
    ground = _BENCH * (1.35 - 0.8 * shadow) * (1 - 0.35 * depth)
    scene = body * scene + (1 - body) * ground
    if defect is not None:
        laid = scene * defect.color if defect.multiply else defect.color
        scene += defect.opacity[:, :, None] * (laid - scene)
    exposed = np.clip(scene * part.light[:, :, None] + part.noise, 0, 1)
    return np.rint(255 * exposed).astype(np.uint8)


def _place_defect(part: _Part, kind: DefectType) -> _Defect:
    rng = np.random.default_rng([part.seed, 1 + DEFECT_TYPES.index(kind)])
    solid = _shoot(part, part.plate * (1 - part.holes))
    draw = {"scratch": _scratch, "stain": _stain, "chip": _chip}[kind]
    enough = 0.35 if kind == "chip" else 0.85
    best: tuple[float, _FIELD, _FIELD] | None = None
    for _ in range(_ATTEMPTS):
        opacity, color = draw(part, rng)
        whole = np.clip(_shoot(part, opacity), 0, 1)
        posed = whole * solid
        shown = float(posed.sum()) / max(float(whole.sum()), 1e-9)
        posed[posed < _VISIBLE] = 0
        rank = min(shown / enough, np.count_nonzero(posed) / _MIN_MASK_PIXELS)
        if best is None or rank > best[0]:
            best = (rank, posed, color)
        if rank >= 1:
            break
    assert best is not None
    _, posed, color = best
    shade = np.stack([_shoot(part, color[:, :, channel]) for channel in range(3)], axis=-1)
    return _Defect(posed, shade, kind == "stain", posed > 0)


def _scratch(part: _Part, rng: np.random.Generator) -> tuple[_FIELD, _FIELD]:
    left, top, right, bottom = part.corners
    reach = rng.uniform(0.22, 0.55) * min(right - left, bottom - top)
    angle = rng.uniform(0.25, np.pi - 0.25)
    middle = np.array(
        [
            rng.uniform(left + 0.25 * (right - left), right - 0.25 * (right - left)),
            rng.uniform(top + 0.25 * (bottom - top), bottom - 0.25 * (bottom - top)),
        ]
    )
    t = np.linspace(-0.5, 0.5, 40)
    bend = rng.uniform(-0.12, 0.12) * (1 - 4 * t**2) + np.cumsum(rng.normal(0, 0.0025, 40))
    ahead, aside = (
        np.array([np.cos(angle), np.sin(angle)]),
        np.array([-np.sin(angle), np.cos(angle)]),
    )
    points = middle + reach * (t[:, None] * ahead + bend[:, None] * aside)
    breadth = rng.uniform(1.3, 2.2) * max(part.unit, 0.6) * _OVERSAMPLING

    def line(shift: float, wide: float) -> _FIELD:
        path = [(float(px), float(py)) for px, py in points + shift]
        steps = zip(path, path[1:], np.sin(np.pi * (t[1:] + 0.5)), strict=False)
        strokes = [(a, b, max(1, round(wide * (0.45 + 0.55 * taper)))) for a, b, taper in steps]

        def stroke(draw: ImageDraw.ImageDraw) -> None:
            for start, end, thick in strokes:
                draw.line((start, end), fill=255, width=thick)

        return _blur(_draw(part.surface.shape, stroke), 0.35 * part.unit)

    bright, dark = line(0.0, breadth), line(0.8 * breadth, 0.8 * breadth)
    tone = 0.16 + 0.80 * np.clip(bright * 1.3, 0, 1)
    return 0.92 * np.maximum(bright, 0.8 * dark), np.repeat(tone[:, :, None], 3, axis=2)


def _stain(part: _Part, rng: np.random.Generator) -> tuple[_FIELD, _FIELD]:
    left, top, right, bottom = part.corners
    y, x = np.mgrid[: part.surface.shape[0], : part.surface.shape[1]].astype(np.float64)
    cx = rng.uniform(left + 0.2 * (right - left), right - 0.2 * (right - left))
    cy = rng.uniform(top + 0.2 * (bottom - top), bottom - 0.2 * (bottom - top))
    radius = rng.uniform(0.06, 0.13) * min(part.surface.shape)
    turn = np.arctan2(y - cy, x - cx)
    wobble = sum(
        rng.normal(0, 0.16 / order) * np.cos(order * turn + rng.uniform(0, 2 * np.pi))
        for order in range(2, 7)
    )
    depth = 1 - np.hypot(x - cx, y - cy) / (radius * (1 + wobble))
    inside = np.clip(depth * radius / (2.5 * part.unit), 0, 1)
    ring = np.exp(-(((depth - 0.07) / 0.06) ** 2))
    cloud = _unit(_blur(rng.normal(0, 1, part.surface.shape), 6 * part.unit))
    opacity = inside * np.clip(0.62 + 0.30 * ring + 0.07 * cloud, 0.3, 1)
    return opacity, np.broadcast_to(_STAIN, (*part.surface.shape, 3))


def _chip(part: _Part, rng: np.random.Generator) -> tuple[_FIELD, _FIELD]:
    left, top, right, bottom = part.corners
    along, side = rng.uniform(0.2, 0.8), rng.integers(4)
    middle = [
        (left + along * (right - left), top),
        (left + along * (right - left), bottom),
        (left, top + along * (bottom - top)),
        (right, top + along * (bottom - top)),
    ][side]
    radius = rng.uniform(0.045, 0.075) * min(part.surface.shape)
    turns = np.sort(rng.uniform(0, 2 * np.pi, 11))
    reach = radius * rng.uniform(0.65, 1.25, 11)

    def polygon(share: float) -> _FIELD:
        outline = [
            (float(middle[0] + share * r * np.cos(a)), float(middle[1] + share * r * np.sin(a)))
            for a, r in zip(turns, reach, strict=True)
        ]
        return _draw(part.surface.shape, lambda draw: draw.polygon(outline, fill=255))

    whole, gone = polygon(1.0), _blur(polygon(0.66), 0.5 * part.unit)
    facet = (
        part.surface.mean()
        + 0.22
        + 0.09 * _unit(_blur(rng.normal(0, 1, part.surface.shape), 2 * part.unit))
    )
    tone = (1 - gone)[:, :, None] * np.clip(facet, 0.4, 1.0)[:, :, None] + gone[:, :, None] * _BENCH
    return whole, tone


def _shoot(part: _Part, field: _FIELD) -> _FIELD:
    turn, dx, dy = part.pose
    height, width = part.size
    posed = Image.fromarray(field.astype(np.float32)).rotate(
        turn,
        Image.Resampling.BICUBIC,
        translate=(round(_OVERSAMPLING * dx), round(_OVERSAMPLING * dy)),
    )
    return np.asarray(posed.resize((width, height), Image.Resampling.BOX), dtype=np.float64)


def _draw(shape: tuple[int, ...], paint: Callable[[ImageDraw.ImageDraw], object]) -> _FIELD:
    canvas = Image.new("L", (shape[1], shape[0]))
    paint(ImageDraw.Draw(canvas))
    return np.asarray(canvas, dtype=np.float64) / 255


def _blur(field: _FIELD, sigma: float) -> _FIELD:
    """Gaussian blur, about `sigma` output pixels wide, as three box blurs."""
    for _ in range(3):
        field = _streak(_streak(field, 2 * sigma).T, 2 * sigma).T
    return field


def _streak(field: _FIELD, length: float) -> _FIELD:
    """Mean along each row over `length` output pixels, edges repeated."""
    half = max(1, round(length * _OVERSAMPLING / 2))
    padded = np.pad(field, ((0, 0), (half + 1, half)), mode="edge")
    total = np.cumsum(padded, axis=1)
    return (total[:, 2 * half + 1 :] - total[:, : -2 * half - 1]) / (2 * half + 1)


def _unit(field: _FIELD) -> _FIELD:
    centered: _FIELD = field - field.mean()
    return centered / max(float(field.std()), 1e-9)


def _write(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
