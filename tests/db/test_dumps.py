"""Databases of every version that was released come up to this one with all they hold.

``dumps/`` has one of each, made by the code of its time (`dumps/make.py`).
"""

from __future__ import annotations

import gzip
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from digests import columns, digests
from dumps.make import MADE_BY, PHOTOS, SIMULATED, draw_photos
from guarded import Clone
from sqlalchemy import text

from pgdefect.core.config import Settings
from pgdefect.db.backup.client_programs import find_program
from pgdefect.db.backup.pg_dump_archive import open_archive
from pgdefect.db.backup.restore import restore
from pgdefect.db.connection.engine import Database
from pgdefect.db.records.catalog import move_root
from pgdefect.db.records.detectors import active_detector
from pgdefect.db.schema import schema
from pgdefect.db.schema.schema import check, newest_revision, require_current
from pgdefect.usecases.doctor import examine
from pgdefect.usecases.inspect.inspect import inspect

pytestmark = pytest.mark.slow

DUMPS = Path(__file__).parent / "dumps"
VERSIONS = sorted(path.name.partition(".")[0] for path in DUMPS.glob("*.dump.gz"))
SAYS_VERSION = {"alembic_version", "sql_file"}
Digests = dict[str, tuple[int, str]]


class Upgraded(NamedTuple):
    """A dump's database after its upgrade; digests of the dump's columns before it and after."""

    database: Database
    before: Digests
    after: Digests


def unpacked(version: str, folder: Path) -> Path:
    path = folder / f"{version}.dump"
    path.write_bytes(gzip.decompress((DUMPS / f"{path.name}.gz").read_bytes()))
    return path


@pytest.fixture(scope="module", params=VERSIONS)
def upgraded(
    request: pytest.FixtureRequest, clone_of: Clone, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Upgraded]:
    path = unpacked(request.param, tmp_path_factory.mktemp("dump"))
    with clone_of(None) as old:
        with old.begin() as connection:
            connection.execute(text("CREATE EXTENSION vector"))
        # Not by our own means: what the dump holds, as Postgres's program has it.
        program = find_program("pg_restore", least=18, bundled_first=True).path
        command = [program, "--exit-on-error", "--no-owner", f"--dbname={old.url}", path]
        subprocess.run(command, check=True)
        kept = columns(old)
        before = digests(old, kept, SAYS_VERSION)
    with clone_of(None) as database:
        report = restore(database, path)
        assert (report.revision_before, report.revision) == (request.param, newest_revision())
        yield Upgraded(database, before, digests(database, kept, SAYS_VERSION))


@pytest.mark.parametrize("version", VERSIONS)
def test_dumps_are_small_and_of_no_machine(version: str, tmp_path: Path) -> None:
    assert (DUMPS / f"{version}.dump.gz").stat().st_size < 300 << 10
    with open_archive(unpacked(version, tmp_path)).data() as stream:
        assert not re.search(rb"/(work|home|root|tmp|usr)/", stream.read())


def test_every_released_revision_has_a_dump() -> None:
    """Those after the newest dump are in no release yet; a release adds one of its newest."""
    assert sorted(MADE_BY) == VERSIONS
    assert set(VERSIONS) <= set(schema.revisions())
    assert VERSIONS[-1] >= "0009"


def test_nothing_is_lost(upgraded: Upgraded) -> None:
    for table in ("image", "memory_bank_patch", "image_embedding", "inspection"):
        assert upgraded.before[table][0] > 15, table
    before, after = dict(upgraded.before), dict(upgraded.after)
    # The restore is an entry of its own; doctor checks that the others are as they were.
    trail = [one.pop("audit", None) for one in (before, after)]
    assert [one.pop("audit_head", (0,))[0] for one in (before, after)] in ([0, 0], [1, 1])
    assert trail == [None, None] or trail[1][0] == trail[0][0] + 1
    assert after == before
    assert check(upgraded.database).differences == ()
    require_current(upgraded.database)


def test_it_judges_and_searches_as_it_did(
    upgraded: Upgraded, settings: Settings, tmp_path: Path
) -> None:
    database, photos = upgraded.database, tmp_path / "photos"
    draw_photos(photos)
    move_root(database, PHOTOS, str(photos))
    detector = active_detector(database, "parts")
    with database.connect() as connection:
        stored = dict(
            connection.execute(
                text(
                    "SELECT i.path, max(s.raw_score) FROM pgdefect.inspection s "
                    "JOIN pgdefect.image i ON i.id = s.image_id "
                    "WHERE s.detector_id = :d AND i.split = 'test' GROUP BY 1"
                ),
                {"d": detector.id},
            ).all()
        )
        images = connection.scalars(
            text("SELECT id FROM pgdefect.image WHERE split = 'test' ORDER BY id")
        ).all()
        for image in images:
            similar = connection.scalars(
                text(
                    "SELECT distance FROM defect.similar_images"
                    "(:i, k => 5, by => 'picture', fold => false)"
                ),
                {"i": str(image)},
            ).all()
            exact = connection.scalars(
                text(
                    "SELECT e.embedding::vector <=> q.embedding::vector "
                    "FROM pgdefect.image_embedding e JOIN pgdefect.image_embedding q "
                    "ON q.image_id = :i AND q.extractor_id = e.extractor_id "
                    "JOIN pgdefect.image i ON i.id = e.image_id "
                    "WHERE e.image_id <> :i AND i.split <> 'simulated' "
                    "AND e.extractor_id = :e ORDER BY 1 LIMIT 5"
                ),
                {"i": image, "e": detector.extractor_id},
            ).all()
            assert similar == pytest.approx(exact, abs=1e-5)
    judged = inspect(database, settings, "parts", split="test", store=False)
    assert judged.failed == ()
    assert len(judged.inspections) == len(stored) == len(images) == 9
    for inspection in judged.inspections:
        name = str(Path(inspection.path).relative_to(photos))
        assert inspection.raw_score == pytest.approx(stored[name], rel=1e-3)
    faults = [f for f in examine(database, settings).findings if f.severity == "fault"]
    assert [f for f in faults if SIMULATED not in f.subject] == []
