"""Image AUROC of anomalib's PatchCore and of pgdefect's on the same images, side by side.

Same backbone and weights, layers, training images, number of bank vectors and seeds; means over
the seeds. anomalib picks the coreset with its own KCenterGreedy, which looks at a random
projection, and compares raw vectors by Euclidean distance. pgdefect compares so too (``l2``),
compares directions only (``cosine``), centers, projects and adds a constant coordinate
(``centered``), whitens and weighs layers as well (``whitened``), and chooses by itself among these
for images without local contrast (``default``). An image's score is its worst
patch's: anomalib's is measured that way, and as it comes, re-weighted by nine neighbors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import SIZE, Context, Report, server
from pgdefect.usecases.train.options import DEFAULT_WHITEN
from pgdefect.vision.networks.backbone import BACKBONES, DEFAULT_BACKBONE

CATEGORY = "bench"
WORST_PATCH = "anomalib, worst patch"
NUM_TRAIN, NUM_VECTORS = 100, 2_048
SEEDS = (0, 1, 2)
LAYER_WEIGHTS = dict(BACKBONES[DEFAULT_BACKBONE].layer_weights)
AUROC_MAY_DIFFER_BY = 0.01
"""Between two coresets of the same patches: anomalib's starts elsewhere."""
WAYS: dict[str, dict[str, Any]] = {
    "l2": {"metric": "l2", "transform": "none", "pca_dim": None, "precision": "single"},
    "cosine": {"metric": "cosine", "transform": "unit", "pca_dim": None},
    "centered": {"metric": "cosine", "transform": "centered", "pca_dim": 64},
    "whitened": {"whiten": DEFAULT_WHITEN, "layer_weights": LAYER_WEIGHTS},
    "default": {"whiten": None, "layer_weights": None},
}
"""What distinguishes them; the rest are plain PatchCore's settings."""


def measure(context: Context) -> Report:
    from pgdefect.core.config import Settings
    from pgdefect.db.search.queries import images_of
    from pgdefect.evaluation import image_auroc
    from pgdefect.usecases.ingest import ingest_dataset
    from pgdefect.usecases.inspect.inspect import inspect
    from pgdefect.usecases.train.options import TrainOptions
    from pgdefect.usecases.train.train import train

    num_train, num_vectors = (24, 256) if context.quick else (NUM_TRAIN, NUM_VECTORS)
    images = context.images.limited(train=num_train, test=8 if context.quick else None)
    test = [*images.paths("test", "normal"), *images.paths("test", "anomalous")]
    anomalous = [path in set(images.paths("test", "anomalous")) for path in test]
    settings = Settings(cache_dir=context.folder)
    plain = TrainOptions(
        image_size=SIZE,
        resize="stretch",
        local_contrast=None,
        whiten=0.0,
        layer_weights={},
        worst_share=0.0,
    )
    seeds = SEEDS[:1] if context.quick else SEEDS
    found: dict[str, list[float]] = {}
    with server() as database:
        ingest_dataset(database, images.dataset, CATEGORY)
        learned = images_of(database, CATEGORY, split="train", label="normal")
        for name, way in WAYS.items():
            context.say(f"{name}: {len(learned)} images, {num_vectors:,} vectors, {seeds=}")
            ratio = num_vectors / (len(learned) * 1024)
            found[name] = []
            for seed in seeds:
                options = replace(plain, coreset_ratio=ratio, seed=seed, **way)
                trained = train(database, settings, CATEGORY, options)
                judged = inspect(
                    database,
                    settings,
                    CATEGORY,
                    [Path(path) for path in test],
                    search="exact",
                    store=False,
                    defects=False,
                )
                scores = np.array([i.raw_score for i in judged.inspections])
                found[name].append(image_auroc(scores, anomalous))
    context.say(f"anomalib: {len(learned)} images, {trained.bank_vectors:,} vectors, {seeds=}")
    theirs = anomalib_scores(
        [image.path for image in learned], test, trained.bank_vectors, seeds, context.folder
    )
    for name, by_seed in theirs.items():
        found[name] = [image_auroc(scores, anomalous) for scores in by_seed]
    auroc = {name: float(np.mean(values)) for name, values in found.items()}

    report = Report(
        "parity",
        f"{len(learned)} training and {len(test)} test images of {images.name}, "
        f"{trained.bank_vectors:,} bank vectors, {plain.backbone}, {len(seeds)} seeds",
    )
    report.check(
        f"image AUROC, L2 without transform: {auroc['l2']:.4f}, anomalib's by its worst patch "
        f"{auroc[WORST_PATCH]:.4f}: within {AUROC_MAY_DIFFER_BY}",
        abs(auroc["l2"] - auroc[WORST_PATCH]) <= AUROC_MAY_DIFFER_BY,
    )
    for way, name in (("centered", "centered alone"), ("default", "the default transform")):
        report.check(
            f"image AUROC, {name}: {auroc[way]:.4f}: not below anomalib's {auroc['anomalib']:.4f}",
            auroc[way] >= auroc["anomalib"],
        )
    report.notes += [
        f"image AUROC, {name:22} {auroc[name]:.4f}  by seed {', '.join(f'{v:.4f}' for v in values)}"
        for name, values in found.items()
    ]
    report.facts = {
        "image_auroc": auroc,
        "image_auroc_by_seed": found,
        "bank_vectors": trained.bank_vectors,
    }
    return report


def anomalib_scores(
    train: list[str], test: list[str], num_vectors: int, seeds: Sequence[int], folder: Path
) -> dict[str, list[np.ndarray]]:
    """Image scores `(len(test),)` by seed of anomalib's model, coreset and search, both ways."""
    import torch
    from anomalib.models.components.sampling import k_center_greedy as module

    from benchmarks.common import extractor_for, prepared
    from pgdefect.usecases.train.options import TrainOptions

    module.tqdm = lambda items, **_: items
    embedder, extractor = extractor_for(TrainOptions().backbone, folder)
    model = embedder.lightning_model.model

    def batches(paths: list[str]) -> Any:
        for start in range(0, len(paths), 8):
            yield torch.from_numpy(prepared(paths[start : start + 8], extractor.preprocessing))

    num_patches = len(train) * extractor.artifact.rows * extractor.artifact.cols
    scores: dict[str, list[np.ndarray]] = {"anomalib": [], WORST_PATCH: []}
    with torch.no_grad():
        model.train()
        for batch in batches(train):
            model(batch)
        patches = list(model.embedding_store)
        model.eval()
        inputs = list(batches(test))
        for seed in seeds:
            torch.manual_seed(seed)
            np.random.seed(seed)  # what its random projection draws from
            model.embedding_store = list(patches)
            model.subsample_embedding((num_vectors + 0.5) / num_patches)
            assert len(model.memory_bank) == num_vectors
            for name, num_neighbors in (("anomalib", 9), (WORST_PATCH, 1)):
                model.num_neighbors = num_neighbors
                scores[name].append(
                    np.array(
                        [float(score) for batch in inputs for score in model(batch).pred_score]
                    )
                )
    return scores
