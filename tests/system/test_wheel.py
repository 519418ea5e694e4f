"""The wheel is complete: installed alone, outside the checkout, it can make its schema."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import pgdefect
from pgdefect.db.connection.engine import Database

pytestmark = pytest.mark.server

SOURCE = Path(pgdefect.__file__).parent
CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=CHECKOUT,
        check=True,
        capture_output=True,
        timeout=60,
    )
    [built] = folder.glob("*.whl")
    return built


def test_the_wheel_holds_code_migrations_and_sql(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        [metadata] = [name for name in names if name.endswith(".dist-info/METADATA")]
        text = archive.read(metadata).decode()
        [entry_points] = [name for name in names if name.endswith("entry_points.txt")]
        assert "pgdefect = pgdefect.cli.main:main" in archive.read(entry_points).decode()
    for folder in ("migrations", "sql"):
        wanted = {
            f"pgdefect/{path.relative_to(CHECKOUT).as_posix()}"
            for path in (CHECKOUT / folder).rglob("*")
            if path.suffix in (".py", ".sql", ".mako")
        }
        assert wanted
        assert wanted <= names
    modules = {f"pgdefect/{p.relative_to(SOURCE).as_posix()}" for p in SOURCE.rglob("*.py")}
    assert modules <= names
    assert "pgdefect/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert any(name.endswith("licenses/NOTICE") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]
    assert f"Version: {pgdefect.__version__}\n" in text
    for extra in ("train", "evaluate", "interop", "demo", "dev"):
        assert f"Provides-Extra: {extra}\n" in text


def test_training_libraries_are_an_extra(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        [metadata] = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        needs = re.findall(r"^Requires-Dist: (.*)$", archive.read(metadata).decode(), re.MULTILINE)
    always = [need for need in needs if "extra ==" not in need]
    assert always
    assert not [n for n in always if re.match(r"(torch|torchvision|anomalib|timm|onnx)\b", n)]


def test_every_package_that_is_imported_is_declared(wheel: Path) -> None:
    """Inside functions too: a dependency of a dependency may go at any time."""
    with zipfile.ZipFile(wheel) as archive:
        [metadata] = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        needs = re.findall(r"^Requires-Dist: ([\w.-]+)", archive.read(metadata).decode(), re.M)
    declared = {re.sub(r"[-_.]+", "-", name).lower() for name in needs}
    providers = packages_distributions()
    undeclared = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for top in {module.split(".")[0] for module in modules}:
                if top in sys.stdlib_module_names or top == "pgdefect":
                    continue
                names = {re.sub(r"[-_.]+", "-", n).lower() for n in providers.get(top, [top])}
                if not names & declared:
                    undeclared.add(f"{path.name}: {top}")
    assert sorted(undeclared) == []


def test_the_installed_wheel_upgrades_a_database(
    wheel: Path, tmp_path: Path, empty_database: Database
) -> None:
    target = tmp_path / "installed"
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"),
            *("--disable-pip-version-check", "--target", str(target), str(wheel)),
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )
    # -S leaves out the editable installation; the dependencies come as a plain folder.
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("PGDEFECT_", "PYTHON"))},
        "PYTHONPATH": os.pathsep.join([str(target), sysconfig.get_path("purelib")]),
        "PGDEFECT_DATABASE_URL": empty_database.url,
    }

    def python(code: str) -> str:
        done = subprocess.run(
            [sys.executable, "-S", "-c", code],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = python(
        "import pgdefect, pgdefect.db.schema.schema as s;"
        "print(pgdefect.__file__, s.resource_dir('sql'), s.resource_dir('migrations'), sep='\\n')"
    ).splitlines()
    assert all(Path(line).is_relative_to(target) for line in where), where
    run: Callable[[str], str] = lambda words: python(  # noqa: E731
        f"from pgdefect.cli.main import main; main({words.split()!r})"
    )
    assert "SQL files" in run("db upgrade")
    assert "agree" in run("db check")
    assert "category" in run("categories")
    assert str(CHECKOUT) not in python("import sys; print([p for p in sys.path if 'src' in p])")
