"""How messages name settings and commands on the command line: as flags, as command lines."""

from __future__ import annotations

from typing import Any

from pgdefect.core.wording import NO_VALUE, command_line, flag


class CommandLine:
    """Flags and command lines; see `pgdefect.core.wording`."""

    def option(self, name: str, value: Any) -> str:
        """``--pca-dim 64``; a switch is ``--store`` or ``--no-store``."""
        if value is NO_VALUE or value is True:
            return flag(name)
        return flag(f"no_{name}") if value is False else f"{flag(name)} {value}"

    def command(self, name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> str:
        """``pgdefect ingest PATH --category leather``."""
        return command_line(name, arguments, options)
