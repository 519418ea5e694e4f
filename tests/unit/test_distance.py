"""The table of metrics, and distances against SciPy-free arithmetic done by hand."""

from __future__ import annotations

import math
from typing import get_type_hints

import numpy as np
import pytest
from manhattan import L1
from sklearn.metrics import pairwise_distances

from pgdefect.cli.training import train_command
from pgdefect.core.distance import (
    COSINE,
    L2,
    METRICS,
    IndexedType,
    Metric,
    as_stored,
    index_expression,
    indexed_type,
    metric_named,
    nearest_vectors,
    pairwise,
    row_distances,
)
from pgdefect.core.errors import UsageError


def vectors(seed: int, count: int, dim: int = 12) -> np.ndarray[tuple[int, int], np.dtype]:
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)


def test_table_is_pgvectors() -> None:
    assert [(m.name, m.operator) for m in METRICS.values()] == [("cosine", "<=>"), ("l2", "<->")]
    assert COSINE.operator_class("halfvec") == "halfvec_cosine_ops"
    assert COSINE.operator_class("vector") == "vector_cosine_ops"
    assert L2.operator_class("halfvec") == "halfvec_l2_ops"
    assert L2.operator_class("vector") == "vector_l2_ops"


def test_training_offers_every_metric() -> None:
    """Written out in the help: the table imports NumPy, which --help does without."""
    help_text = get_type_hints(train_command, include_extras=True)["metric"].__metadata__[0].help
    assert help_text == f"{' or '.join(METRICS)}."


def test_metrics_are_known_by_name() -> None:
    assert metric_named("l2") is L2
    with pytest.raises(UsageError, match="unknown metric 'manhattan'; known: cosine, l2"):
        metric_named("manhattan")


@pytest.mark.parametrize(("kind", "most"), [("halfvec", 4000), ("vector", 2000)])
def test_index_expression_ends_where_pgvector_does(kind: IndexedType, most: int) -> None:
    assert index_expression(kind, most) == f"embedding::{kind}({most})"
    for dim in (0, most + 1):
        with pytest.raises(UsageError, match=rf"at most {most}.*have {dim}; .*pca_dim"):
            index_expression(kind, dim)


def test_vectors_are_indexed_in_single_precision_while_pgvector_can() -> None:
    for precision in ("half", "single"):
        assert [indexed_type(precision, dim) for dim in (1, 65, 2000)] == ["vector"] * 3
    assert indexed_type("half", 2001) == "halfvec"
    with pytest.raises(UsageError, match="at most 2000 dimensions as vector"):
        index_expression(indexed_type("single", 2001), 2001)


@pytest.mark.parametrize("metric", [*METRICS.values(), L1], ids=[*METRICS, "l1"])
def test_each_metric_agrees_with_scikit_learn(metric: Metric) -> None:
    """Of all pairs, of rows, and of the nearest; one that the table does not have, too."""
    a, b = vectors(0, 7), 3 * vectors(1, 9)
    name = {"cosine": "cosine", "l2": "euclidean", "l1": "manhattan"}[metric.name]
    expected = pairwise_distances(a.astype(np.float64), b.astype(np.float64), metric=name)
    found = pairwise(metric, a, b)
    assert found.shape == (7, 9)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    rows = row_distances(a, b[:7], metric)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, np.diag(expected[:, :7]), rtol=1e-6)
    positions, distances = nearest_vectors(a, b, metric)
    np.testing.assert_array_equal(positions, expected.argmin(axis=1))
    np.testing.assert_allclose(distances, expected.min(axis=1), rtol=1e-6)


def test_pairwise_of_cases_worked_by_hand() -> None:
    a = np.array([[3, 4]], dtype=np.float32)
    b = np.array([[4, 3], [-3, -4], [6, 8], [-4, 3]], dtype=np.float32)
    np.testing.assert_allclose(pairwise(COSINE, a, b), [[0.04, 2.0, 0.0, 1.0]], atol=1e-7)
    np.testing.assert_allclose(
        pairwise(L2, a, b), [[math.sqrt(2), 10, 5, math.sqrt(50)]], rtol=1e-6
    )
    assert pairwise(L2, a, a) == 0
    assert pairwise(COSINE, a, a) >= 0


def test_single_precision_is_kept_and_half_is_rounded() -> None:
    values = np.array([[0.1, 1 / 3, 1000.06]], dtype=np.float32)
    np.testing.assert_array_equal(as_stored(values, "single"), values)
    half = as_stored(values, "half")
    assert half.dtype == np.float32
    np.testing.assert_array_equal(half, [[0.0999755859375, 0.333251953125, 1000.0]])
    np.testing.assert_array_equal(as_stored(half, "half"), half)


@pytest.mark.parametrize("value", [65520.0, -1e30, np.inf, np.nan])
def test_what_half_precision_cannot_hold_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="65504"):
        as_stored(np.array([[1.0, value]], dtype=np.float32), "half")
    assert np.isfinite(as_stored(np.array([[65504.0]], dtype=np.float32), "half")).all()
