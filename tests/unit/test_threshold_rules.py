"""Rules for a threshold: cases worked by hand, what holds for any scores, and the promise."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pgdefect.core import thresholds
from pgdefect.core.errors import UsageError
from pgdefect.core.thresholds import (
    beta_quantile,
    center_below,
    f1_max_threshold,
    false_reject_rate,
    images_needed,
    max_escape_rate,
    outcome,
    rate_interval,
    rejects_interval,
    zero_escapes,
)
from pgdefect.core.types import Threshold
from pgdefect.vision.patchcore.scoring import normalized_score

NORMAL = [1.0, 2.0, 3.0, 4.0, 6.0]
ANOMALOUS = [5.0, 7.0, 8.0, 9.0]
WITH_DEFECTS: dict[str, Callable[..., Threshold]] = {
    "f1_max": f1_max_threshold,
    "zero_escapes": zero_escapes,
    "max_escape_rate": lambda normal, anomalous: max_escape_rate(normal, anomalous, 0.2),
}
each_rule = pytest.mark.parametrize("rule", WITH_DEFECTS.values(), ids=WITH_DEFECTS.keys())
some_scores = st.lists(st.floats(0, 100, width=32), min_size=1, max_size=40)


# -- false-reject rate ---------------------------------------------------------------------


@pytest.mark.parametrize(("held_out", "rate"), [(19, 0.05), (39, 0.05), (20, 0.1), (99, 0.01)])
def test_new_normal_images_are_rejected_at_most_at_the_rate(held_out: int, rate: float) -> None:
    """The promise over many trainings: P(new score > threshold) <= rate, and not far below."""
    rng = np.random.default_rng(0)
    trials = 20_000
    scores = rng.gamma(3.0, size=(trials, held_out + 1))
    rejected = np.mean([row[-1] > false_reject_rate(row[:-1], rate).value for row in scores])
    noise = 4 * math.sqrt(rate / trials)
    assert rejected <= rate + noise
    assert rejected >= rate - 1 / (held_out + 1) - noise


@pytest.mark.parametrize(("held_out", "rate"), [(30, 0.05), (30, 0.2), (10, 0.05), (200, 0.02)])
def test_the_interval_holds_the_true_rate_95_times_in_a_hundred(held_out: int, rate: float) -> None:
    rng = np.random.default_rng(1)
    trials = 3000
    inside = above = 0
    for row in rng.gamma(3.0, size=(trials, held_out)):
        threshold = false_reject_rate(row, rate)
        true_rate = stats.gamma.sf(threshold.value, 3.0)
        low, high = threshold.rule["false_reject_interval"]
        rejected = rng.binomial(held_out, true_rate) / held_out  # of as many new ones
        inside += low <= rejected <= high
        above += rejected > high
    assert inside / trials >= 0.95 - 0.016
    assert above / trials <= 0.025 + 0.012


def test_false_reject_rate_of_cases_worked_by_hand() -> None:
    scores = np.arange(1.0, 20.0)
    threshold = false_reject_rate(scores[::-1], 0.05)
    assert (threshold.value, threshold.center) == (19.0, 10.0)
    rule = dict(threshold.rule)
    # Of 19 the largest: with beta-binomial(19, 1, 19), 4 of 19 new ones exceed it at most.
    new = stats.betabinom(19, 1, 19)
    assert rule.pop("false_reject_interval") == [new.ppf(0.025) / 19, new.ppf(0.975) / 19]
    assert rule == {
        "rule": "false_reject_rate",
        "rate": 0.05,
        "held_out_images": 19,
        "held_out_parts": 19,
        "false_rejects": 0,
        "guaranteed": True,
        "promised_rate": 0.05,
        "parts_needed": 19,
    }
    assert false_reject_rate(scores, 0.25).value == 15.0
    assert false_reject_rate(scores, 0.25).rule["false_rejects"] == 4
    # 18 are too few to promise 5 %: the largest, and no promise.
    few = false_reject_rate(scores[:18], 0.05)
    assert few.value == 18.0
    assert few.rule["guaranteed"] is False
    assert few.rule["parts_needed"] == 19
    assert few.rule["promised_rate"] == pytest.approx(1 / 19)


def test_parts_count_not_their_images() -> None:
    """A part of eighty photographs that all score high is one part."""
    rng = np.random.default_rng(3)
    odd = 9.0 + rng.random(80)
    scores = np.concatenate([rng.random(100), odd])
    parts = [*range(100), *["odd"] * 80]
    by_part = false_reject_rate(scores, 0.05, parts)
    assert by_part.value < 1.0
    assert (by_part.rule["held_out_images"], by_part.rule["held_out_parts"]) == (180, 101)
    assert false_reject_rate(scores, 0.05).value > 9.0
    # One image a part: the order statistic, whatever the parts are called.
    alone = false_reject_rate(scores[:100], 0.05, [f"part {n}" for n in range(100)])
    assert alone == false_reject_rate(scores[:100], 0.05)


def test_too_few_parts_give_the_rate_that_is_expected_and_say_what_can_be_promised() -> None:
    scores = np.tile(np.arange(1.0, 101.0), 4)
    threshold = false_reject_rate(scores, 0.05, np.repeat(range(4), 100).tolist())
    assert threshold.value == 95.0  # of each part 5 % lie above
    assert not threshold.rule["guaranteed"]
    assert threshold.rule["promised_rate"] == pytest.approx(1 - 4 * 0.95 / 5)


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_images_of_new_parts_keep_the_promise(spread: float) -> None:
    """Whether the images of a part are independent or nearly copies of each other."""
    rng = np.random.default_rng(11)
    sizes = rng.integers(1, 12, 60)
    rates = []
    for _ in range(400):
        scores = np.concatenate(
            [spread * rng.normal() + (1.1 - spread) * rng.normal(size=n) for n in sizes]
        )
        parts = np.repeat(np.arange(len(sizes)), sizes).tolist()
        value = false_reject_rate(scores, 0.05, parts).value
        rates.append(stats.norm.sf(value, scale=np.hypot(spread, 1.1 - spread)))
    assert 0.03 <= np.mean(rates) <= 0.05


@pytest.mark.parametrize(("parts", "accepted"), [(1, 1), (19, 19), (40, 39), (200, 191), (60, 6)])
def test_rejects_interval_is_scipys(parts: int, accepted: int) -> None:
    new = stats.betabinom(parts, parts + 1 - accepted, accepted)
    low, high = rejects_interval(parts, accepted)
    assert (low, high) == (new.ppf(0.025) / parts, new.ppf(0.975) / parts)


@pytest.mark.parametrize("rate", [0.5, 0.42, 0.3, 0.1, 0.07, 0.05, 0.02, 0.01, 0.003, 0.001])
def test_images_needed_are_the_fewest_with_the_promise(rate: float) -> None:
    needed = images_needed(rate)
    assert false_reject_rate(np.arange(needed), rate).rule["guaranteed"]
    if needed > 1:
        assert not false_reject_rate(np.arange(needed - 1), rate).rule["guaranteed"]


def test_rounding_costs_no_place() -> None:
    """100 × (1 - 0.42) is 58.00000000000001 in floating point; the 58th is meant."""
    assert false_reject_rate(np.arange(1.0, 100.0), 0.42).value == 58.0


@pytest.mark.parametrize("scores", [[0.2], [0.2] * 9, [0.0], [0.0, 0.0], [1e20] * 3])
def test_equal_scores_leave_a_threshold_above_them(scores: list[float]) -> None:
    threshold = false_reject_rate(scores)
    assert threshold.value > threshold.center == scores[0]
    assert threshold.value == pytest.approx(scores[0], rel=1e-5, abs=1e-8)
    assert normalized_score(scores[0], threshold.value, threshold.center) == pytest.approx(0.25)
    assert center_below(threshold.value, threshold.center) == threshold.center


@given(scores=some_scores, rate=st.floats(0.0001, 0.9999))
def test_normal_images_alone_never_give_the_lowest_score(scores: list[float], rate: float) -> None:
    """As in anomalib, where a normal-only validation set made the minimum the threshold."""
    threshold = false_reject_rate(scores, rate)
    assert threshold.value > min(scores)
    assert threshold.value > np.median(scores)
    assert outcome(threshold.value, scores).false_rejects <= len(scores) / 2
    assert outcome(threshold.value, scores).false_rejects <= rate * len(scores)
    assert threshold.value > threshold.center


@each_rule
@given(scores=some_scores)
def test_a_rule_that_needs_defects_is_refused_without(
    rule: Callable[..., Threshold], scores: list[float]
) -> None:
    with pytest.raises(UsageError, match="needs scores of anomalous images; there are none"):
        rule(scores, [])
    with pytest.raises(UsageError, match="there are none"):
        rule([], scores)


def test_what_cannot_be_used_is_refused() -> None:
    for rate in (0.0, 1.0, -0.1, 1.5, math.nan):
        with pytest.raises(UsageError, match="between 0 and 1"):
            false_reject_rate(np.ones(5), rate)
        with pytest.raises(UsageError, match="between 0 and 1"):
            max_escape_rate(NORMAL, ANOMALOUS, rate)
    with pytest.raises(UsageError, match="there are none"):
        false_reject_rate([])
    for bad in (math.nan, math.inf):
        with pytest.raises(UsageError, match="finite"):
            false_reject_rate([1.0, bad])
    for bad in (math.nan, math.inf, -math.inf, 0.0, -0.1):
        with pytest.raises(UsageError, match="finite number above 0"):
            thresholds.given(bad)


# -- rules with defects --------------------------------------------------------------------


def test_rules_with_defects_of_a_case_worked_by_hand() -> None:
    # Caught at 4.5: 5 7 8 9 and the 6: F1 = 8/9. At 6.5: 7 8 9 of 4, no reject: 6/7.
    best = f1_max_threshold(NORMAL, ANOMALOUS)
    assert best.value == 4.5
    assert best.center == 3.0
    assert best.rule["f1"] == pytest.approx(8 / 9)
    assert (best.rule["false_rejects"], best.rule["escapes"]) == (1, 0)
    assert zero_escapes(NORMAL, ANOMALOUS).value == 4.5
    # Four images promise no 15 % (five would not either, six do: one may escape of 7 × 0.15).
    few = max_escape_rate(NORMAL, ANOMALOUS, 0.15)
    assert (few.value, few.rule["guaranteed"], few.rule["images_needed"]) == (4.5, False, 6)
    # ⌊5 × 0.4⌋ = 2: just below the second lowest, 7, and above the normal 6.
    some = max_escape_rate(NORMAL, ANOMALOUS, 0.4)
    assert some.value == 6.5
    assert some.rule["guaranteed"] is True
    assert (some.rule["escapes"], some.rule["escape_rate"]) == (1, 0.25)
    assert some.rule["false_rejects"] == 0
    assert some.rule["escape_interval"] == pytest.approx(list(stats_interval(1, 4)))


def test_of_equally_good_thresholds_the_highest_is_taken() -> None:
    # Both 0.5 and 2.5 give F1 2/3: everything caught with 2 rejects, or 1 of 2 without any.
    threshold = f1_max_threshold([1.0, 2.0], [0.9, 3.0])
    assert threshold.rule["f1"] == pytest.approx(2 / 3)
    assert threshold.value == 2.5


def test_a_number_says_what_it_costs() -> None:
    threshold = thresholds.given(5.0, NORMAL, ANOMALOUS)
    assert (threshold.value, threshold.center) == (5.0, 3.0)
    assert threshold.rule["rule"] == "given"
    assert (threshold.rule["false_rejects"], threshold.rule["escapes"]) == (1, 1)
    alone = thresholds.given(0.25)
    assert (alone.value, alone.center) == (0.25, 0.0)
    assert alone.rule["false_reject_rate"] is None
    assert alone.rule["escape_interval"] is None


@given(normal=some_scores, anomalous=some_scores)
def test_f1_max_is_the_best_of_all_thresholds(normal: list[float], anomalous: list[float]) -> None:
    def f1(at: float) -> float:
        found = outcome(at, normal, anomalous)
        caught = found.anomalous_images - found.escapes
        return 2 * caught / (caught + found.false_rejects + found.anomalous_images)

    threshold = f1_max_threshold(normal, anomalous)
    every = [-1.0, *normal, *anomalous]
    assert f1(threshold.value) == threshold.rule["f1"] == max(map(f1, every))


@given(normal=some_scores, anomalous=some_scores)
def test_zero_escapes_lets_none_through_and_rejects_the_fewest(
    normal: list[float], anomalous: list[float]
) -> None:
    threshold = zero_escapes(normal, anomalous)
    found = outcome(threshold.value, normal, anomalous)
    assert found.escapes == threshold.rule["escapes"] == 0
    others = (outcome(at, normal, anomalous) for at in [-1.0, *normal, *anomalous])
    assert found.false_rejects == min(o.false_rejects for o in others if o.escapes == 0)


@given(normal=some_scores, anomalous=some_scores, rate=st.floats(0.01, 0.99))
def test_no_more_escape_than_allowed(
    normal: list[float], anomalous: list[float], rate: float
) -> None:
    threshold = max_escape_rate(normal, anomalous, rate)
    found = outcome(threshold.value, normal, anomalous)
    assert found.escapes <= rate * len(anomalous)
    assert found.false_rejects <= zero_escapes(normal, anomalous).rule["false_rejects"]


def test_new_defects_escape_at_most_at_the_rate() -> None:
    rng = np.random.default_rng(2)
    trials, rate = 10_000, 0.1
    escaped = 0
    for row in rng.gamma(3.0, size=(trials, 30)):
        escaped += row[-1] <= max_escape_rate([0.0], row[:-1], rate).value
    noise = 4 * math.sqrt(rate / trials)
    assert rate - 2 / 30 - noise <= escaped / trials <= rate + noise


@each_rule
@settings(max_examples=200)
@given(normal=some_scores, anomalous=some_scores)
def test_every_threshold_has_a_scale_that_rises(
    rule: Callable[..., Threshold], normal: list[float], anomalous: list[float]
) -> None:
    """Also where the defects score below the normal images, and the threshold below them all."""
    threshold = rule(normal, anomalous)
    assert threshold.center < threshold.value
    scores = sorted({*normal, *anomalous, threshold.value})
    found = [normalized_score(s, threshold.value, threshold.center) for s in scores]
    assert found == sorted(found)
    assert normalized_score(threshold.value, threshold.value, threshold.center) == 0.5


def test_a_threshold_below_the_normal_median_measures_in_half_of_itself() -> None:
    upside_down = zero_escapes([5.0, 6.0, 7.0], [2.0, 9.0])
    assert (upside_down.value, upside_down.center) == (1.0, 0.5)
    assert center_below(4.0, 4.0) == center_below(4.0, 4.0 - 1e-9) == 2.0
    assert center_below(4.0, 3.9) == 3.9
    assert center_below(0.0, 1.0) < 0.0
    assert center_below(-4.0, 1.0) == -6.0


def test_neighboring_floats_are_told_apart() -> None:
    low = 1.0
    high = math.nextafter(low, 2.0)
    threshold = zero_escapes([low], [high])
    assert (threshold.rule["false_rejects"], threshold.rule["escapes"]) == (0, 0)
    assert zero_escapes([1.0], [0.0]).rule["escapes"] == 0


# -- uncertainty ---------------------------------------------------------------------------


def stats_interval(count: int, total: int) -> tuple[float, float]:
    found = stats.binomtest(count, total).proportion_ci(0.95, method="exact")
    return found.low, found.high


@pytest.mark.parametrize("total", [1, 2, 19, 100, 4096])
def test_interval_of_a_rate_is_clopper_and_pearsons(total: int) -> None:
    for count in sorted({0, 1, total // 3, total // 2, total - 1, total}):
        assert rate_interval(count, total) == pytest.approx(stats_interval(count, total), abs=1e-9)
    assert rate_interval(0, 0) is None


@given(
    a=st.integers(1, 10**6),
    b=st.integers(1, 10**6),
    p=st.sampled_from([1e-6, 0.001, 0.025, 0.5, 0.975, 0.999]),
)
def test_beta_quantile_is_scipys(a: int, b: int, p: float) -> None:
    assert beta_quantile(p, a, b) == pytest.approx(stats.beta.ppf(p, a, b), rel=1e-9, abs=1e-15)


SIZES = [1, 2, 3, 7, 40, 1000, 12_345, 300_000, 10**6, 10**9, 10**12]


@pytest.mark.parametrize("a", SIZES)
@pytest.mark.parametrize("p", [1e-6, 0.025, 0.5, 0.975, 1 - 1e-6])
def test_beta_quantile_inverts_the_distribution_at_extremes(a: int, p: float) -> None:
    """Against its distribution function: scipy's own inverse is off for some of these."""
    for b in SIZES:
        x = beta_quantile(p, a, b)
        miss = (stats.beta.cdf(x, a, b) - p) / stats.beta.pdf(x, a, b)
        assert abs(miss) < 1e-9


@pytest.mark.parametrize(("p", "a", "b"), [(0.0, 1, 1), (1.0, 1, 1), (0.5, 0, 1), (0.5, 1, 0)])
def test_beta_quantile_refuses_what_is_not_defined(p: float, a: int, b: int) -> None:
    with pytest.raises(ValueError, match="is not defined"):
        beta_quantile(p, a, b)
