"""Text on pictures: fonts, and what stands for a letter that no font here has.

DejaVu Sans comes with pgdefect (its license is beside it): Latin, Greek, Cyrillic and others.
Chinese, Japanese and Korean take a font of the system's, since one has 16 MB: Noto Sans CJK and
some others are looked for where systems keep fonts. A letter that none has is written as its
code point, U+87BA: no name turns into question marks, and no two names into one.
"""

from __future__ import annotations

import os
import sys
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from itertools import groupby
from pathlib import Path

from PIL import ImageDraw, ImageFont

_OURS = Path(__file__).with_name("fonts") / "DejaVuSans.ttf"
_WIDE_FONTS = (
    "NotoSansCJK-Regular",
    "NotoSansCJKsc-Regular",
    "NotoSansCJKjp-Regular",
    "NotoSansCJKtc-Regular",
    "NotoSansCJKkr-Regular",
    "NotoSansSC-Regular",
    "SourceHanSans-Regular",
    "SourceHanSansSC-Regular",
    "wqy-microhei",
    "wqy-zenhei",
    "DroidSansFallbackFull",
    "DroidSansFallback",
    "PingFang",
    "Hiragino Sans GB",
    "Arial Unicode",
    "msyh",
    "simsun",
    "YuGothR",
    "malgun",
    "unifont",
)
"""Files with Chinese, Japanese or Korean letters, better ones first."""
_SUFFIXES = (".ttc", ".otf", ".ttf")


def font_folders() -> list[Path]:
    """Where this system keeps fonts, the user's own first."""
    home = Path.home()
    if sys.platform == "darwin":
        return [home / "Library/Fonts", Path("/Library/Fonts"), Path("/System/Library/Fonts")]
    if sys.platform == "win32":
        return [
            Path(os.environ.get("LOCALAPPDATA", home)) / "Microsoft/Windows/Fonts",
            Path(os.environ.get("WINDIR", "C:/Windows")) / "Fonts",
        ]
    own = Path(os.environ.get("XDG_DATA_HOME") or home / ".local/share")
    shared = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
    return [own / "fonts", home / ".fonts", *(Path(d) / "fonts" for d in shared.split(":"))]


@lru_cache(maxsize=1)
def _wide_faces() -> tuple[Path, ...]:
    """The system's fonts for letters that ours lacks; looked for when the first one is needed."""
    found: dict[str, Path] = {}
    for folder in font_folders():
        for parent, _, names in os.walk(folder):
            for name in names:
                stem, suffix = os.path.splitext(name)
                if suffix.lower() in _SUFFIXES and stem in _WIDE_FONTS:
                    found.setdefault(stem, Path(parent) / name)
    faces = []
    for stem in _WIDE_FONTS:
        if stem in found and _usable(found[stem]):
            faces.append(found[stem])
    return tuple(faces)


def _usable(path: Path) -> bool:
    try:
        ImageFont.truetype(path, 16)
    except OSError:
        return False
    return True


@lru_cache(maxsize=256)
def _face(path: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


@lru_cache(maxsize=16)
def _missing(path: Path) -> tuple[tuple[int, int], bytes]:
    """What a font draws for a letter it does not have."""
    drawn = _face(path, 16).getmask("\U0010ffff")
    return drawn.size, bytes(drawn)


@lru_cache(maxsize=8192)
def _face_of(char: str) -> Path | None:
    """The first font that has a letter; None if none has."""
    if char == " " or _draws(_OURS, char):
        return _OURS
    return next((path for path in _wide_faces() if _draws(path, char)), None)


def _draws(path: Path, char: str) -> bool:
    try:
        drawn = _face(path, 16).getmask(char)
    except (OSError, UnicodeEncodeError):  # half of a surrogate pair
        return False
    return drawn.getbbox() is not None and (drawn.size, bytes(drawn)) != _missing(path)


def clean_text(text: str) -> str:
    """`text` on one line in letters that can be drawn; others are written as code points.

    Control characters, and marks that no font joins to their letter, are left out.
    """
    out: list[str] = []
    for char in unicodedata.normalize("NFC", " ".join(text.split())):
        category = unicodedata.category(char)
        if category in ("Cc", "Cf"):
            continue
        if category != "Cs" and _face_of(char) is not None:
            out.append(char)
        elif category != "Mn":
            apart = " " if out and len(out[-1]) > 1 else ""
            out.append(f"{apart}U+{ord(char):04X}")
    return "".join(out)


def _runs(text: str) -> Iterator[tuple[Path, str]]:
    for path, chars in groupby(text, key=lambda char: _face_of(char) or _OURS):
        yield path, "".join(chars)


def text_length(text: str, size: int) -> float:
    """Pixels that a line of `clean_text` is wide in letters of `size` pixels."""
    return sum(_face(path, size).getlength(run) for path, run in _runs(text))


def fit_text(text: str, size: int, max_width: float) -> str:
    """`clean_text`, with its middle elided where it is wider than `max_width` pixels."""
    text = clean_text(text)
    if text_length(text, size) <= max_width:
        return text

    def elided(kept: int) -> str:
        tail = kept // 2
        return f"{text[: kept - tail]}…{text[len(text) - tail :]}"

    fitting = bisect_right(
        range(len(text)), max_width, key=lambda kept: text_length(elided(kept), size)
    )
    return elided(max(0, fitting - 1))


def draw_text(
    draw: ImageDraw.ImageDraw,
    xy: tuple[float, float],
    text: str,
    size: int,
    color: tuple[int, int, int],
    anchor: str = "ls",
) -> None:
    """Draw a line of `clean_text`; each letter in the first font that has it.

    Args:
        anchor: Pillow's, l, m or r and then s: where in the line `xy` lies, which is on its base.
    """
    x, y = xy
    if anchor[0] != "l":
        x -= text_length(text, size) / (2 if anchor[0] == "m" else 1)
    for path, run in _runs(text):
        face = _face(path, size)
        draw.text((x, y), run, color, face, anchor="l" + anchor[1:])
        x += face.getlength(run)


def forget_fonts() -> None:
    """Look for fonts anew: after one was installed."""
    for cached in (_wide_faces, _face, _missing, _face_of):
        cached.cache_clear()
