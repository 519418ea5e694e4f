"""Visual defect inspection that lives in Postgres.

Use it from Python::

    import pgdefect

    with pgdefect.open() as project:
        project.ingest("mvtec/leather", "leather")
        project.train("leather")
        print(project.inspect("new/017.png", "leather").verdict)

Importing the package loads next to nothing; its names are loaded when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pgdefect.api.project import Project, open
    from pgdefect.api.results import Evaluation, Inspection, SearchResult
    from pgdefect.api.tables import Table
    from pgdefect.core.errors import PgdefectError

__version__ = "0.2.0"
__all__ = [
    "Evaluation",
    "Inspection",
    "PgdefectError",
    "Project",
    "SearchResult",
    "Table",
    "__version__",
    "open",
]
_HOMES = {
    "Evaluation": "pgdefect.api.results",
    "Inspection": "pgdefect.api.results",
    "PgdefectError": "pgdefect.core.errors",
    "Project": "pgdefect.api.project",
    "SearchResult": "pgdefect.api.results",
    "Table": "pgdefect.api.tables",
    "open": "pgdefect.api.project",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
