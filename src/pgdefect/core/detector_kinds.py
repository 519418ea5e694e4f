"""The kinds of detectors: the one table that front ends, training, inspection, SQL and doctor read.

A kind's code is named by ``module:object``, so that this module imports none of it and the command
line starts without it; `DetectorKind.code` imports it when it is needed. CONTRIBUTING.md
("A detector kind") lists what a new entry takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from pgdefect.core.errors import UsageError
from pgdefect.core.words import check_word

PATCHCORE, EFFICIENT_AD = "patchcore", "efficient_ad"


@dataclass(frozen=True)
class DetectorKind:
    """One kind of detector.

    Attributes:
        name: As commands, rows and JSON call it: lower case, digits and underscores.
        noun: As sentences call it, with its article.
        has_bank: Whether it compares patches with a memory bank, which can be searched, keeps
            patch embeddings, and shows the nearest normal patch.
        has_network: Whether a network of its own is stored in ``detector_model``.
        resumes: Whether a training that was interrupted resumes, by a `TrainingRun`.
        options: A frozen dataclass of what a user can choose, with `recorded()`, the settings
            that are stored; no two kinds share one.
        train: A `usecases.train.choose.Trainer`.
        judge: A `usecases.inspect.judge.JudgeFactory`.
    """

    name: str
    noun: str
    has_bank: bool
    has_network: bool
    resumes: bool
    options: str | type
    train: str | Any
    judge: str | Any

    def code(self, part: Literal["options", "train", "judge"]) -> Any:
        """What `options`, `train` or `judge` names, imported."""
        named = getattr(self, part)
        if not isinstance(named, str):
            return named
        module, _, name = named.partition(":")
        return getattr(import_module(module), name)


KINDS: dict[str, DetectorKind] = {
    kind.name: kind
    for kind in (
        DetectorKind(
            PATCHCORE,
            "a PatchCore detector",
            has_bank=True,
            has_network=False,
            resumes=True,
            options="pgdefect.usecases.train.options:TrainOptions",
            train="pgdefect.usecases.train.train:train",
            judge="pgdefect.usecases.inspect.judge:BankJudge",
        ),
        DetectorKind(
            EFFICIENT_AD,
            "an EfficientAD network",
            has_bank=False,
            has_network=True,
            resumes=False,
            options="pgdefect.usecases.train.options:EfficientAdOptions",
            train="pgdefect.usecases.train.train_network:train_network",
            judge="pgdefect.usecases.inspect.judge:NetworkJudge",
        ),
    )
}
"""By name. The order is that of preference where a category has active detectors of several kinds
and none is named. The SQL functions are filled in from here.

Same rule in SQL: pgdefect.kind_preference, pgdefect.kind_noun."""
DEFAULT_KIND = next(iter(KINDS))


def check_kind(name: str | None, setting: str = "kind") -> None:
    """Raises UsageError for a name that is no kind's; None is not set and passes."""
    check_word(setting, name, list(KINDS))


def kind_named(name: str) -> DetectorKind:
    """The kind of a stored detector. Raises UsageError for one that is not in the table."""
    try:
        return KINDS[name]
    except KeyError:
        raise UsageError(
            f"unknown kind of detector {name!r}; this version knows: {', '.join(KINDS)}. Use the "
            "version of pgdefect that trained it, or train another"
        ) from None


def preference(name: str) -> int:
    """The lower, the sooner a detector is taken where none is named; unknown kinds come last."""
    return [*KINDS, name].index(name)
