"""Rules that stand in Python and in SQL name each other; that they agree is tested elsewhere."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest

from pgdefect.db.schema.sql_files import SCHEMA_OF, resource_dir

IN_PYTHON = re.compile(r"-- Same rule in Python:\n((?:--   \S+\n)+)")
IN_SQL = re.compile(r"Same rule in SQL: ([\w., ]+)\.\s")
SOURCES = Path(__file__).parents[2] / "src"


def from_sql() -> set[tuple[str, str]]:
    """SQL object and module that a header names."""
    found = set()
    for folder, schema in SCHEMA_OF.items():
        for path in (resource_dir("sql") / folder).glob("*.sql"):
            for names in IN_PYTHON.findall(path.read_text(encoding="utf-8")):
                for name in names.replace("--", "").split():
                    found.add((f"{schema}.{path.stem}", resolved(name)[0]))
    return found


def from_python() -> set[tuple[str, str]]:
    found = set()
    for path in SOURCES.rglob("*.py"):
        module = ".".join(path.relative_to(SOURCES).with_suffix("").parts)
        for names in IN_SQL.findall(path.read_text(encoding="utf-8").replace('"""', " ")):
            found |= {(name, module) for name in names.split(", ")}
    return found


def resolved(name: str) -> tuple[str, object]:
    """Module and object of a dotted name; raises if there is none."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        found: object = module
        for part in parts[length:]:
            found = getattr(found, part)
        return module.__name__, found
    raise AssertionError(f"no module of {name}")


def test_each_side_names_the_other() -> None:
    assert from_sql() == from_python()
    assert len(from_sql()) > 15


@pytest.mark.parametrize("name", ["pgdefect.core.distance.gone", "pgdefect.gone.indexed_type"])
def test_a_name_that_leads_nowhere_is_found(name: str) -> None:
    with pytest.raises((AttributeError, AssertionError)):
        resolved(name)
    module, found = resolved("pgdefect.core.distance.indexed_type")
    assert inspect.isfunction(found)
    assert module == "pgdefect.core.distance"
