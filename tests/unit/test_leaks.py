"""Parts and files on two sides of a split are found and named."""

from __future__ import annotations

from pgdefect.pipeline.leaks import find_leaks
from pgdefect.types import StoredImage


def image(id_: int, group: str | None = None, content: str | None = None) -> StoredImage:
    path = f"{id_}.png"
    sha256 = content or f"{id_:064}"
    return StoredImage(
        id_, "parts", f"/a/{path}", path, "test", "normal", None, group, None, sha256, 8, 8
    )


def test_a_clean_split_has_no_leak() -> None:
    test = [image(1, "a"), image(2), image(3, "a")]
    assert find_leaks(test, [image(4, "b"), image(5)], [image(6, "c"), image(7)], "test") == ()


def test_a_part_on_two_sides_is_named_with_its_images() -> None:
    test = [image(1, "a"), image(2, "a"), image(3, "b")]
    [leak] = find_leaks(test, [], [image(4, "a"), image(5, "c"), image(6, "a")], "test")
    assert (leak.kind, leak.name, leak.sides) == ("group", "a", ("test", "training"))
    assert leak.image_ids == (1, 2)
    assert leak.other_paths == ("/a/4.png", "/a/6.png")
    assert str(leak) == (
        "part 'a' is in test (/a/1.png and 1 more) and in training (/a/4.png and 1 more)"
    )


def test_one_file_twice_is_named_unless_its_part_is_already() -> None:
    same = "f" * 64
    [leak] = find_leaks([image(1, "a", same)], [], [image(2, "b", same)], "test")
    assert (leak.kind, leak.name) == ("sha256", same)
    assert str(leak).startswith("the file ffffffffffff… is in test (/a/1.png) and in training")
    [leak] = find_leaks([image(1, "a", same)], [], [image(2, "a", same)], "test")
    assert leak.kind == "group"


def test_calibration_may_share_parts_with_neither() -> None:
    leaks = find_leaks([image(1, "a")], [image(2, "a"), image(3, "b")], [image(4, "b")], "test")
    assert [(leak.name, leak.sides) for leak in leaks] == [
        ("a", ("test", "calibration")),
        ("b", ("calibration", "training")),
    ]
