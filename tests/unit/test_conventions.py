"""What every module, SQL file and error has: a word on what it is."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pgdefect
from pgdefect.core import errors

SOURCE = Path(pgdefect.__file__).parent
CHECKOUT = Path(__file__).resolve().parents[2]


def test_every_module_says_what_it_is() -> None:
    modules = [*SOURCE.rglob("*.py"), *(CHECKOUT / "migrations").rglob("*.py")]
    silent = [
        path.relative_to(CHECKOUT).as_posix()
        for path in modules
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert silent == []


def test_every_sql_file_says_what_it_answers() -> None:
    files = list((CHECKOUT / "sql").rglob("*.sql"))
    assert files
    assert [path.name for path in files if not path.read_text("utf-8").startswith("-- ")] == []


def test_the_tree_of_errors_is_drawn_as_it_is() -> None:
    """Each class stands in the docstring under its base, at its base's depth plus one."""
    drawn: dict[str, str | None] = {}
    ancestors: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^[ │├└─]*(\b[A-Z]\w+)", line)
        if found is None or not line.startswith("    "):
            continue
        depth = found.start(1)
        ancestors = [(d, name) for d, name in ancestors if d < depth]
        drawn[found[1]] = ancestors[-1][1] if ancestors else None
        ancestors.append((depth, found[1]))
    actual = {
        name: None if cls.__base__ is Exception else cls.__base__.__name__
        for name, cls in vars(errors).items()
        if isinstance(cls, type)
        and issubclass(cls, Exception)
        and cls.__module__ == errors.__name__
    }
    assert drawn == actual
