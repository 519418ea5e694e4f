"""How messages name settings and commands, in the words of whoever is asked.

A message below the front ends never spells a flag: it says ``option("pca_dim", 64)`` or
``command("ingest", "PATH", category=name)``. The Python API is the default and shows
``pca_dim=64`` and ``project.ingest(PATH, category='leather')``; the command line installs a
spelling of its own with :func:`speaking` and shows flags and command lines.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from shlex import quote
from typing import Any, Protocol


class Spelling(Protocol):
    """How one front end writes settings and commands."""

    def option(self, name: str, value: Any) -> str:
        """A setting by its parameter name; with a value unless that is `NO_VALUE`."""
        ...

    def command(self, name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> str:
        """A call that the reader may make."""
        ...


NO_VALUE = object()
API_METHODS = ("embed", "evaluate", "ingest", "inspect", "search", "threshold", "train")
"""Commands that are methods of `pgdefect.Project`, with the same parameter names."""


class Python:
    """Parameter names and calls, as in Python code."""

    def option(self, name: str, value: Any) -> str:
        return name if value is NO_VALUE else f"{name}={_literal(value)}"

    def command(self, name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> str:
        if name not in API_METHODS:
            return command_line(name, arguments, options)
        given = [_literal(value) for value in arguments]
        given += [f"{key}={_literal(value)}" for key, value in options.items()]
        return f"project.{name}({', '.join(given)})"


def flag(name: str) -> str:
    """A parameter's flag on a command line: two dashes, or one for a single letter."""
    return ("-" if len(name) == 1 else "-" * 2) + name.replace("_", "-")


def command_line(name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> str:
    """A command as it is typed in a shell; words are quoted where a shell needs it."""
    words = ["pgdefect", name, *(_word(value) for value in arguments)]
    for key, value in options.items():
        if value is True:
            words.append(flag(key))
        elif value is False:
            words.append(flag(f"no_{key}"))
        else:
            words += [flag(key), _word(value)]
    return " ".join(words)


def option(name: str, value: Any = NO_VALUE) -> str:
    """A setting as the reader writes it, for a message.

    Args:
        name: The parameter's name, as in the Python API.
        value: What to set it to.
    """
    return _spelling.option(name, value)


def command(name: str, *arguments: Any, **options: Any) -> str:
    """A call as the reader makes it, for a message.

    Args:
        name: The command's name on the command line, for example ``db upgrade``.
        arguments: Its positional arguments.
        options: Its settings by parameter name; True and False are switches.
    """
    return _spelling.command(name, arguments, options)


@contextmanager
def speaking(spelling: Spelling) -> Iterator[None]:
    """Messages made inside the block, in any thread, are in that front end's spelling."""
    global _spelling
    before, _spelling = _spelling, spelling
    try:
        yield
    finally:
        _spelling = before


def blank(name: str) -> _Blank:
    """A value that the reader has to fill in, such as ``PATH``; shown as it is."""
    return _Blank(name)


class _Blank(str):
    pass


def _literal(value: Any) -> str:
    return value if isinstance(value, _Blank) else repr(value)


def _word(value: Any) -> str:
    return value if isinstance(value, _Blank) else quote(str(value))


_spelling: Spelling = Python()
