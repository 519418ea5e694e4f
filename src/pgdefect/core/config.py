"""Settings: command-line flags > environment > ``pgdefect.toml`` > defaults.

Flags override by being passed to :func:`load_settings`; the environment is read
from ``PGDEFECT_*``; the file is ``pgdefect.toml`` in the working directory, or the
``[tool.pgdefect]`` table of ``pyproject.toml`` there.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

import platformdirs
from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    PyprojectTomlConfigSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from pgdefect.core.errors import UsageError

MAX_CONNECTIONS = 12
"""To the database, of one process; see `pgdefect.db.connection.engine.Database`."""


def default_data_dir() -> Path:
    """Where the embedded Postgres keeps its data.

    Root's home is closed to every other user, and Postgres refuses to run as root,
    so root's default is under ``/var/lib``.
    """
    if os.name == "posix" and os.geteuid() == 0:
        return Path("/var/lib/pgdefect")
    return Path(platformdirs.user_data_dir("pgdefect", appauthor=False))


class Settings(BaseSettings):
    """What a command needs to know of its surroundings."""

    model_config = SettingsConfigDict(
        env_prefix="PGDEFECT_",
        extra="ignore",
        toml_file="pgdefect.toml",
        pyproject_toml_table_header=("tool", "pgdefect"),
    )

    database_url: SecretStr | None = None
    max_connections: int = Field(MAX_CONNECTIONS, ge=1, le=1000)
    data_dir: Path = Field(default_factory=default_data_dir)
    cache_dir: Path = Field(
        default_factory=lambda: Path(platformdirs.user_cache_dir("pgdefect", appauthor=False))
    )
    station: str | None = Field(None, min_length=1, max_length=100)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (
            init_settings,
            env_settings,
            TomlConfigSettingsSource(settings_cls),
            PyprojectTomlConfigSettingsSource(settings_cls),
        )


def load_settings(**flags: Any) -> Settings:
    """Settings with the given flags on top; flags that are ``None`` do not count.

    Raises:
        UsageError: a value of any source cannot be used; the message names it.
    """
    try:
        settings = Settings(**{key: value for key, value in flags.items() if value is not None})
    except ValidationError as error:
        problem = error.errors()[0]
        name = "_".join(str(part) for part in problem["loc"]).upper()
        value = problem["input"]
        # What is meant as a URL may have a password in it.
        secret = name.startswith("DATABASE_URL") and not isinstance(value, int | float)
        got = "" if secret else f" (got {value!r})"
        cause = None if secret else error
        raise UsageError(f"PGDEFECT_{name}: {problem['msg']}{got}") from cause
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise UsageError(f"{_unreadable_file()} cannot be read as TOML: {error}") from error
    settings.data_dir = settings.data_dir.expanduser().absolute()
    settings.cache_dir = settings.cache_dir.expanduser().absolute()
    return settings


def _unreadable_file() -> Path:
    """The settings file that a parser has just stumbled over."""
    ours = Path.cwd() / "pgdefect.toml"
    try:
        tomllib.loads(ours.read_text(encoding="utf-8") if ours.exists() else "")
    except (ValueError, OSError):
        return ours
    return ours.with_name("pyproject.toml")
