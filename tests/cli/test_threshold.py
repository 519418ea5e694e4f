"""`pgdefect threshold`: shown, chosen by a rule, tried out, judged by again."""

from __future__ import annotations

import pytest

from pgdefect.db.connection.engine import Database

from .conftest import Cli, contents, value


def test_the_present_threshold_is_explained(trained: Database, good: Cli) -> None:
    result = good(trained, "threshold", "parts")
    now = value(trained, "SELECT threshold FROM defect.threshold_for(1, 0.05)")
    assert now == value(trained, "SELECT threshold FROM pgdefect.detector")
    assert result.out.startswith(f"parts, detector 1: threshold {now:.4g}")
    assert "reject at most 5 % of normal images; from 16 held-out normal images" in result.out
    assert "expected false rejects on new parts: 5 %; of as many parts as these (16)" in result.out
    # Of 16 parts the largest score promises 1 in 17.
    assert "at most 5.88 % can be promised with 16, and 19 parts would be needed" in result.out
    assert "of 4" in result.out
    assert "of 9" in result.out
    assert "set by" not in result.out  # there is no history yet


@pytest.mark.parametrize(
    "rule",
    [
        ("--f1-max",),
        ("--zero-escapes",),
        ("--max-escape-rate", 0.2),
        ("--false-reject-rate", 0.6),
        ("--set", 0.05),
    ],
    ids=lambda rule: rule[0],
)
def test_each_rule_changes_the_threshold_and_says_what_that_does(
    trained: Database, good: Cli, rule: tuple[object, ...]
) -> None:
    before = value(trained, "SELECT threshold FROM pgdefect.detector")
    unchanged = contents(trained)
    dry = good(trained, "threshold", "parts", *rule, "--dry-run", "--json").json
    assert contents(trained) == unchanged
    report = good(trained, "threshold", "parts", *rule, "--json").json
    assert report["before"] == before
    assert report["threshold"] == value(trained, "SELECT threshold FROM pgdefect.detector")
    for key in ("threshold", "score_center", "rule", "outcome", "outcome_before"):
        assert dry[key] == report[key]
    assert report["rejudged"] == 13
    assert value(trained, "SELECT inspected_images FROM defect.categories") == 13
    assert contents(trained)["inspection"] == 26
    assert report["rule"]["rule"] == rule[0].lstrip("-").replace("-", "_").replace("set", "given")
    shown = good(trained, "threshold", "parts")
    history = shown.out.partition("set by")[2].strip().splitlines()[2:]
    assert len(history) == 2
    assert "judged" not in shown.err


def test_a_change_is_told_before_and_after(trained: Database, good: Cli) -> None:
    dry = good(trained, "threshold", "parts", "--set", 0.0001, "--dry-run")
    assert "would become 0.0001" in dry.out
    assert dry.err == "Nothing was changed.\n"
    result = good(trained, "threshold", "parts", "--set", 0.0001)
    assert "→ 0.0001" in result.out
    rows = {line[:13].strip(): line.split("  ") for line in result.out.splitlines()}
    assert "4 of 4" in result.out
    assert "0 of 9" in result.out
    assert "false rejects" in rows
    assert "13 inspected images were judged again" in result.err


def test_judging_again_can_be_left_for_later(trained: Database, good: Cli) -> None:
    result = good(trained, "threshold", "parts", "--set", 0.2, "--no-rejudge")
    assert "13 inspected images are still judged by another threshold" in result.err
    assert value(trained, "SELECT inspected_images FROM defect.categories") == 0
    assert value(trained, "SELECT count(DISTINCT threshold) FROM defect.images") == 1
    again = good(trained, "threshold", "parts", "--rejudge")
    assert "13 inspected images were judged again" in again.err
    assert value(trained, "SELECT inspected_images FROM defect.categories") == 13


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--f1-max", "--zero-escapes"), "name one rule"),
        (("--dry-run",), "--dry-run goes with a rule"),
        (("--false-reject-rate", 0), "between 0 and 1, not 0.0"),
        (("--false-reject-rate", "nan"), "between 0 and 1, not nan"),
        (("--max-escape-rate", 1), "between 0 and 1, not 1.0"),
        (("--set", "nan"), "finite number above 0, not nan"),
        (("--set", "inf"), "finite number above 0, not inf"),
        (("--set", 0), "finite number above 0, not 0.0"),
        (("--set=-0.2", "--dry-run"), "finite number above 0, not -0.2"),
        (("--f1-max", "--split", "production"), "--split production"),
        (("--f1-max", "--simulated"), "pgdefect simulate parts"),
        (("--f1-max", "--split", "simulated"), "--simulated"),
        (("--split", "tset"), "--split is train, test or production, not 'tset'"),
        (("--set", "0.1", "--split", "tset"), "--split is train, test or production, not 'tset'"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_done_is_refused(
    trained: Database, cli: Cli, arguments: tuple[object, ...], message: str
) -> None:
    before = contents(trained)
    result = cli(trained, "threshold", "parts", *arguments)
    assert result.code == 2
    assert message in result.error
    assert result.out == ""
    assert contents(trained) == before


def test_unknown_names_are_refused(trained: Database, cli: Cli) -> None:
    assert "known: parts" in cli(trained, "threshold", "nuts").error
    assert "no detector 7" in cli(trained, "threshold", "parts", "--detector", 7).error


def test_normal_images_alone_make_no_threshold_of_the_lowest_score(
    trained: Database, cli: Cli, good: Cli
) -> None:
    """The first thing an engineer without a defect tries; the default rule is what is left."""
    good(trained, "inspect", "--category", "parts", "--split", "train")
    result = cli(trained, "threshold", "parts", "--f1-max", "--split", "train")
    assert result.code == 2
    assert "no anomalous image" in result.error
    assert "--false-reject-rate" in result.error
    lowest = value(trained, "SELECT min(raw_score) FROM pgdefect.holdout_score")
    for rate in (0.05, 0.5, 0.99):
        good(trained, "threshold", "parts", "--false-reject-rate", rate)
        assert value(trained, "SELECT threshold FROM pgdefect.detector") > lowest
