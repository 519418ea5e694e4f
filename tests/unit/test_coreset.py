"""k-center greedy against the plain algorithm, which recomputes every distance."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgdefect.core import threads
from pgdefect.core.errors import MissingExtra
from pgdefect.vision.patchcore import coreset
from pgdefect.vision.patchcore.coreset import CoresetResult, k_center_greedy

Array = npt.NDArray[np.generic]


def plain_greedy(points: Array, first: int, num_centers: int) -> list[int]:
    """One float64 pass over all points for every pick."""
    points = points.astype(np.float64)
    nearest = np.full(len(points), np.inf)
    picks = [first]
    while True:
        nearest = np.minimum(nearest, ((points - points[picks[-1]]) ** 2).sum(axis=1))
        nearest[picks] = -np.inf
        if len(picks) == num_centers:
            return picks
        picks.append(int(nearest.argmax()))


def assert_greedy(points: Array, result: CoresetResult, num_centers: int) -> None:
    """Each pick is as far from those before it as any point is, up to float32 rounding.

    Holds whichever of several equally far points was picked.
    """
    points = points.astype(np.float64)
    picks = result.indices
    assert picks.dtype == np.int64
    assert picks.shape == (num_centers,)
    assert len(set(picks.tolist())) == num_centers
    centered = ((points - points.mean(axis=0)) ** 2).sum(axis=1)
    tolerance = 1e-5 * centered.max() + 1e-30
    nearest = np.full(len(points), np.inf)
    for pick, following in zip(picks, [*picks[1:], None], strict=True):
        nearest = np.minimum(nearest, ((points - points[pick]) ** 2).sum(axis=1))
        if following is not None:
            assert nearest[following] >= nearest.max() - tolerance
    assert result.covering_radius**2 == pytest.approx(nearest.max(), rel=1e-6, abs=tolerance)


@st.composite
def point_sets(draw: st.DrawFn) -> Array:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = draw(st.integers(1, 300))
    dim = draw(st.sampled_from([1, 2, 7, 40]))
    points = rng.normal(size=(size, dim))
    kind = draw(st.sampled_from(["random", "clustered", "lattice", "repeated", "equal"]))
    if kind == "clustered":
        points = 0.05 * points + 5 * rng.normal(size=(6, dim))[rng.integers(6, size=size)]
    elif kind == "lattice":
        points = points.round()
    elif kind == "repeated":
        points = points[rng.integers(max(1, size // 10), size=size)]
    elif kind == "equal":
        points[:] = points[0]
    points += draw(st.sampled_from([0.0, 30.0])) * rng.normal(size=dim)
    return points.astype(draw(st.sampled_from([np.float32, np.float16, np.float64])))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a few hundred points pass through what takes tens of thousands otherwise."""
    monkeypatch.setattr(coreset, "_ROWS", 32)
    monkeypatch.setattr(coreset, "_CENTERS", 16)
    monkeypatch.setattr(coreset, "_CANDIDATES", 8)


@given(points=point_sets(), fraction=st.floats(0, 1), seed=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_every_pick_is_the_farthest(points: Array, fraction: float, seed: int) -> None:
    num_centers = max(1, round(fraction * len(points)))
    result = k_center_greedy(points, num_centers, seed=seed)
    assert_greedy(points, result, num_centers)


@pytest.mark.usefixtures("small_blocks")
def test_every_pick_is_the_farthest_through_many_blocks() -> None:
    @given(points=point_sets(), fraction=st.floats(0, 1), seed=st.integers(0, 5))
    @settings(max_examples=100, deadline=None)
    def check(points: Array, fraction: float, seed: int) -> None:
        num_centers = max(1, round(fraction * len(points)))
        assert_greedy(points, k_center_greedy(points, num_centers, seed=seed), num_centers)

    check()


def patch_like(size: int, dim: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Clustered, with a spectrum that decays and tails that are heavy, like patches."""
    rng = np.random.default_rng(seed)
    scales = np.arange(1, dim + 1) ** -0.7
    centers = 3 * rng.normal(size=(40, dim)) * scales
    spread = rng.gamma(2.0, 0.5, size=(size, 1))
    noise = rng.normal(size=(size, dim)) * scales * spread
    return (centers[rng.integers(40, size=size)] + noise).astype(np.float32)


@pytest.mark.parametrize("device", [None, "cpu"])
def test_the_sequence_is_the_plain_algorithms(device: str | None) -> None:
    if device is not None:
        pytest.importorskip("torch")
    # Of 24 seeds the one whose closest race, 3e-7 of the largest squared norm, is widest:
    # float32 cannot decide much closer ones.
    points = patch_like(5000, 65, seed=10)
    result = k_center_greedy(points, 1000, device=device)
    assert result.indices.tolist() == plain_greedy(points, int(result.indices[0]), 1000)
    assert_greedy(points, result, 1000)


def test_the_sequence_does_not_depend_on_the_number_of_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    points = patch_like(3000, 20)
    expected = k_center_greedy(points, 500)
    monkeypatch.setattr(threads, "num_cpus", lambda: 5)
    assert k_center_greedy(points, 500).indices.tolist() == expected.indices.tolist()


def test_a_shorter_coreset_is_a_prefix() -> None:
    points = patch_like(2000, 10)
    longer = k_center_greedy(points, 400).indices
    assert k_center_greedy(points, 150).indices.tolist() == longer[:150].tolist()


@pytest.mark.usefixtures("small_blocks")
def test_equal_points_are_each_picked_once() -> None:
    points = np.full((200, 3), 0.1, dtype=np.float32)
    result = k_center_greedy(points, 200)
    assert sorted(result.indices.tolist()) == list(range(200))
    assert result.covering_radius == 0.0


@pytest.mark.usefixtures("small_blocks")
def test_distinct_points_come_before_copies() -> None:
    distinct = patch_like(60, 8)
    points = np.concatenate([distinct, distinct, distinct])
    result = k_center_greedy(points, 60)
    assert sorted(set(result.indices % 60)) == list(range(60))
    assert result.covering_radius == 0.0


@pytest.mark.usefixtures("small_blocks")
def test_equally_distant_points_are_picked_a_block_at_a_time() -> None:
    blocks: list[int] = []
    k_center_greedy(np.eye(300), 299, progress=lambda done, total: blocks.append(done))
    assert len(blocks) < 60


def test_covering_radius_of_points_on_a_line() -> None:
    result = k_center_greedy(np.arange(12.0)[:, None], 3, seed=0)
    assert result.indices[0] == np.random.default_rng(0).integers(12) == 10
    assert result.indices.tolist() == [10, 0, 5]
    assert result.covering_radius == 2.0


def test_covering_radius_is_exact_far_from_the_origin() -> None:
    points = np.array([[1e4, 1.0], [1e4, 2.0], [1e4, 4.5]], dtype=np.float32)
    result = k_center_greedy(points, 2, seed=1)
    assert result.covering_radius == 1.0


def test_half_precision_gives_what_its_values_in_float32_give() -> None:
    points = patch_like(2000, 16).astype(np.float16)
    half = k_center_greedy(points, 300)
    single = k_center_greedy(points.astype(np.float32), 300)
    assert half.indices.tolist() == single.indices.tolist()
    assert half.covering_radius == single.covering_radius


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_memory_mapped_file(tmp_path: Path, dtype: type[np.floating]) -> None:
    points = patch_like(2000, 16).astype(dtype)
    np.save(tmp_path / "points.npy", points)
    mapped = np.load(tmp_path / "points.npy", mmap_mode="r")
    expected = k_center_greedy(points, 200)
    result = k_center_greedy(mapped, 200)
    assert result.indices.tolist() == expected.indices.tolist()
    assert type(result.indices) is np.ndarray
    mapped._mmap.close()


def test_the_input_is_left_as_it_was() -> None:
    points = patch_like(500, 8)
    before = points.copy()
    points.setflags(write=False)
    k_center_greedy(points, 50)
    np.testing.assert_array_equal(points, before)


def test_the_seed_draws_the_first_pick() -> None:
    points = patch_like(1000, 8)
    again = [k_center_greedy(points, 50, seed=7).indices.tolist() for _ in range(2)]
    assert again[0] == again[1]
    firsts = {int(k_center_greedy(points, 1, seed=seed).indices[0]) for seed in range(10)}
    assert len(firsts) > 5


@pytest.mark.parametrize("num_centers", [1, 2, 1500])
def test_progress_rises_to_the_total(num_centers: int) -> None:
    calls: list[tuple[int, int]] = []
    k_center_greedy(patch_like(3000, 8), num_centers, progress=lambda *call: calls.append(call))
    done = [call[0] for call in calls]
    assert done == sorted(set(done))
    assert {call[1] for call in calls} == {num_centers}
    assert calls[-1] == (num_centers, num_centers)


@pytest.mark.parametrize("num_centers", [-1, 0, 11])
def test_num_centers_out_of_range(num_centers: int) -> None:
    with pytest.raises(ValueError, match=f"between 1 and .* 10, got {num_centers}"):
        k_center_greedy(np.ones((10, 2)), num_centers)


@pytest.mark.parametrize("shape", [(10,), (2, 5, 3), (10, 0)])
def test_not_a_matrix(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="num_points, embedding_dim"):
        k_center_greedy(np.ones(shape), 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_float32_cannot_square(value: float, dtype: type[np.floating]) -> None:
    points = np.zeros((3000, 2), dtype=dtype)
    points[2345, 1] = value
    with pytest.raises(ValueError, match=r"must be finite .* row 2345 is not"):
        k_center_greedy(points, 5)


def test_not_numbers() -> None:
    with pytest.raises(ValueError, match="real numbers, got dtype complex128"):
        k_center_greedy(np.ones((3, 2), dtype=complex), 1)


def test_a_device_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtra, match=r"pgdefect\[train\]"):
        k_center_greedy(np.ones((3, 2)), 1, device="cuda")


def test_torch_products_keep_full_precision_and_restore_the_setting() -> None:
    torch = pytest.importorskip("torch")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        points = patch_like(2000, 32)
        result = k_center_greedy(points, 300, device="cpu")
        assert result.indices.tolist() == k_center_greedy(points, 300).indices.tolist()
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
