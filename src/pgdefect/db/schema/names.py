"""The names of pgdefect's two schemas."""

from __future__ import annotations

SCHEMA = "pgdefect"
"""Holds the tables."""
ANALYST_SCHEMA = "defect"
"""Holds the views and functions for analysts; no data."""
