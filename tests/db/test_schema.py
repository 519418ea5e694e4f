"""Migrations and SQL files bring a database to the code's schema, and say whether it is."""

from __future__ import annotations

import numpy as np
import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import text

from pgdefect.core.errors import Conflict, SchemaOutOfDate
from pgdefect.db.connection.engine import Database
from pgdefect.db.records.detectors import active_detector
from pgdefect.db.schema.bank_tables import partition_name
from pgdefect.db.schema.schema import (
    _alembic_config,
    check,
    newest_revision,
    require_current,
    revisions,
    upgrade,
)
from pgdefect.db.search.queries import score_patches


def test_upgrade_makes_what_the_models_say(empty_database: Database) -> None:
    with pytest.raises(SchemaOutOfDate, match="pgdefect db upgrade"):
        require_current(empty_database)
    assert not check(empty_database).ok
    report = upgrade(empty_database)
    assert report.revision_before is None
    assert report.sql_files
    assert check(empty_database).differences == ()
    require_current(empty_database)


def test_upgrade_again_does_nothing(database: Database) -> None:
    report = upgrade(database)
    assert report.sql_files == ()
    assert report.revision_before == report.revision


def test_trained_database_agrees_too(trained: Database) -> None:
    assert check(trained).differences == ()


def test_revisions_are_those_that_alembic_finds() -> None:
    """In one line, each named as its file is: so they are known without reading the files."""
    script = ScriptDirectory.from_config(_alembic_config())
    walked = [found.revision for found in script.walk_revisions()]
    assert list(reversed(walked)) == revisions()
    assert script.get_current_head() == newest_revision()
    assert script.get_heads() == [newest_revision()]


def test_a_changed_sql_file_is_noticed_and_applied(database: Database) -> None:
    with database.begin() as connection:
        connection.execute(
            text("UPDATE pgdefect.sql_file SET sha256 = '' WHERE name = 'defect/evaluations.sql'")
        )
        connection.execute(text("DROP VIEW defect.evaluations"))
        connection.execute(text("CREATE VIEW defect.evaluations AS SELECT 1 AS other_columns"))
    with pytest.raises(SchemaOutOfDate, match="functions or views"):
        require_current(database)
    assert check(database).differences == (
        "sql/defect/evaluations.sql is not the version in the database",
    )
    assert upgrade(database).sql_files == ("defect/evaluations.sql",)
    assert check(database).ok
    with database.connect() as connection:
        connection.execute(text("SELECT evaluation_id, aupro FROM defect.evaluations"))


@pytest.mark.parametrize(
    "damage",
    [
        "DROP FUNCTION defect.find_image(bigint, text)",
        "ALTER TABLE pgdefect.image DROP COLUMN group_name CASCADE",
        "DROP INDEX pgdefect.uq_detector_active",
    ],
)
def test_check_names_what_is_missing(database: Database, damage: str) -> None:
    with database.begin() as connection:
        connection.execute(text(damage))
    assert not check(database).ok


FUNCTIONS_OF_BEFORE = """
DO $$ DECLARE f regprocedure; BEGIN
    FOR f IN SELECT oid FROM pg_proc WHERE proname = 'similar_images' LOOP
        EXECUTE 'DROP FUNCTION ' || f;
    END LOOP;
END $$;
CREATE FUNCTION defect.similar_images(image text, k integer DEFAULT 10, category text DEFAULT NULL)
RETURNS TABLE (rank bigint, image_id bigint) LANGUAGE sql AS 'SELECT 1::bigint, 2::bigint';
CREATE FUNCTION pgdefect.nearest_images(extractor bigint, query vector, k integer DEFAULT 10)
RETURNS TABLE (image_id bigint) LANGUAGE sql AS 'SELECT 1::bigint';
CREATE FUNCTION defect.patch_box(integer, integer) RETURNS integer LANGUAGE sql AS 'SELECT 1';
INSERT INTO pgdefect.sql_file (name, sha256) VALUES ('functions/12_nearest_images.sql', '');
UPDATE pgdefect.sql_file SET sha256 = ''
WHERE name IN ('defect/similar_images.sql', 'defect/patch_box.sql');
"""


def test_functions_of_other_arguments_give_way(database: Database) -> None:
    """Those of another signature, those that the code no longer has, and one that a view uses."""
    with database.begin() as connection:
        connection.exec_driver_sql(FUNCTIONS_OF_BEFORE)
    assert any("12_nearest_images" in difference for difference in check(database).differences)
    assert upgrade(database).sql_files == (
        "defect/patch_box.sql",
        "defect/similar_images.sql",
        "functions/12_nearest_images.sql",
    )
    assert check(database).ok
    with database.connect() as connection:
        kinds = connection.execute(
            text(
                "SELECT DISTINCT proname, pronargs > 5 FROM pg_proc "
                "WHERE proname IN ('nearest_images', 'similar_images', 'patch_box') ORDER BY 1"
            )
        ).all()
        connection.execute(text("SELECT worst_box FROM defect.inspections"))
    assert kinds == [("patch_box", True), ("similar_images", True)]
    assert upgrade(database).sql_files == ()


def test_an_analysts_own_view_is_not_dropped(database: Database) -> None:
    with database.begin() as connection:
        connection.exec_driver_sql(
            FUNCTIONS_OF_BEFORE
            + "CREATE VIEW public.mine AS SELECT * FROM defect.similar_images('1');"
        )
    with pytest.raises(Conflict, match=r"view (public\.)?mine depends on"):
        upgrade(database)
    with database.begin() as connection:
        assert connection.execute(text("SELECT * FROM public.mine")).all() == [(1, 2)]
        connection.execute(text("DROP VIEW public.mine"))
    upgrade(database)
    assert check(database).ok


BANK_OF_0001 = """
INSERT INTO pgdefect.category (name) VALUES ('parts');
INSERT INTO pgdefect.extractor (fingerprint, backbone, layers, preprocessing, weights_source,
    weights_sha256, embedding_dim, rows, cols, onnx, onnx_sha256)
VALUES ('f', 'none', '{a}', '{}', 'none', '', 3, 2, 2, '', '');
INSERT INTO pgdefect.detector (category_id, extractor_id, kind, version, state, active,
    threshold, threshold_rule, score_center, settings, metrics, library_versions)
VALUES (1, 1, 'patchcore', 1, 'ready', true, 0.5, '{"rule": "given"}', 0.25, '{}', '{}', '{}');
INSERT INTO pgdefect.memory_bank (id, num_images, num_vectors, embedding_dim, precision, metric,
    operator, transform, coreset_ratio, covering_radius, num_neighbors, ef_search,
    ef_search_recall, ef_search_fast)
VALUES (1, 1, 2000, 3, 'half', 'cosine', '<=>', 'unit', 0.1, 0, 1, 40, 1, 10);
CREATE TABLE pgdefect.memory_bank_patch_1 PARTITION OF pgdefect.memory_bank_patch FOR VALUES IN (1);
INSERT INTO pgdefect.memory_bank_patch
SELECT 1, n, 0, 0, 0, ARRAY[cos(n), sin(n), n / 1000.0]::vector FROM generate_series(0, 1999) n;
CREATE INDEX memory_bank_patch_1_hnsw ON pgdefect.memory_bank_patch_1
USING hnsw ((embedding::halfvec(3)) halfvec_cosine_ops);
ANALYZE pgdefect.memory_bank_patch_1;
"""


def test_a_bank_of_the_first_version_is_searched_with_the_index_it_has(
    empty_database: Database,
) -> None:
    config = _alembic_config()
    with empty_database.begin() as connection:
        for schema in ("pgdefect", "defect"):
            connection.execute(text(f"CREATE SCHEMA {schema}"))
        connection.execute(text("CREATE EXTENSION vector"))
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.exec_driver_sql(BANK_OF_0001)
    assert upgrade(empty_database).revision_before == "0001"
    assert check(empty_database).ok
    detector = active_detector(empty_database, "parts")
    with empty_database.begin() as connection:
        positions, _ = score_patches(
            connection, detector.bank, np.array([[1, 0, 0]], dtype=np.float32)
        )
        history = connection.execute(
            text("SELECT detector_id, threshold, rule FROM pgdefect.detector_threshold")
        ).all()
        connection.execute(text("SELECT pg_stat_force_next_flush()"))
    assert positions.tolist() == [0]
    assert history == [(1, 0.5, {"rule": "given"})]
    with empty_database.autocommit() as connection:
        row = connection.execute(
            "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = %s",
            [f"{partition_name(1)}_hnsw"],
        ).fetchone()
    assert row == (1,)
