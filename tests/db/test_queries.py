"""The same question in SQL and in NumPy; filters; settings; roles."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import psycopg
import pytest
from crowds import Crowd
from rows import add_extractor, add_images, memory_bank, store, unit_vectors
from sqlalchemy import text

from pgdefect.core.distance import (
    METRICS,
    Precision,
    as_stored,
    nearest_vectors,
    pairwise,
    row_distances,
)
from pgdefect.core.errors import NotFound
from pgdefect.core.types import Float32
from pgdefect.db.connection.engine import Database, VectorArray, driver
from pgdefect.db.records.detectors import active_detector
from pgdefect.db.search.queries import (
    bank_vectors,
    every_other,
    near_vectors,
    prove_worst,
    score_patches,
    similar_patches,
    support_positions,
)
from pgdefect.vision.images.preprocess import Preprocessing

KINDS = [(metric, precision) for metric in ("cosine", "l2") for precision in ("half", "single")]
each_kind = pytest.mark.parametrize("kind", KINDS, ids="-".join)


def queries_for(vectors: Float32, count: int, precision: Precision) -> Float32:
    """Queries near stored vectors, with the norm of what they are near to."""
    rng = np.random.default_rng(11)
    near = vectors[rng.integers(len(vectors), size=count)]
    moved = near + 0.1 * rng.standard_normal(near.shape)
    scale = np.linalg.norm(near, axis=1, keepdims=True) / np.linalg.norm(
        moved, axis=1, keepdims=True
    )
    return as_stored((moved * scale).astype(np.float32), precision)


@each_kind
def test_score_patches_exactly_equals_numpy(crowd: Crowd, kind: tuple[str, Precision]) -> None:
    info, bank = crowd.banks[kind]
    queries = queries_for(bank.embeddings, 50, info.precision)
    with crowd.database.connect() as connection:
        positions, distances = score_patches(connection, info, queries, exact=True)
    expected, expected_distances = nearest_vectors(queries, bank.embeddings, bank.metric)
    np.testing.assert_array_equal(positions, expected)
    np.testing.assert_allclose(distances, expected_distances, rtol=1e-4, atol=1e-6)
    reference = pairwise(bank.metric, queries, bank.embeddings)
    np.testing.assert_allclose(distances, reference.min(axis=1), rtol=1e-4, atol=1e-6)


@each_kind
def test_hnsw_distances_are_upper_bounds_of_true_distances(
    crowd: Crowd, kind: tuple[str, Precision]
) -> None:
    info, bank = crowd.banks[kind]
    queries = queries_for(bank.embeddings, 100, info.precision)
    with crowd.database.connect() as connection:
        driver(connection).execute("SET LOCAL enable_seqscan = off")
        _, least = score_patches(connection, info, queries, exact=True)
        positions, hasty = score_patches(connection, info, queries, ef=1)
        _, careful = score_patches(connection, info, queries, ef=400)
    assert (hasty >= least).all()
    assert (careful >= least).all()
    assert (careful == least).mean() >= (hasty == least).mean()
    assert (hasty > least).any(), "ef reaches the index: with one candidate some are missed"
    of_positions = row_distances(queries, bank.embeddings[positions], bank.metric)
    np.testing.assert_allclose(hasty, of_positions, rtol=1e-4, atol=1e-6)


@each_kind
def test_nearest_bank_vectors_equal_numpy(crowd: Crowd, kind: tuple[str, Precision]) -> None:
    info, bank = crowd.banks[kind]
    query = queries_for(bank.embeddings, 1, info.precision)
    with crowd.database.connect() as connection:
        rows = driver(connection).execute(
            "SELECT * FROM pgdefect.nearest_bank_vectors(%s, %s::real[]::vector, 25, true)",
            [info.id, query[0].tolist()],
        )
        found = rows.fetchall()
    reference = pairwise(bank.metric, query, bank.embeddings)[0]
    order = reference.argsort(kind="stable")[:25]
    assert [row[0] for row in found] == order.tolist()
    np.testing.assert_allclose([row[1] for row in found], reference[order], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("k", [1, 10, 250, 251, 1500, 7000])
def test_nearest_bank_vectors_gives_k_rows_without_repeating(crowd: Crowd, k: int) -> None:
    info, bank = crowd.banks["cosine", "half"]
    with crowd.database.connect() as connection:
        found = (
            driver(connection)
            .execute(
                "SELECT * FROM pgdefect.nearest_bank_vectors(%s, %s::real[]::vector, %s)",
                [info.id, bank.embeddings[7].tolist(), k],
            )
            .fetchall()
        )
    assert len(found) == len({row[0] for row in found}) == min(k, len(bank.embeddings))
    # The index orders by vectors that it normalized and rounded anew.
    assert (np.diff([row[1] for row in found]) > -1e-3).all()
    assert found[0][0] == 7


@each_kind
def test_similar_patches_names_image_and_cell(crowd: Crowd, kind: tuple[str, Precision]) -> None:
    info, bank = crowd.banks[kind]
    found = similar_patches(crowd.database, info.id, 41, 10)
    reference = pairwise(bank.metric, bank.embeddings[41][None], bank.embeddings)[0]
    assert [neighbor.rank for neighbor in found] == list(range(1, 11))
    assert found[0].position == 41
    assert found[0].distance == pytest.approx(0.0, abs=1e-6)
    recalled = {n.position for n in found} & set(reference.argsort()[:10].tolist())
    assert len(recalled) >= 8
    for neighbor in found:
        assert neighbor.distance == pytest.approx(reference[neighbor.position], rel=1e-4, abs=1e-6)
        assert neighbor.image_id == bank.image_ids[neighbor.position]
        assert (neighbor.row, neighbor.col) == (
            bank.rows[neighbor.position],
            bank.cols[neighbor.position],
        )
        number = neighbor.position % 10
        assert neighbor.path == f"/nowhere/{kind[0]}_{kind[1]}/{number:05}.png"
        if kind[0] == "cosine":
            assert neighbor.similarity == pytest.approx(1 - neighbor.distance)
        else:
            assert neighbor.similarity is None


def test_bank_vectors_come_back_as_they_were_stored(crowd: Crowd) -> None:
    positions = np.array([5, 0, 5999, 5, 17], dtype=np.int32)
    for info, bank in crowd.banks.values():
        with crowd.database.connect() as connection:
            np.testing.assert_array_equal(
                bank_vectors(connection, info, positions), bank.embeddings[positions]
            )


def test_support_begins_with_the_vector_itself_even_among_copies(database: Database) -> None:
    ids = add_images(database, "parts", 2)
    vectors = unit_vectors(1, 30, 8)
    vectors[20] = vectors[10]
    store(database, "parts", add_extractor(database, 8), memory_bank(vectors, ids))
    bank = active_detector(database, "parts").bank
    with database.connect() as connection:
        assert support_positions(connection, bank, 20, 3)[:2].tolist() == [20, 10]
        assert support_positions(connection, bank, 10, 3)[:2].tolist() == [10, 20]


def test_patches_of_banks_that_are_not_there_are_refused(crowd: Crowd) -> None:
    with pytest.raises(NotFound, match=r"memory bank 999.*defect\.banks"):
        similar_patches(crowd.database, 999, 0, 1)
    with pytest.raises(NotFound, match="has no vector 6000"):
        similar_patches(crowd.database, crowd.banks["l2", "half"][0].id, 6000, 1)
    with pytest.raises(NotFound, match="no memory bank 999"), crowd.database.connect() as c:
        driver(c).execute("SELECT * FROM pgdefect.nearest_bank_vectors(999, '[1]')")


# -- SQL for analysts ----------------------------------------------------------------------


CROPPED = ((256, 256), (224, 192)), ((200, 301), (133, 150))
BOXES = {
    "keep": [Preprocessing((h, w), resize="keep") for h in (96, 250, 256) for w in (96, 256, 411)],
    "stretch": [Preprocessing((h, w)) for h in (97, 256) for w in (128, 301)],
    "center crop": [Preprocessing(size, crop) for size, crop in CROPPED],
}


@pytest.mark.parametrize("settings", BOXES.values(), ids=BOXES.keys())
@pytest.mark.parametrize("longest", [30, 300, 5000])
def test_patch_boxes_in_sql_equal_grid_to_pixels(
    database: Database, settings: list[Preprocessing], longest: int
) -> None:
    """Photographs of any size, those with fewer pixels than cells among them."""
    rng = np.random.default_rng(longest)
    questions, expected = [], []
    for _ in range(500):
        preprocessing = settings[rng.integers(len(settings))]
        height, width = rng.integers(1, longest, 2).tolist()
        patch = rng.choice([8, 16])
        nominal = [int(side // patch) for side in preprocessing.input_size]
        grid = [int(side // patch) for side in preprocessing.input_size_of((height, width))]
        row, col = (int(rng.integers(cells)) for cells in grid)
        questions.append([row, col, *nominal, height, width, preprocessing.to_dict()])
        expected.append(preprocessing.grid_to_pixels(row, col, (grid[0], grid[1]), (height, width)))
    with database.connect() as connection:
        found = connection.scalars(
            text(
                "SELECT defect.patch_box((q->>0)::int, (q->>1)::int, (q->>2)::int, (q->>3)::int, "
                "(q->>4)::int, (q->>5)::int, q->6) "
                "FROM jsonb_array_elements(CAST(:q AS jsonb)) WITH ORDINALITY t (q, n) ORDER BY n"
            ),
            {"q": json.dumps(questions)},
        ).all()
    wrong = [
        (question, ours, theirs)
        for question, ours, theirs in zip(
            questions, (",".join(map(str, box)) for box in expected), found, strict=True
        )
        if ours != theirs
    ]
    assert not wrong, f"{len(wrong)} of 500; first: {wrong[0]}"


@each_kind
@pytest.mark.parametrize("in_a_row", [1024, 7], ids="{} in a row".format)
def test_near_vectors_are_those_near_to_any_each_once(
    crowd: Crowd, kind: tuple[str, Precision], in_a_row: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgdefect.db.search.queries._IN_A_ROW", in_a_row)
    info, bank = crowd.banks[kind]
    queries = queries_for(bank.embeddings, 20, info.precision)
    nearest = np.argsort(pairwise(bank.metric, queries, bank.embeddings), axis=1)[:, :4]
    with crowd.database.connect() as connection:
        driver(connection).execute("SET LOCAL enable_seqscan = off")
        positions, vectors = near_vectors(connection, info, np.repeat(queries, 2, axis=0), ef=4)
        few, _ = near_vectors(connection, info, queries, ef=1)
        many, _ = near_vectors(connection, info, queries)
    assert positions.tolist() == sorted(set(positions.tolist()))
    np.testing.assert_array_equal(vectors, bank.embeddings[positions])
    assert len(np.setdiff1d(nearest, positions)) <= 0.3 * len(np.unique(nearest))
    assert len(few) <= 20 < len(positions) <= 80 < len(many) <= 20 * info.ef_search


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (1, 5), (4, 4), (3, 7)])
def test_every_other_patch_is_beside_each_that_is_left_out(rows: int, cols: int) -> None:
    asked = np.zeros((rows, cols), dtype=bool)
    asked.reshape(-1)[every_other((rows, cols))] = True
    assert asked.sum() == -(-rows * cols // 2)
    framed = np.pad(asked, 1)
    beside = framed[:-2, 1:-1] | framed[2:, 1:-1] | framed[1:-1, :-2] | framed[1:-1, 2:]
    assert (asked | beside).all()
    assert not (asked & beside).any()


@each_kind
@pytest.mark.parametrize("sent", [64, 2], ids="sent {}".format)
def test_the_largest_distance_is_proven_with_any_ef_search(
    crowd: Crowd, kind: tuple[str, Precision], sent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether all of an image's patches are sent, or the few worst and then more of them."""
    monkeypatch.setattr("pgdefect.db.search.queries._SENT_TO_PROVE", sent)
    info, bank = crowd.banks[kind]
    queries = queries_for(bank.embeddings, 300, info.precision)
    expected, exact = nearest_vectors(queries, bank.embeddings, bank.metric)
    overtaken = 0
    with crowd.database.connect() as connection:
        driver(connection).execute("SET LOCAL enable_seqscan = off")
        for start in range(0, 300, 30):
            part = slice(start, start + 30)
            found, hasty = score_patches(connection, info, queries[part], ef=1)
            positions, distances = prove_worst(connection, info, queries[part], found, hasty)
            worst = int(exact[part].argmax())
            assert distances.argmax() == worst
            assert positions[worst] == expected[part][worst]
            assert distances[worst] == pytest.approx(exact[part][worst], rel=1e-4, abs=1e-6)
            assert (distances >= exact[part] * (1 - 1e-4) - 1e-6).all()
            assert (distances <= hasty).all()
            of_positions = row_distances(queries[part], bank.embeddings[positions], bank.metric)
            np.testing.assert_allclose(distances, of_positions, rtol=1e-4, atol=1e-6)
            overtaken += int(hasty.argmax()) != worst
    assert overtaken, "the index alone would have named another patch the worst of some image"


@each_kind
@pytest.mark.parametrize(("num_patches", "num_worst"), [(20, 5), (200, 40), (200, 200)])
@pytest.mark.parametrize("sent", [64, 2], ids="sent {}".format)
def test_the_distances_that_a_mean_is_of_are_proven(
    crowd: Crowd,
    kind: tuple[str, Precision],
    num_patches: int,
    num_worst: int,
    sent: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pgdefect.db.search.queries._SENT_TO_PROVE", sent)
    info, bank = crowd.banks[kind]
    queries = queries_for(bank.embeddings, 200, info.precision)
    expected, exact = nearest_vectors(queries, bank.embeddings, bank.metric)
    mended = left_alone = 0
    with crowd.database.connect() as connection:
        driver(connection).execute("SET LOCAL enable_seqscan = off")
        for start in range(0, 200, num_patches):
            part = slice(start, start + num_patches)
            found, hasty = score_patches(connection, info, queries[part], ef=1)
            positions, distances = prove_worst(
                connection, info, queries[part], found, hasty, num_worst=num_worst
            )
            worst = np.argsort(-exact[part], kind="stable")[:num_worst]
            np.testing.assert_array_equal(positions[worst], expected[part][worst])
            np.testing.assert_allclose(distances[worst], exact[part][worst], rtol=1e-4, atol=1e-6)
            assert np.delete(distances, worst).max(initial=0.0) <= distances[worst].min() + 1e-6
            assert (distances >= exact[part] * (1 - 1e-4) - 1e-6).all()
            assert (distances <= hasty).all()
            mended += int((distances[worst] < hasty[worst] * 0.999).sum())
            left_alone += int(np.delete(distances == hasty, worst).sum())
    assert mended, "the index alone would have found all of them"
    assert left_alone or num_worst == 200, "only what matters is searched for again"


@each_kind
def test_nearer_patches_are_those_and_no_others(crowd: Crowd, kind: tuple[str, Precision]) -> None:
    info, bank = crowd.banks[kind]
    queries = queries_for(bank.embeddings, 12, info.precision)
    expected, exact = nearest_vectors(queries, bank.embeddings, bank.metric)
    known = exact.astype(float)
    known[:4] *= 1.5
    known[4] = np.nan  # sorts behind every number
    known[5:] *= 0.999
    vectors = VectorArray(as_stored(queries, info.precision))
    with crowd.database.connect() as connection:
        rows = driver(connection).execute(
            "SELECT * FROM pgdefect.nearer_patches(%s, %s, %s)",
            [info.id, vectors, known.tolist()],
            binary=True,
        )
        found = rows.fetchall()
    assert [row[:2] for row in found] == [(n, expected[n]) for n in range(5)]
    np.testing.assert_allclose([row[2] for row in found], exact[:5], rtol=1e-4, atol=1e-6)


# -- settings and sessions -----------------------------------------------------------------

CALLS = {
    "score_patches": "SELECT * FROM pgdefect.score_patches({bank}, ARRAY[{patch}::real[]::vector])",
    "near_vectors": "SELECT * FROM pgdefect.near_vectors({bank}, ARRAY[{patch}::real[]::vector])",
    "prove_worst": (
        "SELECT * FROM "
        "pgdefect.prove_worst({bank}, ARRAY[{patch}::real[]::vector], '{{0}}', '{{9}}')"
    ),
    "nearest_bank_vectors": "SELECT * FROM pgdefect.nearest_bank_vectors({bank}, {patch}::vector)",
    "nearest": "SELECT * FROM pgdefect.nearest('picture', {extractor}, {image}::vector)",
    "similar_images": "SELECT * FROM defect.similar_images('{id}')",
    "similar_patches": "SELECT * FROM defect.similar_patches({bank}, 3)",
}
each_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
SETTINGS = ("hnsw.ef_search", "hnsw.iterative_scan", "hnsw.max_scan_tuples", "search_path")


def filled(crowd: Crowd, call: str) -> str:
    info, bank = crowd.banks["cosine", "half"]

    def array(values: Float32) -> str:
        return "ARRAY[" + ",".join(map(str, values.tolist())) + "]"

    return call.format(
        bank=info.id,
        patch=array(bank.embeddings[0]),
        extractor=crowd.extractor_id,
        image=f"{array(crowd.vectors['picture'][0])}::real[]",
        id=crowd.images[0].id,
    )


@each_call
def test_settings_do_not_leak_from_a_call(crowd: Crowd, call: str) -> None:
    statement = filled(crowd, call)
    with psycopg.connect(crowd.database.url, autocommit=True) as connection:

        def settings() -> list[object]:
            return [
                (connection.execute("SELECT current_setting(%s)", [n]).fetchone() or [None])[0]
                for n in SETTINGS
            ]

        # The first call is the session's first use of pgvector.
        assert connection.execute(statement).fetchone()
        assert settings()[:2] == ["40", "off"]
        connection.execute("SET hnsw.ef_search = 77")
        connection.execute("SET hnsw.iterative_scan = relaxed_order")
        before = settings()
        assert before[:2] == ["77", "relaxed_order"]
        connection.execute(statement)
        assert settings() == before
        with connection.transaction():
            connection.execute("SET LOCAL hnsw.ef_search = 55")
            connection.execute(statement)
            assert settings()[0] == "55"
        assert settings() == before
        with connection.transaction(), pytest.raises(psycopg.Error), connection.transaction():
            connection.execute("SELECT * FROM defect.similar_patches(1, -1)")
        assert settings() == before


@pytest.fixture
def reader(crowd: Crowd) -> Iterator[str]:
    """A role that may look and nothing else; the schemas' functions are PUBLIC's to call."""
    with psycopg.connect(crowd.database.url, autocommit=True) as connection:
        for statement in (
            "CREATE ROLE reader_of_crowd",
            "GRANT USAGE ON SCHEMA pgdefect, defect TO reader_of_crowd",
            "GRANT SELECT ON ALL TABLES IN SCHEMA pgdefect, defect TO reader_of_crowd",
            "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA pgdefect, defect TO reader_of_crowd",
        ):
            connection.execute(statement)
        yield "reader_of_crowd"
        connection.execute("DROP OWNED BY reader_of_crowd")
        connection.execute("DROP ROLE reader_of_crowd")


@each_call
def test_reader_can_ask_as_the_first_statement_of_a_session(
    crowd: Crowd, reader: str, call: str
) -> None:
    with psycopg.connect(
        crowd.database.url, options=f"-c role={reader}", autocommit=True
    ) as connection:
        assert connection.execute(filled(crowd, call)).fetchone()
        row = connection.execute(
            "SELECT current_user, usesuper FROM pg_user WHERE usename = session_user"
        ).fetchone()
        assert row is not None
        assert row[0] == reader
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("DELETE FROM pgdefect.image")


@pytest.mark.parametrize("view", ["images", "inspections", "banks", "categories"])
def test_reader_can_read_the_views(crowd: Crowd, reader: str, view: str) -> None:
    with psycopg.connect(crowd.database.url, options=f"-c role={reader}") as connection:
        connection.execute(f"SELECT * FROM defect.{view} LIMIT 5").fetchall()


def test_every_metric_is_asked_with_the_operator_it_is_indexed_by(crowd: Crowd) -> None:
    with crowd.database.connect() as connection:
        for (name, precision), (info, _) in crowd.banks.items():
            definition = connection.scalar(
                text("SELECT pg_get_indexdef(CAST(:name AS regclass))"),
                {"name": f"pgdefect.memory_bank_patch_{info.id}_hnsw"},
            )
            operator = connection.scalar(
                text("SELECT operator FROM pgdefect.memory_bank WHERE id = :id"), {"id": info.id}
            )
            assert METRICS[name].operator_class(precision) in definition
            assert operator == METRICS[name].operator == ("<=>" if name == "cosine" else "<->")


def test_scores_of_no_patches_are_no_rows(crowd: Crowd) -> None:
    with crowd.database.connect() as connection:
        found = driver(connection).execute(
            "SELECT * FROM pgdefect.score_patches(%s, '{}'::vector[])",
            [crowd.banks["l2", "single"][0].id],
        )
        assert found.fetchall() == []
        worst = driver(connection).execute(
            "SELECT * FROM pgdefect.prove_worst(%s, '{}'::vector[], '{}', '{}')",
            [crowd.banks["l2", "single"][0].id],
        )
        assert worst.fetchall() == [([], [])]
