"""The command about thresholds."""

from __future__ import annotations

from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgdefect.cli.context import current
from pgdefect.cli.output import note, print_json, print_table
from pgdefect.core.errors import UsageError

if TYPE_CHECKING:
    from pgdefect.usecases.threshold import Rule, ThresholdReport


def register(app: typer.Typer) -> None:
    """Add this module's command to the application."""
    app.command(
        "threshold", epilog="Example:  pgdefect threshold leather --false-reject-rate 0.02"
    )(threshold_command)


def threshold_command(
    context: typer.Context,
    category: Annotated[str, typer.Argument(help="Its active detector's threshold is meant.")],
    false_reject_rate: Annotated[
        float | None,
        typer.Option(
            metavar="RATE", help="Reject at most this share of normal images; needs no defect."
        ),
    ] = None,
    f1_max: Annotated[
        bool, typer.Option("--f1-max", help="The best F1 on labeled images.")
    ] = False,
    zero_escapes: Annotated[
        bool,
        typer.Option("--zero-escapes", help="Let no labeled defect through; fewest rejects."),
    ] = False,
    max_escape_rate: Annotated[
        float | None,
        typer.Option(metavar="RATE", help="Let at most this share of defects through."),
    ] = None,
    set_to: Annotated[
        float | None, typer.Option("--set", metavar="NUMBER", help="This raw score.")
    ] = None,
    split: Annotated[
        str, typer.Option(help="Whose labeled, inspected images are looked at.")
    ] = "test",
    simulated: Annotated[
        bool, typer.Option("--simulated", help="Look at simulated defects instead of real ones.")
    ] = False,
    production: Annotated[
        bool,
        typer.Option(
            "--production",
            help="Make the false-reject rate's threshold from inspected production images that "
            "are reviewed as normal, instead of those held out in training.",
        ),
    ] = False,
    anomalous_share: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="With --production: presume that images nobody has judged are normal, too, but "
            "for this share.",
        ),
    ] = None,
    detector: Annotated[
        int | None,
        typer.Option(min=1, max=2**63 - 1, help="This detector instead of the active one."),
    ] = None,
    rejudge: Annotated[
        bool | None,
        typer.Option(
            "--rejudge/--no-rejudge",
            help="Judge stored scores again by the threshold, as new inspections; a change does.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would change; change nothing.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show a threshold, or choose one by a rule; nothing is trained again.

    Without a rule: the present threshold, its rule, what it does to the labeled images, and
    the thresholds before. With one, a new threshold is in force at once. Inspections keep the
    threshold they were judged by.
    """
    from pgdefect.usecases.threshold import change_threshold, show_threshold

    rules: list[tuple[Rule, float | None]] = []
    if false_reject_rate is not None:
        rules.append(("false_reject_rate", false_reject_rate))
    if f1_max:
        rules.append(("f1_max", None))
    if zero_escapes:
        rules.append(("zero_escapes", None))
    if max_escape_rate is not None:
        rules.append(("max_escape_rate", max_escape_rate))
    if set_to is not None:
        rules.append(("given", set_to))
    if len(rules) > 1:
        raise UsageError(
            "name one rule: --false-reject-rate, --f1-max, --zero-escapes, --max-escape-rate or "
            "--set"
        )
    if (production or anomalous_share is not None) and not rules:
        raise UsageError("--production goes with --false-reject-rate RATE")
    if dry_run and not rules:
        raise UsageError("--dry-run goes with a rule, for example --f1-max")
    database = current(context).database
    if rules:
        [(rule, value)] = rules
        report = change_threshold(
            database,
            category,
            rule,
            value,
            detector_id=detector,
            split=split,
            simulated=simulated,
            production=production,
            anomalous_share=anomalous_share,
            dry_run=dry_run,
            rejudge=rejudge is not False,
        )
    else:
        report = show_threshold(
            database,
            category,
            detector_id=detector,
            split=split,
            simulated=simulated,
            rejudge=rejudge is True,
        )
    if json:
        print_json(report)
        return
    _print(report)


def _print(report: ThresholdReport) -> None:
    arrow = "would become" if report.dry_run else "→"
    before = "" if report.before is None else f"{report.before:.4g} {arrow} "
    typer.echo(
        f"{report.category}, detector {report.detector_id}: threshold {before}"
        f"{report.threshold:.4g}"
    )
    for line in _explained(report.rule):
        typer.echo(line)
    if report.outcome["normal_images"] or report.outcome["anomalous_images"]:
        typer.echo()
        _print_outcome(report)
    else:
        note(f"no labeled {report.split} image has been inspected by this detector")
    if report.before is None and len(report.history) > 1:
        typer.echo()
        print_table(
            ("threshold", "rule", "set by", "since"),
            [
                (r.threshold, _short(r.rule), r.set_by, f"{r.since:%Y-%m-%d %H:%M:%S}")
                for r in report.history
            ],
        )
    if report.rejudged:
        note(f"{report.rejudged} inspected images were judged again")
    if report.stale and not report.dry_run:
        note(
            f"{report.stale} inspected images are still judged by another threshold; "
            f"pgdefect threshold {quote(report.category)} --rejudge judges them by this one"
        )
    if report.dry_run:
        note("Nothing was changed.")


def _print_outcome(report: ThresholdReport) -> None:
    """False rejects and escapes among the labeled images, before and after a change."""
    columns = [("now", report.outcome)]
    if report.outcome_before is not None:
        columns = [("before", report.outcome_before), ("after", report.outcome)]
    rows: list[list[str]] = []
    for name, count, total, interval in (
        ("false rejects", "false_rejects", "normal_images", "false_reject_interval"),
        ("escapes", "escapes", "anomalous_images", "escape_interval"),
    ):
        cells = [f"{outcome[count]} of {outcome[total]}" for _, outcome in columns]
        rows.append([name, *cells, _percent(columns[-1][1][interval])])
    names = [name for name, _ in columns]
    print_table((f"{report.split} images", *names, "rate (95 %)"), rows)


def _explained(rule: dict[str, Any]) -> list[str]:
    """What a stored rule promises and how sure that is, in words."""
    from pgdefect.core.thresholds import promise

    name = rule.get("rule")
    rate = rule.get("rate")
    if name == "false_reject_rate" and rate is not None:
        lines = [
            f"rule: reject at most {100 * rate:.3g} % of normal images; from "
            f"{rule['held_out_images']} "
            + ("production" if rule.get("images") == "production" else "held-out normal")
            + " images"
            + (f" of {rule['held_out_parts']} parts" if "held_out_parts" in rule else "")
        ]
        if left_out := rule.get("outliers"):
            lines.append(
                f"left out: {len(left_out)} of the normal images that score far outside the rest "
                f"(image {', '.join(map(str, left_out[:5]))}{', …' if len(left_out) > 5 else ''}); "
                f"with them the threshold would be {rule['threshold_with_outliers']:.4g}"
            )
        return lines + promise(rule)
    text = {
        "f1_max": "the best F1 on labeled images",
        "zero_escapes": "no labeled defect escapes",
        "max_escape_rate": f"at most {100 * (rate or 0):.3g} % of defects escape",
        "given": "a number that was set",
    }.get(str(name), str(name))
    source = ""
    if rule.get("anomalous_images") or rule.get("normal_images"):
        source = (
            f"; {rule['anomalous_images']} anomalous and {rule['normal_images']} normal images "
            f"({rule.get('images', 'held out')}) were looked at"
        )
    lines = [f"rule: {text}{source}"]
    if "f1" in rule:
        lines[0] += f", F1 {rule['f1']:.3f}"
    if rule.get("guaranteed") is False:
        lines.append(
            f"too few anomalous images to promise that rate: {rule['images_needed']} would be "
            "needed; none of those there are escapes"
        )
    return lines


def _short(rule: dict[str, Any]) -> str:
    rate = f" {rule['rate']:g}" if "rate" in rule else ""
    return f"{rule.get('rule', '-')}{rate}"


def _percent(interval: list[float] | None) -> str:
    if interval is None:
        return "-"
    low, high = (100 * rate for rate in interval)
    return f"{low:.3g} to {high:.3g} %"
