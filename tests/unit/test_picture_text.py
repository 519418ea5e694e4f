"""Letters on pictures: what ours has, what the system's fonts have, and what none has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw

from pgdefect.pictures import text
from pgdefect.pictures.text import clean_text, draw_text, fit_text, text_length


@pytest.fixture(autouse=True)
def no_fonts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A system that has no fonts but those of a folder, empty at first."""
    folder = tmp_path / "fonts" / "opentype"
    folder.mkdir(parents=True)
    monkeypatch.setattr(text, "font_folders", lambda: [tmp_path / "absent", folder.parent])
    text.forget_fonts()
    yield folder
    text.forget_fonts()


def wide_font(path: Path, letters: str) -> None:
    """A font that draws each of these as a block, the widest that ours has."""
    font = TTFont(Path(text.__file__).with_name("fonts") / "DejaVuSans.ttf")
    glyph = font.getBestCmap()[ord("█")]
    for table in font["cmap"].tables:
        table.cmap = {ord(letter): glyph for letter in letters}
    font.save(path)


def drawn(line: str, size: int = 24) -> np.ndarray:
    canvas = Image.new("RGB", (1200, 60), "white")
    draw_text(ImageDraw.Draw(canvas), (10, 40), line, size, (0, 0, 0))
    return np.asarray(canvas.convert("L")) < 128


@pytest.mark.parametrize(
    "name",
    ["größe–é.png", "Деталь №5", "κατάγματα", "5 µm ± 2 ×", "İşık ły ßø", "a→b ≥ 1/2", "Đ ơ ŭ"],
)
def test_what_our_font_has_is_drawn_as_it_is(name: str) -> None:
    assert clean_text(name) == name
    assert drawn(name).any()


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("螺丝/划痕", "U+87BA U+4E1D/U+5212 U+75D5"),
        ("日本.png", "U+65E5 U+672C.png"),
        ("a\nb\tc", "a b c"),
        ("a\x00\u202eb", "ab"),
        ("\udcff.png", "U+DCFF.png"),
        ("u\u0308ber", "über"),
        ("🔩", "U+1F529"),
        ("", ""),
    ],
)
def test_letters_that_no_font_has_are_code_points(raw: str, shown: str) -> None:
    """Two names never look the same, as ?? and ?? did."""
    assert clean_text(raw) == shown


def test_a_font_of_the_system_is_used_where_ours_ends(no_fonts: Path) -> None:
    wide_font(no_fonts / "NotoSansCJK-Regular.ttc", "螺丝划痕")
    (no_fonts / "wqy-microhei.ttc").write_bytes(b"no font")
    text.forget_fonts()
    assert clean_text("螺丝/划痕 №5 日") == "螺丝/划痕 №5 U+65E5"
    block = text_length("螺", 24)
    assert text_length("a螺丝b", 24) == text_length("a", 24) + 2 * block + text_length("b", 24)
    # The blocks stand side by side, between the letters of our own font.
    columns = drawn("|螺丝|").all(axis=0) | (drawn("|螺丝|").sum(axis=0) > 20)
    assert columns.sum() >= 2 * block - 2


def test_fonts_that_nobody_asked_for_are_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "font_folders", lambda: pytest.fail("looked for fonts"))
    text.forget_fonts()
    assert clean_text("scratch, größe, Деталь") == "scratch, größe, Деталь"


@pytest.mark.parametrize("anchor", ["ls", "ms", "rs"])
def test_anchors_are_of_the_whole_line(no_fonts: Path, anchor: str) -> None:
    wide_font(no_fonts / "unifont.otf", "螺")
    text.forget_fonts()
    line, size = "M螺M", 24
    canvas = Image.new("RGB", (600, 60), "white")
    draw_text(ImageDraw.Draw(canvas), (300, 40), line, size, (0, 0, 0), anchor)
    columns = np.flatnonzero((np.asarray(canvas.convert("L")) < 128).any(axis=0))
    start = 300 - text_length(line, size) * {"l": 0, "m": 0.5, "r": 1}[anchor[0]]
    assert columns[0] == pytest.approx(start, abs=4)
    assert columns[-1] == pytest.approx(start + text_length(line, size), abs=4)


def test_a_long_name_keeps_both_ends() -> None:
    short = fit_text("station_7_" + "x" * 5000 + "_0042.png", 16, 160)
    assert short.startswith("station")
    assert short.endswith("42.png")
    assert text_length(short, 16) <= 160


def test_no_room_at_all() -> None:
    assert fit_text("anything", 16, 1) == "…"


def test_fonts_lie_in_folders_of_the_user_and_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("XDG_DATA_HOME", "/my/data")
    monkeypatch.setenv("XDG_DATA_DIRS", "/a:/b")
    monkeypatch.setattr("sys.platform", "linux")
    found = [str(folder) for folder in text.font_folders()]
    assert found[0] == "/my/data/fonts"
    assert found[-2:] == ["/a/fonts", "/b/fonts"]
