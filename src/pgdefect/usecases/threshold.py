"""Choose a detector's threshold by a rule, see what it costs, put it in force."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection

from pgdefect.core import thresholds
from pgdefect.core.errors import UsageError
from pgdefect.core.outliers import threshold_without
from pgdefect.core.types import Threshold
from pgdefect.core.wording import command, option
from pgdefect.db.connection.engine import Database
from pgdefect.db.records import thresholds as stored
from pgdefect.db.records.catalog import category_id
from pgdefect.db.records.thresholds import LabeledScores, ThresholdRecord

Rule = Literal["false_reject_rate", "f1_max", "zero_escapes", "max_escape_rate", "given"]
SIMULATED = "simulated"
HELD_OUT = "held out"
SPLITS = ("train", "test", "production")


@dataclass(frozen=True)
class ThresholdReport:
    """A detector's threshold, and what it does to the labeled images it has inspected.

    before is None where nothing was to be changed; rejudged counts the photographs judged
    again (with dry_run: none) by the threshold now in force; stale those that still lie under
    another one. history begins with the threshold in force.
    """

    category: str
    detector_id: int
    threshold: float
    score_center: float
    rule: dict[str, Any]
    split: str
    outcome: dict[str, Any]
    before: float | None
    outcome_before: dict[str, Any] | None
    dry_run: bool
    rejudged: int
    stale: int
    history: tuple[ThresholdRecord, ...]


def show_threshold(
    database: Database,
    category: str,
    *,
    detector_id: int | None = None,
    split: str = "test",
    simulated: bool = False,
    rejudge: bool = False,
) -> ThresholdReport:
    """The threshold in force. With `rejudge`, stored scores are first judged by it again.

    Raises:
        UnknownCategory; NotFound: no active detector, or not the category's.
    """

    def work(connection: Connection) -> ThresholdReport:
        found = _detector(connection, category, detector_id)
        made = stored.rejudge(connection, found) if rejudge else 0
        scores, source = _labeled(connection, found, split, simulated)
        history = stored.threshold_history(connection, found)
        now = history[0]
        return ThresholdReport(
            category,
            found,
            now.threshold,
            now.score_center,
            now.rule,
            source,
            _outcome(now.threshold, scores),
            None,
            None,
            False,
            made,
            stored.stale_inspections(connection, found),
            tuple(history),
        )

    return database.transact(work)


def change_threshold(
    database: Database,
    category: str,
    rule: Rule,
    value: float | None = None,
    *,
    detector_id: int | None = None,
    split: str = "test",
    simulated: bool = False,
    production: bool = False,
    anomalous_share: float | None = None,
    dry_run: bool = False,
    rejudge: bool = True,
) -> ThresholdReport:
    """Choose a threshold by `rule` and put it in force, in one transaction; nothing is trained.

    `value` is the rate of false_reject_rate and max_escape_rate and the number of given; the
    other rules have none. false_reject_rate looks at the normal images held out in training,
    the others at the stored scores of labeled images of `split` that the detector has not
    learned from; with `simulated` at simulated defects instead of real ones (and, where the
    split has no normal image, at the held-out ones). Inspections keep the threshold they were
    judged by; with `rejudge` each image gets one more, under the new threshold.

    Raises:
        UnknownCategory; NotFound: no active detector, or not the category's;
        UsageError: a value that is none, no scores that the rule can be applied to, or a
        threshold that would not be above 0.
    """

    if (production or anomalous_share is not None) and rule != "false_reject_rate":
        raise UsageError(
            f"production images set a threshold by {option('false_reject_rate')} alone"
        )
    if anomalous_share is not None and not production:
        raise UsageError(
            f"{option('anomalous_share')} is of production images: use it with "
            f"{option('production')}"
        )

    def work(connection: Connection) -> ThresholdReport:
        found = _detector(connection, category, detector_id)
        scores, source = _labeled(connection, found, split, simulated)
        chosen = _choose(
            connection, category, found, rule, value, scores, source, production, anomalous_share
        )
        if chosen.value <= 0.0:
            raise UsageError(
                f"by this rule the threshold would be {chosen.value:.4g}, and it must be above 0; "
                "choose by another rule"
            )
        before = stored.threshold_history(connection, found)[0].threshold
        made = 0
        if not dry_run:
            before = stored.set_threshold(connection, category, chosen.value, chosen.rule, found)
            if rejudge:
                made = stored.rejudge(connection, found)
        return ThresholdReport(
            category,
            found,
            chosen.value,
            stored.score_center(connection, found, chosen.value),
            dict(chosen.rule),
            source,
            _outcome(chosen.value, scores),
            before,
            _outcome(before, scores),
            dry_run,
            made,
            stored.stale_inspections(connection, found),
            tuple(stored.threshold_history(connection, found)),
        )

    return database.transact(work)


def _detector(connection: Connection, category: str, detector_id: int | None) -> int:
    category_id(connection, category)  # its error lists the categories there are
    return stored.find_detector(connection, category, detector_id)


def _labeled(
    connection: Connection, detector_id: int, split: str, simulated: bool
) -> tuple[LabeledScores, str]:
    """Scores of the labeled images to judge by, and in words which they are."""
    if split == SIMULATED:
        raise UsageError(
            f"simulated defects are looked at with {option('simulated')}, beside a real "
            f"{option('split')}"
        )
    if split not in SPLITS:
        raise UsageError(
            f"{option('split')} is {', '.join(SPLITS[:-1])} or {SPLITS[-1]}, not {split!r}"
        )
    scores = stored.labeled_scores(connection, detector_id, split)
    if not simulated:
        return scores, split
    defects = stored.labeled_scores(connection, detector_id, SIMULATED).anomalous
    if len(scores.normal):
        return LabeledScores(scores.normal, defects), f"{split} and {SIMULATED}"
    held_out = stored.holdout_scores(connection, detector_id).counted
    return LabeledScores(held_out, defects), f"{HELD_OUT} and {SIMULATED}"


def _choose(
    connection: Connection,
    category: str,
    detector_id: int,
    rule: Rule,
    value: float | None,
    scores: LabeledScores,
    source: str,
    production: bool,
    anomalous_share: float | None,
) -> Threshold:
    if (value is None) != (rule in ("f1_max", "zero_escapes")):
        raise UsageError(f"the rule {rule} takes {'a' if value is None else 'no'} value")
    if rule == "false_reject_rate" and production:
        assert value is not None
        return _from_production(connection, category, detector_id, value, anomalous_share)
    if rule == "false_reject_rate":
        assert value is not None
        held_out = stored.holdout_scores(connection, detector_id)
        if len(held_out.counted) == 0:
            raise UsageError(
                f"detector {detector_id} of {category!r} has no scores of held-out normal images: "
                "it was trained before they were kept, or imported with a threshold of its own. "
                f"Train it again with: {command('train', category)}; or choose by another rule"
            )
        return threshold_without(held_out.left_out, held_out.scores, value, held_out.parts)
    if rule == "given":
        assert value is not None
        chosen = thresholds.given(value, scores.normal, scores.anomalous)
    else:
        _require(category, scores, source)
        match rule:
            case "f1_max":
                chosen = thresholds.f1_max_threshold(scores.normal, scores.anomalous)
            case "zero_escapes":
                chosen = thresholds.zero_escapes(scores.normal, scores.anomalous)
            case "max_escape_rate":
                assert value is not None
                chosen = thresholds.max_escape_rate(scores.normal, scores.anomalous, value)
    return Threshold(chosen.value, chosen.center, {**chosen.rule, "images": source})


def _from_production(
    connection: Connection,
    category: str,
    detector_id: int,
    rate: float,
    anomalous_share: float | None,
) -> Threshold:
    if anomalous_share is not None and not 0.0 <= anomalous_share < 1.0:
        raise UsageError(f"the anomalous share must lie between 0 and 1, not {anomalous_share}")
    scores, parts = stored.production_scores(connection, detector_id, anomalous_share)
    if not len(scores):
        raise UsageError(
            f"detector {detector_id} of {category!r} has inspected no production image that is "
            "known to be normal. Review some with: pgdefect review; or presume that those nobody "
            f"has judged are normal but for a share, with {option('anomalous_share', 0)}.02"
        )
    chosen = thresholds.false_reject_rate(scores, rate, parts)
    rule = {**chosen.rule, "images": "production", "anomalous_share": anomalous_share}
    return Threshold(chosen.value, chosen.center, rule)


def _require(category: str, scores: LabeledScores, source: str) -> None:
    """Raises UsageError, with what to do, unless both labels have scores."""
    for label, found in (("anomalous", scores.anomalous), ("normal", scores.normal)):
        if len(found):
            continue
        split = source.removesuffix(f" and {SIMULATED}")
        remedy = command("inspect", category=category, split=split)
        if label == "anomalous" and split != source:
            split, remedy = SIMULATED, command("simulate", category)
        elif split == HELD_OUT:
            split, remedy = "test", command("inspect", category=category, split="test")
        raise UsageError(
            f"this rule needs scores of {label} images, and the detector has inspected no "
            f"{label} image among the {split} images of {category!r} (those it has learned from "
            f"do not count). Inspect some with: {remedy}; a threshold from normal images alone is "
            f"set with {option('false_reject_rate')}"
        )


def _outcome(threshold: float, scores: LabeledScores) -> dict[str, Any]:
    return thresholds.outcome(threshold, scores.normal, scores.anomalous).recorded()
