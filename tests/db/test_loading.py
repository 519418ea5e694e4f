"""Loads of many embeddings: cut short and taken up again, whatever is there already."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import psycopg
import pytest
from rows import add_embeddings, add_extractor, add_images, count, unit_vectors
from sqlalchemy import text

from pgdefect.core.errors import Busy, Conflict, NotFound, UsageError
from pgdefect.db.connection.engine import Database
from pgdefect.db.records.bulk_load import load_image_embeddings
from pgdefect.db.schema.hnsw import extractor_index
from pgdefect.db.schema.indexes import concurrently
from pgdefect.db.search.search import SearchFilter, nearest

TABLE = "pgdefect.image_embedding"
LOADER = textwrap.dedent("""
    import sys, time
    import numpy as np
    from pgdefect.db.records import bulk_load
    from pgdefect.db.connection.engine import Database

    url, extractor, folder = sys.argv[1:]
    bulk_load.DEFERRED_FROM = 100

    def progress(stage, done, total):
        print(stage, done, flush=True)
        time.sleep(0.2)

    bulk_load.load_image_embeddings(
        Database(url), int(extractor), np.load(folder + "/ids.npy"),
        np.load(folder + "/vectors.npy", mmap_mode="r"), progress=progress, chunk_rows=100,
    )
""")


def has_index(database: Database, extractor: int) -> bool:
    with database.connect() as connection:
        found = connection.scalar(
            text(f"SELECT to_regclass('pgdefect.image_embedding_{extractor}_hnsw')")
        )
    return found is not None


def test_a_killed_load_goes_on_where_it_was(database: Database, tmp_path: Path) -> None:
    ids = np.array(add_images(database, "parts", 1200))
    extractor = add_extractor(database, 8)
    vectors = unit_vectors(1, 1200, 8).astype(np.float16)
    np.save(tmp_path / "ids.npy", ids)
    np.save(tmp_path / "vectors.npy", vectors)
    command = [sys.executable, "-c", LOADER, database.url, str(extractor), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as loader:
        assert loader.stdout is not None
        for line in loader.stdout:
            if line == "load 500\n":
                break
        loader.send_signal(signal.SIGKILL)
    kept = count(database, TABLE)
    assert 500 <= kept < 1200
    assert kept % 100 == 0, "a chunk is stored whole or not at all"
    assert not has_index(database, extractor)
    # Without its index a search scans, and finds what there is.
    found = nearest(
        database, "picture", extractor, vectors[7].astype(np.float32), 1, SearchFilter()
    )
    assert found[0].image.id == ids[7]
    seen: list[tuple[str, int, int]] = []
    stored = load_image_embeddings(
        database,
        extractor,
        ids,
        vectors,
        chunk_rows=100,
        progress=lambda *step: seen.append(step),
    )
    assert stored == 1200 - kept
    assert seen[0] == ("load", 0, 1200)
    assert ("load", 1200, 1200) in seen
    assert seen[-1] == ("index", 1, 1)
    assert has_index(database, extractor)
    with database.connect() as connection:
        rows = connection.execute(
            text(f"SELECT image_id, embedding::real[] FROM {TABLE} ORDER BY image_id")
        ).all()
    assert [row[0] for row in rows] == ids.tolist()
    np.testing.assert_array_equal(np.array([row[1] for row in rows], np.float16), vectors)
    assert load_image_embeddings(database, extractor, ids, vectors) == 0


def test_an_index_whose_build_was_interrupted_is_built_anew(database: Database) -> None:
    ids = np.array(add_images(database, "parts", 20))
    extractor = add_extractor(database, 8)
    add_embeddings(database, extractor, ids[:10].tolist(), unit_vectors(1, 10, 8))
    table = f"image_embedding_{extractor}"
    valid = text(
        f"SELECT indisvalid FROM pg_index WHERE indexrelid = 'pgdefect.{table}_hnsw'::regclass"
    )
    with psycopg.connect(database.url) as writer, database.autocommit() as builder:
        builder.execute(f"DROP INDEX pgdefect.{table}_hnsw".encode())
        builder.execute("SET lock_timeout = '50ms'")
        writer.execute(f"LOCK TABLE pgdefect.{table} IN ROW EXCLUSIVE MODE".encode())
        with pytest.raises(psycopg.errors.LockNotAvailable):
            builder.cursor().execute(concurrently(extractor_index(8).create(table)).encode())
    with database.connect() as connection:
        assert connection.scalar(valid) is False
    assert load_image_embeddings(database, extractor, ids, unit_vectors(2, 20, 8)) == 10
    with database.connect() as connection:
        assert connection.scalar(valid) is True


def test_images_that_have_an_embedding_keep_it(database: Database) -> None:
    ids = np.array(add_images(database, "parts", 10))
    extractor = add_extractor(database, 8)
    vectors = unit_vectors(1, 20, 8)
    add_embeddings(database, extractor, ids[2:5].tolist(), vectors[10:13])
    assert load_image_embeddings(database, extractor, ids, vectors[:10]) == 7
    assert has_index(database, extractor)
    with database.connect() as connection:
        first = connection.scalar(
            text(f"SELECT embedding::real[] FROM {TABLE} WHERE image_id = {ids[2]}")
        )
    np.testing.assert_array_equal(np.float16(first), vectors[10].astype(np.float16))


def test_what_cannot_be_loaded_is_refused(database: Database) -> None:
    ids = np.array(add_images(database, "parts", 6))
    extractor = add_extractor(database, 8)
    vectors = unit_vectors(1, 6, 8)
    with pytest.raises(NotFound, match="no extractor 9"):
        load_image_embeddings(database, 9, ids, vectors)
    with pytest.raises(UsageError, match="of 8 dimensions, and these have 7"):
        load_image_embeddings(database, extractor, ids, vectors[:, :7])
    with pytest.raises(UsageError, match="do not match"):
        load_image_embeddings(database, extractor, ids, vectors[:5])
    with pytest.raises(UsageError, match="named twice"):
        load_image_embeddings(database, extractor, ids[[0, 0]], vectors[:2])
    for bad in (0.0, np.nan, 1e6):
        spoilt = vectors.copy()
        spoilt[4] = bad
        with pytest.raises(UsageError, match=r"row 4 is zero, not finite, or too large"):
            load_image_embeddings(database, extractor, ids, spoilt, chunk_rows=2)
        assert count(database, TABLE) == 4
    with pytest.raises(Conflict, match="another session deleted"):
        load_image_embeddings(database, extractor, ids + 100, vectors)
    with (
        database.lock(f"loading embeddings of extractor {extractor}"),
        pytest.raises(Busy, match="is running"),
    ):
        load_image_embeddings(database, extractor, ids, vectors)
