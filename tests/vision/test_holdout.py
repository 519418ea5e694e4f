"""Which images thresholds come from, and what they are compared with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cells import TINY, bank_rows, state
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import text

from pgdefect.core.config import Settings
from pgdefect.core.distance import nearest_vectors
from pgdefect.core.errors import TooFewImages
from pgdefect.core.types import StoredImage
from pgdefect.db.connection.engine import Database
from pgdefect.db.records.detectors import active_detector
from pgdefect.db.records.extractors import load_extractor
from pgdefect.db.records.summaries import list_detectors
from pgdefect.db.search.queries import images_of
from pgdefect.usecases.train.bank import split_holdout
from pgdefect.usecases.train.train import train
from pgdefect.vision.images.image import load_image
from pgdefect.vision.networks.extractor import Extractor
from pgdefect.vision.patchcore.transform import apply_transform

pytestmark = pytest.mark.train


def an_image(number: int, group: str | None, content: int | None = None) -> StoredImage:
    path, content = f"{number}.png", f"{number if content is None else content:064x}"
    return StoredImage(number, "c", path, path, "train", "normal", None, group, None, content, 1, 1)


@given(
    groups=st.lists(st.none() | st.sampled_from("abcd"), min_size=2, max_size=40),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 5),
)
@hypothesis_settings(max_examples=300, deadline=None)
def test_holdout_never_splits_a_group(groups: list[str | None], fraction: float, seed: int) -> None:
    images = [an_image(n, group) for n, group in enumerate(groups)]
    if len(set(groups)) == 1 and groups[0] is not None:
        with pytest.raises(TooFewImages, match="one group"):
            split_holdout(images, fraction, seed)
        return
    kept, held_out = split_holdout(images, fraction, seed)
    assert kept
    assert held_out
    assert sorted(i.id for i in [*kept, *held_out]) == list(range(len(images)))
    assert not {i.part for i in kept if i.part} & {i.part for i in held_out if i.part}
    assert split_holdout(images, fraction, seed) == (kept, held_out)
    if not any(groups):
        wanted = min(len(images) - 1, max(1, round(fraction * len(images))))
        assert len(held_out) == wanted


@given(
    images=st.lists(
        st.tuples(st.none() | st.sampled_from("abc"), st.integers(0, 9)), min_size=2, max_size=30
    ),
    seed=st.integers(0, 5),
)
@hypothesis_settings(max_examples=300, deadline=None)
def test_copies_of_a_file_are_held_out_together_and_their_groups_with_them(
    images: list[tuple[str | None, int]], seed: int
) -> None:
    made = [an_image(n, group, content) for n, (group, content) in enumerate(images)]
    try:
        kept, held_out = split_holdout(made, 0.3, seed)
    except TooFewImages:
        # All hang together: by groups and contents one reaches each from the first.
        reached, more = set[int](), {0}
        while more - reached:
            reached |= more
            more = {
                n for n, i in enumerate(made) for m in reached
                if i.sha256 == made[m].sha256 or (i.part and i.part == made[m].part)
            }  # fmt: skip
        assert reached == set(range(len(made)))
        return
    assert not {i.sha256 for i in kept} & {i.sha256 for i in held_out}
    assert not {i.part for i in kept if i.part} & {i.part for i in held_out if i.part}


def test_group_named_like_an_image_is_no_image() -> None:
    images = [an_image(1, None), an_image(2, "i1"), an_image(3, "i1"), an_image(4, None)]
    for seed in range(10):
        kept, _ = split_holdout(images, 0.25, seed)
        assert ({2, 3} <= {i.id for i in kept}) or not ({2, 3} & {i.id for i in kept})


def as_four_parts(database: Database) -> None:
    with database.begin() as connection:
        connection.execute(
            text(
                "UPDATE pgdefect.image SET group_name = 'cell' || (id % 4) "
                "WHERE category_id = (SELECT id FROM pgdefect.category WHERE name = 'cells')"
            )
        )


def test_images_of_one_part_are_held_out_together_in_training(
    cells: Database, settings: Settings
) -> None:
    as_four_parts(cells)
    report = train(cells, settings, "cells", replace(TINY, holdout=0.1))
    detector = active_detector(cells, "cells")
    with cells.connect() as connection:
        scored = set(
            connection.scalars(
                text("SELECT image_id FROM pgdefect.holdout_score WHERE detector_id = :d"),
                {"d": detector.id},
            )
        )
    groups = {i.id: i.part for i in images_of(cells, "cells", split="train")}
    [part] = {groups[i] for i in scored}
    assert scored == {i for i, group in groups.items() if group == part}
    assert report.held_out_images == len(scored) >= 3
    # They are in the bank nevertheless, as all are.
    assert {groups[i] for i in bank_rows(cells, detector)[1]} == set(groups.values())


def test_threshold_scores_compare_an_image_with_other_parts_alone(
    cells: Database, settings: Settings
) -> None:
    """Not with its own patches, which lie in the bank, nor with other photographs of the part."""
    as_four_parts(cells)
    options = replace(TINY, num_neighbors=1)
    train(cells, settings, "cells", options)
    detector = active_detector(cells, "cells")
    with cells.connect() as connection:
        scores = dict(
            connection.execute(
                text(
                    "SELECT image_id, raw_score FROM pgdefect.holdout_score WHERE detector_id = :d"
                ),
                {"d": detector.id},
            ).all()
        )
    vectors, from_images = bank_rows(cells, detector)
    images = {i.id: i for i in images_of(cells, "cells", split="train")}
    extractor = Extractor(load_extractor(cells, detector.extractor_id, settings.cache_dir))
    raw = {}
    for image_id, image in images.items():
        inputs = extractor.preprocessing.apply(np.asarray(load_image(image.path)))[None]
        raw[image_id] = extractor(inputs)[0].reshape(-1, extractor.artifact.embedding_dim)
    assert set(from_images) & set(scores)
    for image_id, score in scores.items():
        queries = apply_transform(detector.bank.transform, raw[image_id])
        others = np.concatenate(
            [
                apply_transform(detector.bank.transform, raw[other.id])
                for other in images.values()
                if other.part != images[image_id].part
            ]
        )
        # A coreset of theirs covers the image at best as well as all their patches do.
        _, distances = nearest_vectors(queries, others, detector.bank.metric)
        assert score >= distances.max() * 0.98
        if image_id in from_images:
            _, own = nearest_vectors(queries, vectors, detector.bank.metric)
            assert own.min() < 1e-3 < score


def test_copies_of_one_file_cannot_make_a_threshold(cells: Database, settings: Settings) -> None:
    with cells.begin() as connection:
        connection.execute(text("UPDATE pgdefect.image SET sha256 = repeat('0', 64)"))
    before = state(cells)
    with pytest.raises(TooFewImages, match="copies of one file"):
        train(cells, settings, "cells", TINY)
    assert list_detectors(cells) == before[0]
