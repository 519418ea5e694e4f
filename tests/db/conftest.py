"""A database with thousands of rows, made once and only read."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from crowds import Crowd, build_crowd

from pgdefect.db.connection.engine import Database


@pytest.fixture(scope="session")
def crowd(new_database: Callable[..., Database], _template: Database) -> Crowd:
    return build_crowd(new_database(_template))
