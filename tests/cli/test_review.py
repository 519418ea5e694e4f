"""`pgdefect review`: saying what an image is, asking what to look at, reading what was said."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgdefect.db.connection.engine import Database

from .conftest import Cli, contents, value


def test_a_review_is_kept_and_listed(trained: Database, good: Cli, parts: Path) -> None:
    said = good(
        trained,
        *("review", parts / "test" / "good" / "001.png", "--label", "anomalous"),
        *("--defect-type", "scratch", "--note", "faint"),
    )
    assert "normal → anomalous, scratch" in said.out
    assert "its verdict stays: normal, score 0." in said.err
    history = good(trained, "review", "--history", "test/good/001.png")
    assert "faint" in history.out
    assert "scratch" in history.out
    listed = good(trained, "review", "--history", "test/good/001.png", "--json").json
    assert [r["note"] for r in listed["reviews"]] == ["faint"]
    again = good(trained, "review", "test/good/001.png", "--label", "normal", "--json").json
    assert again["review"]["label"] == "normal"
    assert (again["known_label_before"], again["known_defect_type_before"]) == (
        "anomalous",
        "scratch",
    )
    back = good(trained, "review", "test/good/001.png", "--withdraw", "--note", "wrong part")
    assert "normal is withdrawn, anomalous, scratch counts" in back.out
    good(trained, "review", "test/good/001.png", "--withdraw", "--json")
    listed = good(trained, "review", "--history", "test/good/001.png", "--json").json
    assert [r["in_force"] for r in listed["reviews"]] == [False, False]
    assert all(r["withdrawn_by"] == "pgdefect" for r in listed["reviews"])
    other = good(trained, "review", "--history", "stain/000.png")
    assert other.out == ""
    assert "has not been reviewed yet" in other.err


def test_a_reviewed_label_is_shown_and_searched_by(trained: Database, good: Cli) -> None:
    good(trained, "review", "test/good/001.png", "--label", "anomalous", "--defect-type", "stain")
    found = good(trained, "search", "stain/000.png", "-k", "20", "--label", "anomalous", "--json")
    labels = {
        n["path"].rpartition("test/")[2]: n["known_defect_type"] for n in found.json["neighbors"]
    }
    assert set(labels.values()) <= {"chip", "scratch", "stain"}
    categories = good(trained, "categories", "--json").json
    assert (categories[0]["normal_images"], categories[0]["anomalous_images"]) == (19, 10)


def test_the_queue_lists_what_to_look_at(trained: Database, good: Cli) -> None:
    with trained.begin() as connection:
        connection.exec_driver_sql("UPDATE pgdefect.image SET label = NULL, defect_type = NULL")
        connection.exec_driver_sql(
            'UPDATE pgdefect.inspection SET vote = \'{"k": 10, "counts": '
            '{"chip": 4, "stain": 3}, "support": 4, "needed": 5}\' '
            "WHERE is_anomalous"
        )
    listed = good(trained, "review", "--queue", "parts", "--limit", "3")
    lines = listed.out.splitlines()
    assert len(lines) == 5
    assert "chip? 4 of 10" in listed.out
    everything = good(trained, "review", "--queue", "--json").json
    priorities = [queued["priority"] for queued in everything]
    assert priorities == sorted(priorities, reverse=True)
    assert [line.split()[0] for line in lines[2:]] == [f"{p:.2f}" for p in priorities[:3]]
    good(trained, "review", everything[0]["image_id"], "--label", "normal")
    left = good(trained, "review", "--queue", "--json").json
    assert [q["image_id"] for q in left] == [q["image_id"] for q in everything[1:]]


def test_an_empty_queue_says_so(database: Database, good: Cli) -> None:
    result = good(database, "review", "--queue")
    assert (result.out, result.err) == ("", "no inspected image needs a review\n")
    assert good(database, "review", "--queue", "--json").json == []


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (["review"], 2, "name an image, or list those to look at with --queue"),
        (["review", "stain/000.png"], 2, "--label normal or --label anomalous"),
        (["review", "stain/000.png", "--label", "good"], 2, "'good'"),
        (["review", "stain/000.png", "--label", "normal", "--defect-type", "x"], 2, "'x'"),
        (
            ["review", "stain/000.png", "--label", "anomalous", "--defect-type", "stian"],
            1,
            "did you mean 'stain'? Known: chip, scratch, stain",
        ),
        (["review", "nowhere.png", "--label", "normal"], 1, "'nowhere.png'"),
        (["review", "good/001.png", "--label", "normal"], 1, "2 images are called"),
        (["review", "--queue", "--history"], 2, "one of --queue, --history and --withdraw"),
        (["review", "--queue", "--label", "normal"], 2, "--queue only lists"),
        (["review", "--history", "1", "--note", "x"], 2, "--history only lists"),
        (["review", "--history"], 2, "name an image"),
        (["review", "1", "--label", "normal", "--limit", "3"], 2, "--limit goes with --queue"),
        (["review", "--queue", "nothing"], 1, "no category 'nothing'; known: parts"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_makes_no_sense_is_named(
    trained: Database, cli: Cli, arguments: list[str], code: int, named: str
) -> None:
    before = contents(trained)
    result = cli(trained, *arguments)
    assert result.code == code
    assert result.out == ""
    assert named in result.error
    assert contents(trained) == before
    assert value(trained, "SELECT count(*) FROM pgdefect.review") == 0
