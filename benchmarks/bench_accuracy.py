"""Image AUROC of pgdefect's own options, switched on one after the other: an ablation.

Where photographs of one part share a numbered group, options are to be chosen on the even
groups and believed on the odd ones.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.common import Context, Report, server, timed

CATEGORY = "bench"
UNWEIGHTED: dict[str, Any] = {"layer_weights": {}}
ALL = {**UNWEIGHTED, "max_vectors": None}
UNWHITENED = {**ALL, "whiten": 0.0}
PLAIN = {**UNWHITENED, "resize": "stretch", "local_contrast": None}
WAYS: dict[str, dict[str, Any]] = {
    "plain": PLAIN,
    "resize keep": {**PLAIN, "resize": "keep"},
    "local contrast": {**PLAIN, "local_contrast": 0.1},
    "both": UNWHITENED,
    "both, whiten": ALL,
    "both, whiten, max vectors": UNWEIGHTED,
    "both, whiten, max vectors, layer weights (the default)": {},
    **{f"the default, seed {seed}": {"seed": seed} for seed in (1, 2, 3)},
    "backbone lite1": {**UNWEIGHTED, "backbone": "efficientnet_lite1"},
    "backbone lite1, layer weights": {"backbone": "efficientnet_lite1"},
    "backbone lite2": {**UNWEIGHTED, "backbone": "efficientnet_lite2"},
    "backbone lite2, layer weights": {"backbone": "efficientnet_lite2"},
}
WORST_SHARES = (0.0, 0.005, 0.01)
"""Of each way's anomaly maps: the worst patch, the default, twice as many."""


def measure(context: Context) -> Report:
    from pgdefect.core.config import Settings
    from pgdefect.db.search.queries import images_of
    from pgdefect.evaluation import image_auroc
    from pgdefect.usecases.common.patch_search import count_worst
    from pgdefect.usecases.ingest import ingest_dataset
    from pgdefect.usecases.inspect.inspect import inspect
    from pgdefect.usecases.train.options import TrainOptions
    from pgdefect.usecases.train.train import train

    images = context.images.limited(train=20, test=8) if context.quick else context.images
    settings = Settings(cache_dir=context.folder)
    facts: dict[str, dict[str, float]] = {}
    sizes: dict[str, dict[str, float]] = {}
    with server() as database:
        ingest_dataset(database, images.dataset, CATEGORY)
        test = images_of(database, CATEGORY, split="test")
        anomalous = np.array([image.known_label == "anomalous" for image in test])
        groups = [image.part or "" for image in test]
        halves = {"whole": np.ones(len(test), dtype=bool)}
        if all(group.isdigit() for group in groups):
            odd = np.array([int(group) % 2 == 1 for group in groups])
            halves |= {"even": ~odd, "odd": odd}
        for name, way in list(WAYS.items())[-2:] if context.quick else WAYS.items():
            context.say(name)
            seconds, trained = timed(
                lambda way=way: train(database, settings, CATEGORY, replace(TrainOptions(), **way))
            )
            found = inspect(database, settings, CATEGORY, split="test", search="exact", store=False)
            assert len(found.inspections) == len(test)
            maps = [inspection.scores.distances.reshape(-1) for inspection in found.inspections]
            for share in WORST_SHARES:
                scores = np.array([np.sort(m)[-count_worst(share, m.size) :].mean() for m in maps])
                figures = {
                    half: image_auroc(scores[chosen], anomalous[chosen].tolist())
                    for half, chosen in halves.items()
                }
                for kind in sorted({i.known_defect_type for i in test if i.known_defect_type}):
                    chosen = np.array([i.known_defect_type in (None, kind) for i in test])
                    figures[kind] = image_auroc(scores[chosen], anomalous[chosen].tolist())
                facts[f"{name}, worst share {share:g}"] = figures
            sizes[name] = {"train_seconds": seconds, "bank_vectors": trained.bank_vectors}
    report = Report(
        "accuracy",
        f"{trained.training_images} training and {len(test)} test images of {images.name}",
    )
    for name, figures in facts.items():
        report.notes.append(
            f"{name:75}" + "  ".join(f"{figure} {value:.3f}" for figure, value in figures.items())
        )
    report.facts = {**facts, **sizes}
    return report
