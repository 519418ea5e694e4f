"""Category `cells`: a tiny bank of real photographs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from cells import TINY

from pgdefect.core.config import Settings
from pgdefect.db.connection.engine import Database
from pgdefect.usecases.demo import solar_cells
from pgdefect.usecases.ingest import ingest_dataset
from pgdefect.usecases.train.train import train


@pytest.fixture(scope="session")
def _cells_template(
    new_database: Callable[..., Database], _trained_template: Database, settings: Settings
) -> Database:
    """Category `cells`: 12 normal cells to train, 3 normal and 4 defective to test; trained."""
    database = new_database(_trained_template)
    dataset = solar_cells("solar_mono")
    kinds = {("train", "normal"): 12, ("test", "normal"): 3, ("test", "anomalous"): 4}
    records = []
    for kind, count in kinds.items():
        records += [r for r in dataset.records if (r.split, r.label) == kind][:count]
    ingest_dataset(database, replace(dataset, records=tuple(records)), "cells")
    train(database, settings, "cells", TINY)
    return database


@pytest.fixture
def cells(clone_of: Any, _cells_template: Database) -> Iterator[Database]:
    with clone_of(_cells_template) as database:
        yield database
