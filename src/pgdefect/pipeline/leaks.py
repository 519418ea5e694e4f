"""Splits that leak: one part, or one file, on two sides that must not know each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pgdefect.types import StoredImage

__all__ = ["Leak", "find_leaks"]


@dataclass(frozen=True)
class Leak:
    """A part (``group``) or file content (``sha256``) that is on both `sides`.

    image_ids: the images of the first side.
    """

    kind: str
    name: str
    sides: tuple[str, str]
    paths: tuple[str, ...]
    other_paths: tuple[str, ...]
    image_ids: tuple[int, ...]

    def __str__(self) -> str:
        what = f"part {self.name!r}" if self.kind == "group" else f"the file {self.name[:12]}…"
        return (
            f"{what} is in {self.sides[0]} ({_some(self.paths)}) and in {self.sides[1]} "
            f"({_some(self.other_paths)})"
        )


def find_leaks(
    evaluated: Sequence[StoredImage],
    calibration: Sequence[StoredImage],
    training: Sequence[StoredImage],
    split: str,
) -> tuple[Leak, ...]:
    """Every group and every file content that two of the three sets share.

    A file found twice is reported once: not where its group is already.
    """
    found: list[Leak] = []
    for first, second, sides in (
        (evaluated, training, (split, "training")),
        (evaluated, calibration, (split, "calibration")),
        (calibration, training, ("calibration", "training")),
    ):
        groups = _shared(first, second, lambda image: image.group, "group", sides)
        named = {leak.name for leak in groups}
        rest = [[i for i in images if i.group not in named] for images in (first, second)]
        found += groups
        found += _shared(rest[0], rest[1], lambda image: image.sha256, "sha256", sides)
    return tuple(found)


def _shared(
    first: Iterable[StoredImage],
    second: Iterable[StoredImage],
    key: Callable[[StoredImage], str | None],
    kind: str,
    sides: tuple[str, str],
) -> list[Leak]:
    left, right = _by(first, key), _by(second, key)
    return [
        Leak(
            kind,
            name,
            sides,
            tuple(image.path for image in left[name]),
            tuple(image.path for image in right[name]),
            tuple(image.id for image in left[name]),
        )
        for name in sorted(left.keys() & right.keys())
    ]


def _by(
    images: Iterable[StoredImage], key: Callable[[StoredImage], str | None]
) -> dict[str, list[StoredImage]]:
    found: dict[str, list[StoredImage]] = {}
    for image in images:
        if (name := key(image)) is not None:
            found.setdefault(name, []).append(image)
    return found


def _some(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return f"{paths[0]}{more}"
