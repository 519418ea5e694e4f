"""Notes of what a training command has stored: kept where it is cut short, and nowhere else."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest

from pgdefect.core.config import Settings
from pgdefect.core.errors import DatabaseUnavailable, TrainingError
from pgdefect.db.connection.engine import Database
from pgdefect.usecases.train.options import TrainOptions
from pgdefect.usecases.train.training_run import TrainingRun

DATABASE = Database("postgresql://nobody@/nothing")
CATEGORIES = ("a", "b")


@pytest.fixture
def here(tmp_path: Path) -> Settings:
    return Settings(cache_dir=tmp_path / "cache")


def run_of(
    here: Settings,
    categories: tuple[str, ...] = CATEGORIES,
    options: TrainOptions | None = None,
    database: Database = DATABASE,
) -> TrainingRun:
    return TrainingRun(here, database, categories, options or TrainOptions())


def begin(here: Settings, error: BaseException | None = None) -> str:
    """A command that has begun category a when it ends by an error."""
    with suppress(DatabaseUnavailable, TrainingError, KeyboardInterrupt), run_of(here) as run:
        token = run.begin("a", "files")
        assert token is not None
        assert run.token("a", "files") == token
        if error is not None:
            raise error
    return token


def test_the_same_command_finds_what_was_begun(here: Settings) -> None:
    token = begin(here, DatabaseUnavailable("lost"))
    with run_of(here) as run:
        assert run.token("a", "files") == token
        # Of other files, and of other categories, nothing is known.
        assert run.token("a", "other files") is None
        assert run.token("b", "files") is None
        assert run.begin("a", "files") not in (token, None)
    assert list(here.cache_dir.iterdir()) == []


@pytest.mark.parametrize("error", [None, TrainingError("x"), KeyboardInterrupt()])
def test_a_command_that_ends_leaves_nothing(here: Settings, error: BaseException | None) -> None:
    begin(here, error)
    assert list(here.cache_dir.iterdir()) == []


def test_another_command_knows_nothing_of_it(here: Settings) -> None:
    token = begin(here, DatabaseUnavailable("lost"))
    elsewhere = Database("postgresql://nobody@/elsewhere")
    for other in (run_of(here, ("a",)), run_of(here, database=elsewhere)):
        with other as run:
            assert run.token("a", "files") is None
    with run_of(here) as run:
        assert run.token("a", "files") == token


def test_other_options_make_it_stale(here: Settings) -> None:
    begin(here, DatabaseUnavailable("lost"))
    with run_of(here, options=TrainOptions(seed=1)) as run:
        assert run.token("a", "files") is None
    assert list(here.cache_dir.iterdir()) == []


def test_what_is_old_goes(here: Settings) -> None:
    begin(here, DatabaseUnavailable("lost"))
    [path] = here.cache_dir.iterdir()
    then = path.stat().st_mtime - 4 * 86_400
    os.utime(path, (then, then))
    with run_of(here, ("c",)):
        pass
    assert list(here.cache_dir.iterdir()) == []


def test_two_commands_at_once_do_not_share_notes(here: Settings) -> None:
    with run_of(here) as first, run_of(here) as second:
        token = first.begin("a", "files")
        assert second.token("a", "files") is None
        assert second.begin("a", "files") is None
        assert first.token("a", "files") == token


@pytest.mark.parametrize("torn", ["", '["a", "fil', "12", "\0\0\0\0", '["b", "files", "x"]\n["a'])
def test_torn_notes_are_passed_over(here: Settings, torn: str) -> None:
    token = begin(here, DatabaseUnavailable("lost"))
    [path] = here.cache_dir.iterdir()
    with path.open("a") as file:
        file.write(torn)
    with suppress(DatabaseUnavailable), run_of(here) as run:
        assert run.token("a", "files") == token
        other = run.begin("c", "files")
        raise DatabaseUnavailable("lost")
    with run_of(here) as run:
        assert (run.token("a", "files"), run.token("c", "files")) == (token, other)
