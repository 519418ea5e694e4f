"""Thresholds in the database: SQL says what Python says, and the history tells who and when."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from rows import add_extractor, add_images, memory_bank, store, unit_vectors
from scipy import stats
from sqlalchemy import Connection, text

from pgdefect.core import thresholds
from pgdefect.core.errors import NotFound, UnknownCategory, UsageError
from pgdefect.db.connection.engine import Database
from pgdefect.db.records import thresholds as stored
from pgdefect.db.records.evaluations import images_learned
from pgdefect.usecases.threshold import change_threshold, show_threshold
from pgdefect.vision.patchcore.scoring import normalized_score

DIM = 8
HELD_OUT = [0.11, 0.35, 0.20, 0.32, 0.14, 0.28, 0.17, 0.23, 0.31, 0.26]
one_database = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class Line:
    """A category `parts`: ten training images in the bank, ten held out, one detector."""

    def __init__(self, database: Database) -> None:
        self.database = database
        images = add_images(database, "parts", 20)
        self.learned, self.held_out = images[:10], images[10:]
        self.extractor_id = add_extractor(database, DIM)
        self.detector = self.train()

    def train(self, scores: Sequence[float] = HELD_OUT) -> int:
        bank = memory_bank(unit_vectors(1, 40, DIM), self.learned)
        held_out = dict(zip(self.held_out, scores, strict=False))
        return store(self.database, "parts", self.extractor_id, bank, holdout_scores=held_out)

    def value(self, query: str, *parameters: Any) -> Any:
        with psycopg.connect(self.database.url) as connection:
            row = connection.execute(query, parameters).fetchone()
        return None if row is None else row[0] if len(row) == 1 else row

    def forget_where_vectors_came_from(self) -> None:
        """As of a bank that was made elsewhere."""
        with self.database.begin() as connection:
            connection.execute(text("UPDATE pgdefect.memory_bank_patch SET image_id = 0"))

    def rows(self, query: str, *parameters: Any) -> list[Any]:
        with psycopg.connect(self.database.url) as connection:
            return connection.execute(query, parameters).fetchall()

    def inspected(self, name: str, scores: Sequence[float], **fields: Any) -> list[int]:
        """Images under the folder `name`, with the raw scores that the detector gave them."""
        fields = {"split": "test", "label": name, "path": lambda n: f"{name}/{n}.png"} | fields
        fields["sha256"] = lambda n: sha256(f"{name} {n}".encode()).hexdigest()
        ids = add_images(self.database, "parts", len(scores), **fields)
        for image, score in zip(ids, scores, strict=True):
            self.inspect(image, score)
        return ids

    def inspect(self, image: int, score: float, detector: int | None = None) -> None:
        with psycopg.connect(self.database.url) as connection:
            connection.execute(
                "INSERT INTO pgdefect.inspection (image_id, detector_id, raw_score, "
                "normalized_score, threshold, worst_row, worst_col, anomaly_map, search) "
                "SELECT %s, id, %s, pgdefect.normalized_score(%s, threshold, score_center), "
                "threshold, 0, 0, '{{0.5}}', 'hnsw' FROM pgdefect.detector WHERE id = %s",
                [image, score, score, detector or self.detector],
            )


@pytest.fixture
def line(database: Database) -> Line:
    return Line(database)


# -- SQL says what Python says -------------------------------------------------------------


def assert_equal_rules(rule: dict[str, Any], expected: Any) -> None:
    for name in ("false_reject_interval", "promised_rate"):
        assert rule[name] == pytest.approx(expected[name], abs=1e-9)
    assert rule | {"false_reject_interval": 0, "promised_rate": 0} == {
        **expected,
        "false_reject_interval": 0,
        "promised_rate": 0,
    }


@pytest.mark.parametrize("rate", [0.9, 0.5, 0.3, 0.2, 0.05])
@pytest.mark.parametrize("parts", ["aaaaaaaaab", "abcabcabca", "aabbccddee", "abcdefghij"])
def test_threshold_for_counts_parts_as_python_does(line: Line, parts: str, rate: float) -> None:
    detector = line.train(HELD_OUT)
    with line.database.begin() as connection:
        for image, part in zip(line.held_out, parts, strict=True):
            connection.execute(
                text("UPDATE pgdefect.image SET group_name = :part WHERE id = :id"),
                {"part": part, "id": image},
            )
    expected = thresholds.false_reject_rate(HELD_OUT, rate, list(parts))
    value, center, rule = line.value("SELECT * FROM defect.threshold_for(%s, %s)", detector, rate)
    assert (value, center) == (expected.value, expected.center)
    assert_equal_rules(rule, expected.rule)


@pytest.mark.parametrize("rate", [0.9, 0.5, 0.42, 0.2, 0.1, 0.05, 0.001])
@pytest.mark.parametrize(
    "scores", [HELD_OUT, HELD_OUT[:7], [0.2], [0.2] * 5, [0.0, 0.0]], ids=lambda s: str(len(s))
)
def test_threshold_for_is_the_rule_of_python(line: Line, scores: list[float], rate: float) -> None:
    detector = line.train(scores)
    expected = thresholds.false_reject_rate(scores, rate)
    value, center, rule = line.value("SELECT * FROM defect.threshold_for(%s, %s)", detector, rate)
    assert (value, center) == (expected.value, expected.center)
    assert_equal_rules(rule, expected.rule)
    with line.database.connect() as connection:
        assert stored.score_center(connection, detector, value) == center


def test_threshold_for_refuses_what_python_refuses(line: Line) -> None:
    for rate in (0, 1, -1, "NaN", None):
        with pytest.raises(psycopg.Error, match="between 0 and 1") as caught:
            line.value("SELECT defect.threshold_for(%s, %s)", line.detector, rate)
        assert caught.value.sqlstate == "PD400"
    with pytest.raises(psycopg.Error, match="no detector 999") as caught:
        line.value("SELECT defect.threshold_for(999, 0.05)")
    assert caught.value.sqlstate == "PD404"
    bare = line.train([])
    with pytest.raises(psycopg.Error, match="no scores of held-out") as caught:
        line.value("SELECT defect.threshold_for(%s, 0.05)", bare)
    assert "Train" in str(caught.value.diag.message_hint)


@one_database
@given(
    raw=st.floats(-1e9, 1e9),
    threshold=st.floats(-1e6, 1e6),
    unit=st.floats(1e-6, 1e6),
)
def test_normalized_score_is_python_s_to_the_last_bit(
    line: Line, raw: float, threshold: float, unit: float
) -> None:
    center = threshold - unit
    with line.database.connect() as connection:
        found = connection.scalar(
            text("SELECT pgdefect.normalized_score(:raw, :threshold, :center)"),
            {"raw": raw, "threshold": threshold, "center": center},
        )
    assert found == normalized_score(raw, threshold, center)


@one_database
@given(threshold=st.floats(-10, 10))
@example(threshold=5e-324)
def test_score_center_is_python_s(line: Line, threshold: float) -> None:
    with line.database.connect() as connection:
        found = stored.score_center(connection, line.detector, threshold)
    assert found == thresholds.center_below(threshold, float(np.median(HELD_OUT)))


RATES = [
    (0, 5),
    (5, 5),
    (1, 7),
    (33, 4096),
    (4000, 4096),
    (300_000, 10**6),
    (1, 10**9),
    (5, 2**63 - 1),
]


@pytest.mark.parametrize(("count", "total"), RATES)
def test_rate_interval_is_python_s(line: Line, count: int, total: int) -> None:
    found = line.value("SELECT defect.rate_interval(%s, %s)", count, total)
    assert found == pytest.approx(thresholds.rate_interval(count, total), rel=1e-10, abs=1e-15)
    assert line.value("SELECT defect.rate_interval(0, 0)") is None


def test_quantiles_in_sql_are_python_s(line: Line) -> None:
    sizes = [1, 2, 3, 10, 500, 12_345, 10**6, 10**9]
    asked = [(p, a, b) for p in (1e-6, 0.025, 0.5, 0.975) for a in sizes for b in sizes]
    found = line.rows(
        "SELECT pgdefect.beta_quantile(p, a, b) "
        "FROM unnest(%s::float8[], %s::float8[], %s::float8[]) "
        "WITH ORDINALITY u(p, a, b, n) ORDER BY n",
        *map(list, zip(*asked, strict=True)),
    )
    expected = [thresholds.beta_quantile(*one) for one in asked]
    assert [x for (x,) in found] == pytest.approx(expected, rel=1e-10)


def fisher(line: Line, *counts: int) -> Any:
    return line.value("SELECT defect.fisher_p(%s, %s, %s, %s)", *counts)


def test_fisher_p_is_scipys(line: Line) -> None:
    assert fisher(line, 7, 20, 0, 16) == pytest.approx(0.0106568532, rel=1e-8)
    rng = np.random.default_rng(5)
    for n in range(400):
        size = [3, 12, 60, 900, 30_000, 10**6][n % 6]
        totals = rng.integers(0, size + 1, 2)
        rate = rng.random()
        # Near enough to one rate that p is not always 0.
        rates = np.clip([rate, rate + rng.normal() / (1 + size) ** 0.5], 0, 1)
        hits = rng.binomial(totals, rates)
        table = np.stack([hits, totals - hits], axis=1)
        found = fisher(line, *map(int, (hits[0], totals[0], hits[1], totals[1])))
        expected = stats.fisher_exact(table).pvalue
        assert found == pytest.approx(expected, rel=1e-8, abs=1e-250), table


def test_fisher_p_of_large_groups_is_the_chi_square_tests(line: Line) -> None:
    """Beyond what is added term by term; with Yates's correction the two agree to 1 / size."""
    for hits, total, more in ((3 * 10**8, 10**9, 10_000), (3 * 10**13, 10**14, 10**7)):
        table = [[hits, total - hits], [hits + more, total - hits - more]]
        expected = stats.chi2_contingency(table, correction=True).pvalue
        assert fisher(line, hits, total, hits + more, total) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("counts", "p"),
    [((0, 0, 0, 0), 1.0), ((0, 0, 5, 9), 1.0), ((3, 3, 4, 4), 1.0), ((0, 9, 0, 4), 1.0)],
)
def test_fisher_p_is_one_where_nothing_could_differ(
    line: Line, counts: tuple[int, ...], p: float
) -> None:
    assert fisher(line, *counts) == p


@pytest.mark.parametrize(
    ("call", "code", "said"),
    [
        ("defect.what_if({bank}, NULL)", "PD400", "the threshold is a number, not NULL"),
        ("defect.what_if({bank}, 'NaN')", "PD400", "the threshold is a number, not NaN"),
        ("defect.what_if(99, 0.1)", "PD404", "there is no detector 99"),
        ("defect.what_if(NULL, 0.1)", "PD404", "there is no detector NULL"),
        ("defect.what_if({bank}, 0.1, 'foo')", "PD400", "the split is .* not 'foo'"),
        ("defect.what_if({bank}, 0.1, NULL)", "PD400", "the split is .* not NULL"),
        ("defect.image_auroc({bank}, 'foo')", "PD400", "the split is .* not 'foo'"),
        ("defect.image_auroc(NULL)", "PD404", "there is no detector NULL"),
        ("defect.rate_interval(5, 3)", "PD400", "5 of 3 is no share"),
        ("defect.rate_interval(-1, 3)", "PD400", "-1 of 3 is no share"),
        ("defect.fisher_p(5, 3, 1, 2)", "PD400", "5 of 3 and 1 of 2 are no two shares"),
        ("defect.fisher_p(1, 3, -1, 2)", "PD400", "-1 of 2 are no two shares"),
        ("defect.fisher_p(1, 3, 1, 9223372036854775807)", "PD400", "too large to compare"),
    ],
)
def test_what_makes_no_sense_is_refused(line: Line, call: str, code: str, said: str) -> None:
    line.inspected("normal", [0.1])
    with pytest.raises(psycopg.Error, match=said) as caught:
        line.rows(f"SELECT * FROM {call.format(bank=line.detector)}")
    assert caught.value.sqlstate == code


@pytest.mark.parametrize(
    "call",
    [
        "FROM defect.what_if({}, threshold => 0.2)",
        "FROM defect.threshold_for(false_reject_rate => 0.5, {})",
        "defect.image_auroc({})",
        "defect.rejudge({})",
    ],
)
def test_arguments_go_by_their_old_name_for_a_version(line: Line, call: str) -> None:
    """A detector's id was called bank, of whatever kind. A NOTICE says so; both are refused."""
    called = call.partition("defect.")[2].partition("(")[0]
    with psycopg.connect(line.database.url) as connection:
        said: list[str] = []
        connection.add_notice_handler(lambda notice: said.append(str(notice.message_primary)))
        query = "SELECT " + ("* " if call.startswith("FROM") else "") + call
        number = line.detector
        new = connection.execute(query.format(f"detector => {number}")).fetchall()
        assert said == []
        connection.rollback()
        assert connection.execute(query.format(f"bank => {number}")).fetchall() == new
        assert said == [
            f"the argument bank of defect.{called} is called detector now; "
            "the next version will not know the old name"
        ]
        with pytest.raises(psycopg.Error, match="given both detector and bank") as caught:
            connection.execute(query.format(f"detector => {number}, bank => {number}"))
        assert caught.value.sqlstate == "PD400"


def test_what_if_counts_what_python_counts(line: Line) -> None:
    normal, anomalous = [0.1, 0.2, 0.3, 0.5], [0.2, 0.4, 0.6]
    line.inspected("normal", normal)
    line.inspected("anomalous", anomalous)
    for threshold in (0.0, 0.2, 0.35, 0.5, 9.0):
        row = line.value("SELECT * FROM defect.what_if(%s, %s)", line.detector, threshold)
        expected = thresholds.outcome(threshold, normal, anomalous).recorded()
        assert list(row)[:3] == [4, expected["false_rejects"], expected["false_reject_rate"]]
        assert row[3] == pytest.approx(expected["false_reject_interval"], abs=1e-9)
        assert list(row)[4:7] == [3, expected["escapes"], expected["escape_rate"]]
        assert row[7] == pytest.approx(expected["escape_interval"], abs=1e-9)
    empty = line.value("SELECT * FROM defect.what_if(%s, 0.5, 'production')", line.detector)
    assert empty == (0, 0, None, None, 0, 0, None, None)


# -- which images count --------------------------------------------------------------------


def test_only_labeled_images_count_that_the_detector_has_not_learned_from(line: Line) -> None:
    kept = line.inspected("normal", [0.1, 0.2])
    line.inspected("unlabeled", [0.9], label=None)
    line.inspected("production", [0.9], label="normal", split="production")
    retired = line.inspected("retired", [0.9], label="normal")
    line.inspected("of a learned part", [0.9], label="normal", group_name="A")
    line.inspected("copy", [0.9], label="normal")
    held = line.inspected("of a held-out part", [0.3], label="normal", group_name="B")
    with line.database.begin() as connection:
        for statement, values in (
            ("UPDATE pgdefect.image SET retired_at = now() WHERE id = :i", {"i": retired[0]}),
            ("UPDATE pgdefect.image SET group_name = 'A' WHERE id = :i", {"i": line.learned[3]}),
            ("UPDATE pgdefect.image SET group_name = 'B' WHERE id = :i", {"i": line.held_out[3]}),
            (
                "UPDATE pgdefect.image SET sha256 = (SELECT sha256 FROM pgdefect.image "
                "WHERE id = :i) WHERE path LIKE 'copy/%'",
                {"i": line.learned[5]},
            ),
        ):
            connection.execute(text(statement), values)
        # Learned images themselves, too, whatever split is asked for.
        assert len(stored.labeled_scores(connection, line.detector, "train").normal) == 0
    for image, score in ((line.learned[0], 0.0), (line.held_out[0], 0.4)):
        line.inspect(image, score)
    statement = "SELECT image_id FROM pgdefect.labeled_scores(%s, %s)"
    # Of a bank made here all training images are learned, those that set the threshold, too.
    assert [row[0] for row in line.rows(statement, line.detector, "test")] == kept
    assert line.rows(statement, line.detector, "train") == []
    assert len(line.rows(statement, line.detector, "production")) == 1
    line.forget_where_vectors_came_from()
    assert [row[0] for row in line.rows(statement, line.detector, "test")] == [*kept, *held]
    assert line.rows(statement, line.detector, "train") == [(line.held_out[0],)]
    assert len(line.rows(statement, line.detector, "production")) == 1


def test_python_is_told_the_same_of_what_was_learned(line: Line) -> None:
    with line.database.connect() as connection:
        everything = {*line.learned, *line.held_out}
        assert images_learned(connection, line.detector) == (everything, set())
    # Moved to another split, retired after the training, reviewed: learned all the same.
    with line.database.begin() as connection:
        for statement in (
            "UPDATE pgdefect.image SET split = 'test' WHERE id = :a",
            "UPDATE pgdefect.image SET retired_at = clock_timestamp() WHERE id = :b",
            "UPDATE pgdefect.image SET reviewed_label = 'anomalous' WHERE id = :c",
        ):
            connection.execute(text(statement), dict(zip("abc", line.learned, strict=False)))
    line.inspect(line.learned[0], 0.01)
    [new] = add_images(line.database, "parts", 1, path=lambda n: "new.png")
    with line.database.connect() as connection:
        assert images_learned(connection, line.detector) == ({*everything, new}, set())
        assert len(stored.labeled_scores(connection, line.detector, "test").normal) == 0
    line.forget_where_vectors_came_from()
    with line.database.connect() as connection:
        learned, calibration = images_learned(connection, line.detector)
    assert calibration == set(line.held_out)
    assert learned == {new, *line.learned[1:]}


def test_a_detector_names_the_images_a_network_learned_from(line: Line) -> None:
    line.forget_where_vectors_came_from()
    others = add_images(line.database, "parts", 3, split="test", path=lambda n: f"moved/{n}.png")
    with line.database.begin() as connection:
        connection.execute(
            text(
                "UPDATE pgdefect.detector SET settings = settings || "
                "jsonb_build_object('training_images', CAST(:ids AS bigint[])) WHERE id = :d"
            ),
            {"ids": others[:2], "d": line.detector},
        )
    with line.database.connect() as connection:
        learned, calibration = images_learned(connection, line.detector)
    assert learned == {*line.learned, *others[:2]}
    assert calibration == set(line.held_out)


def test_an_image_of_the_bank_is_learned_though_it_set_the_threshold(line: Line) -> None:
    """Its own score is flattered; a defect drawn on it is judged as it is."""
    image = line.held_out[0]
    line.inspect(image, 0.01)
    line.inspected(
        "drawn", [0.3], label="anomalous", split="simulated", simulation={"source_image_id": image}
    )
    line.forget_where_vectors_came_from()
    statement = "SELECT count(*) FROM pgdefect.labeled_scores(%s, %s)"
    assert line.value(statement, line.detector, "train") == 1
    with line.database.begin() as connection:
        connection.execute(
            text(
                f"UPDATE pgdefect.memory_bank_patch_{line.detector} SET image_id = :i "
                "WHERE position = 0"
            ),
            {"i": image},
        )
    assert line.value(statement, line.detector, "train") == 0
    assert line.value(statement, line.detector, "simulated") == 1


def test_a_simulated_defect_is_judged_by_its_own_source_whatever_its_group(line: Line) -> None:
    """It has its source's group, of which other images are in the bank."""
    with line.database.begin() as connection:
        connection.execute(text("UPDATE pgdefect.image SET group_name = 'A'"))
    for name, source in (("held out", line.held_out[0]), ("learned", line.learned[0])):
        line.inspected(
            name,
            [0.3],
            label="anomalous",
            split="simulated",
            group_name="A",
            simulation={"source_image_id": source},
        )
    rows = line.rows(
        "SELECT i.path FROM pgdefect.labeled_scores(%s, 'simulated') s "
        "JOIN pgdefect.image i ON i.id = s.image_id",
        line.detector,
    )
    assert rows == [("held out/0.png",)]


def test_many_labeled_images_are_told_from_many_learned_ones_by_hashing(line: Line) -> None:
    """Not one by one, which would take a minute for a hundred thousand."""
    with line.database.connect() as connection:
        query = stored_query(connection, "pgdefect.labeled_scores")
        plan = connection.execute(text(f"EXPLAIN {query}"))
        found = "\n".join(row[0] for row in plan)
    assert found.count("Anti Join") == 3, found
    assert "SubPlan" not in found, found


def stored_query(connection: Connection, function: str) -> str:
    """The text of a function of one SELECT, for the first detector and the split test."""
    body = connection.scalar(
        text("SELECT prosrc FROM pg_proc WHERE oid = CAST(:name AS regproc)"), {"name": function}
    )
    return (
        str(body).replace("labeled_scores.split", "'test'").replace("labeled_scores.detector", "1")
    )


def test_the_newest_score_counts_once(line: Line) -> None:
    [image] = line.inspected("normal", [0.1])
    line.value("SELECT defect.set_threshold('parts', 0.6)")
    line.inspect(image, 0.2)
    with line.database.connect() as connection:
        assert stored.labeled_scores(connection, line.detector, "test").normal.tolist() == [0.2]


# -- setting -------------------------------------------------------------------------------


def test_training_begins_the_history_and_keeps_the_scores(line: Line) -> None:
    assert line.rows(
        "SELECT detector_id, threshold, score_center, rule_name, until, in_force "
        "FROM defect.thresholds"
    ) == [(line.detector, 0.5, 0.1, "none", None, True)]
    with line.database.connect() as connection:
        assert stored.holdout_scores(connection, line.detector).counted.tolist() == HELD_OUT


def test_set_threshold_writes_detector_and_history(line: Line) -> None:
    rule = '{"rule": "given", "why": "agreed"}'
    row = line.rows("SELECT * FROM defect.set_threshold('parts', 0.4, %s)", rule)[0]
    median = float(np.median(HELD_OUT))
    assert row[1:5] == (line.detector, 0.5, 0.4, median)
    assert line.value(
        "SELECT threshold, threshold_rule->>'why', score_center FROM pgdefect.detector"
    ) == (0.4, "agreed", median)
    line.value("SELECT defect.set_threshold('parts', 0.1)")
    history = line.rows(
        "SELECT threshold, score_center, rule_name, in_force, set_by = current_user, since, until "
        "FROM defect.thresholds ORDER BY threshold_id"
    )
    assert [r[:5] for r in history] == [
        (0.5, 0.1, "none", False, True),
        (0.4, median, "given", False, True),
        (0.1, 0.05, "given", True, True),  # below the median: half of itself
    ]
    assert [r[6] for r in history] == [history[1][5], history[2][5], None]
    # Back above it the scale is what it was.
    line.value("SELECT defect.set_threshold('parts', 0.4)")
    assert line.value("SELECT score_center FROM pgdefect.detector") == median


@pytest.mark.parametrize(
    ("arguments", "state", "message"),
    [
        ("'parts', NULL", "PD400", "finite number above 0, not NULL"),
        ("'parts', 'NaN'", "PD400", "finite number above 0, not NaN"),
        ("'parts', 'Infinity'", "PD400", "finite number above 0, not Infinity"),
        ("'parts', '-Infinity'", "PD400", "finite number above 0, not -Infinity"),
        ("'parts', 0", "PD400", "finite number above 0, not 0"),
        ("'parts', -0.1", "PD400", "finite number above 0, not -0.1"),
        ("'parts', 0.3, '[]'", "PD400", r"JSON object, not \[\]"),
        ("'parts', 0.3, NULL", "PD400", "JSON object, not NULL"),
        ("'nuts', 0.3", "PD404", "no category 'nuts'"),
        ("NULL, 0.3", "PD404", "no category NULL"),
        ("'parts', 0.3, detector => 99", "PD404", "'parts' has no detector 99"),
        ("'bare', 0.3", "PD404", "'bare' has no active detector"),
    ],
)
def test_set_threshold_refuses(line: Line, arguments: str, state: str, message: str) -> None:
    add_images(line.database, "bare", 1)
    with pytest.raises(psycopg.Error, match=message) as caught:
        line.value(f"SELECT defect.set_threshold({arguments})")
    assert caught.value.sqlstate == state
    assert caught.value.diag.message_hint
    assert line.value("SELECT count(*) FROM defect.thresholds") == 1


def test_another_detector_is_changed_by_its_number(line: Line) -> None:
    second = line.train()
    line.value("SELECT defect.set_threshold('parts', 0.3, detector => %s)", line.detector)
    assert line.rows("SELECT id, threshold FROM pgdefect.detector ORDER BY id") == [
        (line.detector, 0.3),
        (second, 0.5),
    ]


def test_two_sessions_take_turns(line: Line) -> None:
    """The later one waits for the first, is told what that one set, and stays in force."""
    second: list[Any] = []
    with psycopg.connect(line.database.url) as first:
        # A transaction's now() would date the waiting session's row before this one's.
        thread = threading.Thread(
            target=lambda: second.append(
                line.value("SELECT threshold_before FROM defect.set_threshold('parts', 0.3)")
            )
        )
        first.execute("SELECT defect.set_threshold('parts', 0.4)")
        thread.start()
        for _ in range(500):
            waiting = line.value(
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
                "AND datname = current_database()"
            )
            if waiting:
                break
            threading.Event().wait(0.01)
        assert waiting == 1
        assert line.value("SELECT threshold FROM pgdefect.detector") == 0.5
    thread.join(30)
    assert second == [0.4]
    rows = line.rows("SELECT threshold, in_force, since, until FROM defect.thresholds ORDER BY 3")
    assert [(r[0], r[1]) for r in rows] == [(0.5, False), (0.4, False), (0.3, True)]
    assert all(r[3] is None or r[2] < r[3] for r in rows)


def test_setting_a_threshold_does_not_wait_for_inspections(line: Line) -> None:
    [image] = line.inspected("normal", [0.1])
    with psycopg.connect(line.database.url) as connection:
        connection.execute(
            "INSERT INTO pgdefect.inspection (image_id, detector_id, raw_score, normalized_score, "
            "threshold, worst_row, worst_col, anomaly_map, search) "
            "VALUES (%s, %s, 0.1, 0.2, 0.7, 0, 0, '{{0.5}}', 'hnsw')",
            [image, line.detector],
        )
        with psycopg.connect(line.database.url) as other:
            other.execute("SET lock_timeout = '5s'")
            other.execute("SELECT defect.set_threshold('parts', 0.4)")


def test_the_center_lies_below_the_threshold_always(line: Line) -> None:
    for table in ("detector", "detector_threshold"):
        with pytest.raises(psycopg.errors.CheckViolation):
            line.value(f"UPDATE pgdefect.{table} SET score_center = threshold RETURNING 1")
    for threshold in (5e-324, 1e-12, 1e12, float(np.median(HELD_OUT))):
        line.value("SELECT defect.set_threshold('parts', %s)", threshold)


def test_a_detector_without_held_out_scores_keeps_the_center_it_was_trained_with(
    line: Line,
) -> None:
    """Such as those of versions that did not store them."""
    detector = line.train([])
    for threshold, center in ((0.4, 0.1), (0.08, 0.04), (0.3, 0.1)):
        assert (
            line.value("SELECT score_center FROM defect.set_threshold('parts', %s)", threshold)
            == center
        )
    assert (
        line.value("SELECT count(*) FROM defect.thresholds WHERE detector_id = %s", detector) == 4
    )


@pytest.mark.parametrize(
    "name",
    ["rate_interval", "set_threshold", "threshold_for", "what_if", "rejudge", "thresholds"],
)
def test_the_example_in_the_comment_runs(line: Line, name: str) -> None:
    comment = line.value(
        "SELECT coalesce(obj_description(to_regclass('defect.' || %s), 'pg_class'), "
        "(SELECT obj_description(oid, 'pg_proc') FROM pg_proc "
        "WHERE pronamespace = 'defect'::regnamespace AND proname = %s))",
        name,
        name,
    )
    statement = comment.partition("Example: ")[2].replace("leather", "parts")
    line.inspected("normal", [0.1])
    assert line.rows(statement)


# -- judging again -------------------------------------------------------------------------


def verdicts(line: Line) -> list[Any]:
    return line.rows(
        "SELECT verdict, threshold, normalized_score FROM defect.images "
        "WHERE split = 'test' ORDER BY image_id"
    )


def test_judging_again_makes_the_views_agree_and_keeps_what_was_said(line: Line) -> None:
    line.inspected("normal", [0.2, 0.45])
    line.inspected("anomalous", [0.6])
    counts = "SELECT inspected_images, rejected_images FROM defect.categories"
    assert line.value(counts) == (3, 1)
    before = line.rows("SELECT * FROM pgdefect.inspection ORDER BY id")
    line.value("SELECT defect.set_threshold('parts', 0.4)")
    assert line.value(counts) == (0, 0)
    assert [row[1] for row in verdicts(line)] == [0.5] * 3
    assert line.value("SELECT defect.rejudge(%s)", line.detector) == 3
    assert line.value(counts) == (3, 2)
    center = float(np.median(HELD_OUT))
    assert verdicts(line) == [
        (label, 0.4, normalized_score(raw, 0.4, center))
        for label, raw in (("normal", 0.2), ("anomalous", 0.45), ("anomalous", 0.6))
    ]
    assert line.rows("SELECT * FROM pgdefect.inspection ORDER BY id LIMIT 3") == before
    assert line.value("SELECT defect.rejudge(%s)", line.detector) == 0
    # Back again: events of their own, in force, beside all that were said before.
    line.value("SELECT defect.set_threshold('parts', 0.5)")
    assert line.value("SELECT defect.rejudge(%s)", line.detector) == 3
    assert line.value(counts) == (3, 1)
    assert [row[:2] for row in verdicts(line)] == [
        ("normal", 0.5),
        ("normal", 0.5),
        ("anomalous", 0.5),
    ]
    assert line.rows("SELECT event, count(*) FROM pgdefect.inspection GROUP BY 1 ORDER BY 1") == [
        ("inspection", 3),
        ("re-judgement", 6),
    ]


def test_judging_an_older_detector_again_does_not_overrule_a_newer_look(line: Line) -> None:
    [image] = line.inspected("normal", [0.2])
    second = line.train()
    line.inspect(image, 0.9, second)
    line.value("SELECT defect.set_threshold('parts', 0.1, detector => %s)", line.detector)
    assert line.value("SELECT defect.rejudge(%s)", line.detector) == 1
    assert line.value(
        "SELECT detector_id, raw_score FROM defect.images WHERE image_id = %s", image
    ) == (second, 0.9)


def test_what_a_defect_probably_is_goes_along_where_there_still_is_one(line: Line) -> None:
    line.inspected("unlabeled", [0.6, 0.9], label=None)
    line.inspected("anomalous", [0.6])
    vote = {"k": 1, "counts": {"x": 1}, "support": 1, "needed": 1}
    with line.database.begin() as connection:
        connection.execute(
            text("UPDATE pgdefect.inspection SET vote = :vote, probable_defect_type = 'x'"),
            {"vote": json.dumps(vote)},
        )
    line.value("SELECT defect.set_threshold('parts', 0.7)")
    assert line.value("SELECT defect.rejudge(%s)", line.detector) == 3
    found = line.rows(
        "SELECT DISTINCT ON (s.image_id) i.label, is_anomalous, vote, probable_defect_type "
        "FROM pgdefect.inspection s JOIN pgdefect.image i ON i.id = s.image_id "
        "ORDER BY s.image_id, s.created_at DESC"
    )
    assert found == [
        (None, False, None, None),
        (None, True, vote, "x"),
        ("anomalous", False, vote, "x"),
    ]


def test_rejudge_refuses_an_unknown_detector(line: Line) -> None:
    with pytest.raises(psycopg.Error, match="no detector 99") as caught:
        line.value("SELECT defect.rejudge(99)")
    assert caught.value.sqlstate == "PD404"


# -- the use case --------------------------------------------------------------------------


def test_each_rule_is_applied_stored_and_judged_by(line: Line) -> None:
    line.inspected("normal", [0.1, 0.2, 0.3, 0.45])
    line.inspected("anomalous", [0.4, 0.6, 0.7])
    expected = {
        "f1_max": 0.35,
        "zero_escapes": 0.35,
        "max_escape_rate": 0.525,
        "false_reject_rate": 0.35,
        "given": 0.65,
    }
    values = {"max_escape_rate": 0.5, "false_reject_rate": 0.1, "given": 0.65}
    for rule, threshold in expected.items():
        dry = change_threshold(
            line.database,
            "parts",
            rule,
            values.get(rule),
            dry_run=True,  # type: ignore[arg-type]
        )
        kept = show_threshold(line.database, "parts").threshold
        report = change_threshold(
            line.database,
            "parts",
            rule,
            values.get(rule),  # type: ignore[arg-type]
        )
        assert report.threshold == dry.threshold == pytest.approx(threshold)
        assert (report.score_center, report.outcome) == (dry.score_center, dry.outcome)
        assert report.before == dry.before == kept
        assert report.rule == line.value("SELECT threshold_rule FROM pgdefect.detector")
        assert report.rule["rule"] == rule
        assert report.stale == 0
        assert line.value("SELECT inspected_images FROM defect.categories") == 7
        shown = show_threshold(line.database, "parts")
        assert (shown.threshold, shown.rule) == (report.threshold, report.rule)
        counted = line.value(
            "SELECT false_rejects, escapes FROM defect.what_if(%s, %s)",
            line.detector,
            report.threshold,
        )
        assert counted == (report.outcome["false_rejects"], report.outcome["escapes"])
    assert len(shown.history) == 6


def test_rules_that_cannot_be_applied_say_what_to_do(line: Line) -> None:
    def refused(message: str, rule: Any, value: float | None = None, **options: Any) -> None:
        with pytest.raises(UsageError, match=message):
            change_threshold(line.database, "parts", rule, value, **options)

    line.inspected("normal", [0.1, 0.2])
    for rule, value in (("f1_max", None), ("zero_escapes", None), ("max_escape_rate", 0.1)):
        refused(
            r"anomalous images.*project\.inspect\(category='parts', split='test'\)", rule, value
        )
        refused("anomalous image.*pgdefect simulate parts", rule, value, simulated=True)
    line.inspected("anomalous", [0.4], split="production")
    refused(r"normal images.*split='production'", "f1_max", split="production")
    refused("looked at with simulated", "f1_max", split="simulated")
    for bad in (float("nan"), float("inf"), 0.0, -1.0):
        refused("finite number above 0", "given", bad)
    with pytest.raises(UnknownCategory, match="known: parts"):
        change_threshold(line.database, "nuts", "f1_max")
    with pytest.raises(NotFound, match="no detector 99"):
        show_threshold(line.database, "parts", detector_id=99)
    line.train([])
    refused(r"Train it again with: project\.train\('parts'\)", "false_reject_rate", 0.05)
    assert line.value("SELECT count(*) FROM defect.thresholds") == 2


def test_a_rule_whose_threshold_would_not_be_above_0_is_refused(line: Line) -> None:
    """Such as where a labeled defect scores below 0, as EfficientAD's maps can."""
    line.inspected("normal", [-0.3, 0.2])
    line.inspected("anomalous", [-0.1, 0.6])
    for dry_run in (True, False):
        with pytest.raises(UsageError, match=r"would be -0\.2, and it must be above 0"):
            change_threshold(line.database, "parts", "zero_escapes", dry_run=dry_run)
    assert line.value("SELECT count(*) FROM defect.thresholds") == 1


def test_simulated_defects_count_only_when_asked_for(line: Line) -> None:
    line.inspected("normal", [0.1, 0.2])
    line.inspected("anomalous", [0.6])
    line.inspected("drawn", [0.3], label="anomalous", split="simulated", simulation={"kind": "x"})
    assert change_threshold(line.database, "parts", "zero_escapes").threshold == pytest.approx(0.4)
    report = change_threshold(line.database, "parts", "zero_escapes", simulated=True)
    assert report.threshold == pytest.approx(0.25)
    assert report.rule["images"] == report.split == "test and simulated"


def test_simulated_defects_beside_held_out_images_alone(line: Line) -> None:
    line.inspected("drawn", [0.3], label="anomalous", split="simulated", simulation={"kind": "x"})
    report = change_threshold(line.database, "parts", "zero_escapes", simulated=True)
    assert report.threshold == pytest.approx(0.29)
    assert report.rule["images"] == "held out and simulated"
    assert (report.rule["normal_images"], report.rule["false_rejects"]) == (10, 3)


def test_defects_simulated_on_learned_images_do_not_count(line: Line) -> None:
    line.inspected("normal", [0.1, 0.2])
    drawn = {"label": "anomalous", "split": "simulated"}
    for name, source in (("seen", line.learned[2]), ("held", line.held_out[2])):
        line.inspected(name, [0.3], simulation={"source_image_id": source}, **drawn)
    report = change_threshold(line.database, "parts", "zero_escapes", simulated=True)
    assert report.rule["anomalous_images"] == 1


def test_without_judging_again_the_images_left_are_counted(line: Line) -> None:
    line.inspected("normal", [0.1, 0.2])
    report = change_threshold(line.database, "parts", "given", 0.3, rejudge=False)
    assert (report.rejudged, report.stale) == (0, 2)
    assert show_threshold(line.database, "parts").stale == 2
    again = show_threshold(line.database, "parts", rejudge=True)
    assert (again.rejudged, again.stale) == (2, 0)


def test_simulated_defects_are_judged_again_uncounted(line: Line) -> None:
    line.inspected("normal", [0.1, 0.2])
    drawn = {"label": "anomalous", "split": "simulated", "simulation": {"kind": "x"}}
    [image] = line.inspected("drawn", [0.4], **drawn)
    verdict = "SELECT verdict, threshold FROM defect.simulated WHERE image_id = %s"
    report = change_threshold(line.database, "parts", "given", 0.3, rejudge=False)
    assert report.stale == 2
    assert line.value(verdict, image) == ("normal", 0.5)
    report = change_threshold(line.database, "parts", "given", 0.3)
    assert (report.rejudged, report.stale) == (2, 0)
    assert line.value(verdict, image) == ("anomalous", 0.3)
    assert line.value("SELECT count(*) FROM pgdefect.inspection") == 6


# -- made again from production images -----------------------------------------------------


def test_production_images_make_a_threshold_as_python_does(line: Line) -> None:
    scores = [0.2 + 0.01 * n for n in range(30)]
    line.inspected("good", scores, label="normal", split="production")
    line.inspected("bad", [0.9, 0.95], label="anomalous", split="production")
    line.inspected("unseen", [0.3, 0.31, 0.32, 3.0], label=None, split="production")
    query = "SELECT * FROM defect.threshold_from_production(%s, 0.1, %s)"
    value, center, rule = line.value(query, line.detector, None)
    expected = thresholds.false_reject_rate(scores, 0.1)
    assert (value, center) == (expected.value, expected.center)
    assert rule.pop("images") == "production"
    assert rule.pop("anomalous_share") is None
    assert_equal_rules(rule, expected.rule)
    # Of four that nobody has judged one may be anomalous: the one that scores highest.
    presumed = thresholds.false_reject_rate([*scores, 0.3, 0.31, 0.32], 0.1)
    value, _, rule = line.value(query, line.detector, 0.02)
    assert (value, rule["anomalous_share"]) == (presumed.value, 0.02)
    report = change_threshold(
        line.database,
        "parts",
        "false_reject_rate",
        0.1,
        production=True,
        anomalous_share=0.02,
        dry_run=True,
    )
    assert report.threshold == presumed.value
    assert report.rule["images"] == "production"


def test_production_images_are_asked_for_where_there_are_none(line: Line) -> None:
    with pytest.raises(psycopg.Error, match="no production image") as caught:
        line.value("SELECT defect.threshold_from_production(%s, 0.1)", line.detector)
    assert caught.value.sqlstate == "PD404"
    with pytest.raises(psycopg.Error, match="anomalous share") as caught:
        line.value("SELECT defect.threshold_from_production(%s, 0.1, 1.0)", line.detector)
    assert caught.value.sqlstate == "PD400"
    with pytest.raises(UsageError, match="no production image"):
        change_threshold(line.database, "parts", "false_reject_rate", 0.1, production=True)
    with pytest.raises(UsageError, match="false_reject_rate alone"):
        change_threshold(line.database, "parts", "f1_max", production=True)
    with pytest.raises(UsageError, match="production"):
        change_threshold(line.database, "parts", "false_reject_rate", 0.1, anomalous_share=0.1)
