"""A metric that pgdefect does not have: what it takes to add one is what stands here."""

from __future__ import annotations

import numpy as np

from pgdefect.core.distance import Float64, Metric


def _between_rows(a: Float64, b: Float64) -> Float64:
    return np.asarray(np.abs(a - b).sum(axis=1))


def _between_all(a: Float64, b: Float64) -> Float64:
    return np.stack([_between_rows(np.broadcast_to(row, b.shape), b) for row in a])


L1 = Metric(
    "l1",
    "<+>",
    "vector_l1_ops",
    "halfvec_l1_ops",
    row_distance=_between_rows,
    pairwise=_between_all,
)
LET_IN = """
ALTER TABLE pgdefect.memory_bank DROP CONSTRAINT ck_memory_bank_operator_known,
    ADD CONSTRAINT ck_memory_bank_operator_known CHECK (operator IN ('<=>', '<->', '<+>'))"""
"""The migration that a new metric takes."""
