"""Every object says what it answers; its example runs; the pages made of that are up to date."""

from __future__ import annotations

import json
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text

from docs.benchmarks import benchmarks_page
from docs.reference import analysts_page, examples, schema_page
from pgdefect.db.connection.engine import Database
from pgdefect.db.schema.models import Base

DOCS = Path(__file__).parents[2] / "docs"
WRITERS = {"set_threshold", "rejudge", "review", "withdraw_review"}
# Functions and triggers that write what no login but the owner may write directly.
DEFINERS = WRITERS | {"take_over_review", "audit_change", "audit_deletion"}
VOLATILE = DEFINERS | {"record_audit"}
# They ask the planner what a search would cost.
PLANNERS = {"search_plan", "nearest", "neighbors", "similar_images", "similar_regions"} | {
    "query_by_images",
    "query_by_region",
}
OBJECTS = """
SELECT 'defect.' || relname, obj_description(oid, 'pg_class') FROM pg_class
WHERE relnamespace = 'defect'::regnamespace AND relkind = 'v'
UNION ALL
SELECT pronamespace::regnamespace || '.' || proname, obj_description(oid, 'pg_proc') FROM pg_proc
WHERE pronamespace IN ('defect'::regnamespace, 'pgdefect'::regnamespace)
ORDER BY 1
"""


@pytest.fixture
def leather(factory: Database) -> Database:
    """The category and the image that the examples speak of."""
    with factory.begin() as connection:
        connection.execute(text("UPDATE pgdefect.category SET name = 'leather'"))
        connection.execute(
            text(
                "UPDATE pgdefect.image SET path = replace(path, '002', '003') "
                "WHERE path LIKE 'test/scratch/002%'"
            )
        )
    return factory


def test_every_object_and_column_has_a_comment(database: Database) -> None:
    with database.connect() as connection:
        objects = connection.execute(text(OBJECTS)).all()
        columns = connection.scalars(
            text(
                "SELECT relname || '.' || attname FROM pg_attribute a "
                "JOIN pg_class c ON c.oid = a.attrelid "
                "WHERE relnamespace = 'defect'::regnamespace AND relkind = 'v' AND attnum > 0 "
                "AND col_description(c.oid, attnum) IS NULL"
            )
        ).all()
    assert [name for name, comment in objects if not comment] == []
    without = [name for name, c in objects if name.startswith("defect.") and not examples(c)]
    assert without == []
    # They belong into sql/column_comments.sql.
    assert columns == []


def test_every_example_runs_and_only_writers_write(leather: Database) -> None:
    """Each as the first statement of a session, which may only read unless a writer is asked."""
    with leather.connect() as connection:
        objects = connection.execute(text(OBJECTS)).all()
    ran, silent = 0, []
    for name, comment in objects:
        for example in examples(comment):
            writes = any(f"defect.{writer}(" in example for writer in WRITERS)
            with psycopg.connect(leather.url) as connection:
                connection.read_only = not writes
                cursor = connection.execute(example)  # type: ignore[arg-type]
                if not cursor.fetchall():
                    silent.append(name)
                connection.rollback()
            ran += 1
    assert ran >= 25
    # What the two weeks of parts give no answer to.
    assert set(silent) <= {
        *("defect.evaluations", "defect.simulated", "defect.outliers", "defect.withdraw_review")
    }


def test_functions_are_what_they_say_to_the_planner(database: Database) -> None:
    with database.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT proname::text, provolatile::text, proconfig, prosecdef, "
                "prorettype = 'trigger'::regtype FROM pg_proc "
                "WHERE pronamespace IN ('defect'::regnamespace, 'pgdefect'::regnamespace)"
            )
        ).all()
    assert len(rows) > 20
    for name, volatility, settings, definer, trigger in rows:
        fixed = [s for s in settings or [] if s.startswith("search_path=")]
        assert fixed, f"{name} has no search_path of its own"
        assert definer <= (name in DEFINERS), name
        if name in VOLATILE:
            assert volatility == "v", name
        elif not trigger and name not in PLANNERS:
            assert volatility in "is", name
    assert {name for name, *_, definer, _ in rows if definer} == DEFINERS


def test_the_page_for_analysts_is_what_the_database_says(database: Database) -> None:
    with database.autocommit() as connection:
        page = analysts_page(connection)
    assert page == (DOCS / "analysts.md").read_text(encoding="utf-8"), "run: make docs"
    for name in ("similar_images", "nearest_normal", "what_if", "review", "inspect"):
        assert f"### defect.{name}\n" in page
    assert "| `priority` | double precision | 0 to 1" in page


def test_the_schema_page_is_what_the_models_say() -> None:
    page = schema_page()
    assert page == (DOCS / "schema.md").read_text(encoding="utf-8"), "run: make docs"
    for table in Base.metadata.tables.values():
        assert f"    {table.name} {{" in page
        for column in table.columns:
            assert f" {column.name}" in page


def test_the_page_of_benchmarks_is_what_was_kept() -> None:
    page = benchmarks_page()
    assert page == (DOCS / "benchmarks.md").read_text(encoding="utf-8"), "run: make docs"
    for kept in (DOCS.parent / "benchmarks" / "results").glob("*.json"):
        assert f"\n## {kept.stem}\n" in page


def test_what_is_behind_is_said_first(tmp_path: Path) -> None:
    kept = json.loads((DOCS.parent / "benchmarks" / "results" / "start.json").read_text())
    report = kept["reports"][0]
    slow, fast = report["rows"]
    slow |= {"ratio": 0.5, "what": "a | b", "met": None}
    fast |= {"ratio": 7.0, "met": True}
    report["checks"] = [{"requirement": "errors: 0", "holds": False}]
    (tmp_path / "start.json").write_text(json.dumps(kept))
    (tmp_path / "start.quick.json").write_text(json.dumps(kept | {"quick": True}))
    page = benchmarks_page(tmp_path)
    behind = page.partition("## Where we are not ahead")[2].partition("\n## ")[0]
    assert behind.count("\n- ") == 2
    assert "a | b, 0.50 times as fast as" in behind
    assert "missed: errors: 0" in behind
    assert "| a \\| b |" in page
    assert "| errors: 0 | **missed** |" in page
    slow |= {"ratio": 2.0}
    report["checks"] = []
    (tmp_path / "start.json").write_text(json.dumps(kept))
    assert "## Where we are not ahead\n\nNowhere.\n" in benchmarks_page(tmp_path)


def test_examples_are_cut_out_of_comments() -> None:
    assert examples("Says it. Example: SELECT 1;") == ["SELECT 1;"]
    assert examples("Says it.") == []
    assert examples("") == []
