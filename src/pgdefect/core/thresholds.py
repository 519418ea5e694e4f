"""Rules that choose a threshold from scores, and how sure one can be of what it costs.

Pure NumPy: raw scores in, a `Threshold` out whose rule says what it was made from. An image
is anomalous where its score *exceeds* the threshold. A **false reject** is a normal image
above it, an **escape** an anomalous one that is not.

The default, `false_reject_rate`, needs no defect. The others are refused without one: from
normal images alone no threshold but a false-reject rate follows, and a rule that went on
regardless would take the lowest score and reject nearly everything.

Counted rates come with exact 95 % intervals (Clopper & Pearson 1934). A threshold that is an
order statistic comes with a prediction interval for new parts, whatever the scores' distribution.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pgdefect.core.arrays import Float64
from pgdefect.core.errors import UsageError
from pgdefect.core.types import Threshold

__all__ = [
    "DEFAULT_FALSE_REJECT_RATE",
    "Outcome",
    "beta_quantile",
    "center_below",
    "f1_max_threshold",
    "false_reject_rate",
    "given",
    "images_needed",
    "max_escape_rate",
    "outcome",
    "promise",
    "rate_interval",
    "rejects_interval",
    "zero_escapes",
]

DEFAULT_FALSE_REJECT_RATE = 0.05
CONFIDENCE = 0.95
Interval = tuple[float, float]
_ROUNDING = 1e-9
"""Taken off before rounding up, so that 100 × 0.58 is 58."""
_POINTS, _WEIGHTS = np.polynomial.legendre.leggauss(32)


@dataclass(frozen=True)
class Outcome:
    """What a threshold does to labeled images; a rate and its interval are None without any."""

    normal_images: int
    false_rejects: int
    anomalous_images: int
    escapes: int

    @property
    def false_reject_rate(self) -> float | None:
        return self.false_rejects / self.normal_images if self.normal_images else None

    @property
    def escape_rate(self) -> float | None:
        return self.escapes / self.anomalous_images if self.anomalous_images else None

    def recorded(self) -> dict[str, Any]:
        """Counts, rates and 95 % intervals, as they stand in a stored rule."""
        false_rejects = rate_interval(self.false_rejects, self.normal_images)
        escapes = rate_interval(self.escapes, self.anomalous_images)
        return {
            "normal_images": self.normal_images,
            "false_rejects": self.false_rejects,
            "false_reject_rate": self.false_reject_rate,
            "false_reject_interval": false_rejects and list(false_rejects),
            "anomalous_images": self.anomalous_images,
            "escapes": self.escapes,
            "escape_rate": self.escape_rate,
            "escape_interval": escapes and list(escapes),
        }


def outcome(threshold: float, normal: ArrayLike, anomalous: ArrayLike = ()) -> Outcome:
    """Count what `threshold` does to images of known label, from their raw scores `(n,)`.

    Same rule in SQL: defect.what_if.
    """
    good, bad = _sorted(normal), _sorted(anomalous)
    return Outcome(
        len(good), int((good > threshold).sum()), len(bad), int((bad <= threshold).sum())
    )


def false_reject_rate(
    normal: ArrayLike,
    rate: float = DEFAULT_FALSE_REJECT_RATE,
    parts: Sequence[Hashable] | None = None,
) -> Threshold:
    """The threshold that rejects at most a fraction `rate` of the images of new normal parts.

    Images of one part resemble each other, so that parts are counted, not images (hierarchical
    conformal prediction: Lee, Barber & Willett 2023, arXiv 2306.06342, and Dunn, Wasserman &
    Ramdas 2022, arXiv 1809.07441). Each of m parts weighs 1 / (m + 1), shared evenly by its
    images, and the threshold is the smallest score that scores of a weight of 1 - rate do not
    exceed: an image of a new part exceeds it with probability at most `rate`. With one image a
    part it is the r-th smallest of m, r = ⌈(m + 1)(1 - rate)⌉ (split conformal prediction; Vovk
    et al.). Never below the median.

    Where the parts are too few for that (``guaranteed: false``), each weighs 1 / m instead: the
    rate is then what is expected, and no promise (pooled distribution functions; Dunn et al.). The
    rule has in ``promised_rate`` what can be promised of this threshold all the same, 1 - w m /
    (m + 1) if scores of the weight w do not exceed it, and in ``parts_needed`` how many parts
    would do for `rate`. ``false_reject_interval`` is a prediction interval
    (`rejects_interval`): where the rate among as many new parts lies in 95 % of all cases.

    Same rule in SQL: pgdefect.threshold_by_parts.

    Args:
        normal: raw scores `(n,)` of normal images, each by a bank without its part.
        rate: between 0 and 1.
        parts: what part each image shows, `(n,)`; None takes every image for a part of its own.

    Raises:
        UsageError: no score, one that is not finite, or a rate out of range.
    """
    _check_rate("false-reject rate", rate)
    found = np.asarray(normal, dtype=np.float64)
    scores = _some_normal(found)
    numbers: dict[Hashable, int] = {}
    names = range(len(found)) if parts is None else parts
    part = np.array([numbers.setdefault(name, len(numbers)) for name in names])
    if len(part) != len(found):
        raise ValueError(f"{len(found)} scores and {len(part)} parts")
    count = len(numbers)
    order = np.argsort(found, kind="stable")
    weights = 1.0 / np.bincount(part)[part[order]]
    below = np.cumsum(weights)  # in parts, of the scores up to here
    guaranteed = count >= images_needed(rate)
    wanted = (count + 1 if guaranteed else count) * (1.0 - rate) - _ROUNDING
    place = min(int(np.searchsorted(below, wanted)), len(found) - 1)
    center = float(np.median(scores))
    # Never below the median, were the rate ever so large; and equal scores leave no unit to
    # measure in: the next larger number keeps 0.5 at the threshold.
    value = max(float(found[order[place]]), center + _least_unit(center))
    accepted = min(max(math.ceil((count + 1) * (1.0 - rate) - _ROUNDING), 1), count)
    rule = {
        "rule": "false_reject_rate",
        "rate": rate,
        "held_out_images": len(found),
        "held_out_parts": count,
        "false_rejects": int((scores > value).sum()),
        "false_reject_interval": list(rejects_interval(count, accepted)),
        "guaranteed": guaranteed,
        "promised_rate": rate if guaranteed else 1.0 - float(below[place]) / (count + 1),
        "parts_needed": images_needed(rate),
    }
    return Threshold(value, center, rule)


def promise(rule: Mapping[str, Any]) -> list[str]:
    """What a stored rule of `false_reject_rate` says of new parts, in words, one line each."""
    lines = []
    if "false_reject_interval" in rule:
        low, high = (100 * rate for rate in rule["false_reject_interval"])
        if "held_out_parts" in rule:
            lines.append(
                f"expected false rejects on new parts: {100 * rule['rate']:.3g} %; of as many "
                f"parts as these ({rule['held_out_parts']}) between {low:.3g} and {high:.3g} %, "
                "in 95 of 100 cases"
            )
        else:
            lines.append(
                f"uncertainty: the true false-reject rate is {low:.3g} to {high:.3g} %, with "
                "95 % confidence"
            )
    if rule.get("guaranteed") is False:
        if "parts_needed" in rule:
            lines.append(
                f"too few parts to promise that rate: at most {100 * rule['promised_rate']:.3g} % "
                f"can be promised with {rule['held_out_parts']}, and {rule['parts_needed']} parts "
                "would be needed"
            )
        else:
            need = f": {rule['images_needed']} would be needed" if "images_needed" in rule else ""
            lines.append(f"too few held-out images to promise that rate{need}")
    return lines


@lru_cache(maxsize=1024)
def rejects_interval(parts: int, accepted: int) -> Interval:
    """The share of as many new parts that exceed the `accepted`-th smallest score of `parts`.

    How many do is beta-binomially distributed, whatever the scores' distribution: with a =
    parts + 1 - accepted and b = accepted, k of them do with the probability
    C(parts, k) B(k + a, parts - k + b) / B(a, b). The interval leaves out at most 2.5 % on
    either side.

    Same rule in SQL: pgdefect.rejects_interval.
    """
    a, b = parts + 1 - accepted, accepted
    probability = math.exp(sum(math.log((b + n) / (a + b + n)) for n in range(parts)))
    tail, low, total = (1 - CONFIDENCE) / 2, None, 0.0
    for k in range(parts + 1):
        total += probability
        if low is None and total > tail:
            low = k
        if total >= 1 - tail:
            break
        probability *= (parts - k) / (k + 1) * (k + a) / (parts - k - 1 + b)
    return (low or 0) / parts, k / parts


def images_needed(rate: float) -> int:
    """How many parts (or images, each of its own) a promise of `rate` takes: ⌈1 / rate⌉ - 1."""
    return math.ceil(1.0 / rate - _ROUNDING) - 1


def f1_max_threshold(normal: ArrayLike, anomalous: ArrayLike) -> Threshold:
    """The threshold with the largest F1 of the label *anomalous*; of equal ones the highest.

    It lies midway between two scores. Rates measured on the images it was chosen by flatter.
    """
    good, bad = _both(normal, anomalous, "F1-max")
    scores = np.unique(np.concatenate([good, bad]))
    caught = len(bad) - np.searchsorted(bad, scores, side="left")
    rejected = caught + len(good) - np.searchsorted(good, scores, side="left")
    f1 = 2.0 * caught / (rejected + len(bad))
    best = len(f1) - 1 - int(f1[::-1].argmax())
    value = _just_below(float(scores[best]), scores)
    return _threshold(value, good, bad, {"rule": "f1_max", "f1": float(f1[best])})


def zero_escapes(normal: ArrayLike, anomalous: ArrayLike) -> Threshold:
    """The highest threshold that none of the anomalous images escapes: the fewest false rejects.

    Midway between the lowest anomalous score and the next lower score of any image.
    """
    good, bad = _both(normal, anomalous, "zero escapes")
    value = _just_below(float(bad[0]), np.concatenate([good, bad]))
    return _threshold(value, good, bad, {"rule": "zero_escapes"})


def max_escape_rate(normal: ArrayLike, anomalous: ArrayLike, rate: float) -> Threshold:
    """The highest threshold that at most a fraction `rate` of anomalous images escapes.

    The default rule mirrored: just below the k-th smallest of m anomalous scores,
    k = ⌊(m + 1) rate⌋, so that a *new* image of such defects escapes with probability at most
    `rate`, and no more than that share of those at hand. Where m is too small for the promise
    none escapes, and the rule says ``guaranteed: false``.
    """
    _check_rate("escape rate", rate)
    good, bad = _both(normal, anomalous, "a maximum escape rate")
    order = math.floor((len(bad) + 1) * rate + _ROUNDING)
    value = _just_below(float(bad[max(order, 1) - 1]), np.concatenate([good, bad]))
    rule = {
        "rule": "max_escape_rate",
        "rate": rate,
        "guaranteed": order >= 1,
        "images_needed": images_needed(rate),
    }
    return _threshold(value, good, bad, rule)


def given(value: float, normal: ArrayLike = (), anomalous: ArrayLike = ()) -> Threshold:
    """A number somebody chose; the scores, if any, only say what it costs."""
    if not 0.0 < value < math.inf:
        raise UsageError(f"a threshold is a finite number above 0, not {value}")
    return _threshold(value, _sorted(normal), _sorted(anomalous), {"rule": "given"})


def center_below(threshold: float, center: float) -> float:
    """The point of normalized score 0.25 for a threshold.

    It is `center`, the median of the normal scores, where that lies below the threshold. A
    threshold at or below it (a detector that cannot tell the defects) needs another unit to
    measure in: half the threshold, so that the normalized score still rises, 0.5 at the
    threshold.

    Same rule in SQL: pgdefect.score_center.
    """
    if threshold >= center + _least_unit(center):
        return center
    return threshold - max(0.5 * abs(threshold), _ROUNDING)


def rate_interval(count: int, total: int) -> Interval | None:
    """95 % Clopper–Pearson interval of the rate behind `count` of `total`; None for none.

    Same rule in SQL: defect.rate_interval.
    """
    if total == 0:
        return None
    low = beta_quantile((1 - CONFIDENCE) / 2, count, total - count + 1) if count else 0.0
    high = beta_quantile((1 + CONFIDENCE) / 2, count + 1, total - count) if count < total else 1.0
    return low, high


@lru_cache(maxsize=1024)
def beta_quantile(probability: float, a: int, b: int) -> float:
    """The quantile of Beta(a, b) for whole a, b ≥ 1.

    Halley's iteration on Gauss-Legendre integrals of the density, counted from its peak and scaled
    by it: no gamma function, no difference of large numbers, and the same time for a million
    trials as for ten.

    Same rule in SQL: pgdefect.beta_quantile.

    Args:
        probability: between 0 and 1, both excluded.
        a: successes + 1, or what else the first parameter counts.
        b: the second parameter.

    Returns:
        The x with I_x(a, b) = probability, to about 1e-12 of its size.

    Raises:
        ValueError: a parameter lies outside its range.
    """
    if not (0.0 < probability < 1.0 and 1 <= a < math.inf and 1 <= b < math.inf):
        raise ValueError(f"a quantile of Beta({a}, {b}) at {probability} is not defined")
    if b == 1:
        return math.exp(math.log(probability) / a)
    if a == 1:
        return -math.expm1(math.log1p(-probability) / b)
    s, t = a - 1.0, b - 1.0
    peak, rest = s / (s + t), t / (s + t)
    low = -_reach(rest, peak, t, s)
    high = _reach(peak, rest, s, t)
    ends = low, high

    def density(x: Float64) -> Float64:
        u, v = x / peak, -x / rest
        log = s * (np.log1p(u) - u) + t * (np.log1p(v) - v)
        return np.exp(np.maximum(log, -700.0))

    def area(start: float, stop: float) -> float:
        half = 0.5 * (stop - start)
        return half * float(_WEIGHTS @ density(start + half * (1.0 + _POINTS)))

    total = area(low, 0.0) + area(0.0, high)
    x = 0.0
    for _ in range(60):
        # The shorter tail is integrated: the difference from the whole would lose digits.
        if probability > 0.5:
            miss = (1.0 - probability) * total - area(x, ends[1])
        else:
            miss = area(ends[0], x) - probability * total
        low, high = (x, high) if miss < 0 else (low, x)
        slope = s / (peak + x) - t / (rest - x)
        step = miss / float(density(np.array(x)))
        step /= min(max(1.0 - 0.5 * step * slope, 0.5), 2.0)
        following = x - step if low < x - step < high else 0.5 * (low + high)
        step, x = abs(following - x), following
        if step <= 1e-12 * min(peak + x, rest - x):
            break
    return peak + x


def _reach(side: float, other: float, s: float, t: float) -> float:
    """How far from the peak, away from 0, a Beta density falls to exp(-50) of it at most.

    By ln(1 + u) - u ≤ -u² / (2 + 2u), and ≤ -u² / 2 for u < 0.
    """
    tail = 50.0 / s
    return min(
        side * (tail + math.sqrt(tail * (tail + 2.0))), other * min(1.0, math.sqrt(100.0 / t))
    )


def _threshold(
    value: float, normal: Float64, anomalous: Float64, rule: dict[str, Any]
) -> Threshold:
    center = float(np.median(normal)) if len(normal) else 0.0
    recorded = outcome(value, normal, anomalous).recorded()
    return Threshold(value, center_below(value, center), rule | recorded)


def _just_below(caught: float, scores: Float64) -> float:
    """Midway between a score that must exceed the threshold and the next lower one."""
    lower = scores[scores < caught]
    below = float(lower.max()) if len(lower) else caught - max(abs(caught), 2 * _ROUNDING)
    middle = below + 0.5 * (caught - below)
    return middle if middle < caught else below


def _least_unit(center: float) -> float:
    """The least distance of threshold and center that scores can be measured in."""
    return max(1e-6 * abs(center), _ROUNDING)


def _check_rate(name: str, rate: float) -> None:
    if not 0.0 < rate < 1.0:
        raise UsageError(f"the {name} must lie between 0 and 1, not {rate}")


def _both(normal: ArrayLike, anomalous: ArrayLike, rule: str) -> tuple[Float64, Float64]:
    good, bad = _some_normal(normal), _sorted(anomalous)
    if len(bad) == 0:
        raise UsageError(
            f"{rule} needs scores of anomalous images; there are none. A threshold from normal "
            "images alone is set by a false-reject rate"
        )
    return good, bad


def _some_normal(scores: ArrayLike) -> Float64:
    found = _sorted(scores)
    if len(found) == 0:
        raise UsageError("a threshold needs the scores of held-out normal images; there are none")
    return found


def _sorted(scores: ArrayLike) -> Float64:
    found = np.sort(np.asarray(scores, dtype=np.float64))
    if not np.isfinite(found).all():
        raise UsageError("a score is not a finite number; inspect the images again")
    return found
