"""Every function of schema `defect`, called by a reader with what nobody means: PD errors only."""

from __future__ import annotations

import random
from typing import Any

import psycopg
import pytest
from guarded import RESET, Clone, roles_of, session
from rows import (
    add_defect_embeddings,
    add_defect_space,
    add_embeddings,
    add_regions,
    unit_vectors,
)
from sqlalchemy import text

from benchmarks.bench_sql import RAW_DIM, build
from pgdefect.db.access.grants import WRITER_CALLS
from pgdefect.db.connection.engine import Database

READER = "fuzzing analyst"
BIG = 2**63 - 1
VALUES: dict[str, list[Any]] = {
    "bigint": [None, 0, 1, 7, 199, -1, BIG, -BIG - 1, 10**15],
    "integer": [None, 0, 1, 3, -1, 2**31 - 1, -(2**31)],
    "smallint": [None, 0, 1, -1, 2**15 - 1, -(2**15)],
    "double precision": [None, 0.0, -0.0, 0.5, 1.0, -1.0, 5e-324, 1.7e308, "NaN", "Infinity",
                         "-Infinity"],
    "real": [None, 0.0, 1.0, "NaN", "Infinity"],
    "boolean": [None, True, False],
    "text": [None, "", "150", "1", "line", "150.png", "%", "_", "\\", "'", '"', "/", "//", "-1",
             "NULL", "99999999999999999999", "deadbeef", "0" * 64, "x" * 10_000, "ä🙂", "normal",
             "anomalous", "test", "picture", "defect", "region", "patchcore", "hour", "\x01"],
    "jsonb": [None, "null", "[]", "{}", "1e999", '"x"', '{"image_size": [0, 0]}',
              '{"image_size": ["a", 1]}', '{"image_size": [256, 256], "center_crop": 3}',
              '{"image_size": [1e300, 1], "resize": "keep"}', '{"line": {"a": [null]}}'],
    "timestamp with time zone": [None, "infinity", "-infinity", "epoch", "294276-12-31",
                                 "4713-01-01 BC"],
    "date": [None, "infinity", "-infinity", "epoch"],
    "interval": [None, "0", "-1 day", "178000000 years", "1 microsecond"],
    "text[]": [None, [], [None], ["1"], ["199", "199"], ["no such"], ["x"] * 50],
    "bigint[]": [None, [], [None], [1], [BIG]],
}  # fmt: skip
FUNCTIONS = """
SELECT p.proname, p.pronargs - p.pronargdefaults,
       coalesce(array_agg(format_type(t.type, NULL) ORDER BY t.n)
                FILTER (WHERE t.n IS NOT NULL), '{}')
FROM pg_proc p LEFT JOIN LATERAL unnest(p.proargtypes) WITH ORDINALITY t (type, n) ON true
WHERE p.pronamespace = 'defect'::regnamespace GROUP BY p.oid ORDER BY p.oid::regprocedure::text
"""
CALLS = 120
"""Calls of each function with values drawn by chance, besides every value alone."""


@pytest.fixture(scope="module")
def scene(clone_of: Clone, _template: Database) -> Any:
    with clone_of(_template) as database:
        made = build(database, 300, 500)
        add_searches(database, made.bank_id)
        with roles_of(database, **{READER: "reader"}):
            yield database


def add_searches(database: Database, detector: int) -> None:
    """What is searched by: embeddings of every image, defects and regions of some."""
    with database.connect() as connection:
        images = list(connection.scalars(text("SELECT id FROM pgdefect.image ORDER BY id")))
    add_embeddings(database, 1, images, unit_vectors(1, len(images), RAW_DIM))
    add_defect_space(database, 1, 16)
    some = images[100:200]
    add_defect_embeddings(database, 1, detector, some, unit_vectors(2, len(some), 16))
    add_regions(database, 1, detector, some, unit_vectors(3, len(some), 16))


def calls(types: list[str], required: int, rng: random.Random) -> list[list[Any]]:
    """Every value of each argument with sane ones beside it, then draws."""
    sane = [VALUES[kind][min(2, len(VALUES[kind]) - 1)] for kind in types]
    made = [sane]
    for place, kind in enumerate(types):
        made += [[*sane[:place], value, *sane[place + 1 :]] for value in VALUES[kind]]
    made += [[rng.choice(VALUES[kind]) for kind in types] for _ in range(CALLS)]
    return [
        one[: rng.randint(required, len(types))] if n % 2 else one for n, one in enumerate(made)
    ]


def test_a_reader_gets_rows_or_an_error_of_ours(scene: Database) -> None:
    rng = random.Random(3)
    unexpected: list[str] = []
    tried = 0
    with session(scene, READER, RESET) as connection:
        connection.execute("SET statement_timeout = '20s'")
        for name, required, types in connection.execute(FUNCTIONS).fetchall():
            if name in WRITER_CALLS:
                continue
            for values in calls(types, required, rng):
                arguments = ", ".join(f"%s::{kind}" for kind in types[: len(values)])
                tried += 1
                try:
                    connection.execute(
                        f"SELECT * FROM defect.{name}({arguments})", values
                    ).fetchall()
                except psycopg.Error as error:
                    if not (error.sqlstate or "").startswith("PD"):
                        unexpected.append(f"{name}{tuple(values)!r:.200}: {error.sqlstate} {error}")
    assert unexpected == []
    assert tried > 1000
