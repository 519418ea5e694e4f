"""Image AUROC of anomalib's PatchCore and of pgdefect's on the same images, side by side.

Same backbone and weights, layers, training images, number of bank vectors and seed. anomalib
picks the coreset with its own KCenterGreedy and compares raw vectors by Euclidean distance;
pgdefect does that too (``l2``), compares directions only (``cosine``), centers, projects and adds a
constant coordinate (``centered``), and whitens and weighs layers as well (``default``). Every
image's score is its worst patch's.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import SIZE, Context, Report, server, timed
from pgdefect.pipeline.options import DEFAULT_WHITEN

CATEGORY = "bench"
NUM_TRAIN, NUM_VECTORS = 100, 2_048
AUROC_MAY_DIFFER_BY = 0.01
"""Between two coresets of the same patches: anomalib's starts elsewhere."""
WAYS: dict[str, dict[str, Any]] = {
    "l2": {"metric": "l2", "transform": "none", "pca_dim": None, "precision": "single"},
    "cosine": {"metric": "cosine", "transform": "unit", "pca_dim": None},
    "centered": {"metric": "cosine", "transform": "centered", "pca_dim": 64},
    "default": {"whiten": DEFAULT_WHITEN, "layer_weights": None},
}
"""What distinguishes the four; the rest are plain PatchCore's settings."""


def measure(context: Context) -> Report:
    from pgdefect.config import Settings
    from pgdefect.db.queries import images_of
    from pgdefect.evaluation import image_auroc
    from pgdefect.pipeline.ingest import ingest_dataset
    from pgdefect.pipeline.inspect import inspect
    from pgdefect.pipeline.options import TrainOptions
    from pgdefect.pipeline.train import train

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
    auroc: dict[str, float] = {}
    seconds: dict[str, float] = {}
    with server() as database:
        ingest_dataset(database, images.dataset, CATEGORY)
        learned = images_of(database, CATEGORY, split="train", label="normal")
        for name, way in WAYS.items():
            context.say(f"{name}: training on {len(learned)} images, {num_vectors:,} vectors")
            ratio = num_vectors / (len(learned) * 1024)
            options = replace(plain, coreset_ratio=ratio, **way)
            seconds[name], trained = timed(
                lambda options=options: train(database, settings, CATEGORY, options)
            )
            found = inspect(
                database,
                settings,
                CATEGORY,
                [Path(path) for path in test],
                search="exact",
                store=False,
            )
            scores = np.array([i.raw_score for i in found.inspections])
            auroc[name] = image_auroc(scores, anomalous)
    context.say(f"anomalib: {len(learned)} images, {trained.bank_vectors:,} vectors")
    seconds["anomalib"], theirs = timed(
        lambda: anomalib_scores(
            [image.path for image in learned], test, trained.bank_vectors, context.folder
        )
    )
    auroc["anomalib"] = image_auroc(theirs, anomalous)

    report = Report(
        "parity",
        f"{len(learned)} training and {len(test)} test images of {images.name}, "
        f"{trained.bank_vectors:,} bank vectors, {plain.backbone}",
    )
    report.check(
        f"image AUROC, L2 without transform: {auroc['l2']:.4f}, anomalib's "
        f"{auroc['anomalib']:.4f}: within {AUROC_MAY_DIFFER_BY}",
        abs(auroc["l2"] - auroc["anomalib"]) <= AUROC_MAY_DIFFER_BY,
    )
    for way, name in (("centered", "centered alone"), ("default", "the default transform")):
        report.check(
            f"image AUROC, {name}: {auroc[way]:.4f}: not below anomalib's",
            auroc[way] >= auroc["anomalib"],
        )
    report.notes.append(f"image AUROC, plain cosine: {auroc['cosine']:.4f}")
    report.facts = {
        "image_auroc": auroc,
        "train_seconds, anomalib with scoring": seconds,
        "bank_vectors": trained.bank_vectors,
    }
    return report


def anomalib_scores(
    train: list[str], test: list[str], num_vectors: int, folder: Path
) -> np.ndarray:
    """Image scores `(len(test),)` of anomalib's own model, coreset and search."""
    import torch
    from anomalib.models.components.sampling import k_center_greedy as module

    from benchmarks.common import extractor_for, prepared
    from pgdefect.pipeline.options import TrainOptions

    module.tqdm = lambda items, **_: items
    embedder, extractor = extractor_for(TrainOptions().backbone, folder)
    model = embedder.lightning_model.model

    def batches(paths: list[str]) -> Any:
        for start in range(0, len(paths), 8):
            yield torch.from_numpy(prepared(paths[start : start + 8], extractor.preprocessing))

    torch.manual_seed(0)
    with torch.no_grad():
        model.train()
        for batch in batches(train):
            model(batch)
        num_patches = len(train) * extractor.artifact.rows * extractor.artifact.cols
        model.subsample_embedding((num_vectors + 0.5) / num_patches)
        assert len(model.memory_bank) == num_vectors
        model.eval()
        return np.array(
            [float(score) for batch in batches(test) for score in model(batch).pred_score]
        )
