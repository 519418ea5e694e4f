"""One picture of the worst misses: false rejects above, escapes below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from pgdefect.core.boxes import Box
from pgdefect.pictures.render import (
    INK,
    MUTED,
    PAPER,
    RULE,
    UNKNOWN,
    WELL,
    BoolArray,
    FloatArray,
    Pen,
    UInt8Array,
    contour,
    fit_size,
    fitted_overlay,
    label_color,
    legend,
    resize_image,
    resize_map,
)

COLUMNS = 3
TRUTH_LINE = (0, 205, 140)
_PANE, _GAP, _MARGIN, _INSET = 214, 26, 36, 8


@dataclass(frozen=True, slots=True, eq=False)
class Miss:
    """A wrongly judged image: uint8 `(height, width, 3)`, None when its file is gone.

    `anomaly_map` and `mask` are `(height, width)`; `what` is what the image is labeled.
    """

    name: str
    what: str
    label: str
    score: float
    image: UInt8Array | None
    anomaly_map: FloatArray | None
    mask: BoolArray | None
    box: Box | None


@dataclass(frozen=True, slots=True, eq=False)
class MissSection:
    """A heading, a line below it, and the misses to show; `otherwise` where there are none."""

    title: str
    summary: str
    misses: Sequence[Miss]
    otherwise: str


def miss_sheet(
    title: str,
    subtitle: str,
    sections: Sequence[MissSection],
    *,
    threshold: float,
    vmax: float,
) -> Image.Image:
    """Each miss as picture (its ground truth outlined) and anomaly map, all on one scale."""
    card = (2 * _PANE + _INSET, _PANE + 62)
    width = 2 * _MARGIN + COLUMNS * card[0] + (COLUMNS - 1) * _GAP
    rows = [-(-len(section.misses) // COLUMNS) for section in sections]
    heights = [84 + (count * (card[1] + _GAP) if count else 46) for count in rows]
    head = 104
    canvas = Image.new("RGB", (width, head + sum(heights) + _MARGIN // 2), PAPER)
    pen = Pen(canvas)
    pen.text((_MARGIN, 48), title, 28, max_width=width * 0.6, bold=True)
    pen.text((_MARGIN, 78), subtitle, 17, max_width=width * 0.6, color=MUTED)
    _scale(pen, (width - _MARGIN - 380, 40), 380, threshold, vmax)
    top = head
    for section, height in zip(sections, heights, strict=True):
        pen.draw.line((_MARGIN, top, width - _MARGIN, top), fill=RULE, width=1)
        pen.text((_MARGIN, top + 36), section.title, 22, max_width=width - 2 * _MARGIN, bold=True)
        line = (_MARGIN, top + 62)
        pen.text(line, section.summary, 16, max_width=width - 2 * _MARGIN, color=MUTED)
        if not section.misses:
            line = (_MARGIN, top + 100)
            pen.text(line, section.otherwise, 17, max_width=width - 2 * _MARGIN, color=INK)
        for index, miss in enumerate(section.misses):
            row, column = divmod(index, COLUMNS)
            x = _MARGIN + column * (card[0] + _GAP)
            y = top + 84 + row * (card[1] + _GAP)
            _card(pen, miss, (x, y), threshold, vmax)
        top += height
    return canvas


def _card(pen: Pen, miss: Miss, corner: tuple[int, int], threshold: float, vmax: float) -> None:
    x, y = corner
    panes = [(x, y, _PANE, _PANE), (x + _PANE + _INSET, y, _PANE, _PANE)]
    for left, top, width, height in panes:
        pen.draw.rectangle((left, top, left + width - 1, top + height - 1), fill=WELL)
    if miss.image is None or miss.anomaly_map is None:
        middle = (x + _PANE / 2, y + _PANE / 2)
        pen.text(middle, "file not found", 17, max_width=_PANE, color=UNKNOWN, anchor="ms")
    else:
        size = fit_size(miss.image.shape, (_PANE, _PANE))
        pen.place(_outlined(miss.image, miss.mask, size), panes[0])
        heat = fitted_overlay(
            miss.image,
            miss.anomaly_map,
            (_PANE, _PANE),
            threshold=threshold,
            vmax=vmax,
            worst_box=miss.box,
        )
        pen.place(heat, panes[1])
    room = 2 * _PANE + _INSET
    base = y + _PANE + 24
    ratio = f"{miss.score / threshold:.2f} x threshold"
    pen.text((x + room, base), ratio, 17, max_width=room / 2, bold=True, anchor="rs")
    pen.chip((x, base - 16), miss.what, 14, label_color(miss.label), max_width=room / 2)
    pen.text((x, base + 26), miss.name, 15, max_width=room, color=MUTED)


def _outlined(image: UInt8Array, mask: BoolArray | None, size: tuple[int, int]) -> UInt8Array:
    picture = resize_image(image, size).copy()
    if mask is not None and mask.shape == image.shape[:2]:
        small = resize_map(mask.astype("float32"), size) >= 0.5
        picture[contour(small)] = TRUTH_LINE
    return picture


def _scale(pen: Pen, corner: tuple[int, int], width: int, threshold: float, vmax: float) -> None:
    x, y = corner
    pen.place(legend((width, 12), threshold=threshold, vmax=vmax), (x, y, width, 12))
    tick = x + round((width - 1) * threshold / vmax)
    pen.draw.line((tick, y - 4, tick, y + 16), fill=INK, width=2)
    below = y + 34
    pen.text((x, below), "0", 14, max_width=40, color=MUTED)
    pen.text(
        (tick, below), f"threshold {threshold:.4g}", 14, max_width=width, color=MUTED, anchor="ms"
    )
    pen.text((x + width, below), f"{vmax:.4g} +", 14, max_width=80, color=MUTED, anchor="rs")
