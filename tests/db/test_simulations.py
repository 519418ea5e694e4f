"""Rows of simulated images, and databases that have the functions of before they were."""

from __future__ import annotations

import pytest
from rows import add_embeddings, add_extractor, add_images, unit_vectors
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from pgdefect.db.connection.engine import Database, driver
from pgdefect.db.records.simulations import delete_simulated, simulated_dependents, simulated_files

RECIPE = {
    "kind": "spot",
    "size": "large",
    "contrast": "low",
    "area": 0.02,
    "gray_difference": 15.0,
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
