"""Photographs of which no folder says what they are, and whose names leave it open all the same."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence

from pgdefect.vision.images.folder_words import meaning_of, names_something
from pgdefect.vision.images.mask_files import MeaningOf, parents

__all__ = ["doubts_of_files", "doubts_of_siblings"]


def doubts_of_siblings(photographs: Mapping[str, Sequence[str]], meaning: MeaningOf) -> list[str]:
    """Folders side by side that have words of their own, none of them known: normal photographs
    and types of defects, or batches?

    Args:
        photographs: names by folder.
        meaning: of folders.

    Returns:
        A line for each folder in doubt, its path first, in quotation marks.
    """
    siblings: dict[str, set[str]] = defaultdict(set)
    for folder in photographs:
        for above, name in parents(folder):
            if meaning(above, name) == "unknown" and names_something(name):
                siblings[above].add(f"{above}/{name}" if above else name)
    return [
        f"{folder!r}: normal photographs, or a type of defect?"
        for found in siblings.values()
        if len(found) > 1
        for folder in sorted(found)
    ]


def doubts_of_files(photographs: Mapping[str, Sequence[str]]) -> list[str]:
    """Files whose own names say that they are defective: ``NG_17.png``, or ``scratch3.png`` where
    others are called otherwise. A word that all have could be the product's.

    Args:
        photographs: names by folder, of which nothing else says what they are.

    Returns:
        A line for each folder with such files, its path first, in quotation marks.
    """
    doubts = []
    for folder, names in sorted(photographs.items()):
        means = {name: meaning_of(os.path.splitext(name)[0]) for name in names}
        sure = [n for n, word in means.items() if word.meaning == "anomalous" and word.certain]
        types = [n for n, word in means.items() if word.meaning == "defect" and word.certain]
        if len(sure) + len(types) < len(names):
            sure += types
        if sure:
            doubts.append(
                f"{folder or '.'!r}: normal photographs, or those called like {min(sure)!r} "
                "defective ones, to be moved to a folder of their type?"
            )
    return doubts
