"""Where settings come from, and which source wins."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest

from pgdefect.core.config import default_data_dir, load_settings
from pgdefect.core.errors import UsageError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory; no setting in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("DATABASE_URL", "DATA_DIR", "CACHE_DIR"):
        monkeypatch.delenv(f"PGDEFECT_{name}", raising=False)
    return tmp_path


def test_flags_before_environment_before_files_before_defaults(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_settings().data_dir == default_data_dir()
    (folder / "pyproject.toml").write_text('[tool.pgdefect]\ndata_dir = "/from/pyproject"\n')
    assert load_settings().data_dir == Path("/from/pyproject")
    (folder / "pgdefect.toml").write_text('data_dir = "/from/toml"\n')
    assert load_settings().data_dir == Path("/from/toml")
    monkeypatch.setenv("PGDEFECT_DATA_DIR", "/from/environment")
    assert load_settings().data_dir == Path("/from/environment")
    assert load_settings(data_dir=Path("/from/flag")).data_dir == Path("/from/flag")
    # A flag that was not given does not hide the sources below it.
    assert load_settings(data_dir=None).data_dir == Path("/from/environment")


def test_each_setting_takes_its_own_highest_source(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "pgdefect.toml").write_text('cache_dir = "/toml"\ndata_dir = "/toml"\n')
    (folder / "pyproject.toml").write_text(
        '[tool.pgdefect]\ndatabase_url = "postgresql://pyproject/x"\ncache_dir = "/pyproject"\n'
    )
    monkeypatch.setenv("PGDEFECT_DATA_DIR", "/environment")
    settings = load_settings()
    assert settings.database_url is not None
    assert settings.database_url.get_secret_value() == "postgresql://pyproject/x"
    assert (settings.cache_dir, settings.data_dir) == (Path("/toml"), Path("/environment"))


def test_paths_are_absolute_and_know_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder / "home"))
    monkeypatch.setenv("PGDEFECT_CACHE_DIR", "~/cache")
    settings = load_settings(data_dir=Path("here"))
    assert settings.data_dir == folder / "here"
    assert settings.cache_dir == folder / "home" / "cache"


def test_the_defaults_name_no_database() -> None:
    assert load_settings().database_url is None


def test_a_password_does_not_show() -> None:
    settings = load_settings(database_url="postgresql://u:s3cret@host/x")
    assert "s3cret" not in repr(settings)


def test_other_tables_and_unknown_keys_are_left_alone(folder: Path) -> None:
    (folder / "pyproject.toml").write_text('[tool.other]\ndata_dir = "/wrong"\n')
    (folder / "pgdefect.toml").write_text("unknown = 1\n")
    assert load_settings().data_dir == default_data_dir()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("data_dir = 5\n", ("DATA_DIR", "5")),
        ("cache_dir = [1]\n", ("CACHE_DIR", "[1]")),
        ("database_url = true\n", ("DATABASE_URL", "True")),
        ("data_dir = \n", ("pgdefect.toml", "TOML")),
    ],
)
def test_what_cannot_be_used_is_named(folder: Path, text: str, told: tuple[str, str]) -> None:
    (folder / "pgdefect.toml").write_text(text)
    with pytest.raises(UsageError) as caught:
        load_settings()
    assert all(part in str(caught.value) for part in told)


@pytest.mark.parametrize("value", ['["postgresql://u:hunter2@h/d"]', '{url = "x:hunter2@h"}'])
def test_a_url_that_cannot_be_used_is_not_shown(folder: Path, value: str) -> None:
    (folder / "pgdefect.toml").write_text(f"database_url = {value}\n")
    with pytest.raises(UsageError, match="DATABASE_URL") as caught:
        load_settings()
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("content", [b"[tool.pgdefect\n", b"x = '\xff'\n"])
def test_a_broken_pyproject_is_named(folder: Path, content: bytes) -> None:
    (folder / "pyproject.toml").write_bytes(content)
    with pytest.raises(UsageError, match=r"pyproject\.toml cannot be read as TOML"):
        load_settings()
