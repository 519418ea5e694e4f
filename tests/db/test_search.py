"""Filtered search by picture, defect and region: SQL beside NumPy, and the way chosen."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import numpy as np
import psycopg
import pytest
from crowds import Crowd, Picture
from rows import (
    add_defect_embeddings,
    add_defect_space,
    add_embeddings,
    add_extractor,
    add_images,
    add_regions,
    index_left_alone,
    index_scanned,
    memory_bank,
    store,
    unit_vectors,
)
from sqlalchemy import text

from pgdefect.core.distance import COSINE, as_stored, pairwise
from pgdefect.core.errors import Conflict, NotFound, UsageError
from pgdefect.core.types import Float32, SearchBy
from pgdefect.db.connection.engine import Database
from pgdefect.db.search.search import SearchFilter, explain_nearest, nearest, stored_region

KINDS: tuple[SearchBy, ...] = ("picture", "defect", "region")
TABLES = {"picture": "image_embedding", "defect": "defect_embedding", "region": "defect_region"}
each_kind = pytest.mark.parametrize("by", KINDS)
unfolded = partial(nearest, fold=False)


def index_of(crowd: Crowd, by: SearchBy) -> str:
    return f"{TABLES[by]}_{crowd.extractor_id}_hnsw"


def passing(crowd: Crowd, where: SearchFilter) -> list[int]:
    """Indices of the images a filter lets through: the reference."""
    excepted = [image for image in crowd.images if image.id in where.except_images]
    digests = {*where.except_sha256, *(image.sha256 for image in excepted)}
    parts = {(i.category, i.part) for i in excepted if i.part and where.except_part}

    def passes(image: Picture) -> bool:
        return (
            not image.retired
            and where.category in (None, image.category)
            and where.label in (None, image.label)
            and where.defect_type in (None, image.defect_type)
            and (image.defect_type is not None or not where.has_defect_type)
            and where.split in (None, image.split)
            and where.part in (None, image.part)
            and (where.attributes or {}).get("line", image.line) == image.line
            and image.id not in where.except_images
            and image.sha256 not in digests
            and (image.category, image.part) not in parts
        )

    return [n for n, image in enumerate(crowd.images) if passes(image)]


def reference(
    crowd: Crowd, by: SearchBy, query: Float32, k: int, where: SearchFilter, fold: bool = False
) -> list[tuple[int, float, int]]:
    """Id, distance and number of copies of the k nearest images, by comparing with all."""
    allowed = np.isin(crowd.owners[by], passing(crowd, where))
    distances = pairwise(COSINE, query[None], crowd.vectors[by])[0]
    distances[~allowed] = np.inf
    rows: list[tuple[Picture, int]] = []
    seen: dict[int, int] = {}
    found: list[list[Any]] = []
    for n in np.argsort(distances, kind="stable"):
        image = crowd.images[crowd.owners[by][n]]
        if not distances[n] <= (np.inf if where.max_distance is None else where.max_distance):
            break
        if np.isinf(distances[n]):
            break
        if image.id in seen:
            continue
        same = next(
            (
                seen[other.id]
                for other, m in rows
                if other.sha256 == image.sha256
                or (image.part and (other.category, other.part) == (image.category, image.part))
                or np.array_equal(crowd.vectors[by][m], crowd.vectors[by][n])
            ),
            None,
        )
        rows.append((image, int(n)))
        if fold and same is not None:
            seen[image.id] = same
            found[same][2] += 1
        elif len(found) == k:
            break
        else:
            seen[image.id] = len(found)
            found.append([image.id, float(distances[n]), 1])
    return [tuple(row) for row in found]


def query_vector(crowd: Crowd, by: SearchBy, seed: int = 0) -> Float32:
    """Near a vector of a training image of category a that is not rare."""
    rng = np.random.default_rng(seed)
    near = next(
        n
        for n in rng.permutation(len(crowd.vectors[by]))
        if crowd.images[crowd.owners[by][n]].split == "train"
        and crowd.images[crowd.owners[by][n]].category == "a"
        and not crowd.images[crowd.owners[by][n]].defect_type
    )
    vector = crowd.vectors[by][near]
    moved = vector + 0.1 * rng.standard_normal(vector.shape) / np.sqrt(len(vector))
    return np.asarray(moved / np.linalg.norm(moved), dtype=np.float32)


FILTERS = {
    "none": SearchFilter(),
    "category": SearchFilter(category="b"),
    "half": SearchFilter(label="normal", split="train"),
    "one in twenty": SearchFilter(attributes={"line": 3}),
    "one in two hundred": SearchFilter(defect_type="rare"),
    "the same by label": SearchFilter(category="a", label="anomalous", has_defect_type=True),
    "one row": SearchFilter(defect_type="single"),
    "part": SearchFilter(part="part3"),
    "no row": SearchFilter(category="b", defect_type="rare"),
    "unknown category": SearchFilter(category="'; DROP TABLE pgdefect.image; --"),
    "retired category": SearchFilter(category="gone"),
    "near": SearchFilter(max_distance=0.2),
    "near and few": SearchFilter(attributes={"line": 3}, max_distance=0.4),
}
each_filter = pytest.mark.parametrize("where", FILTERS.values(), ids=FILTERS.keys())


@each_kind
@each_filter
@pytest.mark.parametrize("fold", [False, True], ids=["unfolded", "folded"])
def test_exact_search_equals_numpy(
    crowd: Crowd, by: SearchBy, where: SearchFilter, fold: bool
) -> None:
    query = query_vector(crowd, by)
    found = nearest(crowd.database, by, crowd.extractor_id, query, 20, where, exact=True, fold=fold)
    expected = reference(crowd, by, query, 20, where, fold)
    assert [(n.image.id, n.copies) for n in found] == [(i, copies) for i, _, copies in expected]
    assert [n.rank for n in found] == list(range(1, len(found) + 1))
    np.testing.assert_allclose(
        [n.distance for n in found], [distance for _, distance, _ in expected], atol=1e-6
    )


@each_kind
@each_filter
def test_search_gives_k_of_the_nearest_where_k_exist(
    crowd: Crowd, by: SearchBy, where: SearchFilter
) -> None:
    hits = wanted = 0
    for seed, k in enumerate([1, 10, 10, 10, 200]):
        query = query_vector(crowd, by, seed)
        found = unfolded(crowd.database, by, crowd.extractor_id, query, k, where)
        expected = reference(crowd, by, query, k, where)
        assert len(found) == len({n.image.id for n in found}) == len(expected)
        distances = [n.distance for n in found]
        assert distances == sorted(distances)
        hits += len({n.image.id for n in found} & {row[0] for row in expected})
        wanted += len(expected)
    assert hits >= 0.97 * wanted


WAYS: dict[str, tuple[SearchFilter, str]] = {
    "none": (SearchFilter(), "index"),
    "what search asks": (
        SearchFilter(category="a", except_images=(1,), except_sha256=("0" * 64,)),
        "index",
    ),
    "half": (SearchFilter(split="train"), "index"),
    "one in twenty": (SearchFilter(attributes={"line": 4}), "exact"),
    "one in two hundred": (SearchFilter(defect_type="rare"), "exact"),
    "one row": (SearchFilter(defect_type="single"), "exact"),
}


@each_kind
@pytest.mark.parametrize(("where", "way"), WAYS.values(), ids=WAYS.keys())
def test_the_way_explained_is_the_way_gone(
    crowd: Crowd, by: SearchBy, where: SearchFilter, way: str
) -> None:
    """Twenty queries; the index is walked once each or not at all, and finds the nearest."""
    queries = [query_vector(crowd, by, seed) for seed in range(20)]
    plan = explain_nearest(crowd.database, by, crowd.extractor_id, 10, where)
    assert plan.way == way
    assert f"{plan.partition}_hnsw" == index_of(crowd, by)
    allowed = np.isin(crowd.owners[by], passing(crowd, where)).sum()
    assert plan.scanned == pytest.approx(allowed, rel=0.3, abs=30)
    expects = index_scanned if way == "index" else index_left_alone
    with expects(crowd.database, index_of(crowd, by), *([20] if way == "index" else [])):
        found = [
            nearest(crowd.database, by, crowd.extractor_id, query, 10, where) for query in queries
        ]
    hits = total = 0
    for query, neighbors in zip(queries, found, strict=True):
        expected = reference(crowd, by, query, 10, where, fold=True)
        assert len(neighbors) == len(expected)
        hits += len({n.image.id for n in neighbors} & {row[0] for row in expected})
        total += len(expected)
    assert hits >= 0.97 * total
    with index_left_alone(crowd.database, index_of(crowd, by)):
        nearest(crowd.database, by, crowd.extractor_id, queries[0], 10, where, exact=True)


def test_what_is_explained_is_what_was_asked_for(crowd: Crowd) -> None:
    """Said to be exact, or not to fold, a search is explained as that one."""
    few = SearchFilter(attributes={"line": 4})
    folded = explain_nearest(crowd.database, "defect", crowd.extractor_id, 10, few)
    unfolded = explain_nearest(crowd.database, "defect", crowd.extractor_id, 10, few, fold=False)
    assert folded.walked > 2 * unfolded.walked
    said = explain_nearest(
        crowd.database, "defect", crowd.extractor_id, 10, SearchFilter(), exact=True
    )
    assert said.way == "exact"
    assert str(said).startswith("exact scan of defect_embedding_")


def test_a_walk_that_finds_nothing_ends_in_a_scan(crowd: Crowd) -> None:
    """Half the rows pass the filter, and lie where a walk from the query would come to last."""
    where = SearchFilter(split="test")
    query = query_vector(crowd, "defect")
    assert explain_nearest(crowd.database, "defect", crowd.extractor_id, 10, where).way == "index"
    with index_scanned(crowd.database, index_of(crowd, "defect")):
        found = unfolded(crowd.database, "defect", crowd.extractor_id, query, 10, where)
    expected = reference(crowd, "defect", query, 10, where)
    assert [n.image.id for n in found] == [row[0] for row in expected]


def test_an_estimate_too_low_is_found_out_by_counting(database: Database) -> None:
    """Attributes hang together in a way no statistics show: each halves the estimate."""
    extractor = add_extractor(database, 8)
    ids = add_images(
        database,
        "parts",
        2400,
        attributes=lambda n: {f"a{i}": int(n % 4 == 0) for i in range(8)},
    )
    add_embeddings(database, extractor, ids, unit_vectors(1, 2400, 8))
    where = SearchFilter(attributes={f"a{i}": 0 for i in range(8)})
    with database.autocommit() as connection:
        connection.execute("ALTER TABLE pgdefect.image ALTER attributes SET STATISTICS 0")
        connection.execute("DELETE FROM pg_statistic WHERE starelid = 'pgdefect.image'::regclass")
    plan = explain_nearest(database, "picture", extractor, 10, where)
    assert plan.counted
    assert plan.way == "index"
    assert plan.scanned == 1800


def test_a_table_thought_to_be_empty_is_searched_all_the_same(database: Database) -> None:
    extractor = add_extractor(database, 8)
    vectors = unit_vectors(1, 700, 8)
    ids = add_images(database, "parts", 700)
    add_embeddings(database, extractor, ids, vectors)
    with database.autocommit() as connection:
        connection.execute(
            "UPDATE pg_class SET reltuples = 1 WHERE oid IN ('pgdefect.image'::regclass, "
            f"'pgdefect.image_embedding_{extractor}'::regclass)"
        )
    found = nearest(database, "picture", extractor, vectors[5], 3, SearchFilter())
    assert found[0].image.id == ids[5]
    assert len(found) == 3


def test_a_crowd_of_copies_takes_no_place_from_others(database: Database) -> None:
    """More copies than are looked at first: the search goes on until k different ones are found."""
    extractor = add_extractor(database, 8)
    ids = add_images(database, "parts", 700, group_name=lambda n: "one" if n < 600 else None)
    vectors = unit_vectors(3, 700, 8)
    vectors[:600, 0] += 20
    vectors = as_stored(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), "half")
    add_embeddings(database, extractor, ids, vectors)
    query = np.eye(8, dtype=np.float32)[0]
    found = nearest(database, "picture", extractor, query, 5, SearchFilter())
    assert len(found) == 5
    assert found[0].image.part == "one"
    assert [n.copies for n in found] == [600, 1, 1, 1, 1]
    unlisted = nearest(database, "picture", extractor, query, 5, SearchFilter(), fold=False)
    assert {n.image.part for n in unlisted} == {"one"}
    assert [n.copies for n in unlisted] == [1] * 5


def test_search_leaves_out_the_examples_their_copies_and_their_parts(crowd: Crowd) -> None:
    query = next(n for n, i in enumerate(crowd.images) if i.category == "a" and i.number == 700)
    image = crowd.images[query]
    copy = next(i for i in crowd.images if i.category == "a" and i.number == 799)
    assert image.sha256 == copy.sha256
    mates = {
        i.id for i in crowd.images if (i.category, i.part) == ("a", image.part) and not i.retired
    }
    assert len(mates) > 5
    search = partial(
        unfolded, crowd.database, "picture", crowd.extractor_id, crowd.vectors["picture"][query]
    )
    everything = len(passing(crowd, SearchFilter()))
    found = search(9000, SearchFilter(except_images=(image.id,)))
    assert {image.id, copy.id}.isdisjoint(n.image.id for n in found)
    assert mates - {image.id} <= {n.image.id for n in found}
    assert len(found) == everything - 2
    with crowd.database.connect() as connection:
        asked = text(
            "SELECT image_id FROM defect.similar_images(CAST(:image AS text), k => 9000, "
            "by => 'picture', fold => false, own_copies => :copies)"
        )
        shown = {
            copies: set(connection.scalars(asked, {"image": image.id, "copies": copies}))
            for copies in (False, True)
        }
    assert shown[True] - shown[False] == {copy.id}
    assert image.id not in shown[True]
    found = search(9000, SearchFilter(except_images=(image.id,), except_part=True))
    assert mates.isdisjoint(n.image.id for n in found)
    found = search(9000, SearchFilter(except_sha256=(image.sha256,)))
    assert len(found) == everything - 2
    other = next(i for i in crowd.images if i.category == "b" and i.part and not i.retired)
    where = SearchFilter(except_images=(image.id, other.id), except_part=True)
    found = search(9000, where)
    assert len(found) == len(passing(crowd, where))


def test_images_of_no_part_are_not_taken_for_one_part(crowd: Crowd) -> None:
    image = next(i for i in crowd.images if i.part is None and not i.retired)
    where = SearchFilter(except_images=(image.id,), except_part=True)
    vector = crowd.vectors["picture"][0]
    found = unfolded(crowd.database, "picture", crowd.extractor_id, vector, 9000, where)
    assert len(found) == len(passing(crowd, where)) > 5000


def test_retired_images_and_categories_are_never_found(crowd: Crowd) -> None:
    retired = {image.id: n for n, image in enumerate(crowd.images) if image.retired}
    for n in list(retired.values())[::25]:
        for exact in (False, True):
            found = nearest(
                crowd.database,
                "picture",
                crowd.extractor_id,
                crowd.vectors["picture"][n],
                10,
                SearchFilter(),
                exact=exact,
            )
            assert len(found) == 10
            assert retired.keys().isdisjoint(neighbor.image.id for neighbor in found)


def test_questions_that_make_no_sense_are_refused(crowd: Crowd) -> None:
    ask = partial(nearest, crowd.database)
    vector = crowd.vectors["picture"][0]
    with pytest.raises(Conflict, match=r"7 dimensions, and .* extractor 1 .* by picture has 32"):
        ask("picture", crowd.extractor_id, unit_vectors(0, 1, 7)[0], 3, SearchFilter())
    with pytest.raises(Conflict, match="by defect has 16"):
        ask("defect", crowd.extractor_id, vector, 3, SearchFilter())
    with pytest.raises(NotFound, match="no extractor 77"):
        ask("picture", 77, vector, 3, SearchFilter())
    with pytest.raises(UsageError, match=r"no search by 'mask'.*picture, defect or region"):
        ask("mask", crowd.extractor_id, vector, 3, SearchFilter())
    with pytest.raises(UsageError, match="no label 'good'"):
        ask("picture", crowd.extractor_id, vector, 3, SearchFilter(label="good"))
    with pytest.raises(UsageError, match="no split 'val'"):
        ask("picture", crowd.extractor_id, vector, 3, SearchFilter(split="val"))
    with pytest.raises(UsageError, match="k must be at least 1"):
        ask("picture", crowd.extractor_id, vector, 0, SearchFilter())


def test_without_defect_embeddings_it_says_what_to_do(database: Database) -> None:
    extractor = add_extractor(database, 8)
    with pytest.raises(NotFound, match=r"no defect embeddings yet.*pgdefect embed"):
        nearest(database, "defect", extractor, unit_vectors(0, 1, 8)[0], 3, SearchFilter())


def test_extractors_do_not_meet_in_one_search(database: Database) -> None:
    ids = add_images(database, "parts", 40)
    first, second = add_extractor(database, 8, "first"), add_extractor(database, 8, "second")
    vectors = unit_vectors(2, 40, 8)
    add_embeddings(database, first, ids[:20], vectors[:20])
    add_embeddings(database, second, ids[20:], vectors[20:])
    found = nearest(database, "picture", first, vectors[30], 40, SearchFilter())
    assert {n.image.id for n in found} == set(ids[:20])


# -- SQL for analysts ----------------------------------------------------------------------


@pytest.fixture
def inspected(database: Database) -> tuple[Database, list[int], Float32]:
    """Twelve images; the first eight were found anomalous and have two regions each."""
    extractor = add_extractor(database, 8)
    ids = add_images(database, "parts", 12, defect_type=None)
    detector = store(database, "parts", extractor, memory_bank(unit_vectors(0, 20, 8), ids))
    vectors = as_stored(unit_vectors(1, 40, 8), "half")
    add_embeddings(database, extractor, ids, vectors[:12])
    add_defect_space(database, extractor, 8)
    add_defect_embeddings(database, extractor, detector, ids[:8], vectors[12:20])
    add_regions(database, extractor, detector, [*ids[:8], *ids[:8]], vectors[20:36])
    with database.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO pgdefect.inspection (image_id, detector_id, raw_score, "
                "normalized_score, threshold, worst_row, worst_col, anomaly_map, search) "
                "SELECT i, :detector, CASE WHEN n <= 8 THEN 2 ELSE 0 END, 0.5, 1, 0, 0, "
                "'{{0}}', 'exact' FROM unnest(CAST(:ids AS bigint[])) WITH ORDINALITY u(i, n)"
            ),
            {"detector": detector, "ids": ids},
        )
    return database, ids, vectors


def similar(database: Database, arguments: str, function: str = "images") -> list[Any]:
    with database.connect() as connection:
        return list(
            connection.execute(text(f"SELECT * FROM defect.similar_{function}({arguments})")).all()
        )


def test_similar_images_in_sql_equals_the_search(crowd: Crowd) -> None:
    image = crowd.images[123]
    where = SearchFilter(
        category="a", label="anomalous", except_images=(image.id,), except_part=True
    )
    vector = crowd.vectors["picture"][123]
    expected = nearest(crowd.database, "picture", crowd.extractor_id, vector, 10, where, exact=True)
    rows = similar(
        crowd.database,
        f"'{image.id}', category => 'a', label => 'anomalous', exclude_part => true",
    )
    assert [row.image_id for row in rows] == [n.image.id for n in expected]
    assert [row.rank for row in rows] == list(range(1, 11))
    for row, neighbor in zip(rows, expected, strict=True):
        assert row.distance == pytest.approx(neighbor.distance, abs=1e-6)
        assert row.similarity == pytest.approx(1 - row.distance)
        assert (row.category, row.known_label) == ("a", "anomalous")
        assert (row.path, row.copies) == (neighbor.image.path, neighbor.copies)
        assert (row.searched_by, row.region_id) == ("picture", None)


def test_an_anomalous_image_is_searched_by_its_defect(
    inspected: tuple[Database, list[int], Float32],
) -> None:
    database, ids, vectors = inspected
    by_defect = pairwise(COSINE, vectors[12:13], vectors[13:20])[0]
    rows = similar(database, f"'{ids[0]}'")
    assert {row.searched_by for row in rows} == {"defect"}
    assert [row.image_id for row in rows] == [ids[1 + n] for n in by_defect.argsort()]
    assert {row.region_box for row in rows} == {"8,8,8,8"}
    assert {row.searched_by for row in similar(database, f"'{ids[10]}'")} == {"picture"}
    with pytest.raises(NotFound, match=r"no defect embedding.*search by picture"):
        similar(database, f"'{ids[10]}', by => 'defect'")
    with pytest.raises(UsageError, match="no search by 'looks'"):
        similar(database, f"'{ids[0]}', by => 'looks'")


def test_regions_find_the_best_region_of_each_image(
    inspected: tuple[Database, list[int], Float32],
) -> None:
    database, ids, vectors = inspected
    each = pairwise(COSINE, vectors[20:21], vectors[20:36])[0].reshape(2, 8)
    order = each.min(axis=0)[1:].argsort() + 1
    rows = similar(database, f"'{ids[0]}', by => 'region'")
    assert [row.image_id for row in rows] == [ids[n] for n in order]
    regions = [stored_region(database, row.region_id) for row in rows]
    assert [region.image.id for region in regions] == [row.image_id for row in rows]
    for n, region in zip(order, regions, strict=True):
        np.testing.assert_array_equal(region.embedding, vectors[20 + 8 * each[:, n].argmin() + n])
    first = similar(database, f"{rows[0].region_id}, k => 3", "regions")
    assert first[0].searched_by == "region"
    assert rows[0].image_id not in {row.image_id for row in first}
    with pytest.raises(NotFound, match="no region 999"):
        similar(database, "999", "regions")
    with pytest.raises(NotFound, match="no region 999"):
        stored_region(database, 999)


def test_examples_and_counter_examples(inspected: tuple[Database, list[int], Float32]) -> None:
    database, ids, vectors = inspected
    pictures = vectors[:12] / np.linalg.norm(vectors[:12], axis=1, keepdims=True)
    query = pictures[[0, 1]].mean(axis=0) - 0.5 * pictures[[2, 3]].mean(axis=0)
    expected = pairwise(COSINE, query[None], vectors[4:12])[0]
    rows = similar(
        database,
        f"'{ids[0]}', by => 'picture', also_like => '{{{ids[1]}}}', "
        f"unlike => '{{{ids[2]},{ids[3]}}}'",
    )
    assert [row.image_id for row in rows] == [ids[4 + n] for n in expected.argsort()]
    np.testing.assert_allclose([row.distance for row in rows], np.sort(expected), atol=1e-6)


def test_a_review_counts_at_once(inspected: tuple[Database, list[int], Float32]) -> None:
    database, ids, _ = inspected
    assert similar(database, f"'{ids[0]}', defect_type => 'crack'") == []
    with database.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO pgdefect.review (image_id, label, defect_type) "
                "VALUES (:id, 'anomalous', 'crack')"
            ),
            {"id": ids[3]},
        )
    [row] = similar(database, f"'{ids[0]}', defect_type => 'crack'")
    assert (row.image_id, row.known_label, row.known_defect_type) == (ids[3], "anomalous", "crack")
    where = SearchFilter(has_defect_type=True)
    [found] = nearest(database, "picture", 1, unit_vectors(0, 1, 8)[0], 5, where)
    assert found.image.known_defect_type == "crack"


def test_times_restrict(inspected: tuple[Database, list[int], Float32]) -> None:
    database, ids, vectors = inspected
    start = datetime(2020, 1, 1, tzinfo=UTC)
    with database.begin() as connection:
        connection.execute(
            text(
                "UPDATE pgdefect.image SET created_at = "
                "CAST(:start AS timestamptz) + id * interval '1 day'"
            ),
            {"start": start - timedelta(days=ids[0])},
        )
    where = SearchFilter(since=start + timedelta(days=2), until=start + timedelta(days=5))
    found = nearest(database, "picture", 1, vectors[0], 10, where)
    assert {n.image.id for n in found} == set(ids[2:5])
    rows = similar(
        database, f"'{ids[0]}', by => 'picture', since => '2020-01-03Z', until => '2020-01-06Z'"
    )
    assert {row.image_id for row in rows} == set(ids[2:5])


def test_neighbors_carry_their_regions(inspected: tuple[Database, list[int], Float32]) -> None:
    database, ids, vectors = inspected
    for by, number in (("picture", None), ("defect", 1), ("region", 16)):
        found = nearest(database, by, 1, vectors[35], 10, SearchFilter())
        if number is None:
            assert {n.region for n in found} == {None}
            continue
        with database.connect() as connection:
            ranks = dict(
                connection.execute(text("SELECT id, rank FROM pgdefect.defect_region")).all()
            )
        regions = [n.region for n in found if n.region is not None]
        assert len(regions) == len(found) == 8
        assert {region.box for region in regions} == {(8, 8, 8, 8)}
        if by == "defect":
            assert {ranks[region.id] for region in regions} == {1}
        else:
            assert ranks[regions[0].id] == 2
            assert found[0].image.id == ids[7]


def test_a_reader_is_told_of_a_wrong_filter(crowd: Crowd) -> None:
    with (
        psycopg.connect(crowd.database.url) as connection,
        pytest.raises(psycopg.Error, match="no filter called 'color', 'size'"),
    ):
        connection.execute('SELECT pgdefect.search_condition(\'{"size": 1, "color": 2}\')')
