"""Three ways to search, one image score."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import text

from pgdefect.cli.main import run
from pgdefect.config import Settings
from pgdefect.db.detectors import active_detector
from pgdefect.db.engine import Database
from pgdefect.errors import ImageError
from pgdefect.pipeline.inspect import inspect
from pgdefect.pipeline.inspector import Inspector
from pgdefect.pipeline.patch_search import SearchKind, SqlSearch, open_search
from pgdefect.types import Inspection


def judge(
    database: Database, settings: Settings, paths: list[str], kind: SearchKind
) -> list[Inspection]:
    def on_error(index: int, error: ImageError) -> None:
        raise error

    inspector = Inspector(database, settings, "parts", kind)
    return [judged.inspection for batch in inspector.judge(paths, on_error) for _, judged in batch]


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
