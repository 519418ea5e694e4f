"""Splits that leak: one part, or one file, on two sides that must not know each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pgdefect.core.types import Float32, StoredImage
from pgdefect.evaluation import group_numbers
from pgdefect.vision.networks.extractor import unit_vectors

__all__ = ["Leak", "LookAlike", "find_leaks", "find_look_alikes"]

LEAST_PARTS = 8
"""Parts photographed more than once from which is learned how alike photographs of one part are."""
SAMPLE = 2000
"""Photographs at most that this is measured on."""
_BLOCK = 1024


@dataclass(frozen=True)
class Leak:
    """A part (``part``) or file content (``sha256``) that is on both `sides`.

    Attributes:
        image_ids: the images of the first side.
    """

    kind: str
    name: str
    sides: tuple[str, str]
    paths: tuple[str, ...]
    other_paths: tuple[str, ...]
    image_ids: tuple[int, ...]

    def __str__(self) -> str:
        what = f"part {self.name!r}" if self.kind == "part" else f"the file {self.name[:12]}…"
        return (
            f"{what} is in {self.sides[0]} ({_some(self.paths)}) and in {self.sides[1]} "
            f"({_some(self.other_paths)})"
        )


@dataclass(frozen=True)
class LookAlike:
    """An evaluated image that may show a part the detector has learned from, under another name.

    Attributes:
        distance: cosine, between the two images' centered embeddings.
        usual: the median from a photograph to the nearest other one of its own part.
    """

    path: str
    part: str | None
    other_path: str
    other_part: str | None
    distance: float
    usual: float

    def __str__(self) -> str:
        return f"{_part(self.path, self.part)} is like {_part(self.other_path, self.other_part)}"


def find_leaks(
    evaluated: Sequence[StoredImage],
    calibration: Sequence[StoredImage],
    training: Sequence[StoredImage],
    split: str,
) -> tuple[Leak, ...]:
    """Every part and every file content that two of the three sets share.

    A file found twice is reported once: not where its part is already.
    """
    found: list[Leak] = []
    for first, second, sides in (
        (evaluated, training, (split, "training")),
        (evaluated, calibration, (split, "calibration")),
        (calibration, training, ("calibration", "training")),
    ):
        parts = _shared(first, second, lambda image: image.part, "part", sides)
        named = {leak.name for leak in parts}
        rest = [[i for i in images if i.part not in named] for images in (first, second)]
        found += parts
        found += _shared(rest[0], rest[1], lambda image: image.sha256, "sha256", sides)
    return tuple(found)


def find_look_alikes(
    evaluated: Sequence[StoredImage],
    learned: Sequence[StoredImage],
    embeddings: Mapping[int, Float32],
) -> tuple[LookAlike, ...]:
    """Evaluated parts that look like a part learned from; of each the most alike pair, nearest
    first.

    Args:
        embeddings: the image embeddings of one extractor by image id; an image without is left
            out. A pair is alike whose distance is below that of most photographs to the nearest
            other one of their own part, and below half of that of most to the nearest one of any
            other: how much that is the learned images tell, and where fewer than `LEAST_PARTS` of
            their parts were photographed twice, none is found. What shares a part is a leak, and
            none of these.
    """
    evaluated, learned = ([i for i in some if i.id in embeddings] for some in (evaluated, learned))
    if not evaluated or not learned:
        return ()
    parts = group_numbers([image.part for image in [*evaluated, *learned]])
    parts_evaluated, parts_learned = np.split(parts, [len(evaluated)])
    _, counts = np.unique(parts_learned, return_counts=True)
    if np.count_nonzero(counts > 1) < LEAST_PARTS:
        return ()
    vectors = np.stack([embeddings[image.id] for image in [*evaluated, *learned]])
    centered = unit_vectors(vectors - vectors[len(evaluated) :].mean(axis=0))
    queries, bank = np.split(centered, [len(evaluated)])

    sample = np.arange(0, len(learned), -(-len(learned) // SAMPLE))
    sampled = (bank[sample], parts_learned[sample], bank, parts_learned)
    own = _nearest(*sampled, of_own_part=True, themselves=sample)[1]
    if not np.isfinite(own).any():
        return ()
    usual = float(np.median(own[np.isfinite(own)]))
    limit = min(usual, float(np.median(_nearest(*sampled, of_own_part=False)[1])) / 2)

    indices, distances = _nearest(queries, parts_evaluated, bank, parts_learned, of_own_part=False)
    pairs: dict[int, LookAlike] = {}
    for n in np.argsort(distances, kind="stable"):
        distance = float(distances[n])
        if not distance < limit:
            break
        one, two = evaluated[n], learned[indices[n]]
        pairs.setdefault(
            int(parts_evaluated[n]),
            LookAlike(one.path, one.part, two.path, two.part, distance, usual),
        )
    return tuple(pairs.values())


def _nearest(
    queries: Float32,
    parts: NDArray[np.int64],
    bank: Float32,
    bank_parts: NDArray[np.int64],
    *,
    of_own_part: bool,
    themselves: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Of each query, a unit vector, the nearest of its own part or of another: the place in the
    bank `(n,)` and the distance `(n,)`, infinite where there is none.

    Args:
        themselves: where in the bank the queries are, which are not their own neighbors.
    """
    indices, nearest = [], []
    for first in range(0, len(queries), _BLOCK):
        block = slice(first, first + _BLOCK)
        distances = 1.0 - queries[block] @ bank.T
        distances[(parts[block, None] == bank_parts) != of_own_part] = np.inf
        if themselves is not None:
            distances[np.arange(len(distances)), themselves[block]] = np.inf
        indices.append(distances.argmin(axis=1))
        nearest.append(distances.min(axis=1))
    return np.concatenate(indices), np.concatenate(nearest)


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


def _part(path: str, part: str | None) -> str:
    return path if part is None else f"{path} (part {part!r})"
