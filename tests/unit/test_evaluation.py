"""Figures against cases worked by hand, a second library, and their own definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from pgdefect import evaluation
from pgdefect.core.errors import UsageError
from pgdefect.evaluation import (
    FPR_LIMIT,
    PixelCounts,
    average_precision,
    curves,
    f1_max,
    group_numbers,
    image_auroc,
    image_replicates,
    percentile_interval,
    pixel_replicates,
    resampled_weights,
    score_edges,
)

Bool = NDArray[np.bool_]
Float32 = NDArray[np.float32]

# -- image figures -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("normal", "anomalous", "auroc", "precision", "f1"),
    [
        ([1, 2], [3, 4], 1.0, 1.0, 1.0),
        # Only rejecting everything finds both: precision 1/3 and 2/4.
        ([3, 4], [1, 2], 0.0, (1 / 3 + 2 / 4) / 2, 2 / 3),
        # 4 | 3 | 2 | 1: the second hit comes third.
        ([1, 3], [2, 4], 0.75, (1 + 2 / 3) / 2, 0.8),
        ([1, 1], [1, 1], 0.5, 0.5, 2 / 3),
        # The tie at 2 is taken whole.
        ([1, 2], [2, 3], 0.875, (1 + 2 / 3) / 2, 0.8),
    ],
)
def test_image_figures_worked_by_hand(
    normal: list[int], anomalous: list[int], auroc: float, precision: float, f1: float
) -> None:
    scores = np.array([*normal, *anomalous], dtype=np.float64)
    truth = [False] * len(normal) + [True] * len(anomalous)
    assert image_auroc(scores, truth) == pytest.approx(auroc)
    assert average_precision(scores, truth) == pytest.approx(precision)
    assert f1_max(scores, truth)[0] == pytest.approx(f1)


labeled = st.lists(
    st.tuples(st.integers(0, 5).map(float) | st.floats(0, 1e6), st.booleans()), min_size=2
).filter(lambda items: len({label for _, label in items}) == 2)


@given(labeled)
def test_counted_figures_equal_the_librarys_ties_included(items: list[tuple[float, bool]]) -> None:
    scores = np.array([score for score, _ in items])
    truth = np.array([label for _, label in items])
    bins = np.unique(scores, return_inverse=True)[1]
    normal, anomalous = (
        np.bincount(bins[~truth], minlength=bins.max() + 1),
        np.bincount(bins[truth], minlength=bins.max() + 1),
    )
    assert curves.auroc(normal, anomalous) == pytest.approx(roc_auc_score(truth, scores))
    expected = average_precision_score(truth, scores)
    assert curves.average_precision(normal, anomalous) == pytest.approx(expected)
    best = max(f1_score(truth, scores >= score) for score in scores)
    assert curves.f1_max_of_counts(normal, anomalous) == pytest.approx(best)
    assert f1_max(scores, truth)[0] == pytest.approx(best)
    assert image_auroc(scores, truth) == pytest.approx(roc_auc_score(truth, scores))


@given(labeled)
def test_the_threshold_of_f1_max_reaches_it(items: list[tuple[float, bool]]) -> None:
    scores = np.array([score for score, _ in items])
    truth = np.array([label for _, label in items])
    best, threshold = f1_max(scores, truth)
    assert f1_score(truth, scores > threshold) == pytest.approx(best)


def test_raw_distances_are_not_squashed() -> None:
    """Torchmetrics' figures pass through a sigmoid beyond 1, where float32 saturates."""
    import torch
    from torchmetrics.functional.classification import (
        binary_auroc,
        binary_average_precision,
    )

    rng = np.random.default_rng(0)
    truth = rng.random(3000) < 0.3
    scores = (rng.integers(0, 500, 3000) + 100 * truth) / np.float32(600)
    inside, labels = torch.tensor(scores), torch.tensor(truth.astype(int))
    assert image_auroc(scores, truth) == pytest.approx(float(binary_auroc(inside, labels)))
    expected = float(binary_average_precision(inside, labels))
    assert average_precision(scores, truth) == pytest.approx(expected)
    assert image_auroc(scores * 6000, truth) == pytest.approx(image_auroc(scores, truth))
    assert float(binary_auroc(inside * 6000, labels)) < image_auroc(scores * 6000, truth) - 0.05


@pytest.mark.parametrize("figure", [image_auroc, average_precision, f1_max])
@pytest.mark.parametrize(("truth", "counts"), [([True] * 3, "0 and 3"), ([False] * 3, "3 and 0")])
def test_one_label_alone_is_refused(figure: object, truth: list[bool], counts: str) -> None:
    assert callable(figure)
    with pytest.raises(UsageError, match=f"needs normal and anomalous images; there are {counts}"):
        figure(np.arange(3.0), truth)


# -- pixel figures -----------------------------------------------------------------------


def counted(maps: list[Float32], masks: list[Bool | None], bins: int = 8192) -> PixelCounts:
    counts = PixelCounts(score_edges(maps, bins))
    for scores, mask in zip(maps, masks, strict=True):
        counts.add(counts.count(scores, mask))
    return counts


def blobs(seed: int, images: int, size: int = 96) -> tuple[list[Float32], list[Bool | None]]:
    """Smooth maps with defects that they find in part; every third image is normal."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    maps, masks = [], []
    for n in range(images):
        mask = np.zeros((size, size), dtype=bool)
        for _ in range(n % 3):
            y, x = rng.integers(0, size - 20, 2)
            mask[y : y + rng.integers(3, 18), x : x + rng.integers(3, 18)] = True
        noise = gaussian_filter(rng.standard_normal((size, size)), 3)
        maps.append((5 + 40 * noise + 4 * gaussian_filter(mask * 1.0, 2)).astype(np.float32))
        masks.append(mask)
    return maps, [mask if mask.any() else None for mask in masks]


def test_pixel_figures_worked_by_hand() -> None:
    # Defective where the mask is 1; `apart` leaves out the middle one:
    #   4 3 0    1 . .    1 . .
    #   0 2 0    . 1 .    . . .
    #   0 0 1    . . 1    . . 1
    scores = np.array([[4, 3, 0], [0, 2, 0], [0, 0, 1]], dtype=np.float32)
    mask = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=bool)
    apart = mask.copy()
    apart[1, 1] = False
    # All three touch at corners: one region.
    assert counted([scores], [mask]).regions.tolist() == [1]
    assert counted([scores], [apart]).regions.tolist() == [2]
    # Regions {4} and {1} over 7 normal pixels. PRO is 1/2 from the start, until the false
    # positives 3 and 2 (rate 2/7) are in; then 1, at which the rate 0.3 is nearly reached:
    # the rest runs level, from (2/7, 1) towards (1, 1).
    figures = counted([scores], [apart]).figures()
    area = 2 / 7 * 1 / 2 + (0.3 - 2 / 7) * 1
    assert figures.aupro == pytest.approx(area / 0.3, abs=1e-6)
    # Pairs that are right: 7 of 7 for the 4, 5 of 7 for the 1.
    assert figures.pixel_auroc == pytest.approx(12 / 14)
    # Both found at threshold 1 with 2 false positives, or one without any: 2/3 either way.
    assert figures.pixel_f1_max == pytest.approx(2 / 3)


def test_binned_figures_are_exact_to_the_bound_they_give() -> None:
    maps, masks = blobs(0, 30)
    scores = np.concatenate([m.reshape(-1) for m in maps])
    none = np.zeros_like(maps[0], dtype=bool)
    truth = np.concatenate([(none if m is None else m).reshape(-1) for m in masks])
    fine, coarse = counted(maps, masks).figures(), counted(maps, masks, bins=64).figures()
    for figures in (fine, coarse):
        assert abs(figures.pixel_auroc - roc_auc_score(truth, scores)) <= figures.error
        exact = f1_max(scores, truth)[0]
        assert 0 <= exact - figures.pixel_f1_max + 1e-12 <= figures.error
        reached = f1_score(truth, scores >= figures.pixel_f1_max_threshold)
        assert reached == pytest.approx(figures.pixel_f1_max)
    assert fine.error < 1e-3 < coarse.error
    assert abs(fine.aupro - coarse.aupro) <= coarse.error


def test_aupro_equals_anomalibs() -> None:
    import torch
    from anomalib.metrics.aupro import _AUPRO

    maps, masks = blobs(1, 9, size=64)
    none = np.zeros_like(maps[0], dtype=bool)
    metric = _AUPRO(fpr_limit=FPR_LIMIT)
    metric.update(
        torch.tensor(np.stack(maps)),
        torch.tensor(np.stack([none if m is None else m for m in masks]).astype(int)),
    )
    figures = counted(maps, masks).figures()
    assert figures.aupro == pytest.approx(float(metric.compute()), abs=1e-3)
    assert 0.1 < figures.aupro < 0.99


def test_an_empty_mask_counts_its_pixels_as_normal_and_no_region() -> None:
    maps, masks = blobs(2, 3)
    empty = np.zeros_like(maps[0], dtype=bool)
    with_none = counted(maps, masks).figures()
    with_empty = counted(maps, [empty if m is None else m for m in masks])
    assert with_empty.figures() == with_none
    assert with_empty.regions.tolist() == counted(maps, masks).regions.tolist()


def test_pixels_of_one_kind_make_no_figure() -> None:
    maps, _ = blobs(3, 2)
    assert not counted(maps, [None, None]).has_both
    assert not counted(maps, [np.ones_like(m, dtype=bool) for m in maps]).has_both


@pytest.mark.parametrize("value", [0.0, 1.5])
def test_one_score_everywhere_is_chance(value: float) -> None:
    flat = np.full((8, 8), value, dtype=np.float32)
    mask = np.zeros((8, 8), dtype=bool)
    mask[:2] = True
    figures = counted([flat], [mask]).figures()
    assert figures.pixel_auroc == 0.5
    assert figures.pixel_f1_max == pytest.approx(0.4)
    assert figures.aupro == pytest.approx(0.15)


# -- intervals ---------------------------------------------------------------------------


def test_groups_are_drawn_whole() -> None:
    groups = group_numbers(["a", "b", None, "a", None, "b"])
    assert groups.tolist() == [0, 1, 2, 0, 3, 1]
    weights = np.concatenate(list(resampled_weights(groups, 120, seed=0)))
    assert weights.shape == (120, 6)
    assert (weights[:, 0] == weights[:, 3]).all()
    assert (weights[:, 1] == weights[:, 5]).all()
    assert (weights[:, [0, 1, 2, 4]].sum(axis=1) == 4).all()
    again = np.concatenate(list(resampled_weights(groups, 120, seed=0)))
    assert (weights == again).all()
    assert (weights != np.concatenate(list(resampled_weights(groups, 120, seed=1)))).any()


@settings(max_examples=30, deadline=None)
@given(labeled, st.integers(0, 99))
def test_replicates_are_the_librarys_figures_of_each_resample(
    items: list[tuple[float, bool]], seed: int
) -> None:
    scores = np.array([score for score, _ in items])
    truth = np.array([label for _, label in items])
    groups = group_numbers([f"part {n // 2}" for n in range(len(items))])
    found = image_replicates(scores, truth, 3.0, groups, 5, seed)
    [weights] = resampled_weights(groups, 5, seed)
    for n, drawn in enumerate(weights):
        if not drawn[truth].any() or not drawn[~truth].any():
            assert np.isnan(found["image_auroc"][n])
            assert np.isnan(found["image_f1_max"][n])
            assert np.isnan(found["average_precision"][n])
            continue
        assert found["image_auroc"][n] == pytest.approx(image_auroc(scores, truth, drawn))
        assert found["image_f1_max"][n] == pytest.approx(f1_max(scores, truth, drawn)[0])
        expected = average_precision(scores, truth, drawn)
        assert found["average_precision"][n] == pytest.approx(expected)
        rejected = np.average(scores[truth] > 3.0, weights=drawn[truth])
        assert found["detection_rate"][n] == pytest.approx(rejected)


def test_pixel_replicates_are_the_figures_of_each_resample() -> None:
    maps, masks = blobs(4, 6, size=48)
    counts = counted(maps, masks, bins=512)
    groups = group_numbers(["a", "b", None, "a", None, None])
    found = pixel_replicates(counts, groups, 4, seed=3)
    [weights] = resampled_weights(groups, 4, seed=3)
    for n, drawn in enumerate(weights):
        again = PixelCounts(counts.edges)
        for times, scores, mask in zip(drawn, maps, masks, strict=True):
            for _ in range(int(times)):
                again.add(again.count(scores, mask))
        figures = again.figures()
        assert found["pixel_auroc"][n] == pytest.approx(figures.pixel_auroc, abs=1e-5)
        assert found["pixel_f1_max"][n] == pytest.approx(figures.pixel_f1_max, abs=1e-5)
        assert found["aupro"][n] == pytest.approx(figures.aupro, abs=1e-5)


def test_an_interval_over_groups_is_wider_than_one_over_images() -> None:
    rng = np.random.default_rng(5)
    parts = rng.standard_normal(60)
    scores = np.repeat(parts, 6) + 0.1 * rng.standard_normal(360)
    truth = np.repeat(np.arange(60) < 30, 6)
    scores += truth
    names = [f"part {n // 6}" for n in range(360)]

    def width(groups: list[str | None]) -> float:
        found = image_replicates(scores, truth, 0.0, group_numbers(groups), 500, 0)
        interval = percentile_interval(found["image_auroc"])
        assert interval is not None
        assert interval[0] < image_auroc(scores, truth) < interval[1]
        return interval[1] - interval[0]

    assert width(list(names)) > 1.5 * width([None] * 360)


def test_percentiles_leave_out_what_could_not_be_computed() -> None:
    assert percentile_interval(np.array([np.nan, 1.0, np.nan, 1.0])) == (1.0, 1.0)
    assert percentile_interval(np.array([np.nan])) is None
    assert percentile_interval(np.array([])) is None


# -- the package -------------------------------------------------------------------------


def test_exported_names_are_sorted_and_there() -> None:
    assert evaluation.__all__ == sorted(evaluation.__all__)
    assert all(hasattr(evaluation, name) for name in evaluation.__all__)
