"""What the global options decided, for the commands."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from pgdefect.core.config import Settings
    from pgdefect.db.connection.engine import Database


@dataclass
class Context:
    """Global options, with settings and database made when first asked for."""

    database_url: str | None
    data_dir: Path | None

    @cached_property
    def settings(self) -> Settings:
        from pgdefect.core.config import load_settings

        return load_settings(database_url=self.database_url, data_dir=self.data_dir)

    @cached_property
    def bare_database(self) -> Database:
        """The database as it is, whatever its schema; the embedded server is started."""
        from pgdefect.db.connection.engine import open_database

        return open_database(self.settings)

    @cached_property
    def database(self) -> Database:
        """The database at the code's schema; a new embedded one is brought up to it."""
        from pgdefect.cli.output import progress_bars
        from pgdefect.core.errors import SchemaOutOfDate
        from pgdefect.db.schema.schema import require_current, upgrade

        database = self.bare_database
        try:
            require_current(database)
        except SchemaOutOfDate:
            if self.settings.database_url is not None:
                raise
            # The embedded server is ours alone: so it is upgraded without asking.
            with progress_bars() as progress:
                upgrade(database, progress=progress)
        return database

    def close(self) -> None:
        """Close the connections; the command is over."""
        if "bare_database" in self.__dict__:
            self.bare_database.dispose()

    def options(self) -> list[str]:
        """The global options that lead another call to the same database; no password."""
        if self.settings.database_url is not None:
            return ["--database-url", self.database.safe_url]
        if self.data_dir is not None:
            return ["--data-dir", str(self.settings.data_dir)]
        return []


def current(context: typer.Context) -> Context:
    """The context that the application's callback made."""
    found = context.find_object(Context)
    assert found is not None
    return found
