"""The tables of one memory bank, and the search settings its index may have."""

from __future__ import annotations

BANK_TABLES = ("memory_bank_patch", "memory_bank_raw")
"""Parents with a partition for each bank."""
EF_SEARCH_CHOICES = (6, 8, 10, 12, 15, 20, 25, 30, 40, 60, 80, 120, 160, 320, 640, 1000)


def partition_name(bank_id: int, parent: str = "memory_bank_patch") -> str:
    """The table that holds one bank's vectors; of `memory_bank_raw`, those before the transform."""
    return f"{parent}_{int(bank_id)}"
