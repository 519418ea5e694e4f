"""Composed pictures: the panel of one inspection, the contact sheet of one search."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from pgdefect.core.boxes import Box
from pgdefect.pictures.render import (
    DEFAULT_VMAX,
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
    fitted_overlay,
    fitted_picture,
    label_color,
    legend,
    mask_overlay,
    resize_image,
    resize_map,
)

COLUMNS = 5
MIN_WIDTH = 700
_DESIGN_WIDTH = 1400


@dataclass(frozen=True, slots=True, eq=False)
class SheetQuery:
    """The inspected image at the top of a contact sheet.

    `image` is uint8 `(height, width, 3)`, None when its file is gone. `anomaly_map` is
    float32 `(height, width)` at the image's size. `verdict` is `normal` or `anomalous`;
    None derives it from score and threshold. `worst_box` is `(x, y, width, height)` in
    pixels, and so are the `boxes`, drawn on the picture: the regions that are looked for.
    `facts` are further name–value lines, such as the detector's version.
    """

    name: str
    image: UInt8Array | None
    anomaly_map: FloatArray | None = None
    category: str | None = None
    verdict: str | None = None
    score: float | None = None
    threshold: float | None = None
    vmax: float | None = None
    worst_box: Box | None = None
    facts: Sequence[tuple[str, str]] = ()
    boxes: Sequence[Box] = ()


@dataclass(frozen=True, slots=True, eq=False)
class SheetTile:
    """One neighbor. `image` is uint8 `(height, width, 3)`, None when its file is gone.

    `label` is `normal`, `anomalous` or None (shown as unknown). `rank` counts from 1. `box`
    is the matching region, `(x, y, width, height)` in pixels; `part` the physical part;
    `copies` how many near-duplicates it stands for, itself included.
    """

    rank: int
    distance: float
    path: str
    image: UInt8Array | None
    label: str | None = None
    defect_type: str | None = None
    category: str | None = None
    box: Box | None = None
    part: str | None = None
    copies: int = 1


def inspection_panel(
    image: UInt8Array,
    anomaly_map: FloatArray,
    mask: BoolArray | None = None,
    *,
    title: str,
    threshold: float,
    score: float | None = None,
    verdict: str | None = None,
    vmax: float | None = None,
    worst_box: Box | None = None,
    pane: int = 440,
) -> Image.Image:
    """Picture, overlay and, where `mask` is given, ground truth, under a caption strip.

    `image` is uint8 `(height, width, 3)`, `anomaly_map` float32 and `mask` bool, both
    `(height, width)`. `pane` is the longest side of each picture in pixels, at least 220.
    A verdict not given follows from `score` and `threshold`. Raises ValueError as
    `overlay` does.
    """
    if pane < 220:
        raise ValueError(f"a pane needs at least 220 pixels, got {pane}")
    heat = fitted_overlay(
        image, anomaly_map, (pane, pane), threshold=threshold, vmax=vmax, worst_box=worst_box
    )
    size = (heat.shape[1], heat.shape[0])
    panes = [("Picture", resize_image(image, size)), ("Anomaly map", heat)]
    if mask is not None:
        truth = _fitted_truth(image, mask, size)
        panes.append(("Ground truth" if mask.any() else "Ground truth: no defect", truth))

    scale = pane / 440
    well = (max(size[0], pane // 2), max(size[1], pane // 3))
    margin, gap = round(24 * scale), round(16 * scale)
    strip, heading, foot = round(84 * scale), round(34 * scale), round(52 * scale)
    width = 2 * margin + len(panes) * well[0] + (len(panes) - 1) * gap
    canvas = Image.new("RGB", (width, strip + heading + well[1] + foot), PAPER)
    pen = Pen(canvas, scale)

    right = width - margin
    verdict = verdict or _verdict(score, threshold)
    room = (right - margin) * 0.4
    if verdict is not None:
        chip = pen.chip_width(verdict, 20, max_width=room)
        pen.chip((right - chip, pen.px(25)), verdict, 20, label_color(verdict), max_width=room)
        right -= chip + gap
    pen.text((margin, pen.px(40)), title, 25, max_width=right - margin, bold=True)
    pen.text(
        (margin, pen.px(66)),
        _score_line(score, threshold),
        17,
        max_width=right - margin,
        color=MUTED,
    )
    pen.draw.line((0, strip, width, strip), fill=RULE, width=pen.px(1))
    top = strip + heading
    for column, (name, picture) in enumerate(panes):
        x = margin + column * (well[0] + gap)
        pen.text((x, strip + pen.px(24)), name, 16, max_width=well[0], color=MUTED)
        pen.draw.rectangle((x, top, x + well[0] - 1, top + well[1] - 1), fill=WELL)
        pen.place(picture, (x, top, *well))
    _legend(pen, (margin + well[0] + gap, top + well[1] + pen.px(12)), well[0], threshold, vmax)
    return canvas


def contact_sheet(
    query: SheetQuery,
    neighbors: Sequence[SheetTile],
    *,
    by: str | None = None,
    width: int = _DESIGN_WIDTH,
) -> Image.Image:
    """The query on top, its neighbors below in rows of five, in the order given.

    `by` says what was compared, such as *by defect*; it goes into the neighbors' title.

    `width` is in pixels, at least 700; type and margins scale with it. A picture whose
    image is None is replaced by the words *file not found*. Raises ValueError for a
    narrower sheet, or as `overlay` does.
    """
    if width < MIN_WIDTH:
        raise ValueError(f"a contact sheet needs at least {MIN_WIDTH} pixels, got {width}")
    scale = width / _DESIGN_WIDTH
    margin, gap = round(36 * scale), round(18 * scale)
    pane, tile = round(400 * scale), (width - 2 * margin - (COLUMNS - 1) * gap) // COLUMNS
    text = round(230 * scale) + len(_query_lines(query)) * round(33 * scale)
    header = margin + round(30 * scale) + max(pane + round(58 * scale), text)
    title = round(66 * scale)
    card = tile + round(138 * scale)
    rows = math.ceil(len(neighbors) / COLUMNS)
    body = rows * (card + gap) - gap + margin if rows else round(60 * scale)

    canvas = Image.new("RGB", (width, header + title + body), PAPER)
    pen = Pen(canvas, scale)
    _query_row(pen, query, margin, gap, pane)
    pen.draw.line((margin, header, width - margin - 1, header), fill=RULE, width=pen.px(1))
    place = (margin, header + round(42 * scale))
    _neighbors_title(pen, neighbors, by, place, width - 2 * margin)
    for index, neighbor in enumerate(neighbors):
        row, column = divmod(index, COLUMNS)
        corner = (margin + column * (tile + gap), header + title + row * (card + gap))
        _tile(pen, neighbor, corner, tile)
    return canvas


def _query_row(pen: Pen, query: SheetQuery, margin: int, gap: int, pane: int) -> None:
    top = margin + pen.px(30)
    bounds = (pane, pane)
    heat = None
    if query.image is not None and query.anomaly_map is not None and query.threshold is not None:
        heat = fitted_overlay(
            query.image,
            query.anomaly_map,
            bounds,
            threshold=query.threshold,
            vmax=query.vmax,
            worst_box=query.worst_box,
        )
    picture = None
    if query.image is not None:
        picture = fitted_picture(query.image, bounds, query.boxes)
    absent = "file not found" if query.image is None else "no anomaly map"
    panes = (("Query", picture, "file not found"), ("Anomaly map", heat, absent))
    for column, (name, shown, otherwise) in enumerate(panes):
        x = margin + column * (pane + gap)
        pen.text((x, top - pen.px(12)), name, 17, max_width=pane, color=MUTED)
        _well(pen, shown, (x, top, pane, pane), otherwise)
    if heat is not None and query.threshold is not None:
        place = (margin + pane + gap, top + pane + pen.px(14))
        _legend(pen, place, pane, query.threshold, query.vmax)
    x = margin + 2 * (pane + gap) + pen.px(14)
    _query_text(pen, query, (x, top), pen.canvas.width - margin - x)


def _query_text(pen: Pen, query: SheetQuery, corner: tuple[int, int], room: int) -> None:
    x, y = corner
    pen.text((x, y + pen.px(26)), query.name, 31, max_width=room, bold=True)
    pen.text((x, y + pen.px(60)), query.category or "no category", 20, max_width=room, color=MUTED)
    verdict = query.verdict or _verdict(query.score, query.threshold)
    color = label_color(verdict)
    pen.chip((x, y + pen.px(84)), verdict or "not inspected", 25, color, max_width=room)
    baseline = y + pen.px(172)
    if query.score is not None and query.threshold is not None:
        _gauge(pen, (x, y + pen.px(146)), room, query.score, query.threshold, query.vmax)
        baseline += pen.px(48)
    for name, value in _query_lines(query):
        pen.text((x, baseline), name, 19, max_width=pen.px(122), color=MUTED)
        pen.text((x + pen.px(132), baseline), value, 19, max_width=room - pen.px(132))
        baseline += pen.px(33)


def _query_lines(query: SheetQuery) -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    if query.score is not None:
        lines.append(("Score", _number(query.score)))
    if query.threshold is not None:
        lines.append(("Threshold", _number(query.threshold)))
    if query.worst_box is not None:
        left, top, wide, high = query.worst_box
        lines.append(("Worst patch", f"x {left}, y {top}  ({wide} x {high} px)"))
    return [*lines, *query.facts]


def _gauge(
    pen: Pen, corner: tuple[int, int], room: int, score: float, threshold: float, vmax: float | None
) -> None:
    x, y = corner
    top = vmax or DEFAULT_VMAX * threshold
    height = pen.px(14)
    filled = round((room - 1) * min(max(score / top, 0.0), 1.0)) if math.isfinite(score) else 0
    pen.draw.rectangle((x, y, x + room - 1, y + height), fill=WELL)
    color = label_color(_verdict(score, threshold))
    pen.draw.rectangle((x, y, x + filled, y + height), fill=color)
    tick = x + round((room - 1) * threshold / top)
    pen.draw.line((tick, y - pen.px(6), tick, y + height + pen.px(6)), fill=INK, width=pen.px(2))
    below = y + height + pen.px(24)
    pen.text((tick, below), "threshold", 15, max_width=room, color=MUTED, anchor="ms")
    ratio = f"{score / threshold:.2f} x threshold"
    pen.text((x + room, below), ratio, 15, max_width=room / 2, color=MUTED, anchor="rs")


def _neighbors_title(
    pen: Pen, neighbors: Sequence[SheetTile], by: str | None, xy: tuple[int, int], room: int
) -> None:
    if not neighbors:
        pen.text(xy, "No neighbors", 24, max_width=room, bold=True)
        below = (xy[0], xy[1] + pen.px(32))
        pen.text(below, "The search returned no image.", 18, max_width=room, color=MUTED)
        return
    noun = "neighbor" if len(neighbors) == 1 else "neighbors"
    title = f"{len(neighbors)} nearest {noun}{f' {by}' if by else ''}"
    used = pen.text(xy, title, 24, max_width=room * 0.6, bold=True)
    counts = Counter(tile.label or "unknown" for tile in neighbors)
    summary = " · ".join(f"{count} {label}" for label, count in counts.most_common())
    start = (xy[0] + used + pen.px(18), xy[1])
    pen.text(start, summary, 18, max_width=room - used - pen.px(18), color=MUTED)


def _tile(pen: Pen, tile: SheetTile, corner: tuple[int, int], side: int) -> None:
    x, y = corner
    label = tile.label or "unknown"
    color = label_color(tile.label)
    frame, pad = pen.px(5), pen.px(3)
    pen.draw.rectangle((x, y, x + side - 1, y + side - 1), fill=color)
    inner = side - 2 * frame
    picture = None
    if tile.image is not None:
        bounds = (inner - 2 * pad, inner - 2 * pad)
        picture = fitted_picture(tile.image, bounds, [tile.box] if tile.box else ())
    _well(pen, picture, (x + frame, y + frame, inner, inner), "file not found")
    base = y + side + pen.px(24)
    distance = _number(tile.distance)
    used = pen.text((x + side, base), distance, 18, max_width=side * 0.6, anchor="rs")
    pen.text((x, base), f"#{tile.rank}", 21, max_width=side - used - pen.px(8), bold=True)
    chip = pen.chip((x, base + pen.px(9)), label, 15, color, max_width=side * 0.6)
    if tile.defect_type:
        start = chip[2] + pen.px(8)
        line = chip[1] + chip[3] / 2 + pen.px(5)
        pen.text((x + start, line), tile.defect_type, 17, max_width=side - start)
    line = base + pen.px(55)
    pen.text((x, line), tile.category or "no category", 16, max_width=side, color=MUTED)
    path = _short_path(tile.path, lambda short: pen.text_width(short, 15) <= side)
    pen.text((x, line + pen.px(22)), path, 15, max_width=side, color=MUTED)
    about = [f"part {tile.part}"] if tile.part else []
    if tile.copies > 1:
        about.append(f"{tile.copies} near-duplicates")
    if about:
        pen.text((x, line + pen.px(44)), " · ".join(about), 15, max_width=side, color=MUTED)


def _well(pen: Pen, picture: UInt8Array | None, box: Box, otherwise: str) -> None:
    x, y, width, height = box
    pen.draw.rectangle((x, y, x + width - 1, y + height - 1), fill=WELL)
    if picture is not None:
        pen.place(picture, box)
        return
    middle = (x + width / 2, y + height / 2 + pen.px(6))
    pen.text(middle, otherwise, 19, max_width=width * 0.9, color=UNKNOWN, anchor="ms")


def _legend(
    pen: Pen, corner: tuple[int, int], width: int, threshold: float, vmax: float | None
) -> None:
    x, y = corner
    height = pen.px(10)
    top = vmax or DEFAULT_VMAX * threshold
    pen.place(legend((width, height), threshold=threshold, vmax=vmax), (x, y, width, height))
    tick = x + round((width - 1) * threshold / top)
    pen.draw.line((tick, y - pen.px(3), tick, y + height + pen.px(3)), fill=INK, width=pen.px(2))
    below = y + height + pen.px(19)
    pen.text((x, below), "0", 14, max_width=width / 4, color=MUTED)
    name = f"threshold {_number(threshold)}"
    pen.text((tick, below), name, 14, max_width=width / 2, color=MUTED, anchor="ms")
    end = (x + width, below)
    pen.text(end, f"{_number(top)} +", 14, max_width=width / 4, color=MUTED, anchor="rs")


def _fitted_truth(image: UInt8Array, mask: BoolArray, size: tuple[int, int]) -> UInt8Array:
    if mask.shape != image.shape[:2]:
        raise ValueError(f"the mask is {mask.shape}, the image {image.shape[:2]}; they must agree")
    return mask_overlay(resize_image(image, size), resize_map(mask.astype("float32"), size) >= 0.5)


def _verdict(score: float | None, threshold: float | None) -> str | None:
    if score is None or threshold is None:
        return None
    return "anomalous" if score >= threshold else "normal"


def _score_line(score: float | None, threshold: float) -> str:
    if score is None:
        return f"threshold {_number(threshold)}"
    ratio = f"{score / threshold:.2f} x threshold"
    return f"score {_number(score)} · threshold {_number(threshold)} · {ratio}"


def _number(value: float) -> str:
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e3 else f"{value:.3g}"


def _short_path(path: str, fits: Callable[[str], bool]) -> str:
    parts = [part for part in path.split("/") if part]
    for kept in (len(parts), 2):
        short = path if kept == len(parts) else "/".join(["…", *parts[-kept:]])
        if kept <= len(parts) and fits(short):
            return short
    return "/".join(["…", *parts[-1:]]) if len(parts) > 1 else path
