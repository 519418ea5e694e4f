"""Which value is white: what the numbers of images that are not 8-bit are measured against.

A 16-bit file may hold 8, 10, 12 or 16 bits, and nothing in it says how many. The scale is
therefore one of the category and not of the file: the smallest usual one that holds the brightest
value of all images it begins with. Every later file is read by it, and one that does not fit is
refused, for the same part would come out darker or brighter than what was learned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from pgdefect.core.errors import ImageError

__all__ = ["GrayScale", "Samples", "described", "differs", "white_of", "widened"]

GrayScale: TypeAlias = Mapping[str, float | None]
"""The white value by kind of sample: ``uint8``, ``uint16``, ``int32``, ``float32``, and
``netpbm16``, whose files say it themselves. Empty: not found yet.
"""

FIXED = {"uint8": 255.0, "netpbm16": 65535.0}
_USUAL = (255.0, 1023.0, 4095.0, 16383.0, 65535.0)
_NAMES = {
    "uint8": "8-bit",
    "uint16": "16-bit",
    "netpbm16": "16-bit netpbm",
    "int32": "32-bit integer",
    "float32": "floating-point",
}


@dataclass(frozen=True)
class Samples:
    """What a file's numbers are: their kind, the brightest, and what a reader should know.

    Attributes:
        alpha_ignored: it is zero throughout, and the colors were read as stored.
        pages: of which the first was read.
        one_level: all pixels are the same.
    """

    kind: str
    brightest: float
    alpha_ignored: bool = False
    pages: int = 1
    one_level: bool = False


def widened(scale: GrayScale, samples: Samples) -> GrayScale:
    """The scale that holds one more file. Never narrower than before."""
    kind = samples.kind
    if kind in FIXED:
        return scale if kind in scale else {**scale, kind: FIXED[kind]}
    white = next((one for one in _USUAL if samples.brightest <= one), None)
    if kind == "float32" and samples.brightest <= 1:
        white = 1.0
    if white is None:
        white = float((1 << int(samples.brightest).bit_length()) - 1)
        white = white if samples.brightest <= white else 2 * white + 1
    return scale if (scale.get(kind) or 0.0) >= white else {**scale, kind: white}


def white_of(scale: GrayScale | None, samples: Samples, name: str) -> float | None:
    """The white value for one file; None where the category has no scale (yet).

    8-bit files say it themselves, whatever the others are.

    Raises:
        ImageError: the file does not fit the scale.
    """
    if samples.kind in FIXED:
        return FIXED[samples.kind]
    if not scale:
        return None
    is_now = f"{name} holds {_NAMES[samples.kind]} values up to {samples.brightest:g}"
    if samples.kind in scale and scale[samples.kind] is None:
        return None  # ingested before there was a scale: each file decides
    white = scale.get(samples.kind)
    if white is None:
        raise ImageError(
            f"{is_now}, and the images of its category are {described(scale)}: how bright it is "
            "beside them is not known. Export it as they are, or ingest it as another category"
        )
    if samples.brightest > white:
        raise ImageError(
            f"{is_now}, and the gray scale of its category ends at {white:g}, found when its first "
            "images were ingested. Export it on that scale, or ingest it as another category"
        )
    return white


def differs(scale: GrayScale | None, samples: Samples) -> bool:
    """Whether a file that can be read is of another depth than the category's."""
    return bool(scale) and samples.kind not in (scale or {})


def described(scale: GrayScale) -> str:
    """For example ``16-bit (white at 4095)``."""
    return " and ".join(
        _NAMES[kind] if kind in FIXED or white is None else f"{_NAMES[kind]} (white at {white:g})"
        for kind, white in sorted(scale.items())
    )
