"""Plots, the sheet of misses and the box around the worst region."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from pgdefect.core.errors import MissingExtra
from pgdefect.pictures.miss_sheet import TRUTH_LINE, Miss, MissSection, miss_sheet
from pgdefect.pictures.plots import precision_recall_plot, roc_plot, score_histogram
from pgdefect.vision.defects.region import region_box, worst_region
from pgdefect.vision.images.preprocess import Preprocessing

Plot = Callable[[np.ndarray, np.ndarray, float, str], Image.Image]
RNG = np.random.default_rng(0)
NORMAL, ANOMALOUS = RNG.normal(1.0, 0.1, 50), RNG.normal(1.4, 0.2, 40)


@pytest.mark.parametrize("plot", [roc_plot, precision_recall_plot, score_histogram])
@pytest.mark.parametrize(
    ("normal", "anomalous", "threshold"),
    [
        (NORMAL, ANOMALOUS, 1.2),
        (NORMAL, ANOMALOUS, 9.0),  # rejects nothing
        (NORMAL, ANOMALOUS, 0.0),  # rejects everything
        (np.ones(1), np.ones(1), 1.0),
        (NORMAL, np.array([1e6]), 1.2),
    ],
)
def test_plots_are_drawn_whatever_the_scores(
    plot: Plot, normal: np.ndarray, anomalous: np.ndarray, threshold: float
) -> None:
    picture = plot(normal, anomalous, threshold, "leather: a title")
    assert min(picture.size) > 500
    assert len(set(picture.resize((60, 60)).get_flattened_data())) > 20


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtra, match=r"pgdefect\[evaluate\]"):
        roc_plot(NORMAL, ANOMALOUS, 1.2, "x")


def test_the_worst_region_is_what_hangs_together_above_the_threshold() -> None:
    scores = np.array(
        [
            [9, 0, 0, 0, 5],
            [0, 5, 5, 0, 5],
            [0, 0, 0, 0, 0],
        ],
        dtype=np.float32,
    )
    region = worst_region(scores, 0, 0, 4.0)
    assert region.astype(int).tolist() == [[1, 0, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0]]
    preprocessing = Preprocessing(image_size=(96, 160))
    assert region_box(region, preprocessing, (30, 50)) == (0, 0, 30, 20)
    # Nothing is above: the worst cell alone.
    assert worst_region(scores, 0, 0, 20.0).sum() == 1


def test_the_sheet_shows_misses_and_says_where_there_are_none() -> None:
    image = np.full((60, 90, 3), 120, dtype=np.uint8)
    mask = np.zeros((60, 90), dtype=bool)
    mask[20:40, 30:60] = True
    scores = np.where(mask, 3.0, 0.1).astype(np.float32)
    shown = Miss("a/1.png", "scratch", "anomalous", 0.5, image, scores, mask, (30, 20, 30, 20))
    gone = Miss("a/2.png", "normal", "normal", 1.5, None, None, None, None)

    def sheet(*misses: Miss) -> Image.Image:
        sections = [MissSection("Escapes", "n of m", misses, "None.")]
        return miss_sheet("leather", "detector 1", sections, threshold=1.0, vmax=2.0)

    def green(picture: Image.Image) -> int:
        return int((np.asarray(picture) == TRUTH_LINE).all(axis=2).sum())

    assert green(sheet(shown, gone)) > 50
    assert green(sheet(gone)) == green(sheet()) == 0
    assert sheet(shown).height == sheet(shown, gone).height > sheet().height
    assert sheet(*[shown] * 4).height > sheet(*[shown] * 3).height
