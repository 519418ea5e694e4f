"""Who may import whom.

The rule is drawn in CONTRIBUTING.md ("Architecture"): each package ("room") may import the ones
that `MAY_IMPORT` names, all of which stand below it. `vision` and `db` never meet. The command
line may call `db` itself, inside functions, where a command is a plain query or change of rows,
but never `vision`, except to list the backbone registry.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import pgdefect

SOURCE = Path(pgdefect.__file__).parent
VISION = {"core", "vision/images", "vision/networks"}
DB_BELOW = {"core", "db/server", "db/connection"}
DB = DB_BELOW | {"db/access", "db/schema", "db/search", "db/records"}
BELOW_USECASES = (
    DB
    | VISION
    | {
        *("pictures", "evaluation", "usecases/common"),
        *("vision/patchcore", "vision/efficient_ad", "vision/defects"),
    }
)
MAY_IMPORT: dict[str, set[str]] = {
    "": {"core", "api"},
    "core": set(),
    "pictures": {"core"},
    "evaluation": {"core"},
    "vision": set(),
    "vision/images": {"core"},
    "vision/networks": {"core", "vision/images"},
    "vision/patchcore": VISION,
    "vision/efficient_ad": VISION,
    "vision/defects": VISION,
    "db": set(),
    "db/server": {"core"},
    "db/connection": {"core", "db/server"},
    "db/access": DB_BELOW,
    "db/schema": DB_BELOW | {"db/access"},
    "db/search": DB_BELOW | {"db/access", "db/schema"},
    "db/records": DB_BELOW | {"db/access", "db/schema", "db/search"},
    "db/doctor": DB,
    "db/backup": DB,
    "usecases/common": BELOW_USECASES - {"usecases/common"},
    "usecases/train": BELOW_USECASES | {"usecases/inspect"},
    "usecases/inspect": BELOW_USECASES,
    "usecases/search": BELOW_USECASES | {"usecases/inspect"},
    "usecases/simulate": BELOW_USECASES | {"usecases/inspect"},
    "usecases/evaluate": BELOW_USECASES | {"usecases/inspect"},
    "usecases/exchange": BELOW_USECASES | {"usecases/train"},
    "usecases": BELOW_USECASES
    | {
        *("db/doctor", "usecases/train", "usecases/inspect", "usecases/search"),
        *("usecases/simulate", "usecases/evaluate", "usecases/exchange"),
    },
    "api": BELOW_USECASES
    | {
        *("usecases", "usecases/train", "usecases/inspect", "usecases/search"),
        "usecases/evaluate",
    },
    "cli": DB
    | {
        *("db/doctor", "db/backup", "usecases", "usecases/common", "usecases/train"),
        *("usecases/inspect", "usecases/search", "usecases/simulate", "usecases/evaluate"),
        "usecases/exchange",
    },
}
"""What each room may import, besides itself."""
HEAVY = {
    *("torch", "torchvision", "anomalib", "timm", "lightning", "onnx", "onnxscript"),
    *("pyarrow", "pandas"),
}
HEAVY_ALLOWED = {
    "anomalib": {
        "vision/patchcore/patchcore.py",
        "vision/efficient_ad/efficient_ad.py",
        "vision/efficient_ad/efficient_ad_files.py",
    },
    "torch": {
        "vision/patchcore/patchcore.py",
        "vision/efficient_ad/efficient_ad.py",
        "vision/efficient_ad/efficient_ad_networks.py",
        "vision/networks/torch_tools.py",
        "vision/patchcore/anomalib_checkpoint.py",
        "vision/networks/torch_file.py",
        "vision/patchcore/patchcore_inspection.py",
        "vision/networks/backbone.py",
        "vision/patchcore/coreset.py",
        "vision/defects/deep_layers.py",
    },
    "timm": {
        "vision/patchcore/patchcore.py",
        "vision/networks/backbone.py",
        "vision/defects/deep_layers.py",
    },
    "lightning": {"vision/patchcore/patchcore.py"},
    "torchvision": {
        "vision/efficient_ad/efficient_ad.py",
        "vision/efficient_ad/efficient_ad_files.py",
    },
    "onnx": {"vision/patchcore/patchcore.py"},
    "onnxscript": {"vision/patchcore/patchcore.py"},
    "pyarrow": {"usecases/exchange/export.py"},
    "pandas": {"api/tables.py"},
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
        """The top of the project that imports: ``cli``, ``db``, …"""
        return self.file.split("/")[0]

    @property
    def room(self) -> str:
        """The package that imports."""
        return self.file.rpartition("/")[0]

    @property
    def target(self) -> str | None:
        """The package of the project that is imported; None for another project's."""
        package, *rest = self.module.split(".")
        if package != "pgdefect" or (rest and rest[0].startswith("__")):
            return None
        while rest and not (SOURCE.joinpath(*rest) / "__init__.py").is_file():
            rest.pop()
        return "/".join(rest)

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


def test_the_rules_see_the_imports() -> None:
    assert len(FILES) > 40
    assert len(IMPORTS) > 400
    assert any(i.module.startswith("anomalib") and not i.at_top for i in IMPORTS)


def test_every_room_has_a_rule_and_every_rule_a_room() -> None:
    assert {f.relative_to(SOURCE).parent.as_posix() for f in FILES} == {
        room or "." for room in MAY_IMPORT
    }


def test_the_rules_allow_no_circle() -> None:
    left = {room: set(targets) for room, targets in MAY_IMPORT.items()}
    while lowest := [room for room, targets in left.items() if not targets & set(left)]:
        for room in lowest:
            del left[room]
    assert left == {}


def test_rooms_import_downwards_only() -> None:
    wrong = [
        f"{found}: {found.room} may not import {target} (see CONTRIBUTING.md, Architecture)"
        for found in IMPORTS
        if (target := found.target) is not None
        and target != found.room
        and target not in MAY_IMPORT[found.room]
        and not (found.layer == "cli" and ".vision.networks.backbone." in found.module)
    ]
    assert wrong == []


def test_modules_of_one_room_import_each_other_without_a_circle() -> None:
    modules = {f.relative_to(SOURCE).with_suffix("").as_posix().replace("/", ".") for f in FILES}
    left: dict[str, set[str]] = {}
    for found in IMPORTS:
        if found.target is None or found.for_types or not found.at_top:
            continue
        name = found.module.removeprefix("pgdefect.")
        imported = name if name in modules else name.rpartition(".")[0]
        importer = found.file.removesuffix(".py").replace("/", ".")
        if imported in modules and imported != importer:
            left.setdefault(importer, set()).add(imported)
    while lowest := [m for m, targets in left.items() if not targets & set(left)]:
        for module in lowest:
            del left[module]
    assert left == {}


def test_vision_and_db_never_meet() -> None:
    meetings = [
        str(found)
        for found in IMPORTS
        if {found.layer, (found.target or "").split("/")[0]} == {"vision", "db"}
    ]
    assert meetings == []


def test_the_command_line_reaches_the_database_lazily() -> None:
    eager = [
        str(found)
        for found in IMPORTS
        if found.layer == "cli"
        and found.at_top
        and not found.for_types
        and found.target not in (None, "", "cli")
        and not found.module.startswith(
            (
                "pgdefect.core.detector_kinds.",
                "pgdefect.core.errors.",
                "pgdefect.core.wording.",
                "pgdefect.core.progress.",
                "pgdefect.core.words.",
            )
        )
    ]
    assert eager == []


@pytest.mark.parametrize("library", sorted(HEAVY))
def test_heavy_libraries_stay_in_one_or_two_modules_inside_functions(library: str) -> None:
    found = [i for i in IMPORTS if i.module.split(".")[0] == library]
    assert {i.file for i in found if not i.for_types} <= HEAVY_ALLOWED[library]
    assert [str(i) for i in found if i.at_top and not i.for_types] == []


def test_only_the_command_line_prints() -> None:
    users = {i.layer for i in IMPORTS if i.module.split(".")[0] in ("typer", "click", "rich")}
    assert users == {"cli"}
