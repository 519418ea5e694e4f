"""A little of `make soak`, at the same places each time; and that it sees what is lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import psycopg
import pytest

from soak.__main__ import report
from soak.cases import CASES, Data, Reference, make_data, make_templates
from soak.faults import Begin, Fault, Moment, kill_at
from soak.lane import Command, Lane, Place, forker
from soak.run import Job, Result, jobs_of, run_job
from soak.state import differences
from tests.places import short_folder

pytestmark = pytest.mark.server

IMAGES = 300
[INGEST] = [case for case in CASES if case.name == "ingest"]


@pytest.fixture(scope="module")
def lane() -> Iterator[Lane]:
    with short_folder() as folder:
        lane = Lane(folder / "lane", forker(heavy=False))
        lane.folder.mkdir()
        lane.folder.chmod(0o755)
        lane.start()
        try:
            yield lane
        finally:
            lane.server.stop()


@pytest.fixture(scope="module")
def data(lane: Lane) -> Data:
    return make_data(lane.folder.parent / "data", many=IMAGES, train=1, line=1)


@pytest.fixture(scope="module")
def reference(lane: Lane, data: Data) -> Reference:
    """What an undisturbed ingestion leaves; the template `empty` is made for it."""
    found = make_templates(lane, data, [INGEST])["ingest"]
    assert found.unstable == []
    assert found.state.rows["image"][0] == IMAGES
    assert found.state.remarks == {}
    return found


def inject(lane: Lane, data: Data, reference: Reference, fault: Fault, number: int = 0) -> Result:
    return run_job(lane, data, Job(fault, INGEST, number), reference, seed=0)


@pytest.mark.parametrize("done", [1, 129, IMAGES])
def test_a_kill_at_any_place_loses_nothing(
    lane: Lane, data: Data, reference: Reference, done: int
) -> None:
    fault = Fault("kill", "a kill", kill_at("ingest", done), {})
    result = inject(lane, data, reference, fault)
    assert (result.hit, result.wrong) == (True, [])
    assert result.expected == result.found == reference.state.num_rows


@pytest.mark.parametrize("whole", [True, False])
def test_a_killed_server_loses_nothing(
    lane: Lane, data: Data, reference: Reference, whole: bool
) -> None:
    """The postmaster, or the session at work; when the first insert is under way."""

    def at_the_insert(
        lane: Lane, place: Place, begin: Begin, moment: Moment
    ) -> tuple[Command, bool]:
        with closing(psycopg.connect(place.database.url)) as connection:
            connection.execute("LOCK TABLE pgdefect.image IN SHARE MODE")
            command = begin(None)
            with lane.admin() as watcher:
                lane.until(
                    lambda: watcher.execute(
                        "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted "
                        "AND relation IS NOT NULL"
                    ),
                    "the insert never came",
                )
                [(waiting,)] = watcher.execute(
                    "SELECT pid FROM pg_locks WHERE NOT granted AND relation IS NOT NULL"
                ).fetchall()
            pid = lane.server.status().pid if whole else waiting
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            lane.wait_for_crash(connection)
        assert command.wait() == 1
        assert "lost the connection" in command.output or "no database at" in command.output
        return command, True

    result = inject(lane, data, reference, Fault("server", "a crash", at_the_insert, {}))
    assert (result.hit, result.wrong) == (True, [])
    assert result.expected == result.found


DAMAGES = {
    "DELETE FROM pgdefect.image WHERE path LIKE '%0007.png'": "table image: 300 rows expected, 299",
    "UPDATE pgdefect.image SET width = 1 WHERE path LIKE '%0007.png'": "table image: other values",
    "CREATE TABLE pgdefect.memory_bank_patch_7 (LIKE pgdefect.memory_bank_patch)":
        "relation left over: 1 × r pgdefect.memory_bank_patch_N",
    "CREATE UNLOGGED TABLE public.scratch (i int)":
        "relation left over: 1 × r temporary or unlogged.scratch",
    "DROP INDEX pgdefect.ix_image_root_id": "relation lacking: 1 × i pgdefect.ix_image_root_id",
    "UPDATE pg_index SET indisvalid = false "
    "WHERE indexrelid = 'pgdefect.ix_image_sha256'::regclass":
        "relation left over: 1 × i pgdefect.ix_image_sha256 INVALID",
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_lost_or_left_over_is_found(
    lane: Lane, data: Data, reference: Reference, damage: str
) -> None:
    with lane.place("empty") as place:
        lane.run(place, INGEST.arguments(data, place))
        assert differences(reference.state, lane.state(place)) == []
        with psycopg.connect(place.database.url) as connection:
            connection.execute(damage)  # type: ignore[arg-type]
        found = differences(reference.state, lane.state(place))
        assert any(line.startswith(DAMAGES[damage]) for line in found), found


def test_files_that_are_left_over_are_found(lane: Lane, data: Data, reference: Reference) -> None:
    with lane.place("empty") as place:
        lane.run(place, INGEST.arguments(data, place))
        for name in ("cache/spool", "tmp/scratch", "out/.tables.part-1/x"):
            path = place.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("x")
        found = differences(reference.state, lane.state(place))
    assert found == [
        "file left over: cache/spool",
        "file left over: out/.tables.part-1/x",
        "file left over: tmp/scratch",
    ]


def test_a_damaged_page_is_found(lane: Lane, data: Data, reference: Reference) -> None:
    with lane.place("empty") as place:
        lane.run(place, INGEST.arguments(data, place))
        with psycopg.connect(place.database.url, autocommit=True) as connection:
            for statement in (
                "UPDATE pg_index SET indisready = false WHERE indexrelid = {}",
                # Rows that the index does not know.
                "UPDATE pgdefect.image SET created_at = created_at + interval '1 s'",
                "UPDATE pg_index SET indisready = true WHERE indexrelid = {}",
            ):
                connection.execute(
                    statement.format("'pgdefect.ix_image_root_id'::regclass")  # type: ignore[arg-type]
                )
        found = differences(reference.state, lane.state(place))
    assert any(line.startswith("remark left over: 1 × pg_amcheck:") for line in found), found


def test_a_loss_makes_the_verdict(
    lane: Lane, data: Data, reference: Reference, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole way: a fault after which something is left that no second run takes away."""

    def leave(lane: Lane, place: Place, begin: Begin, moment: Moment) -> tuple[Command, bool]:
        with psycopg.connect(place.database.url) as connection:
            connection.execute("CREATE TABLE pgdefect.image_embedding_9 (i int)")
        command = begin(("ingest", 1))
        return command, command.wait() == -signal.SIGKILL

    good = Fault("kill", "a kill", kill_at("ingest", 1), {"ingest": 1})
    bad = replace(good, name="bad", title="a loss", inject=leave)
    never = replace(good, name="never", title="no fault", inject=kill_at("no such stage", 1))
    results = [inject(lane, data, reference, fault) for fault in (good, bad, never)]
    assert [bool(result.wrong) for result in results] == [False, True, False]
    assert any("image_embedding_N" in line for line in results[1].wrong)
    assert report([good], results, {}, 1.0) == 0
    table = capsys.readouterr().out.splitlines()
    rows = f"{reference.state.num_rows:,}"
    assert table[2].split() == ["a", "kill", "ingest", "1", "0", rows, rows, "same"]
    assert report([good, bad], results, {}, 1.0) == 1
    assert "1 DIFFERENT" in capsys.readouterr().out
    # What never hit proves nothing.
    assert report([never], results, {}, 1.0) == 1
    assert "NEVER HIT" in capsys.readouterr().out
    # What could not be done is said, and fails nothing.
    assert report([good, bad], results[:1], {"bad": "no tmpfs here"}, 1.0) == 0
    assert "skipped: no tmpfs here" in capsys.readouterr().out


def test_an_undocumented_error_is_a_difference(
    lane: Lane, data: Data, reference: Reference
) -> None:
    def surprise(lane: Lane, place: Place, begin: Begin, moment: Moment) -> tuple[Command, bool]:
        with psycopg.connect(place.database.url, autocommit=True) as connection:
            connection.execute("ALTER TABLE pgdefect.image ADD CHECK (false)")
            command = begin(None)
            assert command.wait() == 1
            connection.execute("ALTER TABLE pgdefect.image DROP CONSTRAINT image_check")
        return command, True

    result = inject(lane, data, reference, Fault("x", "a surprise", surprise, {}))
    assert [line[:31] for line in result.wrong] == ["an error that is not documented"]


def test_the_same_seed_makes_the_same_plan() -> None:
    case = replace(INGEST, name="export")
    faults = [Fault("kill", "", kill_at("x", 1), {"ingest": 20, "export": 10})]

    def plan(seed: int, scale: float = 1.0) -> list[tuple[str, int]]:
        return [(job.case.name, job.number) for job in jobs_of(faults, [INGEST, case], scale, seed)]

    assert plan(1) == plan(1)
    assert plan(1) != plan(2)
    assert sorted(plan(1)) == sorted(plan(2))
    assert len(plan(1, 0.5)) == 15
    assert len(plan(1, 0.001)) == 2
