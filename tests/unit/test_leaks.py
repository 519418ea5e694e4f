"""Parts and files on two sides of a split are found and named."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pgdefect.core.types import StoredImage
from pgdefect.usecases.evaluate.split_leaks import LEAST_PARTS, find_leaks, find_look_alikes


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
    assert (leak.kind, leak.name, leak.sides) == ("part", "a", ("test", "training"))
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
    assert leak.kind == "part"


def test_calibration_may_share_parts_with_neither() -> None:
    leaks = find_leaks([image(1, "a")], [image(2, "a"), image(3, "b")], [image(4, "b")], "test")
    assert [(leak.name, leak.sides) for leak in leaks] == [
        ("a", ("test", "calibration")),
        ("b", ("calibration", "training")),
    ]


def photographs(
    parts: dict[int, int], spread: float, seed: int = 0
) -> tuple[list[StoredImage], dict[int, np.ndarray]]:
    """Images of parts, by group how many, ids 100 x group upwards; noise about each part's own
    direction is `spread` of its length.
    """
    images, embeddings = [], {}
    for group, many in parts.items():
        own = np.random.default_rng(group).standard_normal(64)
        noise = np.random.default_rng(seed + 1000 + group)
        for n in range(many):
            images.append(image(100 * group + n, f"part {group}"))
            vector = 5.0 + own + spread * noise.standard_normal(64)
            embeddings[images[-1].id] = (vector / np.linalg.norm(vector)).astype(np.float32)
    return images, embeddings


def renamed(images: list[StoredImage], group: str | None) -> list[StoredImage]:
    return [replace(one, id=one.id + 50, part=group) for one in images]


@pytest.fixture
def learned() -> tuple[list[StoredImage], dict[int, np.ndarray]]:
    return photographs(dict.fromkeys(range(1, 13), 3), 0.3)


@pytest.mark.parametrize("name", ["part 90", None])
def test_a_part_learned_from_under_another_name_is_found(
    learned: tuple[list[StoredImage], dict[int, np.ndarray]], name: str | None
) -> None:
    """Two more photographs of part 5, nearer to the three learned than they are mostly."""
    new, vectors = photographs({5: 2}, 0.1, seed=7)
    other, unlike = photographs({20: 3, 21: 1}, 0.3)
    new = renamed(new, name)
    vectors = {id_ + 50: vector for id_, vector in vectors.items()}
    found = find_look_alikes([*other, *new], learned[0], learned[1] | vectors | unlike)
    assert {pair.other_part for pair in found} == {"part 5"}
    assert len(found) == (1 if name else 2)  # without a name each is a part of its own
    assert all(pair.distance < pair.usual for pair in found)
    assert list(found) == sorted(found, key=lambda pair: pair.distance)
    part = " (part 'part 90')" if name else ""
    assert str(found[0]).startswith(f"{found[0].path}{part} is like {found[0].other_path} (part '")


def test_the_same_name_is_a_leak_and_no_look_alike(
    learned: tuple[list[StoredImage], dict[int, np.ndarray]],
) -> None:
    new, vectors = photographs({5: 2}, 0.1, seed=7)
    new = renamed(new, "part 5")
    vectors = {id_ + 50: vector for id_, vector in vectors.items()}
    assert find_look_alikes(new, learned[0], learned[1] | vectors) == ()


def test_parts_seen_from_several_sides_are_not_all_alike() -> None:
    """One side of two parts is nearer than two sides of one: no distance tells parts apart."""
    images, embeddings = [], {}
    for part in range(16):
        for side in range(3):
            looks = np.random.default_rng(side).standard_normal(64)
            vector = looks + 0.2 * np.random.default_rng(100 + 3 * part + side).standard_normal(64)
            images.append(image(3 * part + side, f"part {part}"))
            embeddings[images[-1].id] = (vector / np.linalg.norm(vector)).astype(np.float32)
    assert find_look_alikes(images[36:], images[:36], embeddings) == ()


def test_without_parts_photographed_twice_nothing_is_known() -> None:
    new, vectors = photographs({5: 1}, 0.0)
    new = renamed(new, "part 90")
    vectors = {id_ + 50: vector for id_, vector in vectors.items()}
    for twice, found in ((LEAST_PARTS - 1, 0), (LEAST_PARTS, 1)):
        parts = {group: 2 if group <= twice else 1 for group in range(1, 13)}
        learned, embeddings = photographs(parts, 0.3)
        assert len(find_look_alikes(new, learned, embeddings | vectors)) == found
    assert find_look_alikes([], learned, embeddings) == ()
    assert find_look_alikes(new, learned, embeddings) == ()  # not embedded
