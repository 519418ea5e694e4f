"""Pictures of an inspection, in NumPy and Pillow only.

Arrays come in, arrays and Pillow images go out. Only `save_png` touches the disk.
One color scale serves all pictures: it depends on the detector's threshold, not on the
range of the map at hand, so that a normal part looks calm beside an anomalous one.
"""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from pgdefect.core.boxes import Box
from pgdefect.pictures.text import clean_text, draw_text, fit_text, text_length

UInt8Array = NDArray[np.uint8]
FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]
Color = tuple[int, int, int]

INK: Color = (27, 31, 38)
MUTED: Color = (97, 105, 116)
RULE: Color = (217, 221, 227)
PAPER: Color = (255, 255, 255)
WELL: Color = (238, 240, 243)
UNKNOWN: Color = (107, 114, 122)
LABEL_COLORS: dict[str, Color] = {"normal": (0, 105, 165), "anomalous": (198, 74, 0)}
CONTOUR: Color = (40, 232, 255)
TRUTH: Color = (0, 205, 140)

THRESHOLD_ALPHA = 0.35
FULL_ALPHA = 0.8
DEFAULT_VMAX = 2.5

_INFERNO: tuple[Color, ...] = (
    (0, 0, 4),
    (31, 12, 72),
    (85, 15, 109),
    (136, 34, 106),
    (186, 54, 85),
    (227, 89, 51),
    (249, 140, 10),
    (249, 201, 50),
    (252, 255, 164),
)
_RAMP_START = 0.34
_SMALLEST_FONT = 10


def label_color(label: str | None) -> Color:
    """Frame color of a label: blue for normal, orange for anomalous, gray for any other."""
    return LABEL_COLORS.get(label or "", UNKNOWN)


def colormap(position: NDArray[np.floating]) -> NDArray[np.float32]:
    """Inferno by control points: positions `(...)` in [0, 1] to RGB `(..., 3)` in [0, 255]."""
    knots = np.linspace(0.0, 1.0, len(_INFERNO))
    table = np.asarray(_INFERNO, dtype=np.float64)
    channels = [np.interp(position, knots, table[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).astype(np.float32)


def overlay(
    image: UInt8Array,
    anomaly_map: FloatArray,
    *,
    threshold: float,
    vmax: float | None = None,
    worst_box: Box | None = None,
) -> UInt8Array:
    """The image in gray under its anomaly map; `(height, width, 3)` in and out.

    The tint is absent up to half the threshold, rises as a square to 0.35 opaque at the
    threshold, and is 0.8 opaque, its most, from `vmax` on (2.5 thresholds unless given).
    A thin contour encloses each region at or above the threshold; it lies inside the
    region. `worst_box` is `(x, y, width, height)` in pixels, drawn around its content and
    clipped to the image.

    Raises:
        ValueError: for shapes or dtypes that do not fit, a map that is not finite, a threshold
            that is not positive, or a `vmax` not above the threshold.
    """
    _check_image(image)
    _check_map(anomaly_map, image)
    vmax = _check_scale(threshold, vmax)
    out = _tint(_gray(image), anomaly_map, threshold, vmax)
    thickness = line_thickness(image.shape[:2])
    out[contour(anomaly_map >= threshold, thickness)] = CONTOUR
    if worst_box is not None:
        out = _mark(out, worst_box, thickness)
    return out


def mask_overlay(image: UInt8Array, mask: BoolArray) -> UInt8Array:
    """The image in gray with the ground-truth `mask`, `(height, width)`, filled and outlined."""
    _check_image(image)
    if mask.shape != image.shape[:2]:
        raise ValueError(f"the mask is {mask.shape}, the image {image.shape[:2]}; they must agree")
    inside = mask.astype(bool)
    out = _gray(image).astype(np.float32)
    out[inside] = 0.6 * out[inside] + 0.4 * np.asarray(TRUTH, dtype=np.float32)
    painted = np.rint(out).astype(np.uint8)
    painted[contour(inside, line_thickness(image.shape[:2]))] = TRUTH
    return painted


def contour(region: BoolArray, thickness: int = 1) -> BoolArray:
    """The rim of a region, `(height, width)`: its pixels that `thickness` erosions remove.

    Outside the image counts as outside the region, so a region at the border is closed.
    """
    core = region = np.asarray(region, dtype=np.bool_)
    for _ in range(thickness):
        padded = np.pad(core, 1)
        core = core & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.logical_and(region, ~core)


def line_thickness(shape: tuple[int, ...]) -> int:
    """Pixels a line needs to show on an image of this `(height, width)`."""
    return max(1, round(max(shape[:2]) / 450))


def fit_size(shape: tuple[int, ...], bounds: tuple[int, int]) -> tuple[int, int]:
    """The largest `(width, height)`, at least 1 × 1, with the aspect of `(height, width)`."""
    height, width = shape[:2]
    scale = min(bounds[0] / width, bounds[1] / height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def resize_image(image: UInt8Array, size: tuple[int, int]) -> UInt8Array:
    """`image` at `(width, height)`, filtered."""
    if (image.shape[1], image.shape[0]) == size:
        return image
    resized = Image.fromarray(image).resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    return np.asarray(resized, dtype=np.uint8)


def resize_map(anomaly_map: FloatArray, size: tuple[int, int]) -> FloatArray:
    """`anomaly_map` at `(width, height)`: peaks are kept when it shrinks, linear when it grows."""
    out = np.asarray(anomaly_map, dtype=np.float32)
    for axis, target in ((0, size[1]), (1, size[0])):
        length = out.shape[axis]
        if target < length:
            out = np.maximum.reduceat(out, np.arange(target) * length // target, axis=axis)
    if (out.shape[1], out.shape[0]) == size:
        return out
    grown = Image.fromarray(np.ascontiguousarray(out)).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(grown, dtype=np.float32)


def fitted_overlay(
    image: UInt8Array,
    anomaly_map: FloatArray,
    bounds: tuple[int, int],
    *,
    threshold: float,
    vmax: float | None = None,
    worst_box: Box | None = None,
) -> UInt8Array:
    """`overlay`, scaled into `bounds` `(width, height)` before lines are drawn: they stay thin."""
    _check_image(image)
    _check_map(anomaly_map, image)
    height, width = image.shape[:2]
    size = fit_size(image.shape, bounds)
    return overlay(
        resize_image(image, size),
        resize_map(anomaly_map, size),
        threshold=threshold,
        vmax=vmax,
        worst_box=None if worst_box is None else _scaled(worst_box, (width, height), size),
    )


def fitted_picture(
    image: UInt8Array, bounds: tuple[int, int], boxes: Sequence[Box] = ()
) -> UInt8Array:
    """The image scaled into `bounds` `(width, height)`, with boxes in its own pixels drawn on."""
    _check_image(image)
    size = fit_size(image.shape, bounds)
    picture = resize_image(image, size)
    for box in boxes:
        scaled = _scaled(box, (image.shape[1], image.shape[0]), size)
        picture = _mark(picture, scaled, line_thickness(picture.shape[:2]))
    return picture


def _scaled(box: Box, old: tuple[int, int], new: tuple[int, int]) -> Box:
    """A box of an image of size `old` `(width, height)` in one of size `new`."""
    x, y, box_width, box_height = box
    left, right = (round(edge * new[0] / old[0]) for edge in (x, x + box_width))
    top, bottom = (round(edge * new[1] / old[1]) for edge in (y, y + box_height))
    return left, top, max(1, right - left), max(1, bottom - top)


def legend(size: tuple[int, int], *, threshold: float, vmax: float | None = None) -> UInt8Array:
    """The overlay's color scale over mid-gray, scores 0 to `vmax`; `size` is `(width, height)`."""
    vmax = _check_scale(threshold, vmax)
    scores = np.tile(np.linspace(0.0, vmax, size[0], dtype=np.float32), (size[1], 1))
    return _tint(np.full((size[1], size[0], 3), 150, dtype=np.uint8), scores, threshold, vmax)


SUBJECT = "pgdefect subject"
"""Keyword of the PNG's text that says which photograph the picture is of."""


def subject_of(path: str | os.PathLike[str]) -> str | None:
    """The subject that `save_png` wrote into a picture; None of any other file."""
    try:
        with Image.open(path) as image:
            found = image.info.get(SUBJECT)
    except (OSError, ValueError, SyntaxError):
        return None
    return found if isinstance(found, str) else None


def save_png(
    picture: Image.Image | UInt8Array, path: str | os.PathLike[str], *, subject: str | None = None
) -> Path:
    """Write a PNG in one step and return its path: readers see the whole file or none.

    Missing folders are made. `subject` is kept in the file, for `subject_of`. Raises OSError when
    the place cannot be written.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    partial = target.with_name(f".pgdefect-{os.getpid()}-{secrets.token_hex(6)}.tmp")
    try:
        with partial.open("xb") as file:
            about = PngInfo()
            if subject is not None:
                about.add_text(SUBJECT, subject)
            image.save(file, format="PNG", pnginfo=about)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return target


class Pen:
    """Text and chips on one Pillow image; sizes are pixels before `scale`."""

    def __init__(self, canvas: Image.Image, scale: float = 1.0) -> None:
        self.canvas = canvas
        self.draw = ImageDraw.Draw(canvas)
        self.scale = scale

    def px(self, length: float) -> int:
        """`length` on the canvas, at least one pixel."""
        return max(1, round(length * self.scale))

    def font_px(self, size: float) -> int:
        """A font size on the canvas, never too small to read."""
        return max(_SMALLEST_FONT, self.px(size))

    def text_width(self, text: str, size: float) -> float:
        """The width of a line of plain text on the canvas, not elided."""
        return text_length(clean_text(text), self.font_px(size))

    def text(
        self,
        xy: tuple[float, float],
        text: str,
        size: float,
        *,
        max_width: float,
        color: Color = INK,
        bold: bool = False,
        anchor: str = "ls",
    ) -> float:
        """Draw one line at canvas position `xy`, elided to `max_width`; returns its width."""
        pixels = self.font_px(size)
        weight = pixels / 28 if bold else 0.0
        fitted = fit_text(text, pixels, max_width - weight)
        for shift in (0.0, weight) if bold else (0.0,):
            draw_text(self.draw, (xy[0] + shift, xy[1]), fitted, pixels, color, anchor)
        return text_length(fitted, pixels) + weight

    def chip_width(self, text: str, size: float, *, max_width: float) -> int:
        """The width of a chip on the canvas."""
        pixels, pad = self.font_px(size), self.px(size * 0.6)
        fitted = fit_text(text, pixels, max_width - 2 * pad)
        return math.ceil(text_length(fitted, pixels)) + 2 * pad

    def chip(
        self, xy: tuple[int, int], text: str, size: float, color: Color, *, max_width: float
    ) -> Box:
        """A filled chip with white text, top left at `xy`; returns its box."""
        pixels, pad = self.font_px(size), self.px(size * 0.6)
        width, height = (
            self.chip_width(text, size, max_width=max_width),
            max(self.px(size * 1.65), pixels + 4),
        )
        x, y = xy
        stencil = Image.new("L", (4 * width, 4 * height))
        corners = (0, 0, 4 * width - 1, 4 * height - 1)
        ImageDraw.Draw(stencil).rounded_rectangle(corners, radius=height, fill=255)
        self.canvas.paste(color, (x, y), stencil.reduce(4))
        fitted = fit_text(text, pixels, max_width - 2 * pad)
        baseline = y + height / 2 + pixels * 0.34
        draw_text(self.draw, (x + pad, baseline), fitted, pixels, PAPER)
        return (x, y, width, height)

    def place(self, picture: UInt8Array, box: Box) -> Box:
        """Paste `picture` in the middle of `box`; returns where it went, as `(x, y, w, h)`."""
        height, width = picture.shape[:2]
        x, y = box[0] + (box[2] - width) // 2, box[1] + (box[3] - height) // 2
        self.canvas.paste(Image.fromarray(picture), (x, y))
        return (x, y, width, height)


def _gray(image: UInt8Array) -> UInt8Array:
    gray = np.asarray(Image.fromarray(image).convert("L"), dtype=np.uint8)
    return np.repeat(gray[:, :, None], 3, axis=2)


def _tint(gray: UInt8Array, scores: FloatArray, threshold: float, vmax: float) -> UInt8Array:
    below = np.clip(2.0 * scores / threshold - 1.0, 0.0, 1.0) ** 2
    above = np.clip((scores - threshold) / (vmax - threshold), 0.0, 1.0)
    alpha = (THRESHOLD_ALPHA * below + (FULL_ALPHA - THRESHOLD_ALPHA) * above)[:, :, None]
    position = np.interp(scores, [0.5 * threshold, vmax], [_RAMP_START, 1.0])
    tinted: UInt8Array = np.rint((1.0 - alpha) * gray + alpha * colormap(position)).astype(np.uint8)
    return tinted


def _mark(picture: UInt8Array, box: Box, thickness: int) -> UInt8Array:
    height, width = picture.shape[:2]
    x, y, box_width, box_height = box
    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas)
    for margin, color in ((2 * thickness, (0, 0, 0)), (thickness, (255, 255, 255))):
        left, top = (
            min(max(edge - margin, 0), size - 1) for edge, size in ((x, width), (y, height))
        )
        right = min(max(x + box_width - 1 + margin, left), width - 1)
        bottom = min(max(y + box_height - 1 + margin, top), height - 1)
        draw.rectangle((left, top, right, bottom), outline=color, width=thickness)
    return np.asarray(canvas, dtype=np.uint8)


def _check_image(image: UInt8Array) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(
            f"an image must be uint8 (height, width, 3), got {image.dtype} {image.shape}"
        )


def _check_map(anomaly_map: FloatArray, image: UInt8Array) -> None:
    if anomaly_map.shape != image.shape[:2]:
        raise ValueError(
            f"the anomaly map is {anomaly_map.shape}, the image {image.shape[:2]}; "
            "resize the map to the image first"
        )
    if not np.isfinite(anomaly_map).all():
        raise ValueError("the anomaly map holds values that are not finite")


def _check_scale(threshold: float, vmax: float | None) -> float:
    if not (math.isfinite(threshold) and threshold > 0):
        raise ValueError(f"the threshold must be positive and finite, got {threshold}")
    vmax = DEFAULT_VMAX * threshold if vmax is None else vmax
    if not (math.isfinite(vmax) and vmax > threshold):
        raise ValueError(f"vmax must be above the threshold {threshold}, got {vmax}")
    return vmax
