"""Recipes of ``sql/cookbook``: reading them, running them in psql, and the page about them."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict

from pgdefect.db.connection.engine import Database
from pgdefect.db.schema.sql_files import resource_dir
from pgdefect.db.server.embedded import EmbeddedServer

_FIELD = re.compile(r"^-- (Question|Answer|Set):\s+(.*)$")


@dataclass(frozen=True)
class Recipe:
    """One file: the question it answers, how to read the answer, what can be set."""

    path: Path
    question: str
    answer: str
    variables: str | None

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def sql(self) -> str:
        """What follows the header."""
        lines = self.path.read_text(encoding="utf-8").splitlines()
        body = [n for n, line in enumerate(lines) if not line.startswith("--")]
        return "\n".join(lines[body[0] :]).strip()


def recipes() -> list[Recipe]:
    """All recipes, in order."""
    return [_read(path) for path in sorted((resource_dir("sql") / "cookbook").glob("*.sql"))]


def _read(path: Path) -> Recipe:
    fields: dict[str, str] = {}
    name = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("--"):
            break
        if found := _FIELD.match(line):
            name = found[1]
            fields[name] = found[2]
        else:
            fields[name] += "\n" + line.removeprefix("--").strip()
    return Recipe(path, fields["Question"], fields["Answer"], fields.get("Set"))


def run_recipe(
    database: Database, recipe: Recipe, variables: Mapping[str, object] | None = None
) -> str:
    """Run a recipe in psql as it is, stopping at an error; what it printed.

    Raises subprocess.CalledProcessError with psql's message in `stderr`.
    """
    settings = [f"--set={name}={value}" for name, value in (variables or {}).items()]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    password = conninfo_to_dict(database.url).get("password")
    psql = EmbeddedServer(Path("unused")).bin_dir / "psql"
    done = subprocess.run(
        [
            psql,
            *[database.safe_url, "-Xq", "--set=ON_ERROR_STOP=1", "--pset=pager=off"],
            *[*settings, "-f", recipe.path],
        ],
        env={**environment, "PGTZ": "UTC", **({"PGPASSWORD": str(password)} if password else {})},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return "\n".join(line.rstrip() for line in done.stdout.splitlines()).strip("\n")


def cookbook_page(answers: Iterable[tuple[Recipe, str]]) -> str:
    """The page: every recipe with its SQL and what it printed."""
    pairs = list(answers)
    lines = [
        "# Cookbook",
        "",
        "Questions that people ask of an inspection line, each answered by a file of",
        "`sql/cookbook/`. They run as they are and change nothing:",
        "",
        "```console",
        "$ pgdefect db psql -- -f sql/cookbook/01_nearest_to_a_defect.sql",
        "$ pgdefect db psql -- -v image=scratch/003.png -v k=5 "
        "-f sql/cookbook/01_nearest_to_a_defect.sql",
        "```",
        "",
        "The answers below are from a real run over parts drawn by pgdefect's own generator: two",
        "products, and two weeks of production each (`docs/scene.py`). This page is made by",
        "`make docs`.",
        "",
        *[f"- [{_title(recipe)}](#{_anchor(recipe)})" for recipe, _ in pairs],
    ]
    for recipe, output in pairs:
        lines += ["", f"## {_title(recipe)}", "", _sentence(recipe.question), ""]
        lines += [_sentence(recipe.answer), ""]
        if recipe.variables:
            lines += [f"Can be set: {recipe.variables}.", ""]
        lines += [f"[`sql/cookbook/{recipe.name}`](../sql/cookbook/{recipe.name})", ""]
        lines += ["```sql", recipe.sql, "```", "", "```text", _short(output), "```"]
    return "\n".join(lines) + "\n"


def _title(recipe: Recipe) -> str:
    return recipe.path.stem.partition("_")[2].replace("_", " ").capitalize()


def _anchor(recipe: Recipe) -> str:
    return _title(recipe).lower().replace(" ", "-")


def _sentence(field: str) -> str:
    text = "\n".join(line.strip() for line in field.splitlines())
    return text[:1].upper() + text[1:]


def _short(output: str, longest: int = 30) -> str:
    lines = output.splitlines()
    if len(lines) <= longest:
        return output
    return "\n".join([*lines[: longest - 4], f"… {len(lines) - longest + 2} more …", *lines[-2:]])
