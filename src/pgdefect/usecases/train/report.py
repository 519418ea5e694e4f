"""What the trainings of all kinds report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from pgdefect.db.records.outliers import Outlier

__all__ = ["TrainingReport"]


class TrainingReport(Protocol):
    """What a training made; each kind's own is a dataclass with more to it.

    made: what sums up the detector, by heading. Reports of kinds that resume also have
    already_stored, resumed_images and extracted_images; some have notes and rule.
    """

    @property
    def category(self) -> str: ...

    @property
    def detector_id(self) -> int: ...

    @property
    def training_images(self) -> int: ...

    @property
    def held_out_images(self) -> int: ...

    @property
    def threshold(self) -> float: ...

    @property
    def seconds(self) -> Mapping[str, float]: ...

    @property
    def failed(self) -> tuple[tuple[str, str], ...]: ...

    @property
    def outliers(self) -> tuple[Outlier, ...]: ...

    @property
    def threshold_with_outliers(self) -> float | None: ...

    @property
    def made(self) -> Mapping[str, Any]: ...
