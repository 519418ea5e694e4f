"""The command about reviews: what people say of images."""

from __future__ import annotations

from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from pgdefect.cli.context import current
from pgdefect.cli.output import Json, print_json, print_table
from pgdefect.cli.output import note as remark
from pgdefect.core.errors import UsageError

if TYPE_CHECKING:
    from pgdefect.db.records.reviews import QueuedImage


def register(app: typer.Typer) -> None:
    """Add this module's command to the application."""
    app.command("review", epilog="Example:  pgdefect review scratch/003.png --label normal")(
        review_command
    )


def review_command(
    context: typer.Context,
    subject: Annotated[
        str | None,
        typer.Argument(
            metavar="IMAGE",
            help="A file, or a stored image by id, end of path, start of sha256; after --queue a "
            "category.",
        ),
    ] = None,
    label: Annotated[str | None, typer.Option(help="What it is: normal or anomalous.")] = None,
    defect_type: Annotated[
        str | None, typer.Option(help="What kind of defect it has, where that can be said.")
    ] = None,
    note: Annotated[str | None, typer.Option(help="Why, or anything else worth keeping.")] = None,
    new_type: Annotated[
        bool,
        typer.Option(
            "--new-type", help="The defect type is meant as written, though it is like a known one."
        ),
    ] = False,
    queue: Annotated[
        bool,
        typer.Option("--queue", help="List the images whose review would help most, best first."),
    ] = False,
    history: Annotated[
        bool, typer.Option("--history", help="List what was said of the image, newest first.")
    ] = False,
    withdraw: Annotated[
        bool,
        typer.Option("--withdraw", help="Take back the review of the image that is in force."),
    ] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, max=100_000, help="With --queue: how many; 20 by default.")
    ] = None,
    json: Json = False,
) -> None:
    """Say what an image is; counts, filters, votes and figures go by it at once.

    The detector's verdict, and what the data set says, stay beside it. The newest review of an
    image is in force, and all are kept; a mistaken one is taken back with --withdraw.
    """
    described = label is not None or defect_type is not None or note is not None or new_type
    if queue + history + withdraw > 1:
        raise UsageError("choose one of --queue, --history and --withdraw")
    if (queue or history) and described:
        which = "--queue" if queue else "--history"
        raise UsageError(
            f"{which} only lists; leave out --label, --defect-type, --note, --new-type"
        )
    if limit is not None and not queue:
        raise UsageError("--limit goes with --queue")
    if queue:
        _print_queue(context, subject, limit or 20, json)
        return
    if subject is None:
        raise UsageError("name an image, or list those to look at with --queue")
    if history:
        _print_history(context, subject, json)
        return
    if withdraw:
        if label is not None or defect_type is not None or new_type:
            raise UsageError("--withdraw takes a review back; leave out --label and --defect-type")
        _withdraw(context, subject, note, json)
        return
    if label is None:
        raise UsageError("say what it is with --label normal or --label anomalous")
    from pgdefect.db.records.reviews import review_image

    done = review_image(
        current(context).database,
        subject,
        label,
        defect_type=defect_type,
        note=note,
        new_type=new_type,
    )
    if json:
        print_json(
            {
                "review": done.review,
                "known_label_before": done.before.known_label,
                "known_defect_type_before": done.before.known_defect_type,
                "verdict": done.verdict,
                "normalized_score": done.normalized_score,
                "learned_vectors": done.learned_vectors,
            }
        )
        return
    made = done.review
    was = _in_words(done.before.known_label, done.before.known_defect_type)
    typer.echo(
        f"image {made.image_id} of {made.category}: {was} → "
        f"{_in_words(made.label, made.defect_type)} ({made.path})"
    )
    if done.verdict is None:
        remark("no detector has judged it yet")
    else:
        remark(f"its verdict stays: {done.verdict}, score {done.normalized_score:.3f}")
    if made.label == "anomalous" and done.learned_vectors:
        remark(
            f"the active memory bank holds {done.learned_vectors:,} vectors of it, and defects "
            "like it pass as normal until it is trained without them: "
            f"pgdefect train {quote(made.category)}"
        )


def _withdraw(context: typer.Context, word: str, why: str | None, json: bool) -> None:
    from pgdefect.db.records.reviews import withdraw_review

    review, image = withdraw_review(current(context).database, word, note=why)
    if json:
        print_json(
            {
                "withdrawn": review.review_id,
                "image_id": image.id,
                "known_label": image.known_label,
                "known_defect_type": image.known_defect_type,
            }
        )
        return
    typer.echo(
        f"image {image.id} of {review.category}: {_in_words(review.label, review.defect_type)} is "
        f"withdrawn, {_in_words(image.known_label, image.known_defect_type)} counts ({review.path})"
    )


def _in_words(label: str | None, defect_type: str | None) -> str:
    return f"{label or 'unknown'}{f', {defect_type}' if defect_type else ''}"


def _print_queue(context: typer.Context, category: str | None, limit: int, json: bool) -> None:
    from pgdefect.db.records.reviews import review_queue

    found = review_queue(current(context).database, category, limit)
    if json:
        print_json(found)
        return
    if not found:
        remark("no inspected image needs a review")
        return
    print_table(
        ("priority", "reason", "verdict", "score", "known label", "probably", "image", "path"),
        [
            (
                f"{q.priority:.2f}",
                q.reason,
                q.verdict,
                f"{q.normalized_score:.3f}",
                q.known_label,
                _probably(q),
                q.image_id,
                q.path,
            )
            for q in found
        ],
    )
    from pgdefect.db.records.outliers import outlier_thresholds

    outlying = {q.category for q in found if q.outlier}
    for name, outliers in outlier_thresholds(current(context).database, outlying):
        if outliers.threshold_with_outliers is not None:
            remark(
                f"{name}: the threshold is {outliers.threshold:.4g} without the outliers and would "
                f"be {outliers.threshold_with_outliers:.4g} with them"
            )


def _probably(queued: QueuedImage) -> str | None:
    """The vote as people read it: "crack 8 of 10"."""
    vote = queued.vote
    if not vote or not vote.get("counts"):
        return None
    if vote.get("unlike"):
        return "unlike any known"
    leader = max(vote["counts"], key=vote["counts"].__getitem__)
    doubt = "" if queued.probable_defect_type else "?"
    return f"{leader}{doubt} {vote['counts'][leader]} of {vote['k']}"


def _print_history(context: typer.Context, word: str, json: bool) -> None:
    from pgdefect.db.records.reviews import review_history

    image, reviews = review_history(current(context).database, word)
    if json:
        print_json({"image_id": image.id, "path": image.path, "reviews": reviews})
        return
    if not reviews:
        remark(f"image {image.id} has not been reviewed yet ({image.path})")
        return
    print_table(
        ("since", "reviewer", "label", "defect type", "note", "withdrawn by"),
        [
            (
                f"{r.created_at:%Y-%m-%d %H:%M:%S}",
                r.reviewer,
                r.label,
                r.defect_type,
                r.note,
                r.withdrawn_by,
            )
            for r in reviews
        ],
    )
