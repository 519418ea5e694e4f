"""Who may import whom, and what starts without the heavy libraries.

The order is ``cli, web → pipeline → vision | evaluation | thresholds | db → types, distance,
errors, config``. Two refinements of design.md are decided here: the command line may call `db`
itself, inside functions, where a command is a plain query or change of rows (a use case
that only passed arguments on would say nothing), but never `vision`, except to list the
backbone registry; and `threads` and `claims`, which know nothing of the project, stand at the
bottom.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import pgdefect
from pgdefect.db.engine import Database

SOURCE = Path(pgdefect.__file__).parent
BOTTOM = {"types", "distance", "errors", "config", "threads", "claims"}
MAY_IMPORT = {
    "__init__": set(),
    "types": {"distance", "errors"},
    "distance": {"errors"},
    "errors": set(),
    "config": {"errors"},
    "threads": {"errors"},
    "claims": set(),
    "evaluation": BOTTOM,
    "thresholds": BOTTOM,
    "vision": BOTTOM,
    "db": BOTTOM,
    "pipeline": BOTTOM | {"vision", "evaluation", "thresholds", "db"},
    "cli": BOTTOM | {"pipeline", "db"},
    "web": BOTTOM | {"pipeline", "db"},
}
HEAVY = {
    *("torch", "torchvision", "anomalib", "timm", "lightning", "onnx", "onnxscript"),
    *("pyarrow", "pandas"),
}
HEAVY_ALLOWED = {
    "anomalib": {
        "vision/patchcore.py",
        "vision/efficient_ad.py",
        "vision/efficient_ad_files.py",
    },
    "torch": {
        "vision/patchcore.py",
        "vision/efficient_ad.py",
        "vision/efficient_ad_networks.py",
        "vision/training.py",
        "vision/anomalib_checkpoint.py",
        "vision/torch_file.py",
        "vision/patchcore_inspection.py",
        "vision/backbone.py",
        "vision/coreset.py",
        "vision/deep_layers.py",
    },
    "timm": {"vision/patchcore.py", "vision/backbone.py", "vision/deep_layers.py"},
    "lightning": {"vision/patchcore.py"},
    "torchvision": {"vision/efficient_ad.py", "vision/efficient_ad_files.py"},
    "onnx": {"vision/patchcore.py"},
    "onnxscript": {"vision/patchcore.py"},
    "pyarrow": {"pipeline/export.py"},
    "pandas": set(),
}


@dataclass(frozen=True)
class Import:
    file: str
    line: int
    module: str
    at_top: bool
    """Whether the import runs when the module is imported."""
    for_types: bool
    """Whether it stands under ``if TYPE_CHECKING``."""

    @property
    def layer(self) -> str:
        """The part of the project that imports."""
        return self.file.split("/")[0].removesuffix(".py")

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


def imports_of(path: Path) -> Iterator[Import]:
    file = path.relative_to(SOURCE).as_posix()

    def visit(node: ast.AST, at_top: bool, for_types: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(file, node.lineno, alias.name, at_top, for_types)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import"
            assert node.module is not None
            for alias in node.names:
                # `from pgdefect import db` imports pgdefect.db.
                name = f"{node.module}.{alias.name}"
                yield Import(file, node.lineno, name, at_top, for_types)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else ""
            name = function.id if isinstance(function, ast.Name) else name
            if name in ("require", "import_module", "__import__"):
                yield Import(file, node.lineno, str(node.args[0].value), at_top, for_types)
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        guarded = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, at_top and not inside, for_types or guarded)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")), True, False)


FILES = sorted(SOURCE.rglob("*.py"))
IMPORTS = [found for path in FILES for found in imports_of(path)]


def of_project(found: Import) -> str | None:
    """The part of the project that is imported."""
    package, _, rest = found.module.partition(".")
    name = rest.split(".")[0]
    return name if package == "pgdefect" and not name.startswith("__") else None


def test_the_rules_see_the_imports() -> None:
    assert len(FILES) > 40
    assert len(IMPORTS) > 400
    assert any(i.module.startswith("anomalib") and not i.at_top for i in IMPORTS)


def test_every_part_has_a_rule() -> None:
    assert {i.layer for i in IMPORTS} <= set(MAY_IMPORT)


def test_parts_import_downwards_only() -> None:
    wrong = [
        str(found)
        for found in IMPORTS
        if (part := of_project(found)) is not None
        and part != found.layer
        and part not in MAY_IMPORT[found.layer]
        and not (found.layer == "cli" and found.module.startswith("pgdefect.vision.backbone."))
    ]
    assert wrong == []


def test_vision_and_db_never_meet() -> None:
    meetings = [
        str(found)
        for found in IMPORTS
        if (found.layer, of_project(found)) in {("vision", "db"), ("db", "vision")}
    ]
    assert meetings == []


def test_the_command_line_reaches_the_database_lazily() -> None:
    eager = [
        str(found)
        for found in IMPORTS
        if found.layer == "cli"
        and found.at_top
        and not found.for_types
        and of_project(found) not in (None, "cli", "errors")
        and not found.module.startswith("pgdefect.pipeline.progress")
    ]
    assert eager == []


@pytest.mark.parametrize("library", sorted(HEAVY))
def test_heavy_libraries_stay_in_one_or_two_modules_inside_functions(library: str) -> None:
    found = [i for i in IMPORTS if i.module.split(".")[0] == library]
    assert {i.file for i in found} <= HEAVY_ALLOWED[library]
    assert [str(i) for i in found if i.at_top and not i.for_types] == []


def test_only_the_command_line_prints() -> None:
    users = {i.layer for i in IMPORTS if i.module.split(".")[0] in ("typer", "click", "rich")}
    assert users == {"cli"}


# -- what really is loaded ---------------------------------------------------------------

LOADED = """
import sys
from pgdefect.cli.main import run
code = run(sys.argv[1:])
sys.stdout.flush()
names = {name.split(".")[0] for name in sys.modules}
print(code, *sorted(names), sep="\\n", file=sys.stderr)
"""


def loaded_by(*arguments: object) -> set[str]:
    """The top-level modules that a successful command has loaded, in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    lines = done.stderr.splitlines()
    start = next(n for n, line in enumerate(lines) if line.isdigit())
    assert lines[start] == "0", done.stderr
    return set(lines[start + 1 :])


def test_help_loads_next_to_nothing() -> None:
    loaded = loaded_by("--help")
    assert not loaded & (HEAVY | {"numpy", "sqlalchemy", "psycopg", "PIL", "openvino", "alembic"})


def test_queries_and_inspections_load_no_training_library(trained: Database, parts: Path) -> None:
    url = ("--database-url", trained.url)
    assert not loaded_by(*url, "categories") & (HEAVY | {"openvino", "PIL"})
    assert not loaded_by(*url, "doctor") & (HEAVY | {"openvino", "PIL"})
    assert not loaded_by(*url, "db", "role", "list") & (HEAVY | {"openvino", "PIL", "numpy"})
    assert not loaded_by(*url, "search", "--patch", "1:0") & HEAVY
    image = parts / "test/chip/000.png"
    assert not loaded_by(*url, "inspect", image, "--category", "parts") & HEAVY
    assert not loaded_by(*url, "search", image) & HEAVY
    assert not loaded_by(*url, "ingest", parts, "--category", "parts") & HEAVY
