"""The images of category ``parts``, which the dumps tell of: drawn, the same each time."""

from __future__ import annotations

from pathlib import Path

from tests.synthetic import write_dataset

TINY = (128, 128)
"""Image size (height, width): a 16 × 16 grid of patches."""


def draw_parts(folder: Path) -> Path:
    """An MVTec-style category of generated parts: 16 train, 4 + 3 × 3 test, with masks.

    No defect is so faint that it takes luck to tell it: with the default options all nine are
    told from normal parts whatever the training's seed is (`test_templates.py`).
    """
    return write_dataset(
        folder,
        num_train=16,
        num_test_normal=4,
        num_per_defect=3,
        seed=1,
        size=TINY,
        least_difference=2000,
    )
