"""What the name of a folder or a file says: a split, a label, masks, thumbnails, or nothing.

Names are compared without case and word by word (``MT_Free``, ``GoodParts``, ``not-ok``), so that
one vocabulary serves every layout and the cells of manifests, too.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from pgdefect.vision.images import more_words
from pgdefect.vision.images.more_words import words

__all__ = [
    "LABEL_WORDS",
    "MEANINGS",
    "NO_DEFECT",
    "Meaning",
    "Word",
    "is_thumbnail",
    "label_of",
    "mask_stem",
    "meaning_of",
    "names_something",
    "words_of",
]

Meaning = Literal[
    "train",
    "validation",
    "test",
    "normal",
    "anomalous",
    "defect",
    "masks",
    "perhaps masks",
    "neutral",
    "doubtful",
    "unknown",
    "skip",
]
MEANINGS: Mapping[str, Meaning] = {
    "normal": "normal",
    "anomalous": "anomalous",
    "masks": "masks",
    "skip": "skip",
}
"""What a caller may say that a folder is."""


_NORMAL = (
    words(
        "good ok okay normal normals io pass passed healthy intact flawless clean nominal "
        "perfect acceptable accepted conforming undamaged faultless gut"
    )
    | more_words.NORMAL
)
_JOINED_NORMAL = words(
    "nondefective nondefect defectfree nodefect nodefects nofault faultfree noanomaly "
    "noncrack crackfree nocrack uncracked free"
)
_ANOMALOUS = (
    words(
        "bad ko ng nok nio anomaly anomalies anomalous abnormal abnormals defect defects "
        "defective def faulty fault faults fail failed failure failures reject rejects "
        "rejected scrap damaged damage damages nogood notgood notok notnormal "
        "nonconforming unacceptable flawed flaw flaws"
    )
    | more_words.ANOMALOUS
)
_DEFECTS = (
    words(
        "crack cracks cracked scratch scratches scratched hole holes dent dents stain "
        "stains bent broken break cut cuts missing contamination contaminated fold folds "
        "glue poke squeeze crease blowhole blowholes fray frayed uneven burr burrs pit "
        "pits pitted pitting rust rusty corrosion chip chips chipped spot spots bubble "
        "bubbles void voids inclusion inclusions misplaced misalignment deformation "
        "deformed wrinkle wrinkles tear torn porosity spatter short open mousebite spur "
        "pinhole thread oil rough combined"
    )
    | more_words.DEFECTS
)
_NOT = words("not no non without") | more_words.NOT
_BESIDES = (
    words(
        "part parts sample samples image images img imgs photo photos picture pictures "
        "item items piece pieces product products set data train test new old day batch "
        "cam camera line front back top bottom side left right mt class only all surface "
        "station shift lot run week"
    )
    | more_words.THINGS
)
"""Words that change nothing of what the others say."""

_SORTING = words(
    "monday tuesday wednesday thursday friday saturday sunday january february march april may "
    "june july august september october november december jan feb mar apr jun jul aug sep oct nov "
    "dec morning afternoon evening night early late am pm first second third north south east west "
    "inner outer upper lower black white red green blue more extra sub subset folder batches more"
)
"""Words for when and where, and of a look: batches."""

_TRAIN = words("train training trainset learn")
_VALIDATION = words("validation val valid dev")
_TEST = words("test testing tests testset eval evaluation")
_NEUTRAL = words(
    "image images img imgs photo photos picture pictures data raw rgb color colour "
    "jpegimages dataset"
)
_MASKS = words("mask masks groundtruth gt gts segmentation segmentations labelmask")
_PERHAPS_MASKS = words(
    "label labels annotation annotations annot annots seg segs truth segmentationclass"
)
_DOUBTFUL = words(
    "unknown unlabeled unlabelled unsorted unclear misc other others rest todo "
    "positive negative positives negatives pos neg true false yes no"
)
_DRAWN = words("overlay overlays heatmap heatmaps visualization visualizations visualisation")
"""Pictures that somebody made of photographs."""

LABEL_WORDS: Mapping[str, str] = {
    **dict.fromkeys(
        ("normal", "good", "ok", "okay", "io", "i.o.", "pass", "passed", "0"), "normal"
    ),
    **dict.fromkeys(
        words(
            "anomalous anomaly abnormal defective defect bad nok ng ko nio n.i.o. fail failed "
            "reject rejected 1"
        ),
        "anomalous",
    ),
}
"""Words for the two labels, as manifests, settings and reviews have them."""

NO_DEFECT = frozenset({"", "none", "no defect", "no_defect", "-", "n/a", "0", *_NORMAL})
"""Cells under ``defect_type`` that name no defect, in lower case."""

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[^\W\d_]+")
_MASK_ENDING = re.compile(
    r"^(?P<stem>.+?)[ _.-]+(?:(?:anomaly|defect|seg|segmentation|binary|pixel|gt)[ _.-]?)?"
    r"(?:mask|masks|label|labels|gt|seg|segmentation|groundtruth|ground_truth|annotation|anno)"
    r"(?:[ _.-]?[0-9]{1,2})?$",
    re.IGNORECASE,
)
_MASK_BEGINNING = re.compile(
    r"^(?:mask|label|gt|seg|ground_truth|groundtruth)[ _.-]+(?P<stem>.+)$", re.IGNORECASE
)
_PLAIN = str.maketrans("łøđıŁØĐ", "lodiLOD")
_INITIALS = re.compile(r"n?[. _-]{0,2}i[. _]{1,2}o\.?")
"""As German shops write it: i. O. and n. i. O., in order and not."""
_THUMBNAIL_FOLDERS = words("thumbnails thumbnail thumbs thumb @eadir")
_THUMBNAIL_FILE = re.compile(r"^(?:thumb[_-](?P<a>.+)|(?P<b>.+)[_-]thumb(?:nail)?)$", re.IGNORECASE)


@dataclass(frozen=True)
class Word:
    """What a name means; `certain` is False where other words in it may say otherwise.

    Attributes:
        split: "train" or "test", where the name of a label says that, too (``normal_test``).
    """

    meaning: Meaning
    certain: bool = True
    split: str | None = None


def words_of(name: str) -> list[str]:
    """The words of a name in lower case, without accents, digits and signs."""
    apart = unicodedata.normalize("NFKD", name.replace("ß", "ss").translate(_PLAIN))
    plain = "".join(c for c in apart if unicodedata.category(c) != "Mn")
    return [word.casefold() for word in _WORD.findall(unicodedata.normalize("NFC", plain))]


@lru_cache(maxsize=4096)
def meaning_of(name: str) -> Word:
    """What a folder's name says of the photographs in it."""
    plain = name.casefold().strip()
    if plain in _THUMBNAIL_FOLDERS:
        return Word("skip")
    if plain in ("0", "1"):
        return Word("doubtful")
    words = words_of(name)
    joined = "".join(words)
    given = frozenset(words)
    rest = given - _BESIDES
    for meaning, one in (("train", _TRAIN), ("validation", _VALIDATION), ("test", _TEST)):
        if joined in one or (given & one and given <= one | {"set", "public", "private", "mixed"}):
            return Word(meaning)  # type: ignore[arg-type]
    if given & _MASKS or {"ground", "truth"} <= given:
        return Word("masks")
    if joined in _PERHAPS_MASKS:
        return Word("perhaps masks")
    if joined in _NEUTRAL or (given and given <= _NEUTRAL):
        return Word("neutral")
    if joined in _DOUBTFUL or joined in _DRAWN:
        return Word("doubtful")
    if _INITIALS.fullmatch(plain):
        return Word("anomalous" if plain.startswith("n") else "normal")
    split = "test" if given & _TEST else "train" if given & (_TRAIN | _VALIDATION) else None
    return replace(_label(given, rest, joined), split=split)


def _label(given: frozenset[str], rest: frozenset[str], joined: str) -> Word:
    normal, bad = given & _NORMAL, given & (_ANOMALOUS | _DEFECTS)
    if joined in _JOINED_NORMAL or ("free" in given and not normal):
        return Word("normal")
    if given & _NOT:
        if bad and not normal:
            return Word("normal")
        return Word("anomalous") if normal and not bad else Word("unknown")
    if normal and bad:
        return Word("doubtful")
    if normal:
        return Word("normal") if rest <= _NORMAL else Word("doubtful", certain=False)
    if given & _ANOMALOUS:
        return Word("anomalous" if rest <= _ANOMALOUS else "defect", rest <= _ANOMALOUS)
    if bad:
        return Word("defect", certain=rest <= _DEFECTS)
    return Word("unknown", certain=bool(rest))


def names_something(name: str) -> bool:
    """Whether an unknown name has a word of its own, which could be a type of defect's: not one
    with a number (``batch2``), a letter (``B``) or words that merely sort (``left``).
    """
    if any(character.isdigit() for character in name):
        return False
    return any(
        len(word) > 2 or not word.isascii() for word in set(words_of(name)) - _BESIDES - _SORTING
    )


def label_of(text: str) -> str | None:
    """The label, "normal" or "anomalous", of a word that says so in a table, else None."""
    return LABEL_WORDS.get(text.strip().casefold())


def mask_stem(stem: str) -> str | None:
    """The photograph's name, where a file's says that it is the mask of one."""
    found = _MASK_ENDING.match(stem) or _MASK_BEGINNING.match(stem)
    return found["stem"] if found else None


def is_thumbnail(stem: str, others: frozenset[str] | set[str]) -> bool:
    """Whether a file's name says that it is a small copy of one of the others beside it."""
    found = _THUMBNAIL_FILE.match(stem)
    return bool(found) and (found["a"] or found["b"]) in others  # type: ignore[index]
