"""What people say counts at once, never overwrites what was said, and is asked for in order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import psycopg
import pytest
from rows import add_extractor, add_images, memory_bank, store, unit_vectors
from sqlalchemy import text

from pgdefect.core.errors import Conflict, UnknownCategory, UnknownImage, UsageError
from pgdefect.db.connection.engine import Database
from pgdefect.db.records.reviews import review_history, review_image, review_queue
from pgdefect.db.records.thresholds import labeled_scores
from pgdefect.usecases.ingest import ingest

DIM = 8


class Line:
    """A category `parts` with a detector of threshold 0.5 and center 0.1."""

    def __init__(self, database: Database) -> None:
        self.database = database
        learned = add_images(database, "parts", 4)
        self.extractor = add_extractor(database, DIM)
        bank = memory_bank(unit_vectors(1, 40, DIM), learned)
        self.detector = store(database, "parts", self.extractor, bank)
        self.made = 0

    def rows(self, query: str, *parameters: Any) -> list[Any]:
        with psycopg.connect(self.database.url) as connection:
            return connection.execute(query, parameters).fetchall()

    def run(self, query: str, *parameters: Any) -> None:
        with psycopg.connect(self.database.url) as connection:
            connection.execute(query, parameters)

    def image(
        self,
        normalized: float | None = None,
        vote: dict[str, int] | None = None,
        hours: float = 0,
        **fields: Any,
    ) -> int:
        """A production image, and with a score an inspection, some hours ago."""
        self.made += 1
        [image] = add_images(
            self.database,
            "parts",
            1,
            **{"split": "production", "label": None, "path": f"{self.made}.png"}
            | {"sha256": f"{self.made:064x}"}
            | fields,
        )
        if normalized is not None:
            self.inspect(image, normalized, vote, hours)
        return image

    def inspect(
        self,
        image: int,
        normalized: float,
        vote: dict[str, int] | None = None,
        hours: float = 0,
        threshold: float = 0.5,
    ) -> None:
        # As pgdefect.normalized_score has it, turned round.
        raw = threshold + (
            0.4 - 0.2 / normalized if normalized < 0.5 else 0.2 / (1 - normalized) - 0.4
        )
        ballot = None
        if vote is not None:
            support = max(vote.values(), default=0)
            ballot = json.dumps({"k": 10, "counts": vote, "support": support, "needed": 5})
        self.run(
            "INSERT INTO pgdefect.inspection (image_id, detector_id, raw_score, normalized_score, "
            "threshold, worst_row, worst_col, anomaly_map, search, vote, probable_defect_type, "
            "created_at) VALUES (%s, %s, %s, %s, %s, 0, 0, '{{0.5}}', 'hnsw', %s, %s, "
            "now() - make_interval(secs => 3600 * %s))",
            *[image, self.detector, raw, normalized, threshold, ballot, None, hours],
        )

    def embed(self, image: int, embedding: Sequence[float]) -> None:
        self.run(
            "CREATE TABLE IF NOT EXISTS pgdefect.defect_embedding_test PARTITION OF "
            f"pgdefect.defect_embedding FOR VALUES IN ({self.extractor})"
        )
        self.run(
            "INSERT INTO pgdefect.defect_embedding VALUES (%s, %s, %s, %s::text::halfvec)",
            *[self.extractor, image, self.detector, str(list(embedding))],
        )

    def queue(self) -> dict[int, Any]:
        return {q.image_id: q for q in review_queue(self.database, "parts")}


@pytest.fixture
def line(database: Database) -> Line:
    return Line(database)


def test_a_review_counts_at_once_and_overwrites_nothing(line: Line) -> None:
    image = line.image(0.3, split="test", label="normal")
    line.image(0.9, split="test", label="anomalous", defect_type="scratch")
    done = review_image(
        line.database, str(image), "anomalous", defect_type="scratch", note=" faint "
    )
    assert (done.before.known_label, done.before.known_defect_type) == ("normal", None)
    assert (done.review.label, done.review.defect_type) == ("anomalous", "scratch")
    assert done.review.note == "faint"
    assert (done.verdict, done.normalized_score) == ("normal", 0.3)
    [row] = line.rows(
        "SELECT label, defect_type, known_label, known_defect_type, reviewed_label, reviewer, "
        "note, verdict FROM defect.images WHERE image_id = %s",
        image,
    )
    [who] = line.rows("SELECT session_user::text")[0]
    assert row == ("normal", None, "anomalous", "scratch", "anomalous", who, "faint", "normal")
    assert line.rows(
        "SELECT anomalous_images, normal_images, reviewed_images FROM defect.categories"
    ) == [(2, 4, 1)]
    assert line.rows(
        "SELECT known_label, verdict, images, rate FROM defect.confusion ORDER BY 1, 2"
    ) == [("anomalous", "anomalous", 1, 0.5), ("anomalous", "normal", 1, 0.5)]
    [what] = line.rows("SELECT normal_images, escapes FROM defect.what_if(%s, 0.5)", line.detector)
    assert what == (0, 1)
    with line.database.connect() as connection:
        scores = labeled_scores(connection, line.detector, "test")
    assert (len(scores.normal), len(scores.anomalous)) == (0, 2)


def test_the_newest_review_is_in_force_and_all_are_kept(line: Line) -> None:
    image = line.image(0.6)
    review_image(line.database, str(image), "anomalous", defect_type="dent")
    review_image(line.database, str(image), "normal", note="only dust")
    found, history = review_history(line.database, str(image))
    assert (found.known_label, found.known_defect_type) == ("normal", None)
    assert [(r.label, r.defect_type, r.note, r.in_force) for r in history] == [
        ("normal", None, "only dust", True),
        ("anomalous", "dent", None, False),
    ]
    line.run("DELETE FROM pgdefect.review WHERE label = 'normal'")
    [row] = line.rows(
        "SELECT known_label, known_defect_type FROM pgdefect.image WHERE id = %s", image
    )
    assert row == ("anomalous", "dent")
    line.run("DELETE FROM pgdefect.review")
    [row] = line.rows("SELECT known_label, reviewer FROM defect.images WHERE image_id = %s", image)
    assert row == (None, None)


@pytest.mark.parametrize(
    ("label", "defect_type", "error", "words"),
    [
        ("good", None, UsageError, "label is normal or anomalous, not 'good'"),
        ("normal", "dent", UsageError, "normal image has no defect type, and 'dent'"),
        ("anomalous", " ", UsageError, "defect type ' ' is empty"),
        ("anomalous", "dent ", UsageError, "'dent ' is empty or has spaces"),
        ("anomalous", "scrtach", Conflict, "did you mean 'scratch'. Known: hole, scratch"),
        ("anomalous", "Scratch", Conflict, "did you mean 'scratch'"),
        ("anomalous", "scratches", Conflict, "did you mean 'scratch'.*pass new_type=True"),
        ("anomalous", "holes", Conflict, "did you mean 'hole'"),
    ],
)
def test_what_makes_no_sense_is_refused(
    reviewed_line: Line, label: str, defect_type: str | None, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        review_image(reviewed_line.database, "5", label, defect_type=defect_type)
    assert reviewed_line.rows("SELECT count(*) FROM pgdefect.review") == [(0,)]


@pytest.fixture(scope="module")
def reviewed_line(new_database: Any, _template: Database) -> Line:
    line = Line(new_database(_template))
    line.image(0.9, label="anomalous", defect_type="scratch")
    line.image(0.9, label="anomalous", defect_type="hole")
    return line


def test_new_defect_types_are_taken(line: Line) -> None:
    line.image(0.9, label="anomalous", defect_type="scratch")
    image = line.image(0.8)
    for name in ("rust", "blowhole", "schramme"):
        review_image(line.database, str(image), "anomalous", defect_type=name)
    review_image(line.database, str(image), "anomalous", defect_type="scratch2", new_type=True)
    with pytest.raises(UnknownImage):
        review_image(line.database, "nowhere.png", "normal")
    simulated = line.image(
        split="simulated",
        label="anomalous",
        simulation={"kind": "spot", "source_image_id": 1},
    )
    with pytest.raises(Conflict, match=r"simulated defect.*image 1"):
        review_image(line.database, str(simulated), "normal")


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [
        ("", "", 0),
        ("", "abc", 3),
        ("scratch", "Scratch", 0),
        ("scratch", "scracth", 1),
        ("hole", "holes", 1),
        ("kitten", "sitting", 3),
        ("chip", "dent", 4),
        ("riß", "riss", 2),
    ],
)
def test_edit_distance(reviewed_line: Line, a: str, b: str, distance: int) -> None:
    for one, other in ((a, b), (b, a)):
        assert reviewed_line.rows("SELECT pgdefect.edit_distance(%s, %s)", one, other) == [
            (distance,)
        ]


# -- the queue -----------------------------------------------------------------------------


def test_the_queue_asks_first_where_a_review_helps_most(line: Line) -> None:
    near = line.image(0.49)
    nearer_still = line.image(0.5)
    doubtful = line.image(0.95, {"scratch": 4, "hole": 3, "dent": 3})
    clear = line.image(0.95, {"scratch": 10})
    clearly_normal = line.image(0.2)
    labeled = line.image(0.49, label="normal")
    contradicted = line.image(0.9, label="normal")
    typed = line.image(0.9, {"scratch": 2}, label="anomalous", defect_type="hole")
    queue = line.queue()
    assert list(queue) == [contradicted, nearer_still, near, doubtful]
    assert {clear, clearly_normal, labeled, typed}.isdisjoint(queue)
    assert queue[nearer_still].priority == 1
    assert queue[near].priority == pytest.approx(0.96)
    assert queue[near].reason == "near the threshold"
    assert queue[doubtful].priority == pytest.approx(0.6)
    assert queue[doubtful].vote_doubt == pytest.approx(0.6)
    assert queue[doubtful].reason == "vote in doubt"
    assert queue[contradicted].reason == "verdict against its label"
    assert [q.image_id for q in review_queue(line.database, limit=2)] == list(queue)[:2]
    with pytest.raises(UnknownCategory):
        review_queue(line.database, "nothing")


def test_several_reasons_add_up(line: Line) -> None:
    one = line.image(0.95, {"scratch": 5, "hole": 5})
    two = line.image(0.6, {"scratch": 5, "hole": 5})
    queue = line.queue()
    assert list(queue) == [two, one]
    assert queue[two].priority == pytest.approx(1 - (1 - 0.6) * (1 - 0.5))


def test_what_is_unlike_everything_known_comes_before_what_is_not(line: Line) -> None:
    known = line.image(0.9, label="anomalous", defect_type="hole")
    like = line.image(0.95)
    unlike = line.image(0.95)
    looks_normal = line.image(0.2)
    for image, angle in ((known, 0.0), (like, 0.1), (unlike, 1.0), (looks_normal, 1.5)):
        line.embed(image, [1 - angle, angle, 0, 0])
    queue = line.queue()
    assert list(queue) == [unlike, like]
    assert queue[unlike].novelty == pytest.approx(1)
    assert queue[like].novelty == pytest.approx(1 - 0.9 / (0.9**2 + 0.1**2) ** 0.5, abs=1e-3)
    assert queue[unlike].reason == "unlike every known defect"
    # The inspector says what it is: now one more is known, and nothing is new about the other.
    review_image(line.database, str(unlike), "anomalous", defect_type="rust")
    assert list(line.queue()) == [like]
    line.run("UPDATE pgdefect.image SET retired_at = now() WHERE id = %s", known)
    assert line.queue()[like].novelty == pytest.approx(0.89, abs=0.01)


def test_before_any_defect_is_known_every_reject_is_new(line: Line) -> None:
    image = line.image(0.95)
    assert line.queue() == {}
    line.embed(image, [1, 0])
    assert line.queue()[image].novelty == 1
    assert line.queue()[image].reason == "anomalous, and no defect type is known yet"


@pytest.mark.parametrize(
    ("limit", "reason"),
    [(0.5, "like a known defect, not confirmed"), (0.001, "unlike every known defect")],
)
def test_likeness_is_measured_by_the_limit_of_the_vote(
    line: Line, limit: float, reason: str
) -> None:
    known = line.image(0.9, label="anomalous", defect_type="hole")
    new = line.image(0.95)
    line.embed(known, [1, 0, 0, 0])
    line.embed(new, [0.9, 0.1, 0, 0])
    vote = json.dumps({"k": 3, "counts": {}, "support": 0, "needed": 3, "limit": limit})
    line.run("UPDATE pgdefect.inspection SET vote = %s WHERE image_id = %s", vote, new)
    assert line.queue()[new].reason == reason


def test_a_reviewed_image_comes_back_when_a_later_verdict_is_another(line: Line) -> None:
    image = line.image(0.45, hours=3)
    assert image in line.queue()
    review_image(line.database, str(image), "normal")
    line.run("UPDATE pgdefect.review SET created_at = now() - interval '2 hours'")
    assert line.queue() == {}
    line.inspect(image, 0.45, hours=1, threshold=0.6)
    assert line.queue() == {}, "the same verdict as before"
    line.inspect(image, 0.8, hours=0.5, threshold=0.4)
    [back] = line.queue().values()
    assert (back.image_id, back.reason) == (image, "a new verdict against its review")
    assert back.contradiction == 1
    review_image(line.database, str(image), "normal")
    assert line.queue() == {}
    # An escape that a reviewer found does not come back for being missed again.
    escape = line.image(0.3, hours=3)
    review_image(line.database, str(escape), "anomalous")
    line.run(
        "UPDATE pgdefect.review SET created_at = now() - interval '2 hours' WHERE image_id = %s",
        escape,
    )
    line.inspect(escape, 0.3, hours=1, threshold=0.45)
    assert escape not in line.queue()


# -- views ---------------------------------------------------------------------------------


def test_daily_rejects_count_an_image_once_on_its_first_day(line: Line) -> None:
    """Whatever is said of it later, by whatever threshold."""
    image = line.image(0.9, hours=49)
    for _ in range(2):
        line.inspect(image, 0.3, hours=1, threshold=0.8)
    line.image(0.9, hours=0.5)
    line.image(0.3, hours=0.5)
    line.run(
        "UPDATE pgdefect.inspection "
        "SET inspected_at = timestamptz '2020-05-04 12:00+00' - (now() - inspected_at)"
    )
    with psycopg.connect(line.database.url) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        rows = connection.execute(
            "SELECT inspected, rejected, reject_rate, reject_interval, split "
            "FROM defect.daily_rejects ORDER BY day"
        ).fetchall()
        intervals = connection.execute(
            "SELECT defect.rate_interval(1, 1), defect.rate_interval(1, 2)"
        ).fetchone()
    assert intervals is not None
    assert rows == [
        (1, 1, 1.0, intervals[0], "production"),
        (2, 1, 0.5, intervals[1], "production"),
    ]


def test_types_are_set_against_their_votes(line: Line) -> None:
    for probable in ("hole", "hole", "scratch", None):
        image = line.image(0.9, {"hole": 5}, label="anomalous", defect_type="hole")
        line.run(
            "UPDATE pgdefect.inspection SET probable_defect_type = %s WHERE image_id = %s",
            *[probable, image],
        )
    line.image(0.9, label="anomalous", defect_type="hole")
    rows = line.rows(
        "SELECT known_defect_type, probable_defect_type, images, rate "
        "FROM defect.defect_type_confusion ORDER BY images DESC, 2"
    )
    assert rows == [("hole", "hole", 2, 0.5), ("hole", "scratch", 1, 0.25), ("hole", None, 1, 0.25)]


def test_regions_are_shown_with_their_image(line: Line) -> None:
    image = line.image(0.9, label="anomalous", defect_type="hole")
    line.run(
        "CREATE TABLE pgdefect.defect_region_test PARTITION OF pgdefect.defect_region "
        f"FOR VALUES IN ({line.extractor})"
    )
    line.run(
        "INSERT INTO pgdefect.defect_region (extractor_id, image_id, detector_id, rank, x, y, "
        "width, height, num_patches, area, peak_score, mean_score, embedding) "
        "VALUES (%s, %s, %s, 1, 8, 16, 24, 32, 5, 0.02, 0.75, 0.5, '[1,2]')",
        *[line.extractor, image, line.detector],
    )
    [row] = line.rows(
        "SELECT category, image_id, path, box, area, peak_score, detector_id, version, "
        "known_defect_type FROM defect.regions"
    )
    assert row == (
        *("parts", image, f"/nowhere/parts/{line.made}.png", "8,16,24,32"),
        *(pytest.approx(0.02), 0.75, line.detector, 1, "hole"),
    )


def test_a_rejudgement_keeps_the_vote(line: Line) -> None:
    image = line.image(0.9, {"hole": 10})
    line.run("UPDATE pgdefect.inspection SET probable_defect_type = 'hole'")
    line.run("SELECT defect.set_threshold('parts', 0.55)")
    line.run("SELECT defect.rejudge(%s)", line.detector)
    rows = line.rows(
        "SELECT threshold, vote->'support', probable_defect_type FROM defect.inspections "
        "WHERE image_id = %s ORDER BY threshold",
        image,
    )
    assert rows == [(0.5, 10, "hole"), (0.55, 10, "hole")]


def test_ingest_still_compares_with_the_data_sets_own_label(trained: Database, parts: Any) -> None:
    """A review is no change of the data set, and a change of the data set no review."""
    review_image(trained, "test/stain/001.png", "normal")
    report = ingest(trained, parts, "parts")
    assert report.relabeled == ()
    with trained.connect() as connection:
        row = connection.execute(
            text(
                "SELECT label, defect_type, known_label, known_defect_type FROM pgdefect.image "
                "WHERE path = 'test/stain/001.png'"
            )
        ).one()
    assert tuple(row) == ("anomalous", "stain", "normal", None)


# -- withdrawn -----------------------------------------------------------------------------


def test_a_withdrawn_review_counts_no_longer_and_stays_in_the_history(line: Line) -> None:
    image = line.image(0.9, label="normal")
    [(first,)] = line.rows("SELECT defect.review(%s, 'anomalous', 'scratch')", str(image))
    [(second,)] = line.rows("SELECT defect.review(%s, 'normal')", str(image))

    def known() -> Any:
        return line.rows(
            "SELECT known_label, known_defect_type, reviewer IS NOT NULL FROM defect.images "
            "WHERE image_id = %s",
            image,
        )

    assert known() == [("normal", None, True)]
    assert line.rows("SELECT defect.withdraw_review(%s, 'wrong image')", second) == [(image,)]
    assert known() == [("anomalous", "scratch", True)]
    line.run("SELECT defect.withdraw_review(%s)", first)
    assert known() == [("normal", None, False)]
    assert line.rows(
        "SELECT review_id, in_force, withdrawn_at IS NOT NULL, withdrawn_by FROM defect.reviews "
        "WHERE image_id = %s ORDER BY 1",
        image,
    ) == [(first, False, True, "pgdefect"), (second, False, True, "pgdefect")]
    for review, code in ((second, "PD409"), (99, "PD404"), (None, "PD404")):
        with pytest.raises(psycopg.Error) as caught:
            line.run("SELECT defect.withdraw_review(%s)", review)
        assert caught.value.sqlstate == code
    # What is said after that counts as ever.
    line.run("SELECT defect.review(%s, 'anomalous')", str(image))
    assert known() == [("anomalous", None, True)]
    line.run("DELETE FROM pgdefect.image WHERE id = %s", image)
