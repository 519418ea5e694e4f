"""Pictures of photographs never replace another photograph's, whichever run wrote them."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from pgdefect.usecases.common.picture_files import save_picture_of


def photograph(path: Path, level: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), level).save(path)
    return str(path)


def picture(level: int) -> Image.Image:
    return Image.new("RGB", (8, 8), (level, 0, 0))


def level_of(path: Path) -> int:
    with Image.open(path) as image:
        return image.getpixel((0, 0))[0]  # type: ignore[index]


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    return tmp_path / "maps"


def test_equal_names_of_two_folders_are_both_kept(tmp_path: Path, maps: Path) -> None:
    one = photograph(tmp_path / "A/good/1.png", 1)
    other = photograph(tmp_path / "B/good/1.png", 2)
    first, second = (
        save_picture_of(one, picture(10), maps),
        save_picture_of(other, picture(20), maps),
    )
    assert first.name == "good_1.png"
    assert second != first
    assert (level_of(first), level_of(second)) == (10, 20)


def test_a_photographs_own_picture_is_replaced(tmp_path: Path, maps: Path) -> None:
    paths = [photograph(tmp_path / f"{name}/good/1.png", n) for n, name in enumerate("AB")]
    for level in (10, 30):
        written = [save_picture_of(path, picture(level + n), maps) for n, path in enumerate(paths)]
    assert [level_of(path) for path in written] == [30, 31]
    assert len(list(maps.iterdir())) == 2


def test_suffixes_do_not_tell_photographs_apart(tmp_path: Path, maps: Path) -> None:
    written = {
        save_picture_of(photograph(tmp_path / f"good/1{suffix}", 1), picture(1), maps)
        for suffix in (".png", ".bmp", ".tif")
    }
    assert len(written) == 3


def test_a_new_photograph_in_an_old_ones_place_keeps_the_old_ones_picture(
    tmp_path: Path, maps: Path
) -> None:
    path = tmp_path / "camera/latest.png"
    written = {save_picture_of(photograph(path, n), picture(n), maps) for n in range(3)}
    assert len(written) == 3


def test_files_of_other_programs_stay(tmp_path: Path, maps: Path) -> None:
    maps.mkdir()
    (maps / "good_1.png").write_bytes(b"not a picture")
    Image.new("L", (2, 2)).save(maps / "good_2.png")
    for n in (1, 2):
        save_picture_of(photograph(tmp_path / f"good/{n}.png", n), picture(n), maps)
    assert (maps / "good_1.png").read_bytes() == b"not a picture"
    with Image.open(maps / "good_2.png") as other:
        assert other.size == (2, 2)
    assert len(list(maps.iterdir())) == 4


def test_long_names_are_cut_and_stay_apart(tmp_path: Path, maps: Path) -> None:
    written = {
        save_picture_of(photograph(tmp_path / f"good/{'ü' * 120}{n}.png", n), picture(n), maps)
        for n in range(2)
    }
    assert len(written) == 2
