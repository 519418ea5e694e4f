"""Three ways to search, one image score."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import text

from pgdefect.cli.main import run
from pgdefect.core.config import Settings
from pgdefect.core.distance import as_stored, row_distances
from pgdefect.core.errors import ImageError
from pgdefect.core.types import Inspection
from pgdefect.db.connection.engine import Database
from pgdefect.db.records.detectors import active_detector
from pgdefect.usecases.common.patch_search import SearchKind, SqlSearch, open_search, score_image
from pgdefect.usecases.inspect.inspect import inspect
from pgdefect.usecases.inspect.inspector import Inspector
from pgdefect.vision.patchcore.transform import apply_transform

pytestmark = pytest.mark.train


def judge(
    database: Database, settings: Settings, paths: list[str], kind: SearchKind
) -> list[Inspection]:
    inspector = Inspector(database, settings, "parts", kind)
    return [judged.inspection for batch in inspector.judge(paths, _refuse) for _, judged in batch]


def _refuse(index: int, error: ImageError) -> None:
    raise error


@pytest.fixture
def paths(parts: Path) -> list[str]:
    return sorted(str(path) for path in (parts / "test").rglob("*.png"))


@pytest.mark.parametrize(("num_neighbors", "worst_share"), [(1, 0.0), (5, 0.0), (1, 0.05)])
@pytest.mark.parametrize("ef_search_fast", [None, 1])
def test_hnsw_fast_and_exact_give_the_same_image_scores(
    trained: Database,
    settings: Settings,
    paths: list[str],
    num_neighbors: int,
    worst_share: float,
    ef_search_fast: int | None,
) -> None:
    """However little the index looks at: the largest distances are proven, or looked at longer."""
    with trained.begin() as connection:
        connection.execute(
            text(
                "UPDATE pgdefect.memory_bank SET num_neighbors = :n, "
                "worst_share = :share, ef_search_fast = coalesce(:ef, ef_search_fast)"
            ),
            {"n": num_neighbors, "share": worst_share, "ef": ef_search_fast},
        )
    exact, hnsw, fast = (
        judge(trained, settings, paths, kind) for kind in ("exact", "hnsw", "fast")
    )
    for judged in exact:
        worst = np.sort(judged.scores.distances.reshape(-1))[::-1]
        if num_neighbors == 1:
            count = max(1, round(worst_share * worst.size))
            assert judged.raw_score == pytest.approx(worst[:count].mean(), rel=1e-5)
    for other in (hnsw, fast):
        np.testing.assert_allclose(
            [i.raw_score for i in other], [i.raw_score for i in exact], rtol=1e-4
        )
        assert [i.verdict for i in other] == [i.verdict for i in exact]
        for ours, true in zip(other, exact, strict=True):
            # What the index finds is an upper bound, and the worst patch is the same.
            assert (ours.scores.distances >= true.scores.distances * (1 - 1e-4) - 1e-6).all()


@pytest.mark.parametrize("worst_share", [0.0, 0.05])
def test_an_image_shared_out_among_threads_has_the_same_score(
    trained: Database, paths: list[str], settings: Settings, worst_share: float
) -> None:
    with trained.begin() as connection:
        connection.execute(
            text("UPDATE pgdefect.memory_bank SET worst_share = :share, ef_search_fast = 1"),
            {"share": worst_share},
        )
    [judged] = Inspector(trained, settings, "parts").judge(paths[:1], _refuse)
    embedded = judged[0][1].embedded_patches.patches
    bank = active_detector(trained, "parts").bank
    vectors = as_stored(
        apply_transform(bank.transform, embedded.reshape(-1, embedded.shape[-1])), bank.precision
    )
    exact = open_search(trained, bank, "exact")
    whole = score_image(exact, vectors, embedded.shape[:2])
    kinds: tuple[SearchKind, ...] = ("exact", "fast")
    for kind in kinds:
        search = open_search(trained, bank, kind)
        # More threads than a part has patches, too.
        for num_threads in (2, 3, 7, len(vectors) + 1 if kind == "exact" else 5):
            shared = score_image(search, vectors, embedded.shape[:2], num_threads)
            assert shared.raw_score == pytest.approx(whole.raw_score, rel=1e-4)
            assert (shared.worst_row, shared.worst_col) == (whole.worst_row, whole.worst_col)
            of_positions = row_distances(
                vectors, exact.vectors[shared.positions.reshape(-1)], bank.metric
            )
            np.testing.assert_allclose(
                shared.distances.reshape(-1), of_positions, rtol=1e-3, atol=1e-6
            )


def test_fast_uses_its_own_setting(trained: Database) -> None:
    bank = active_detector(trained, "parts").bank
    assert 1 <= bank.ef_search_fast <= bank.ef_search
    fast, hnsw = (open_search(trained, bank, kind) for kind in ("fast", "hnsw"))
    assert isinstance(fast, SqlSearch)
    assert isinstance(hnsw, SqlSearch)
    assert (fast.ef, hnsw.ef) == (bank.ef_search_fast, None)


def test_the_way_of_searching_is_recorded(
    trained: Database, settings: Settings, paths: list[str]
) -> None:
    inspect(trained, settings, "parts", [Path(paths[0])], search="fast")
    with trained.connect() as connection:
        kinds = connection.scalars(
            text("SELECT search FROM defect.inspections ORDER BY created_at DESC LIMIT 1")
        ).all()
    assert kinds == ["fast"]


def test_the_command_line_knows_all_three(
    trained: Database, paths: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--database-url", trained.url, "inspect", paths[0], "--category", "parts"]
    for kind in ("hnsw", "fast", "exact"):
        assert run([*command, "--search", kind]) == 0
    capsys.readouterr()
    assert run([*command, "--search", "slow"]) == 2
    assert "hnsw, fast or exact" in capsys.readouterr().err
