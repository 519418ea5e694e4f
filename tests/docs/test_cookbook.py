"""Every recipe of the cookbook runs as it is, and answers its question."""

from __future__ import annotations

import subprocess

import pytest
from psycopg import sql
from sqlalchemy import text

from docs.cookbook import Recipe, cookbook_page, recipes, run_recipe
from pgdefect.db.connection.engine import Database
from pgdefect.db.schema.sql_files import resource_dir

RECIPES = recipes()
NAMES = [recipe.name for recipe in RECIPES]
PAGE = resource_dir("sql").parent / "docs" / "cookbook.md"


def recipe(name: str) -> Recipe:
    [found] = [recipe for recipe in RECIPES if recipe.path.stem.partition("_")[2] == name]
    return found


def rows(output: str) -> list[list[str]]:
    """Cells of psql's aligned table, below its heading."""
    body = output.split("\n\n")[-1].splitlines()
    ruler = next(n for n, line in enumerate(body) if set(line) <= {"-", "+"})
    end = [n for n, line in enumerate(body) if line.startswith("(")][-1]
    return [[cell.strip() for cell in line.split("|")] for line in body[ruler + 1 : end]]


@pytest.fixture(scope="session")
def line(_factory_template: Database) -> Database:
    """The factory itself: recipes change nothing."""
    return _factory_template


def test_there_are_enough_and_all_say_what_they_answer() -> None:
    assert len(RECIPES) >= 42
    for one in RECIPES:
        assert one.question.rstrip(")").endswith(("?", ".")), one.name
        assert "?" in one.question, one.name
        assert one.answer, one.name


@pytest.mark.parametrize("one", RECIPES, ids=NAMES)
def test_it_runs_as_it_is_and_answers(line: Database, one: Recipe) -> None:
    output = run_recipe(line, one)
    if one.path.stem.endswith("export_csv"):
        assert len(output.splitlines()) == 14
        assert output.startswith("category,path,")
        return
    assert rows(output), output


def test_they_change_nothing_and_run_before_there_is_anything(database: Database) -> None:
    """In read-only sessions of an empty database: no rows, or, for an image, that there is none."""
    with database.autocommit() as connection:
        name = sql.Identifier(connection.info.dbname)
        connection.execute(
            sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(name)
        )
    refused = []
    for one in RECIPES:
        try:
            run_recipe(database, one)
        except subprocess.CalledProcessError as error:
            refused.append((one.path.stem.partition("_")[2], error.stderr))
    assert [name for name, _ in refused] == ["nearest_to_a_defect", "draw_an_anomaly_map"]
    for _, message in refused:
        assert "no stored image is called '(a reject)'" in message


def test_what_is_set_is_used(line: Database) -> None:
    nearest = rows(run_recipe(line, recipe("nearest_to_a_defect"), {"k": 3}))
    assert [row[0] for row in nearest] == ["1", "2", "3"]
    by_camera = rows(run_recipe(line, recipe("rejects_by_shift"), {"attribute": "camera"}))
    assert {row[1] for row in by_camera} == {"left", "right", "(none)"}
    with pytest.raises(subprocess.CalledProcessError) as caught:
        run_recipe(line, recipe("nearest_to_a_defect"), {"image": "nowhere.png"})
    assert "no stored image is called 'nowhere.png'" in caught.value.stderr


def test_answers_are_right(line: Database) -> None:
    """Where what was put in is known."""
    duplicates = rows(run_recipe(line, recipe("duplicate_photographs")))
    assert [row[0] for row in duplicates] == ["same picture"]
    assert duplicates[0][4].endswith("copy-of-a-test-image.png")
    assert "/test/" in duplicates[0][7]
    unseen = rows(run_recipe(line, recipe("defect_types_not_seen")))
    assert ["parts", "broken corner", "1"] in [row[:3] for row in unseen]
    curve = rows(run_recipe(line, recipe("threshold_curve"), {"steps": 4}))
    assert len(curve) == 6
    assert curve[0][4] == "0 of 9"
    assert curve[-1][2] == "0 of 4"
    with line.connect() as connection:
        days = connection.scalar(
            text("SELECT count(DISTINCT day) FROM defect.daily_rejects WHERE split = 'production'")
        )
    assert days == 15


def test_the_page_shows_every_recipe_as_it_is() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for one in RECIPES:
        assert f"(../sql/cookbook/{one.name})" in page, f"run: make docs ({one.name})"
        assert one.sql in page, f"run: make docs ({one.name})"
    assert "/tmp/" not in page


def test_a_page_is_made_of_answers() -> None:
    page = cookbook_page([(RECIPES[0], "\n".join(map(str, range(100))))])
    assert RECIPES[0].sql in page
    assert "more …" in page
