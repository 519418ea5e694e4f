"""Whitening of defect embeddings: each detector's own, on axes that are the same for all."""

from __future__ import annotations

import numpy as np
import pytest

from pgdefect.vision.defects.defect_embedding import MAX_DIM, fit_whitening


def normal_vectors(seed: int, count: int = 4_000, dim: int = 24) -> np.ndarray:
    """Of one distribution, whose axes vary by a factor of a thousand."""
    mixing = np.random.default_rng(1).normal(size=(dim, dim)) * np.geomspace(1.0, 0.03, dim)
    return np.random.default_rng(seed).normal(size=(count, dim)) @ mixing.T


def whitened(vectors: np.ndarray, fitted_on: np.ndarray) -> np.ndarray:
    whitening = fit_whitening(fitted_on, 0.1)
    found = (vectors - whitening.center) @ whitening.components.T
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True))


def test_whitened_vectors_of_two_trainings_compare() -> None:
    """Another sample of the same images turns no vector; principal axes could turn any of them."""
    defects = np.random.default_rng(7).normal(size=(50, 24))
    one, other = (whitened(defects, normal_vectors(seed)) for seed in (2, 3))
    assert ((one * other).sum(axis=1) > 0.98).all()


def test_whitening_is_symmetric_and_evens_out_what_normal_images_do() -> None:
    vectors = normal_vectors(2)
    whitening = fit_whitening(vectors, 1e-12)
    np.testing.assert_allclose(whitening.components, whitening.components.T, rtol=1e-4, atol=1e-4)
    covariance = np.cov(((vectors - whitening.center) @ whitening.components.T).T)
    np.testing.assert_allclose(covariance, np.eye(24), atol=0.02)


@pytest.mark.parametrize("dim", [MAX_DIM, MAX_DIM + 40])
def test_wide_layers_are_projected_on_directions_that_are_the_same_for_all(dim: int) -> None:
    rng = np.random.default_rng(4)
    first, second = (fit_whitening(rng.normal(size=(3_000, dim)), 0.2) for _ in range(2))
    assert first.components.shape == second.components.shape == (MAX_DIM, dim)
    defects = rng.normal(size=(20, dim))
    one, other = ((defects - w.center) @ w.components.T for w in (first, second))
    cosines = (
        (one * other).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    )
    assert (cosines > 0.95).all()
