"""Plots of an evaluation, with matplotlib's object-oriented interface: no global state."""

from __future__ import annotations

import math
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pgdefect.core.errors import MissingExtra
from pgdefect.pictures.render import INK, LABEL_COLORS, MUTED, RULE, Color

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Scores = NDArray[np.floating]
_DPI = 130
_BINS = 40


def roc_plot(normal: Scores, anomalous: Scores, threshold: float, title: str) -> Image.Image:
    """Detection rate over false-reject rate of image scores, the threshold marked."""
    figure, axes = _figure(title, (6.4, 6.4))
    cuts = np.unique(np.concatenate([normal, anomalous]))[::-1]
    rates = [np.r_[0.0, _share_from(scores, cuts)] for scores in (normal, anomalous)]
    axes.plot([0, 1], [0, 1], color=_rgb(RULE), linestyle="--", linewidth=1.2)
    axes.plot(rates[0], rates[1], color=_rgb(LABEL_COLORS["anomalous"]), linewidth=2.2)
    axes.fill_between(rates[0], rates[1], color=_rgb(LABEL_COLORS["anomalous"]), alpha=0.08)
    rejected, found = float((normal > threshold).mean()), float((anomalous > threshold).mean())
    _mark(
        axes,
        rejected,
        found,
        f"threshold {threshold:.4g}\nfinds {found:.1%}\nrejects {rejected:.1%} of normal",
        left=False,
    )
    _square(axes, "normal images rejected", "anomalous images found")
    return _drawn(figure)


def precision_recall_plot(
    normal: Scores, anomalous: Scores, threshold: float, title: str
) -> Image.Image:
    """Precision over recall of image scores, the threshold marked, chance as a line."""
    figure, axes = _figure(title, (6.4, 6.4))
    cuts = np.unique(np.concatenate([normal, anomalous]))[::-1]
    alarms = _share_from(normal, cuts) * len(normal)
    hits = _share_from(anomalous, cuts) * len(anomalous)
    recall, precision = hits / len(anomalous), hits / (hits + alarms)
    prevalence = len(anomalous) / (len(normal) + len(anomalous))
    axes.axhline(prevalence, color=_rgb(RULE), linestyle="--", linewidth=1.2)
    axes.text(0.01, prevalence - 0.012, "chance", color=_rgb(MUTED), va="top", fontsize=9)
    color = _rgb(LABEL_COLORS["anomalous"])
    axes.step(np.r_[0.0, recall], np.r_[precision[0], precision], where="pre", color=color, lw=2.2)
    found, wrong = int((anomalous > threshold).sum()), int((normal > threshold).sum())
    if found + wrong:
        at, share = found / len(anomalous), found / (found + wrong)
        _mark(
            axes,
            at,
            share,
            f"threshold {threshold:.4g}\nfinds {at:.1%}\n{share:.1%} of rejects are defects",
            left=True,
        )
    _square(axes, "recall: anomalous images found", "precision: rejects that are anomalous")
    return _drawn(figure)


def score_histogram(normal: Scores, anomalous: Scores, threshold: float, title: str) -> Image.Image:
    """How many images of either label have which score, the threshold as a line.

    The few highest scores are gathered in the last bar where they would squeeze the rest.
    """
    figure, axes = _figure(title, (8.6, 4.8))
    both = np.concatenate([normal, anomalous])
    low, high = float(both.min()), float(both.max())
    top = min(high, max(3.0 * float(np.quantile(both, 0.9)), 1.5 * threshold))
    low, top = min(low, threshold), max(top, threshold)
    # The threshold is a border between bars: none is half rejected.
    step = ((top - low) or 1.0) / _BINS
    below, above = math.ceil((threshold - low) / step), math.ceil((top - threshold) / step)
    edges = threshold + step * np.arange(-max(below, 1), max(above, 1) + 1)
    both_labels = (("normal", normal), ("anomalous", anomalous))
    bars = {
        label: np.histogram(np.clip(scores, edges[0], edges[-1]), edges)[0]
        for label, scores in both_labels
    }
    for label, scores in both_labels:
        name = f"{label} ({len(scores):,})"
        color = _rgb(LABEL_COLORS[label])
        axes.stairs(bars[label], edges, fill=True, color=color, alpha=0.4, label=name)
    for label, counts in bars.items():
        axes.stairs(counts, edges, color=_rgb(LABEL_COLORS[label]), linewidth=1.8)
    tallest = max(int(counts.max()) for counts in bars.values())
    axes.axvline(threshold, color=_rgb(INK), linewidth=1.6)
    axes.set_ylim(0, tallest * 1.16)
    axes.text(
        threshold,
        tallest * 1.14,
        f" threshold {threshold:.4g} ",
        color=_rgb(INK),
        va="top",
        ha="left" if threshold < (low + top) / 2 else "right",
        fontsize=10,
    )
    gathered = int((both > edges[-1]).sum())
    more = f" ({gathered} above {edges[-1]:.3g} in the last bar)" if gathered else ""
    axes.set_xlabel(f"raw image score{more}", color=_rgb(INK))
    axes.set_ylabel("images", color=_rgb(INK))
    axes.set_xlim(edges[0], edges[-1])
    axes.legend(frameon=False, loc="upper right" if threshold < (low + top) / 2 else "upper left")
    return _drawn(figure)


def _figure(title: str, size: tuple[float, float]) -> tuple[Figure, Axes]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("a plot", "matplotlib", "evaluate") from error
    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, color=_rgb(INK), fontsize=12, loc="left", pad=12)
    axes.grid(color=_rgb(RULE), linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_rgb(MUTED))
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_rgb(RULE))
    return figure, axes


def _square(axes: Axes, across: str, up: str) -> None:
    from matplotlib.ticker import PercentFormatter

    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    axes.set_aspect("equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel(across, color=_rgb(INK))
    axes.set_ylabel(up, color=_rgb(INK))


def _mark(axes: Axes, x: float, y: float, text: str, *, left: bool) -> None:
    """Mark a point, with its text to the left or right: always below the curve."""
    axes.plot([x], [y], "o", color=_rgb(INK), markersize=8, markeredgecolor="white", zorder=5)
    left = x > 0.62 or (left and x > 0.38)
    low = y < 0.2
    axes.annotate(
        text,
        (x, y),
        (-12 if left else 12, 12 if low else -12),
        textcoords="offset points",
        ha="right" if left else "left",
        va="bottom" if low else "top",
        fontsize=10,
        color=_rgb(INK),
        bbox={"boxstyle": "round,pad=0.3", "facecolor": "white", "alpha": 0.85, "linewidth": 0},
    )


def _share_from(scores: Scores, cuts: Scores) -> NDArray[np.float64]:
    """The share of `scores` at or above each of `cuts`."""
    below = np.searchsorted(np.sort(scores), cuts, side="left")
    return 1.0 - below / len(scores)


def _rgb(color: Color) -> tuple[float, float, float]:
    return color[0] / 255, color[1] / 255, color[2] / 255


def _drawn(figure: Figure) -> Image.Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    stream = BytesIO()
    canvas: Any = FigureCanvasAgg(figure)
    canvas.print_png(stream)
    stream.seek(0)
    with Image.open(stream) as picture:
        return picture.convert("RGB")
