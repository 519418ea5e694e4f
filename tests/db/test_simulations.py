"""Rows of simulated images, and databases that have the functions of before they were."""

from __future__ import annotations

import re

import psycopg
import pytest
from rows import add_embeddings, add_extractor, add_images, unit_vectors
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from pgdefect.db.engine import Database, driver
from pgdefect.db.schema import check, resource_dir, upgrade
from pgdefect.db.search import SearchFilter, nearest
from pgdefect.db.simulations import delete_simulated, simulated_dependents, simulated_files

RECIPE = {
    "kind": "spot",
    "size": "large",
    "contrast": "low",
    "area": 0.02,
    "grey_difference": 15.0,
    "seed": 0,
    "number": 8,
    "source_image_id": 1,
}
SIMULATED = {
    "split": "simulated",
    "label": "anomalous",
    "defect_type": "spot",
    "mask_path": lambda n: f"masks/{n}.png",
    "path": lambda n: f"simulated/{n}.png",
    "simulation": RECIPE,
}


def test_the_split_and_the_recipe_go_together(database: Database) -> None:
    add_images(database, "parts", 2)
    add_images(database, "parts", 2, **SIMULATED)
    with pytest.raises(IntegrityError, match="ck_image_simulated_says_how"):
        add_images(database, "parts", 1, **{**SIMULATED, "simulation": None})
    with pytest.raises(IntegrityError, match="ck_image_simulated_says_how"):
        add_images(database, "parts", 1, simulation=RECIPE, path="x.png")
    with database.connect() as connection:
        rows = connection.execute(
            text("SELECT split, simulation FROM pgdefect.image ORDER BY id")
        ).all()
    assert [tuple(row) for row in rows] == [("train", None)] * 2 + [("simulated", RECIPE)] * 2


def test_the_view_tells_how_each_was_made(database: Database) -> None:
    add_images(database, "parts", 1)
    add_images(database, "parts", 1, **SIMULATED)
    with database.connect() as connection:
        [row] = connection.execute(text("SELECT * FROM defect.simulated")).mappings().all()
    told = {key: row[key] for key in RECIPE if key != "number"}
    assert told == {key: value for key, value in RECIPE.items() if key != "number"}
    assert row["verdict"] is None
    assert row["mask_path"] == "/nowhere/parts/masks/0.png"


def test_the_examples_in_the_comments_run(database: Database) -> None:
    with database.connect() as connection:
        comment = str(
            connection.scalar(text("SELECT obj_description('defect.simulated'::regclass)"))
        )
        example = comment.partition("Example: ")[2]
        assert example.startswith("SELECT")
        driver(connection).execute(example)


def test_deleting_takes_the_simulated_images_of_one_category(database: Database) -> None:
    for category in ("parts", "other"):
        add_images(database, category, 2)
        add_images(database, category, 3, **SIMULATED)
    extractor = add_extractor(database, 8)
    ids = [file.id for file in simulated_files(database, "parts")]
    add_embeddings(database, extractor, ids, unit_vectors(0, 3, 8))
    dependents = simulated_dependents(database, "parts")
    assert (dependents.images, dependents.embeddings, dependents.inspections) == (3, 3, 0)
    gone = delete_simulated(database, "parts")
    assert [file.id for file in gone] == ids
    assert [file.path for file in gone] == [f"simulated/{n}.png" for n in range(3)]
    assert simulated_files(database, "parts") == []
    assert len(simulated_files(database, "other")) == 3
    with database.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM pgdefect.image")) == 7
        assert connection.scalar(text("SELECT count(*) FROM pgdefect.image_root")) == 2


# -- databases of before -----------------------------------------------------------------------

FUNCTIONS = {
    "functions/12_nearest.sql": ("pgdefect", "nearest"),
    "functions/21_similar_images.sql": ("defect", "similar_images"),
}


def put_back(database: Database, name: str) -> None:
    """The function of a file as it was, without the arguments from `simulated` on."""
    schema, function = FUNCTIONS[name]
    content = (resource_dir("sql") / name).read_text(encoding="utf-8")
    before, found = re.subn(r",\n    simulated boolean DEFAULT false(,[^)]*)?\n\)", "\n)", content)
    assert found == 1
    body = re.compile(r"AS \$\$.*?\$\$;", re.DOTALL)
    before = body.sub("AS $$ BEGIN RETURN; END $$;", before).replace(", image_split text", "")
    with database.begin() as connection:
        raw = driver(connection)
        for (signature,) in raw.execute(
            "SELECT oid::regprocedure::text FROM pg_proc WHERE proname = %s", [function]
        ).fetchall():
            raw.execute(f"DROP FUNCTION {signature}")
        raw.execute(before.replace(':"vector_schema"', "public"))  # type: ignore[arg-type]
        raw.execute("UPDATE pgdefect.sql_file SET sha256 = 'before' WHERE name = %s", [name])
    assert schema in before


def test_functions_with_fewer_arguments_give_way(database: Database) -> None:
    ids = add_images(database, "parts", 4)
    simulated = add_images(
        database, "parts", 2, **{**SIMULATED, "sha256": lambda n: f"{n + 100:064x}"}
    )
    extractor = add_extractor(database, 8)
    vectors = unit_vectors(0, 6, 8)
    add_embeddings(database, extractor, [*ids, *simulated], vectors)
    for name in FUNCTIONS:
        put_back(database, name)
    with psycopg.connect(database.url) as connection:
        assert connection.execute("SELECT * FROM defect.similar_images('1')").fetchall() == []
    assert upgrade(database).sql_files == tuple(FUNCTIONS)
    assert check(database).ok
    with psycopg.connect(database.url) as connection:
        for schema, function in FUNCTIONS.values():
            kinds = connection.execute(
                "SELECT count(*) FROM pg_proc WHERE proname = %s "
                "AND pronamespace = %s::regnamespace",
                [function, schema],
            ).fetchone()
            assert kinds == (1,)
        found = connection.execute(
            "SELECT image_id FROM defect.similar_images(%s)", [str(ids[0])]
        ).fetchall()
    assert {row[0] for row in found} == set(ids[1:])
    asked = SearchFilter(simulated=True)
    assert len(nearest(database, "picture", extractor, vectors[0], 10, asked)) == 6
    assert upgrade(database).sql_files == ()
