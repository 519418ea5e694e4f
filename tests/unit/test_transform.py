"""The embedding transform: Euclidean neighborhoods under cosine distance."""

from __future__ import annotations

import numpy as np
import pytest

from pgdefect.core.distance import COSINE, L2, pairwise
from pgdefect.core.errors import UsageError
from pgdefect.core.types import EmbeddingTransform
from pgdefect.vision.patchcore import transform as module
from pgdefect.vision.patchcore.transform import apply_transform, fit_transform, transformed_dim

DIM = 20


def patches(seed: int, count: int = 500, dim: int = DIM) -> np.ndarray:
    """Features with a mean far from zero and axes of falling variance, as a network's are."""
    rng = np.random.default_rng(seed)
    scale = np.linspace(3, 0.1, dim)
    mix, _ = np.linalg.qr(rng.standard_normal((dim, dim)))
    return ((rng.standard_normal((count, dim)) * scale) @ mix + 5).astype(np.float32)


def test_vectors_have_unit_length_and_the_dimension_that_is_announced() -> None:
    raw = patches(0)
    for pca_dim, dim in ((None, DIM + 1), (5, 6), (DIM, DIM + 1), (DIM + 100, DIM + 1)):
        transform = fit_transform(raw, pca_dim=pca_dim)
        result = apply_transform(transform, raw)
        assert result.shape == (len(raw), dim)
        assert result.dtype == np.float32
        assert transformed_dim(transform, DIM) == dim
        np.testing.assert_allclose(np.linalg.norm(result, axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize(("whiten", "pca_dim"), [(0.5, None), (1.0, None), (1.0, 5)])
def test_whitening_evens_out_the_axes(whiten: float, pca_dim: int | None) -> None:
    raw = patches(0, 4000)
    fitted = fit_transform(raw, pca_dim=pca_dim, whiten=whiten)
    plain = fit_transform(raw, pca_dim=pca_dim or DIM - 1)
    assert fitted.components is not None
    assert plain.components is not None
    axes = (raw - raw.mean(axis=0)) @ fitted.components.T
    variances = np.linalg.eigvalsh(np.cov(raw.T))[::-1][: axes.shape[1]]
    expected = (variances / variances[0]) ** (1 - whiten) * variances[0]
    np.testing.assert_allclose(axes.var(axis=0), expected, rtol=1e-2)
    off = np.cov(axes.T) - np.diag(axes.var(axis=0))
    assert np.abs(off).max() < 0.01 * variances[0]


@pytest.mark.parametrize(("whiten", "pca_dim"), [(0.0, None), (0.25, 5)])
def test_scaled_dimensions_are_as_if_the_input_were(whiten: float, pca_dim: int | None) -> None:
    raw = patches(0)
    scales = np.linspace(0.5, 2.0, DIM).astype(np.float32)
    scaled = fit_transform(raw, pca_dim=pca_dim, whiten=whiten, scales=scales)
    other = fit_transform(raw * scales, pca_dim=pca_dim or DIM, whiten=whiten)
    found = apply_transform(scaled, patches(1))
    expected = apply_transform(other, patches(1) * scales)
    for metric in (COSINE, L2):
        np.testing.assert_allclose(
            pairwise(metric, found, found), pairwise(metric, expected, expected), atol=2e-4
        )
    plain = apply_transform(fit_transform(raw, pca_dim=pca_dim, whiten=whiten), patches(1))
    assert np.abs(pairwise(COSINE, plain, plain) - pairwise(COSINE, found, found)).max() > 0.01


def test_whitening_does_not_blow_up_rounding() -> None:
    raw = patches(0)
    raw[:, 7] = 3.0
    same = np.full((50, DIM), 2.0, dtype=np.float32)
    for data in (raw, same):
        fitted = fit_transform(data, pca_dim=None, whiten=1.0)
        assert fitted.components is not None
        assert np.linalg.norm(fitted.components, axis=1).max() <= 101
        assert np.isfinite(apply_transform(fitted, data)).all()


def test_constant_is_twice_the_median_norm_of_what_is_centered() -> None:
    raw = patches(0)
    transform = fit_transform(raw, pca_dim=None)
    assert transform.mean is not None
    np.testing.assert_allclose(transform.mean, raw.mean(axis=0), rtol=1e-5)
    norms = np.linalg.norm(raw - raw.mean(axis=0), axis=1)
    assert transform.constant == pytest.approx(2 * np.median(norms), rel=1e-5)


def test_near_the_mean_cosine_distance_is_squared_euclidean() -> None:
    """D = |x - y|² / 2κ² where norms are small against κ; and raw cosine is not."""
    raw = patches(1)
    fitted = fit_transform(raw, pca_dim=None)
    assert fitted.mean is not None
    assert fitted.constant is not None
    close = fitted.mean + 0.01 * (raw - fitted.mean)
    vectors = apply_transform(fitted, close)
    cosine = pairwise(COSINE, vectors[:20], vectors[20:])
    squared = pairwise(L2, close[:20], close[20:]) ** 2
    np.testing.assert_allclose(cosine, squared / (2 * fitted.constant**2), rtol=5e-3)


def test_nearest_neighbors_are_nearly_the_euclidean_ones() -> None:
    raw, queries = patches(2, 2000, 8), patches(2, 2100, 8)[2000:]
    transform = fit_transform(raw, pca_dim=None)
    bank, asked = apply_transform(transform, raw), apply_transform(transform, queries)
    found = pairwise(COSINE, asked, bank).argmin(axis=1)
    euclidean = pairwise(L2, queries, raw)
    naive = pairwise(COSINE, queries, raw).argmin(axis=1)
    rows = np.arange(len(queries))
    best = euclidean.min(axis=1)
    assert (euclidean[rows, found] <= 1.2 * best).mean() > 0.9
    assert euclidean[rows, found].mean() < 0.9 * euclidean[rows, naive].mean()


def test_projection_takes_the_axes_of_largest_variance_in_order() -> None:
    raw = patches(3)
    transform = fit_transform(raw, pca_dim=6)
    assert transform.components is not None
    np.testing.assert_allclose(transform.components @ transform.components.T, np.eye(6), atol=1e-5)
    variances = ((raw - raw.mean(axis=0)) @ transform.components.T).var(axis=0)
    assert (np.diff(variances) <= 0).all()
    expected = np.linalg.eigvalsh(np.cov(raw.T, ddof=0))[::-1][:6]
    np.testing.assert_allclose(variances, expected, rtol=1e-3)


def test_all_axes_change_no_distance() -> None:
    raw = patches(4)
    whole = fit_transform(raw, pca_dim=None)
    rotated = fit_transform(raw[:, ::-1], pca_dim=None)
    np.testing.assert_allclose(
        pairwise(COSINE, apply_transform(whole, raw[:9]), apply_transform(whole, raw[9:50])),
        pairwise(
            COSINE,
            apply_transform(rotated, raw[:9, ::-1]),
            apply_transform(rotated, raw[9:50, ::-1]),
        ),
        atol=1e-6,
    )
    almost = fit_transform(raw, pca_dim=DIM - 1)
    np.testing.assert_allclose(
        pairwise(COSINE, apply_transform(whole, raw[:9]), apply_transform(whole, raw[9:50])),
        pairwise(COSINE, apply_transform(almost, raw[:9]), apply_transform(almost, raw[9:50])),
        atol=2e-3,
    )


def test_sign_of_an_axis_does_not_depend_on_the_order_of_patches() -> None:
    raw = patches(5)
    shuffled = raw[np.random.default_rng(0).permutation(len(raw))]
    first, second = fit_transform(raw, pca_dim=4), fit_transform(shuffled, pca_dim=4)
    assert first.components is not None
    assert second.components is not None
    np.testing.assert_allclose(first.components, second.components, atol=1e-4)
    largest = np.abs(first.components).argmax(axis=1)
    assert (first.components[np.arange(4), largest] > 0).all()


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = patches(6, 1000)
    whole = fit_transform(raw, pca_dim=5)
    monkeypatch.setattr(module, "BLOCK", 7)
    pieces = fit_transform(raw, pca_dim=5)
    np.testing.assert_allclose(apply_transform(whole, raw), apply_transform(pieces, raw), atol=1e-5)
    halves = fit_transform(raw.astype(np.float16), pca_dim=5)
    np.testing.assert_allclose(apply_transform(whole, raw), apply_transform(halves, raw), atol=5e-3)


def test_identical_patches_do_not_become_zero_vectors() -> None:
    raw = np.full((50, DIM), 3.25, dtype=np.float32)
    result = apply_transform(fit_transform(raw, pca_dim=4), raw)
    assert np.isfinite(result).all()
    np.testing.assert_allclose(np.linalg.norm(result, axis=1), 1)


def test_unit_and_none() -> None:
    raw = patches(7)
    unit = apply_transform(fit_transform(raw, kind="unit"), raw)
    np.testing.assert_allclose(unit, raw / np.linalg.norm(raw, axis=1, keepdims=True), rtol=1e-6)
    np.testing.assert_array_equal(apply_transform(fit_transform(raw, kind="none"), raw), raw)
    assert transformed_dim(EmbeddingTransform("unit"), 9) == 9
    with pytest.raises(ValueError, match="zero vector"):
        apply_transform(EmbeddingTransform("unit"), np.zeros((2, 3), dtype=np.float32))


@pytest.mark.parametrize("pca_dim", [0, -1])
def test_no_axis_at_all_is_refused(pca_dim: int) -> None:
    with pytest.raises(UsageError, match=f"pca_dim must be at least 1, not {pca_dim}"):
        fit_transform(patches(8), pca_dim=pca_dim)
