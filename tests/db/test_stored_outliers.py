"""Outliers among training images: what thresholds, reviews, queue and doctor make of them."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from rows import add_extractor, add_images, memory_bank, store, unit_vectors
from sqlalchemy import text

from pgdefect.core.outliers import threshold_without
from pgdefect.db.connection.engine import Database
from pgdefect.db.doctor import contents
from pgdefect.db.records.outliers import outlier_thresholds, outliers_of, stored_outliers
from pgdefect.db.records.reviews import review_image, review_queue
from pgdefect.db.records.thresholds import holdout_scores
from pgdefect.usecases.threshold import change_threshold

DIM = 8
SCORES = [0.11, 0.35, 0.20, 0.32, 0.14, 0.28, 0.17, 0.23, 0.31, 0.26, 2.5, 3.5]


class Line:
    """A category `parts` of twelve training images, the last two of which are outliers."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.images = add_images(database, "parts", 12)
        self.odd, self.odder = self.images[-2:]
        bank = memory_bank(unit_vectors(1, 48, DIM), self.images)
        self.scores = dict(zip(self.images, SCORES, strict=True))
        self.detector = store(
            database, "parts", add_extractor(database, DIM), bank, holdout_scores=self.scores
        )
        with database.begin() as connection:
            connection.execute(
                text("UPDATE pgdefect.holdout_score SET outlier = true WHERE image_id >= :odd"),
                {"odd": self.odd},
            )

    def threshold_for(self, rate: float) -> Any:
        with psycopg.connect(self.database.url) as connection:
            return connection.execute(
                "SELECT threshold, rule FROM defect.threshold_for(%s, %s)", [self.detector, rate]
            ).fetchone()

    def findings(self, name: str) -> list[Any]:
        with self.database.connect() as connection:
            return list(getattr(contents, name)(connection))


@pytest.fixture
def line(database: Database) -> Line:
    return Line(database)


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.3])
def test_sql_and_python_leave_the_same_images_out(line: Line, rate: float) -> None:
    expected = threshold_without({line.odd, line.odder}, line.scores, rate)
    assert expected.rule["outliers"] == [line.odd, line.odder]
    threshold, rule = line.threshold_for(rate)
    assert threshold == pytest.approx(expected.value)
    interval = rule.pop("false_reject_interval")
    assert interval == pytest.approx(expected.rule["false_reject_interval"])
    assert rule == {k: v for k, v in expected.rule.items() if k != "false_reject_interval"}
    report = change_threshold(line.database, "parts", "false_reject_rate", rate)
    assert report.threshold == pytest.approx(expected.value)
    assert report.rule == expected.rule


def test_a_review_as_normal_keeps_an_image(line: Line) -> None:
    review_image(line.database, str(line.odd), "normal")
    threshold, rule = line.threshold_for(0.05)
    assert (threshold, rule["outliers"]) == (2.5, [line.odder])
    with line.database.connect() as connection:
        assert holdout_scores(connection, line.detector).left_out == {line.odder}
        assert stored_outliers(connection, 1, "patchcore") == {line.odder}


def test_a_review_as_anomalous_leaves_any_image_out(line: Line) -> None:
    review_image(line.database, str(line.images[1]), "anomalous")
    threshold, rule = line.threshold_for(0.05)
    assert (threshold, rule["outliers"]) == (0.32, [line.images[1], line.odd, line.odder])


def test_outliers_are_first_in_the_queue_until_they_are_reviewed(line: Line) -> None:
    queue = review_queue(line.database)
    assert [(q.image_id, q.outlier, q.priority) for q in queue] == [
        (line.odder, True, 1.0),
        (line.odd, True, 1.0),
    ]
    assert {q.verdict for q in queue} == {"anomalous"}
    review_image(line.database, str(line.odd), "normal")
    review_image(line.database, str(line.odder), "anomalous")
    assert review_queue(line.database) == []


def test_an_inspected_outlier_is_queued_once(line: Line) -> None:
    with line.database.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO pgdefect.inspection (image_id, detector_id, raw_score, "
                "normalized_score, threshold, worst_row, worst_col, anomaly_map, search) "
                "VALUES (:image, :detector, 2.5, 0.9, 0.5, 0, 0, ARRAY[[2.5]], 'exact')"
            ),
            {"image": line.odd, "detector": line.detector},
        )
    assert [q.image_id for q in review_queue(line.database)] == [line.odder, line.odd]


def test_doctor_names_outliers_and_what_the_bank_learned_of_them(line: Line) -> None:
    [finding] = line.findings("check_outliers")
    assert finding.severity == "warning"
    assert "2 of 12 normal training images" in finding.message
    assert "/nowhere/parts/00011.png (3.5000), /nowhere/parts/00010.png (2.5000)" in finding.message
    assert "its bank has learned 2 of them" in finding.message
    assert "pgdefect review parts --queue" in finding.remedy
    assert "leave_out_outliers=True" in finding.remedy
    assert line.findings("check_learned_defects") == []
    for image in (line.odd, line.odder):
        done = review_image(line.database, str(image), "anomalous")
        assert done.learned_vectors == 4
    assert line.findings("check_outliers") == []
    [finding] = line.findings("check_learned_defects")
    assert "2 images that are known to be anomalous" in finding.message
    assert finding.remedy == "project.train('parts')"


def test_the_center_does_not_follow_outliers(line: Line) -> None:
    with line.database.connect() as connection:
        center = connection.scalar(
            text("SELECT pgdefect.score_center(:id, 0.5)"), {"id": line.detector}
        )
    assert center == pytest.approx(0.245)


def test_outliers_of_a_detector_that_is_gone_are_none(database: Database) -> None:
    with database.connect() as connection:
        assert outliers_of(connection, 99).images == ()


def test_thresholds_with_and_without_are_told_by_category(line: Line) -> None:
    report = change_threshold(line.database, "parts", "false_reject_rate", 0.05)
    [(name, outliers)] = outlier_thresholds(line.database, {"parts", "others"})
    assert name == "parts"
    assert [image.image_id for image in outliers.images] == [line.odder, line.odd]
    assert (outliers.threshold, outliers.threshold_with_outliers) == (report.threshold, 3.5)
    assert outlier_thresholds(line.database, set()) == []
