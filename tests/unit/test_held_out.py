"""Folds of parts, and what a bank would hold without some images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pgdefect.core.progress import silent
from pgdefect.usecases.train.bank import build_bank
from pgdefect.usecases.train.held_out import ALONE, FOLDS, deal_parts, vectors_without
from pgdefect.usecases.train.options import TrainOptions
from pgdefect.vision.patchcore.patch_spool import PatchSpool


@given(sizes=st.lists(st.integers(1, 9), min_size=2, max_size=30), data=st.data())
@hypothesis_settings(max_examples=100, deadline=None)
def test_every_scored_image_is_scored_once_without_its_part(
    sizes: list[int], data: st.DataObject
) -> None:
    ends = np.cumsum(sizes).tolist()
    parts = [list(range(end - size, end)) for size, end in zip(sizes, ends, strict=True)]
    scored = data.draw(st.sets(st.sampled_from(range(ends[-1])), min_size=1))
    folds = list(deal_parts(parts, scored, seed=0))
    dealt = sum(not scored.isdisjoint(part) for part in parts)
    assert len(folds) == (dealt if dealt <= ALONE else FOLDS)
    assert sorted(n for _, numbers in folds for n in numbers) == sorted(scored)
    for out, numbers in folds:
        assert set(numbers) <= out
        assert all(out.isdisjoint(part) or out.issuperset(part) for part in parts)
        # A part that nothing is scored of stays in every bank.
        assert all(not scored.isdisjoint(part) for part in parts if out.issuperset(part))


def test_vectors_without_images_are_of_the_others_as_dense_as_the_bank(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = 6
    patches = rng.normal(size=(images, 8, 8, 5)).astype(np.float32)
    patches[2] += 40.0  # unlike the others: its patches are easily told
    with PatchSpool(tmp_path, "half") as spool:
        spool.allocate(images * 64, 5)
        spool.append(patches)
        options = TrainOptions(coreset_ratio=0.25, layer_weights={})
        ids = [10 + n for n in range(images)]
        bank = build_bank(spool, ids, options, silent)
        found = vectors_without(bank, ids, spool, {2}, options)
        assert found.shape == (round(len(bank.embeddings) * 5 / 6), bank.embeddings.shape[1])
        own = bank.embeddings[bank.image_ids == 12]
        assert len(own)
        # None lies near the image that was left out: unit vectors, which point elsewhere.
        assert (found @ own.T).max() < 0.9
        capped = TrainOptions(coreset_ratio=0.25, max_vectors=50, layer_weights={})
        bank = build_bank(spool, ids, capped, silent)
        assert len(vectors_without(bank, ids, spool, {2}, capped)) == 50
