"""From a kind of detector and settings by name to its options, and to its training."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from pgdefect.core.config import Settings
from pgdefect.core.errors import UsageError
from pgdefect.core.progress import Progress, silent
from pgdefect.core.wording import option
from pgdefect.core.words import KINDS, check_word
from pgdefect.db.connection.engine import Database
from pgdefect.usecases.train.options import EfficientAdOptions, TrainOptions
from pgdefect.usecases.train.train import TrainReport, train
from pgdefect.usecases.train.train_network import NetworkReport, train_network
from pgdefect.usecases.train.training_run import TrainingRun

Options = TrainOptions | EfficientAdOptions
OPTIONS: dict[str, type[TrainOptions] | type[EfficientAdOptions]] = {
    "patchcore": TrainOptions,
    "efficient_ad": EfficientAdOptions,
}
_ZERO_IS_NONE = ("max_vectors", "pca_dim", "local_contrast")
"""Settings whose 0 means that there is no limit, or nothing of the kind."""
_PATHS = ("weights", "teacher_weights", "imagenette_dir")
_SIZES = ("image_size", "center_crop")


def settings_of(kind: str) -> list[str]:
    """The names of the settings that a kind of detector is trained with."""
    return [field.name for field in fields(OPTIONS[kind])]


def training_options(kind: str, given: Mapping[str, Any]) -> Options:
    """The options of a training, from those that were given; the rest is the kind's default.

    Args:
        kind: patchcore or efficient_ad.
        given: Values by setting. A size is a number, `(height, width)`, or HEIGHTxWIDTH in
            words; layers are a sequence, or one string with commas.

    Raises:
        UsageError: no such kind or setting, a setting of another kind, or a value that cannot
            be used.
    """
    check_word("kind", kind, KINDS)
    own = settings_of(kind)
    for other in OPTIONS:
        foreign = [name for name in given if name in settings_of(other) and name not in own]
        if foreign:
            names = ", ".join(option(name) for name in foreign)
            raise UsageError(f"{names} goes with {option('kind', other)}, not with {kind}")
    if unknown := [name for name in given if name not in own]:
        raise UsageError(f"there is no setting {unknown[0]!r}; {kind} has: {', '.join(own)}")
    values = {name: _read(name, value) for name, value in given.items()}
    if kind == "patchcore" and values.get("resize") is None:
        exact = values.get("center_crop") or _is_exact(given.get("image_size"))
        values["resize"] = "stretch" if exact else "keep"
    try:
        return OPTIONS[kind](**values)
    except TypeError as error:  # a value that cannot even be compared
        raise UsageError(
            f"a setting of the training has a value of a wrong type: {error}"
        ) from error


def train_with(
    database: Database,
    settings: Settings,
    category: str,
    options: Options,
    *,
    run: TrainingRun | None = None,
    progress: Progress = silent,
) -> TrainReport | NetworkReport:
    """Train the kind of detector that the options are of; `run` is PatchCore's."""
    if isinstance(options, TrainOptions):
        return train(database, settings, category, options, run=run, progress=progress)
    return train_network(database, settings, category, options, progress=progress)


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
