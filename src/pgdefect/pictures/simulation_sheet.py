"""The contact sheet of a simulation: defects outlined and enlarged, with verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pgdefect.pictures.render import (
    CONTOUR,
    MUTED,
    PAPER,
    WELL,
    BoolArray,
    Pen,
    UInt8Array,
    fit_size,
    label_color,
    resize_image,
    resize_map,
)

PANE = 220
_MARGIN, _GAP, _HEADER, _FOOT, _LABELS = 32, 26, 112, 44, 150
_PADDING = 4


@dataclass(frozen=True, slots=True, eq=False)
class SimulationTile:
    """A simulated image, uint8 `(height, width, 3)`, and its mask, bool `(height, width)`."""

    image: UInt8Array
    mask: BoolArray
    verdict: str
    score: float


def simulation_sheet(
    title: str,
    columns: Sequence[str],
    rows: Sequence[tuple[str, str, Sequence[SimulationTile | None]]],
) -> Image.Image:
    """A grid of defects: one row a kind and contrast, one column a size.

    `rows` are kind, contrast and one tile a column, None where there is no image. Each tile
    shows the whole image with the defect's outline, drawn around it, and beside it the
    defect enlarged as it is.
    """
    tile = 2 * PANE + _PADDING
    width = 2 * _MARGIN + _LABELS + len(columns) * tile + (len(columns) - 1) * _GAP
    row_height = PANE + _FOOT + _GAP
    canvas = Image.new("RGB", (width, _HEADER + len(rows) * row_height + _MARGIN - _GAP), PAPER)
    pen = Pen(canvas)
    pen.text((_MARGIN, 52), title, 26, max_width=width - 2 * _MARGIN, bold=True)
    for index, name in enumerate(columns):
        x = _MARGIN + _LABELS + index * (tile + _GAP)
        pen.text((x, _HEADER - 14), name, 18, max_width=tile, color=MUTED)
    for number, (kind, contrast, tiles) in enumerate(rows):
        y = _HEADER + number * row_height
        pen.text((_MARGIN, y + 24), kind, 20, max_width=_LABELS - 12, bold=True)
        pen.text((_MARGIN, y + 50), contrast, 16, max_width=_LABELS - 12, color=MUTED)
        for index, shown in enumerate(tiles):
            if shown is not None:
                _tile(pen, shown, (_MARGIN + _LABELS + index * (tile + _GAP), y))
    return canvas


def _tile(pen: Pen, tile: SimulationTile, corner: tuple[int, int]) -> None:
    x, y = corner
    for place, picture in enumerate((_outlined(tile), _enlarged(tile))):
        left = x + place * (PANE + _PADDING)
        pen.draw.rectangle((left, y, left + PANE - 1, y + PANE - 1), fill=WELL)
        pen.place(picture, (left, y, PANE, PANE))
    chip = pen.chip((x, y + PANE + 8), tile.verdict, 15, label_color(tile.verdict), max_width=PANE)
    start = chip[0] + chip[2] + 10
    pen.text((start, y + PANE + 26), f"score {tile.score:.3f}", 16, max_width=PANE, color=MUTED)


def _outlined(tile: SimulationTile) -> UInt8Array:
    """The whole picture, with a line around the defect that leaves it to be seen."""
    size = fit_size(tile.image.shape, (PANE, PANE))
    picture = resize_image(tile.image, size).copy()
    inner = _grown(resize_map(tile.mask.astype(np.float32), size) >= 0.5, 3)
    picture[_grown(inner, 1) & ~inner] = CONTOUR
    return picture


def _enlarged(tile: SimulationTile) -> UInt8Array:
    """A square cut around the defect, as far as the picture reaches."""
    height, width = tile.mask.shape
    ys, xs = np.nonzero(tile.mask)
    reach = max(16, round(0.75 * max(int(np.ptp(ys)), int(np.ptp(xs)))))
    y, x = (int(ys.min()) + int(ys.max())) // 2, (int(xs.min()) + int(xs.max())) // 2
    top = min(max(0, y - reach), max(0, height - 2 * reach))
    left = min(max(0, x - reach), max(0, width - 2 * reach))
    cut = np.ascontiguousarray(tile.image[top : top + 2 * reach, left : left + 2 * reach])
    return resize_image(cut, fit_size(cut.shape, (PANE, PANE)))


def _grown(region: BoolArray, steps: int) -> BoolArray:
    for _ in range(steps):
        padded = np.pad(region, 1)
        region = (
            region | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
        )
    return np.asarray(region, dtype=np.bool_)
