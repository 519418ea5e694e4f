"""Which files are masks: by their folder, by their name beside a photograph, by their content.

A name is enough where it is certain (``ground_truth/crack/000_mask.png``). Content is asked where
it is not: a PNG beside a JPEG of its name, a folder called ``label``, a two-valued picture in a
folder of unknown name that is called like the photographs of another.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pgdefect.vision.images.folder_words import Meaning, mask_stem
from pgdefect.vision.images.masks import looks_like_mask
from pgdefect.vision.images.more_words import words

__all__ = ["Divided", "MeaningOf", "divide", "key_of"]

SAMPLE = 5
"""Files of a folder that are looked at to find out what the others are."""
LONGEST_ENDING = 24
"""Characters that the name of a mask may have after those of its photograph."""
_LOSSLESS = words(".png .bmp .dib .tif .tiff .gif .pgm .ppm .pbm .pnm .webp")

MeaningOf = Callable[[str, str], Meaning]
"""What a folder means, by the path of its parent and its name."""


@dataclass
class Divided:
    """Photographs by folder; masks beside them, by the photograph's path; other masks by folder.

    Attributes:
        why: of folders whose masks were told by their content.
    """

    photographs: dict[str, list[str]] = field(default_factory=dict)
    beside: dict[str, str] = field(default_factory=dict)
    masks: dict[str, list[str]] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)


def join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def parents(folder: str) -> list[tuple[str, str]]:
    """The folders on the way to one, each as its parent's path and its name."""
    names = folder.split("/") if folder else []
    return [("/".join(names[:n]), name) for n, name in enumerate(names)]


def divide(root: Path, files: dict[str, list[str]], meaning: MeaningOf) -> Divided:
    """Tell photographs from masks."""
    result = Divided()
    looks = partial(_looks, root)
    for folder, names in files.items():
        means = {meaning(above, name) for above, name in parents(folder)}
        named = "masks" in means
        pairs = _pairs(folder, names, looks, in_masks=bool({"masks", "perhaps masks"} & means))
        masks = set(pairs.values())
        if not masks and not named and "perhaps masks" in means:
            named = _all_look(looks, [join(folder, name) for name in names]) is not False
        if named and not masks:
            result.masks[folder] = names
            continue
        result.beside |= {join(folder, one): join(folder, mask) for one, mask in pairs.items()}
        if rest := [name for name in names if name not in masks]:
            result.photographs[folder] = rest
    _find_unnamed(result, looks, meaning)
    return result


def _looks(root: Path, path: str) -> bool | None:
    return looks_like_mask(root / path)


def _all_look(looks: Callable[[str], bool | None], paths: Sequence[str]) -> bool | None:
    """What the first few say: False where one is a photograph, None where none can be read."""
    found = None
    for path in _spread(paths):
        one = looks(path)
        if one is False:
            return False
        found = found or one
    return found


def _spread(paths: Sequence[str]) -> Sequence[str]:
    return paths[:: max(1, -(-len(paths) // SAMPLE))]


def _pairs(
    folder: str, names: Sequence[str], looks: Callable[[str], bool | None], *, in_masks: bool
) -> dict[str, str]:
    """The masks that lie beside their photographs, by the photograph's name."""
    by_stem: dict[str, list[str]] = defaultdict(list)
    for name in names:
        by_stem[os.path.splitext(name)[0].casefold()].append(name)
    by_name: dict[str, str] = {}
    for stem, called in by_stem.items():
        of = mask_stem(stem)
        if of is not None and of in by_stem:
            by_name[min(by_stem[of])] = called[0]
    if by_name:
        masks = [join(folder, mask) for mask in by_name.values()]
        images = [join(folder, image) for image in by_name]
        if _all_look(looks, masks) is False or (in_masks and _all_look(looks, images) is not False):
            by_name = {}
    taken = set(by_name.values())
    by_name |= _continued(folder, by_stem, taken, looks)
    taken = set(by_name.values())
    twins = {s: sorted(set(c) - taken) for s, c in by_stem.items() if len(set(c) - taken) > 1}
    return _twins(folder, twins, looks) | by_name


def _continued(
    folder: str,
    by_stem: dict[str, list[str]],
    taken: set[str],
    looks: Callable[[str], bool | None],
) -> dict[str, str]:
    """Of files whose names go on where a photograph's ends (``7.png``, ``7_roi.png``,
    ``7Annotated.png``): those that look like masks, where what they add is the same and the
    others do not.
    """
    added: dict[str, dict[str, str]] = defaultdict(dict)
    for stem, called in by_stem.items():
        ends = range(len(stem) - 1, max(0, len(stem) - LONGEST_ENDING), -1)
        of = next((stem[:n] for n in ends if stem[:n] in by_stem and not stem[n].isdigit()), None)
        if of is not None and called[0] not in taken:
            ending = stem[len(of) :].rstrip("0123456789")
            added[ending].setdefault(min(by_stem[of]), called[0])
    found: dict[str, str] = {}
    for pairs in added.values():
        masks = [join(folder, mask) for mask in pairs.values()]
        images = [join(folder, image) for image in pairs]
        if _all_look(looks, masks) is True and _all_look(looks, images) is False:
            found |= {image: mask for image, mask in pairs.items() if image not in found}
    return found


def _twins(
    folder: str, twins: dict[str, list[str]], looks: Callable[[str], bool | None]
) -> dict[str, str]:
    """Of files with one stem (``x.jpg``, ``x.png``): the lossless one that looks like a mask."""

    def mask_of(called: list[str]) -> str | None:
        lossless = [n for n in called if os.path.splitext(n)[1].lower() in _LOSSLESS]
        masks = [name for name in lossless if looks(join(folder, name))]
        return masks[-1] if masks and len(masks) < len(called) else None

    sample = _spread(list(twins))
    found = {stem: mask_of(twins[stem]) for stem in sample}
    if not any(found.values()):
        return {}
    suffixes = {os.path.splitext(mask)[1].lower() if mask else None for mask in found.values()}
    sure = len(suffixes) == 1
    pairs = {}
    for called in twins.values():
        alike = [n for n in called if os.path.splitext(n)[1].lower() in suffixes]
        mask = alike[0] if sure and len(alike) == 1 else mask_of(called)
        if mask:
            pairs[next(name for name in called if name != mask)] = mask
    return pairs


def _find_unnamed(
    divided: Divided, looks: Callable[[str], bool | None], meaning: MeaningOf
) -> None:
    """Take folders of unknown name for masks where they hold two-valued pictures that are called
    like the photographs, which are not two-valued, of another folder.
    """
    stems: dict[str, set[str]] = {
        folder: {os.path.splitext(name)[0].casefold() for name in names}
        for folder, names in divided.photographs.items()
    }
    holding: dict[str, list[str]] = defaultdict(list)
    for folder, some in stems.items():
        for stem in some:
            holding[stem].append(folder)
    for folder, names in list(divided.photographs.items()):
        means = [meaning(above, name) for above, name in parents(folder)]
        if not means or means[-1] not in ("unknown", "neutral"):
            continue
        if {"train", "test", "validation"} & set(means):
            continue
        if any(os.path.splitext(name)[1].lower() not in _LOSSLESS for name in names):
            continue
        called = {mask_stem(stem) or stem for stem in stems[folder]}
        others = {
            stem: other
            for stem in called
            if (other := next((f for f in holding.get(stem, ()) if f != folder), None)) is not None
        }
        if 2 * len(others) < len(called):
            continue
        if _all_look(looks, [join(folder, name) for name in names]) is not True:
            continue
        of = others[min(others)]
        if _all_look(looks, [join(of, name) for name in divided.photographs[of]]) is not False:
            continue
        divided.masks[folder] = divided.photographs.pop(folder)
        divided.why[folder] = f"two-valued, and called like the photographs in {of or '.'!r}"
        for stem in stems.pop(folder):
            holding[stem].remove(folder)


def key_of(folder: str, meaning: MeaningOf) -> tuple[tuple[str, ...], str | None]:
    """What a folder's mask folder shares with it: its names but those of splits, masks and the
    like, in lower case; second the split.
    """
    names, split = [], None
    for above, name in parents(folder):
        found = meaning(above, name)
        if found in ("train", "test", "validation"):
            split = split or found
        elif found not in ("masks", "perhaps masks", "neutral"):
            names.append(name.casefold())
    return tuple(names), split


def match(
    masks: dict[str, list[str]],
    photographs: Iterable[tuple[str, str | None]],
    meaning: MeaningOf,
) -> tuple[dict[str, str], list[str]]:
    """Masks in folders of their own, by photograph; and the masks that belong to none.

    Args:
        photographs: path and label. A folder that is called like a photograph, of masks, is the
            mask.
    """
    index: dict[tuple[tuple[str, ...], str], list[tuple[bool, str | None, str]]] = defaultdict(list)
    by_stem: dict[str, list[str]] = defaultdict(list)
    keys: dict[str, tuple[tuple[str, ...], str | None]] = {}
    labels = dict(photographs)
    for path, label in labels.items():
        folder, name = os.path.split(path)
        stem = os.path.splitext(name)[0].casefold()
        key, split = keys.setdefault(folder, key_of(folder, meaning))
        index[key, stem].append((label == "normal", split, path))
        by_stem[stem].append(path)

    def owner(key: tuple[str, ...], split: str | None, stems: Sequence[str]) -> str | None:
        for stem in stems:
            if found := index.get((key, stem)):
                return min(found, key=lambda one: (one[1] != (split or "test"), *map(str, one)))[2]
        for stem in stems:
            called = by_stem.get(stem, [])
            called = [p for p in called if labels[p] != "normal"] or called
            loose = not key or not keys[os.path.dirname(called[0])][0] if called else False
            if len(called) == 1 and loose:
                return called[0]
        return None

    found: dict[str, str] = {}
    plain: dict[str, str] = {}
    lost: list[str] = []
    for folder, names in masks.items():
        key, split = key_of(folder, meaning)
        whole = owner(key[:-1], split, [key[-1]]) if key else None
        for name in sorted(names):
            stem = os.path.splitext(name)[0].casefold()
            of = mask_stem(stem)
            path = join(folder, name)
            image = owner(key, split, [one for one in (of, stem) if one])
            if image is None and whole is not None:
                found.setdefault(whole, folder)
            elif image is None:
                lost.append(path)
            else:
                (plain if of is None else found).setdefault(image, path)
    return plain | found, lost
