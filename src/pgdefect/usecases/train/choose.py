"""From a kind of detector and settings by name to its options, and to its training."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

from pgdefect.core.config import Settings
from pgdefect.core.detector_kinds import KINDS, DetectorKind, check_kind, kind_named
from pgdefect.core.errors import UsageError
from pgdefect.core.progress import Progress, silent
from pgdefect.core.wording import option
from pgdefect.db.connection.engine import Database
from pgdefect.usecases.train.options import Options
from pgdefect.usecases.train.report import TrainingReport
from pgdefect.usecases.train.training_run import TrainingRun


class Trainer(Protocol):
    """Trains a detector of a kind; one whose kind resumes takes `run`, a `TrainingRun`, too."""

    def __call__(
        self,
        database: Database,
        settings: Settings,
        category: str,
        options: Any,
        /,
        *,
        progress: Progress,
        **run: TrainingRun | None,
    ) -> TrainingReport: ...


_ZERO_IS_NONE = ("max_vectors", "pca_dim", "local_contrast")
"""Settings whose 0 means that there is no limit, or nothing of the kind."""
_PATHS = ("weights", "teacher_weights", "imagenette_dir")
_SIZES = ("image_size", "center_crop")


def settings_of(kind: str) -> list[str]:
    """The names of the settings that a kind of detector is trained with."""
    return [field.name for field in fields(kind_named(kind).code("options"))]


def kind_of(options: Options) -> DetectorKind:
    """The kind that options are of."""
    return next(kind for kind in KINDS.values() if type(options) is kind.code("options"))


def training_options(kind: str, given: Mapping[str, Any]) -> Options:
    """The options of a training, from those that were given; the rest is the kind's default.

    Args:
        kind: One of `core.detector_kinds.KINDS`.
        given: Values by setting. A size is a number, `(height, width)`, or HEIGHTxWIDTH in
            words; layers are a sequence, or one string with commas.

    Raises:
        UsageError: no such kind or setting, a setting of another kind, or a value that cannot
            be used.
    """
    check_kind(kind)
    own = settings_of(kind)
    for other in KINDS:
        foreign = [name for name in given if name in settings_of(other) and name not in own]
        if foreign:
            names = ", ".join(option(name) for name in foreign)
            raise UsageError(f"{names} goes with {option('kind', other)}, not with {kind}")
    if unknown := [name for name in given if name not in own]:
        raise UsageError(f"there is no setting {unknown[0]!r}; {kind} has: {', '.join(own)}")
    values = {name: _read(name, value) for name, value in given.items()}
    if "resize" in own and values.get("resize") is None:
        exact = values.get("center_crop") or _is_exact(given.get("image_size"))
        values["resize"] = "stretch" if exact else "keep"
    try:
        options: Options = kind_named(kind).code("options")(**values)
    except TypeError as error:  # a value that cannot even be compared
        raise UsageError(
            f"a setting of the training has a value of a wrong type: {error}"
        ) from error
    return options


def train_with(
    database: Database,
    settings: Settings,
    category: str,
    options: Options,
    *,
    run: TrainingRun | None = None,
    progress: Progress = silent,
) -> TrainingReport:
    """Train the kind of detector that the options are of; `run` is for kinds that resume."""
    kind = kind_of(options)
    train: Trainer = kind.code("train")
    resumed = {"run": run} if kind.resumes else {}
    return train(database, settings, category, options, progress=progress, **resumed)


def size_from(setting: str, value: int | str | Sequence[int]) -> tuple[int, int]:
    """`(height, width)` from a side, a pair, or words such as 256 and 256x320.

    Raises UsageError.
    """
    parts = value.lower().split("x") if isinstance(value, str) else value
    if isinstance(parts, int):
        parts = [parts]
    numbers = [str(part) for part in parts]
    if not 1 <= len(numbers) <= 2 or not all(re.fullmatch("[0-9]{1,9}", one) for one in numbers):
        raise UsageError(f"{option(setting)} is a number or HEIGHTxWIDTH, not {value!r}")
    return int(numbers[0]), int(numbers[-1])


def _read(name: str, value: Any) -> Any:
    if value is None or (name in _ZERO_IS_NONE and value == 0):
        return None
    if name in _SIZES:
        return size_from(name, value)
    if name in _PATHS:
        return Path(value)
    if name == "layers":
        parts = value.split(",") if isinstance(value, str) else value
        return tuple(part.strip() for part in parts)
    return value


def _is_exact(size: Any) -> bool:
    """Whether a size gives height and width, and not only an area."""
    return isinstance(size, list | tuple) or (isinstance(size, str) and "x" in size.lower())
