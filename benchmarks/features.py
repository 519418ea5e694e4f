"""Patch embeddings of whole data sets, extracted once, for benchmarks that need no database."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import Images

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


def every_set(quick: bool) -> list[Images]:
    """The solar cells, and every data set in ../shared/data."""
    from pgdefect.usecases.demo import solar_cells
    from pgdefect.vision.images.dataset import scan

    sets = [Images(kind, solar_cells(f"solar_{kind}")) for kind in ("mono", "poly")]
    if quick:
        return [one.limited(train=24, test=8) for one in sets]
    for folder in sorted(SHARED.iterdir()) if SHARED.is_dir() else ():
        if folder.is_dir():
            sets.append(Images(folder.name, scan(folder, parts=folder / "groups.csv")))
    return sets


@dataclass(frozen=True)
class Photograph:
    """One image: its record, and its patch embeddings `(rows, cols, dim)` in half precision."""

    record: Any
    path: str
    size: tuple[int, int]
    patches: NDArray[np.float16]

    @property
    def part(self) -> str:
        return self.record.part or self.path


def extracted(images: Images, extractor: Any, *, step: int = 1) -> list[Photograph]:
    """Every image of the set; of its patches every `step`-th row and column."""
    from pgdefect.vision.images.image import read_image

    found = []
    for record in images.dataset.records:
        path = os.path.join(images.dataset.root, record.path)
        pixels = read_image(path)[1]
        patches = extractor(extractor.preprocessing.apply(pixels)[None])[0]
        found.append(
            Photograph(
                record,
                path,
                (pixels.shape[0], pixels.shape[1]),
                np.ascontiguousarray(patches[::step, ::step]).astype(np.float16),
            )
        )
    return found


def network(name: str) -> tuple[Any, Any]:
    """Anomalib's network for a backbone, and what we export of it, for images of any shape."""
    from pgdefect.vision.images.preprocess import Preprocessing
    from pgdefect.vision.networks.backbone import find_backbone
    from pgdefect.vision.patchcore import patchcore

    backbone = find_backbone(name)
    preprocessing = Preprocessing(mean=backbone.mean, std=backbone.std, resize="keep")
    embedder = patchcore.build_embedder(backbone, backbone.layers, preprocessing, None)
    return embedder, embedder.export()


def extractor_with(artifact: Any, **preprocessing: Any) -> Any:
    """The same network behind another preprocessing."""
    from pgdefect.vision.images.preprocess import Preprocessing
    from pgdefect.vision.networks.extractor import Extractor

    before = Preprocessing.from_dict(artifact.spec.preprocessing)
    spec = replace(artifact.spec, preprocessing=replace(before, **preprocessing).to_dict())
    return Extractor(replace(artifact, spec=spec))


def stored(photographs: Sequence[Photograph]) -> list[Any]:
    """The images as a training sees them: ids are their numbers."""
    from pgdefect.core.types import StoredImage

    return [
        StoredImage(
            n + 1, "bench", one.path, one.path, "train", "normal", None, one.record.part, None,
            f"{n:064x}", *one.size,
        )
        for n, one in enumerate(photographs)
    ]  # fmt: skip


@contextmanager
def spooled(photographs: Sequence[Photograph], folder: Path) -> Iterator[Any]:
    """Their patches as a training spools them."""
    from pgdefect.vision.patchcore.patch_spool import PatchSpool

    with PatchSpool(folder, "half") as spool:
        num_patches = sum(one.patches.shape[0] * one.patches.shape[1] for one in photographs)
        spool.allocate(num_patches, photographs[0].patches.shape[-1])
        for one in photographs:
            spool.append(one.patches[None].astype(np.float32))
        yield spool


@dataclass(frozen=True)
class Trained:
    """A memory bank, its threshold, and the search over it."""

    bank: Any
    threshold: Any
    search: Any

    def scores(self, photograph: Photograph) -> Any:
        from pgdefect.core.distance import as_stored
        from pgdefect.usecases.common.patch_search import score_image
        from pgdefect.vision.patchcore.transform import apply_transform

        rows, cols, dim = photograph.patches.shape
        raw = photograph.patches.reshape(-1, dim).astype(np.float32)
        vectors = as_stored(apply_transform(self.bank.transform, raw), self.bank.precision)
        return score_image(self.search, vectors, (rows, cols))


def trained(photographs: Sequence[Photograph], options: Any, scales: Any, folder: Path) -> Trained:
    """What `pgdefect train` makes of them, by its own functions."""
    from pgdefect.core.progress import silent
    from pgdefect.usecases.common.patch_search import BankSearch
    from pgdefect.usecases.train.bank import build_bank, images_to_score, score_others

    images = stored(photographs)
    with spooled(photographs, folder) as spool:
        bank = build_bank(spool, [i.id for i in images], options, silent, scales=scales)
        scored = images_to_score(images, options.holdout, options.seed)
        threshold, _ = score_others(bank, spool, images, scored, options, silent)
    search = BankSearch(bank.embeddings, bank.metric, bank.num_neighbors, bank.worst_share)
    return Trained(bank, threshold, search)
