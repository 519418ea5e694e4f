"""One real Postgres for the run; each test gets a database cloned from a template."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from pathlib import Path

import hypothesis
import psycopg
import pytest
from psycopg import sql
from sqlalchemy import text

import pgdefect
from pgdefect.core.config import Settings
from pgdefect.db.connection.engine import Database
from pgdefect.db.schema.schema import upgrade
from pgdefect.db.server.embedded import EmbeddedServer
from pgdefect.vision.networks.export_cache import EXPORTS
from tests import interrupts, synthetic
from tests.kept import kept_folder
from tests.places import RunFolder, short_folder
from tests.templates import parts as template_parts
from tests.templates.parts import TINY, draw_parts
from tests.templates.restore import restore_template

Clone = Callable[[Database | None], AbstractContextManager[Database]]
_number = count(1)


_run_folder: RunFolder | None = None


def pytest_configure(config: pytest.Config) -> None:
    global _run_folder
    interrupts.install()
    # How long an example takes says more of the machine than of the code.
    hypothesis.settings.register_profile("tests", deadline=None)
    hypothesis.settings.load_profile("tests")
    if not hasattr(config, "workerinput"):
        _run_folder = RunFolder()


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    if _run_folder is not None:
        _run_folder.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    result = yield
    interrupts.raise_if_swallowed()
    return result


@pytest.fixture
def default_interrupts() -> Iterator[None]:
    """For a test that interrupts itself: Python's own way, which is no wish to end the run."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session", autouse=True)
def _surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test sees the developer's own settings, data or caches, nor waits for a hub."""
    patch = pytest.MonkeyPatch()
    for name in [name for name in os.environ if name.startswith(("PGDEFECT_", "PG"))]:
        patch.delenv(name)
    cache = tmp_path_factory.mktemp("cache")
    (cache / EXPORTS).symlink_to(_kept_exports())
    patch.setenv("PGDEFECT_CACHE_DIR", str(cache))
    patch.setenv("HF_HUB_OFFLINE", "1")
    yield
    patch.undo()


def _kept_exports() -> Path:
    """The folder of exported graphs. The code that they depend on is what speaks of torch."""
    modules = Path(pgdefect.__file__).parent.glob("vision/**/*.py")
    code = [path for path in modules if b"torch" in path.read_bytes()]
    return kept_folder(EXPORTS, code, lambda folder: None)


@pytest.fixture(autouse=True)
def _nothing_to_resume(_surroundings: None) -> None:
    """What trainings of tests before this one left in the shared cache, cut short, goes."""
    for left in Path(os.environ["PGDEFECT_CACHE_DIR"]).glob("training-*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedServer]:
    """The embedded server, in a short directory that its OS user can reach."""
    with short_folder() as folder:
        server = EmbeddedServer(folder / "data")
        server.start()
        with psycopg.connect(server.url(), autocommit=True) as connection:
            # Nothing here has to survive a power cut.
            connection.execute("ALTER SYSTEM SET fsync = off")
            # Nor to be analyzed while a test looks at what was never analyzed.
            connection.execute("ALTER SYSTEM SET autovacuum_naptime = '1d'")
            connection.execute("SELECT pg_reload_conf()")
        yield server


@pytest.fixture(scope="session")
def new_database(server: EmbeddedServer) -> Iterator[Callable[..., Database]]:
    """Make a database, empty or cloned from another; all are dropped with the server."""
    made: list[Database] = []

    def make(template: Database | None = None) -> Database:
        name = f"test_{next(_number)}"
        # Copying files takes a third of the time that writing them into the log takes.
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY").format(
            sql.Identifier(name),
            sql.Identifier("template0" if template is None else database_name(template)),
        )
        if template is not None:
            template.dispose()
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute(statement)
        made.append(Database(server.url().replace("/pgdefect?", f"/{name}?")))
        return made[-1]

    yield make
    for database in made:
        database.dispose()


def database_name(database: Database) -> str:
    return psycopg.conninfo.conninfo_to_dict(database.url)["dbname"]


@pytest.fixture(scope="session")
def clone_of(server: EmbeddedServer, new_database: Callable[..., Database]) -> Clone:
    """A database for a block, dropped behind it: hundreds of clones would fill the disk."""

    @contextmanager
    def clone(template: Database | None) -> Iterator[Database]:
        database = new_database(template)
        yield database
        database.dispose()
        name = sql.Identifier(database_name(database))
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE {} (FORCE)").format(name))

    return clone


@pytest.fixture
def empty_database(clone_of: Clone) -> Iterator[Database]:
    """A database without pgdefect's schema."""
    with clone_of(None) as database:
        yield database


@pytest.fixture(scope="session")
def _template(new_database: Callable[..., Database]) -> Database:
    database = new_database()
    upgrade(database)
    return database


@pytest.fixture
def database(clone_of: Clone, _template: Database) -> Iterator[Database]:
    """A database with the schema and no rows."""
    with clone_of(_template) as database:
        yield database


@pytest.fixture(scope="session")
def settings() -> Settings:
    return Settings()


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MVTec-style category of generated parts: 16 train, 4 + 3 × 3 test, with masks."""
    code = [Path(module.__file__) for module in (synthetic, template_parts)]
    drawn = kept_folder("parts", code, lambda folder: draw_parts(folder / "parts"))
    folder = tmp_path_factory.mktemp("data") / "parts"
    shutil.copytree(drawn / "parts", folder)
    return folder


@pytest.fixture(scope="session")
def _trained_template(new_database: Callable[..., Database], parts: Path) -> Database:
    database = new_database()
    restore_template(database, "trained", parts)
    return database


@pytest.fixture
def trained(clone_of: Clone, _trained_template: Database) -> Iterator[Database]:
    """A database whose category ``parts`` is trained and its test images inspected."""
    with clone_of(_trained_template) as database:
        yield database


@pytest.fixture(scope="session")
def _factory_template(
    new_database: Callable[..., Database],
    _trained_template: Database,
    settings: Settings,
    tmp_path_factory: pytest.TempPathFactory,
) -> Database:
    from docs.scene import two_weeks

    database = new_database(_trained_template)
    two_weeks(database, settings, "parts", tmp_path_factory.mktemp("line") / "photos", size=TINY)
    # A part judged differently from one photograph to the next, whatever the detector is like.
    some = (
        "FROM defect.images WHERE split = 'production' AND part IS NOT NULL "
        "AND verdict = '{}' ORDER BY image_id LIMIT 1"
    )
    with database.begin() as connection:
        connection.execute(
            text(
                f"UPDATE pgdefect.image SET group_name = (SELECT part "
                f"{some.format('anomalous')}) WHERE id = (SELECT image_id {some.format('normal')})"
            )
        )
    return database


@pytest.fixture
def factory(clone_of: Clone, _factory_template: Database) -> Iterator[Database]:
    """`trained` and two weeks of production: reviews, votes, two banks, kept patches."""
    with clone_of(_factory_template) as database:
        yield database
