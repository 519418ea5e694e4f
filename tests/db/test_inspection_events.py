"""Inspections are events: added, never renewed; what is in force and what counts follow."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import psycopg
import pytest
from rows import add_extractor, add_images, store
from test_banks import memory_bank

from pgdefect.core.errors import UnknownCategory
from pgdefect.db.connection.engine import Database
from pgdefect.db.records.detectors import active_detector
from pgdefect.db.records.retention import prunable, prune_inspections

COLUMNS = (
    "image_id, detector_id, raw_score, normalized_score, threshold, worst_row, worst_col, "
    "anomaly_map, search"
)


class Line:
    """Four production images, two detectors, and time as it is told."""

    def __init__(self, database: Database) -> None:
        self.database = database
        learned = add_images(database, "parts", 2)
        vectors = np.random.default_rng(1).normal(0, 1, (30, 8)).astype(np.float32)
        extractor = add_extractor(database, 8)
        bank = memory_bank(vectors, learned)
        self.first = store(database, "parts", extractor, bank)
        self.second = store(database, "parts", extractor, bank)
        self.images = add_images(
            database,
            "parts",
            4,
            split="production",
            path=lambda n: f"line/{n}.png",
            sha256=lambda n: f"{n + 1000:064x}",
            label=None,
            attributes=lambda n: {"shift": ("early", "late")[n % 2]},
        )
        assert active_detector(database, "parts").id == self.second

    def run(self, statement: str, *parameters: Any) -> list[Any]:
        with psycopg.connect(self.database.url) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            cursor = connection.execute(statement, parameters)
            return cursor.fetchall() if cursor.description else []

    def inspect(
        self, image: int, score: float, at: str, detector: int | None = None, **more: Any
    ) -> int:
        names = ", ".join(more)
        [(made,)] = self.run(
            f"INSERT INTO pgdefect.inspection ({COLUMNS}, created_at{names and ', ' + names}) "
            f"VALUES (%s, %s, %s, %s, 0.5, 0, 0, '{{{{0.5}}}}', 'hnsw', %s{', %s' * len(more)}) "
            "RETURNING id",
            *[self.images[image], detector or self.first, score, score, at, *more.values()],
        )
        return int(made)

    def verdicts(self) -> list[tuple[str | None, float | None, str | None]]:
        return self.run(
            "SELECT verdict, raw_score, event FROM defect.images WHERE split = 'production' "
            "ORDER BY image_id"
        )


@pytest.fixture
def line(database: Database) -> Line:
    return Line(database)


def test_the_first_is_told_from_later_looks(line: Line) -> None:
    line.inspect(0, 0.9, "2026-05-04 8:00+00")
    line.inspect(0, 0.2, "2026-05-05 8:00+00")
    line.inspect(0, 0.1, "2026-05-06 8:00+00", line.second)
    line.inspect(1, 0.1, "2026-05-04 8:00+00")
    rows = line.run(
        "SELECT image_id, event, in_force, judged_at = inspected_at, station FROM "
        "defect.inspections ORDER BY inspection_id"
    )
    one, other = line.images[:2]
    assert rows == [
        (one, "inspection", False, True, "pgdefect"),
        (one, "re-inspection", False, True, "pgdefect"),
        (one, "re-inspection", True, True, "pgdefect"),
        (other, "inspection", True, True, "pgdefect"),
    ]
    assert line.verdicts()[:2] == [("normal", 0.1, "re-inspection"), ("normal", 0.1, "inspection")]
    with pytest.raises(psycopg.errors.UniqueViolation, match="uq_inspection_first"):
        line.inspect(0, 0.9, "2026-05-07 8:00+00", event="inspection")


def test_a_re_judgement_stands_for_its_look_and_for_no_later_one(line: Line) -> None:
    line.inspect(0, 0.45, "2026-05-04 8:00+00", line.first)
    line.inspect(0, 0.2, "2026-05-05 8:00+00", line.second)
    line.inspect(1, 0.45, "2026-05-04 8:00+00", line.first)
    line.run("SELECT defect.set_threshold('parts', 0.4, detector => %s)", line.first)
    [(made,)] = line.run("SELECT defect.rejudge(%s)", line.first)
    assert made == 2
    # The second detector has looked at the first image since: its word stays in force.
    assert line.verdicts()[:2] == [
        ("normal", 0.2, "re-inspection"),
        ("anomalous", 0.45, "re-judgement"),
    ]
    # And no day has changed but that the re-judgements are of today, where every one is asked.
    assert line.run("SELECT day::text, inspected, rejected FROM defect.daily_rejects") == [
        ("2026-05-04", 2, 0)
    ]
    every = line.run(
        "SELECT starts >= date_trunc('day', now()) - interval '1 day', sum(inspected), "
        "sum(rejected) FROM defect.rejects(judged => 'every') GROUP BY 1 ORDER BY 1"
    )
    assert every == [(False, 3, 0), (True, 2, 2)]
    # By the verdicts in force, on the days of the photographs.
    assert line.run(
        "SELECT starts::date::text, inspected, rejected FROM defect.rejects(judged => 'last')"
    ) == [("2026-05-04", 2, 1)]


def test_rejects_by_hour_station_detector_and_attribute(line: Line) -> None:
    line.inspect(0, 0.9, "2026-05-04 8:10+00", station="north")
    line.inspect(1, 0.1, "2026-05-04 8:50+00", station="south")
    line.inspect(2, 0.1, "2026-05-04 9:10+00", line.second, station="north")
    line.inspect(3, 0.9, "2026-05-05 9:10+00", line.second)
    line.inspect(3, 0.1, "2026-05-05 9:11+00", line.second)
    line.run(
        "UPDATE pgdefect.image SET taken_at = '2026-05-04 23:30+00' WHERE id = %s", line.images[3]
    )

    def counted(arguments: str) -> list[Any]:
        return line.run(
            "SELECT to_char(starts, 'DD HH24'), \"group\", inspected, rejected, reject_rate "
            f"FROM defect.rejects({arguments})"
        )

    assert counted("") == [("04 00", None, 4, 2, 0.5)]
    assert counted("per => 'hour'") == [
        ("04 08", None, 2, 1, 0.5),
        ("04 09", None, 1, 0, 0.0),
        ("04 23", None, 1, 1, 1.0),
    ]
    assert counted("per => 'all', by => 'station'") == [
        (None, "north", 2, 1, 0.5),
        (None, "pgdefect", 1, 1, 1.0),
        (None, "south", 1, 0, 0.0),
    ]
    assert counted("per => 'all', by => 'detector', judged => 'last'") == [
        (None, str(line.first), 2, 1, 0.5),
        (None, str(line.second), 2, 0, 0.0),
    ]
    assert counted("per => 'month', by => 'shift'") == [
        ("01 00", "early", 2, 1, 0.5),
        ("01 00", "late", 2, 1, 0.5),
    ]
    assert counted("since => '2026-05-04 9:00+00', until => '2026-05-04 23:30+00'") == [
        ("04 00", None, 1, 0, 0.0)
    ]
    assert counted("split => 'test'") == []
    assert counted("category => 'parts'") == counted("")


@pytest.mark.parametrize(
    ("arguments", "state", "message"),
    [
        ("per => 'minute'", "PD400", "hour, day, week, month or all, not 'minute'"),
        ("per => NULL", "PD400", "month or all, not NULL"),
        ("judged => 'best'", "PD400", "first, last or every, not 'best'"),
        ("split => 'nowhere'", "PD400", "nowhere"),
        ("category => 'nuts'", "PD404", "no category 'nuts'"),
    ],
)
def test_rejects_refuses(line: Line, arguments: str, state: str, message: str) -> None:
    with pytest.raises(psycopg.Error, match=message) as caught:
        line.run(f"SELECT * FROM defect.rejects({arguments})")
    assert caught.value.sqlstate == state


def test_the_newest_verdict_of_a_detector_counts_once(line: Line) -> None:
    """Where an image has several inspections under one threshold."""
    line.inspect(0, 0.9, "2026-05-04 8:00+00", line.second)
    line.inspect(0, 0.1, "2026-05-05 8:00+00", line.second)
    counted = "SELECT inspected_images, rejected_images FROM defect.categories"
    assert line.run(counted) == [(1, 0)]
    line.run("UPDATE pgdefect.image SET label = 'normal' WHERE id = %s", line.images[0])
    assert line.run(
        "SELECT image_id, raw_score FROM pgdefect.labeled_scores(%s, 'production')", line.second
    ) == [(line.images[0], 0.1)]


def test_one_event_for_a_key_and_an_image(line: Line) -> None:
    line.inspect(0, 0.9, "2026-05-04 8:00+00", event_key="request 1")
    line.inspect(1, 0.9, "2026-05-04 8:00+00", event_key="request 1")
    with pytest.raises(psycopg.errors.UniqueViolation, match="event_key"):
        line.inspect(0, 0.1, "2026-05-04 8:00+00", event_key="request 1")


# -- retention -----------------------------------------------------------------------------


def test_pruning_takes_what_nothing_rests_on(line: Line) -> None:
    """The first of an image and each detector's newest stay, whatever their age."""
    for day in (4, 5, 6, 7):
        line.inspect(0, day / 10, f"2026-05-0{day} 8:00+00")
    line.inspect(0, 0.1, "2026-05-08 8:00+00", line.second)
    line.inspect(1, 0.9, "2026-05-04 8:00+00")
    line.run(
        "INSERT INTO pgdefect.inspection_run (digest, detector_id, event_key, started_at) "
        "VALUES ('x', %s, 'k', '2026-05-04')",
        line.first,
    )
    before = datetime(2026, 5, 6, 12, tzinfo=UTC)
    shown = ("SELECT * FROM defect.daily_rejects", "SELECT * FROM defect.categories")
    state = [line.run(query) for query in shown] + [line.verdicts()]
    found = prunable(line.database, before)
    assert (found.inspections, found.images, found.kept, found.runs) == (2, 1, 4, 1)
    assert found.bytes > 0
    assert len(line.run("SELECT id FROM pgdefect.inspection")) == 6
    assert prunable(line.database, before, "parts") == found
    assert prunable(line.database, datetime(2026, 5, 5, 7, tzinfo=UTC)).inspections == 0
    assert prune_inspections(line.database, before) == found
    assert line.run(
        "SELECT image_id - %s, detector_id = %s, raw_score, event FROM pgdefect.inspection "
        "ORDER BY id",
        *[line.images[0], line.first],
    ) == [
        (0, True, 0.4, "inspection"),
        (0, True, 0.7, "re-inspection"),
        (0, False, 0.1, "re-inspection"),
        (1, True, 0.9, "inspection"),
    ]
    assert [line.run(query) for query in shown] + [line.verdicts()] == state
    assert prunable(line.database, before) == replace(
        found, inspections=0, images=0, bytes=0, runs=0
    )
    with pytest.raises(UnknownCategory):
        prunable(line.database, before, "nuts")


# -- what else analysts ask of a detector --------------------------------------------------


def test_what_a_threshold_lets_through_of_each_type(line: Line) -> None:
    types = ("hole", "hole", "scratch", None)
    for n, (defect_type, score) in enumerate(zip(types, (0.3, 0.6, 0.7, 0.2), strict=True)):
        line.run(
            "UPDATE pgdefect.image SET label = 'anomalous', defect_type = %s WHERE id = %s",
            *[defect_type, line.images[n]],
        )
        line.inspect(n, score, "2026-05-04 8:00+00", line.second)
    rows = line.run(
        "SELECT known_defect_type, images, escapes, escape_rate, lowest_score, "
        "escape_interval = defect.rate_interval(escapes, images) "
        "FROM defect.what_if_by_type(%s, 0.5, 'production')",
        line.second,
    )
    assert rows == [
        (None, 1, 1, 1.0, 0.2, True),
        ("hole", 2, 1, 0.5, 0.3, True),
        ("scratch", 1, 0, 0.0, 0.7, True),
    ]
    [(sum_of_types,)] = line.run(
        "SELECT escapes FROM defect.what_if(%s, 0.5, 'production')", line.second
    )
    assert sum_of_types == 2
    with pytest.raises(psycopg.Error, match="there is no detector 99") as caught:
        line.run("SELECT * FROM defect.what_if_by_type(99, 0.5)")
    assert caught.value.sqlstate == "PD404"


def test_the_vectors_of_a_bank_are_shown_with_where_they_came_from(line: Line) -> None:
    rows = line.run(
        "SELECT v.bank_id, v.category, v.position, v.image_id = p.image_id, v.path, v.row = p.row, "
        "v.embedding::text = p.embedding::text "
        "FROM defect.bank_vectors v JOIN pgdefect.memory_bank_patch p USING (bank_id, position) "
        "WHERE v.bank_id = %s ORDER BY v.position",
        line.first,
    )
    assert [row[:3] for row in rows] == [(line.first, "parts", n) for n in range(30)]
    assert {row[3:4] + row[5:] for row in rows} == {(True, True, True)}
    assert {row[4] for row in rows} == {f"/nowhere/parts/{n:05}.png" for n in range(2)}
    line.run("UPDATE pgdefect.memory_bank_patch SET image_id = 0")
    assert line.run('SELECT DISTINCT image_id, path, "row", col FROM defect.bank_vectors') == [
        (None, None, None, None)
    ]


def test_the_verdict_in_force_is_read_from_the_end_of_an_index(line: Line) -> None:
    """A scan, or a sort of all that was ever said, would grow with the history."""
    line.inspect(0, 0.9, "2026-05-04 8:00+00")
    for query in (
        "SELECT verdict FROM defect.images WHERE image_id = %s",
        "SELECT in_force FROM defect.inspections WHERE image_id = %s",
    ):
        with psycopg.connect(line.database.url) as connection:
            # The tables are too small to prefer an index.
            connection.execute("SET enable_seqscan = off")
            connection.execute("SET enable_bitmapscan = off")
            rows = connection.execute(f"EXPLAIN (COSTS OFF) {query}", [line.images[0]]).fetchall()
        plan = "\n".join(row[0] for row in rows)
        assert "using ix_inspection_image on inspection" in plan
        assert "Sort Key: s." not in plan
