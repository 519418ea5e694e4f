"""Do thresholds keep their promise on parts that nobody learned from?

Every data set's normal images, by random halves of their parts: one half is learned and sets the
threshold as `pgdefect train` does, the other is judged. The announced interval should hold the
measured rate in at least 90 % of the splits, and the mean rate lie within 0.6 and 1.6 times what
was promised. To make many splits affordable, every third row and column of patches is looked at,
and at most `MAX_IMAGES` images of each half.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.common import Context, Report
from benchmarks.features import every_set, extracted, extractor_with, network, trained

SPLITS, MAX_IMAGES = 30, 100
COVERED, LEAST, MOST = 0.9, 0.6, 1.6


def measure(context: Context) -> Report:
    from pgdefect.usecases.train.options import TrainOptions

    options = TrainOptions()
    embedder, artifact = network(options.backbone)
    extractor = extractor_with(artifact, local_contrast=options.local_contrast)
    scales = embedder.scales(options.chosen_layer_weights)
    splits = 2 if context.quick else SPLITS
    report = Report("thresholds", f"{splits} random splits by part of every set at hand")
    for images in every_set(context.quick):
        context.say(images.name)
        normal = [
            one
            for one in extracted(_normal(images), extractor, step=3)
            if one.record.label == "normal"
        ]
        found = [_split(normal, options, scales, seed, context.folder) for seed in range(splits)]
        rates = np.array([one["rate"] for one in found])
        covered = float(np.mean([one["covered"] for one in found]))
        ratio = float(rates.mean() / options.false_reject_rate)
        parts = found[0]["parts"]
        report.facts[images.name] = {
            "parts": parts,
            "promised": options.false_reject_rate,
            "guaranteed": found[0]["guaranteed"],
            "promised_rate": float(np.mean([one["promised_rate"] for one in found])),
            "mean_rate": float(rates.mean()),
            "covered": covered,
            "splits": found,
        }
        report.notes.append(
            f"{images.name:15} {parts:4} parts learned  mean rate {rates.mean():.4f}, promised "
            f"{options.false_reject_rate:g}"
            + ("" if found[0]["guaranteed"] else " (expected; too few parts to promise it)")
            + f"  interval holds it in {covered:.2f} of {splits} splits"
        )
        context.say(report.notes[-1])
        report.check(f"{images.name}: covered {covered:.2f} of {COVERED}", covered >= COVERED)
        report.check(
            f"{images.name}: mean rate {ratio:.2f} times the promise, {LEAST} to {MOST}",
            LEAST <= ratio <= MOST,
        )
    return report


def _normal(images: Any) -> Any:
    from dataclasses import replace

    records = tuple(r for r in images.dataset.records if r.label == "normal")
    return replace(images, dataset=replace(images.dataset, records=records))


def _split(normal: Any, options: Any, scales: Any, seed: int, folder: Any) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    parts = sorted({one.part for one in normal})
    learned = {parts[n] for n in rng.permutation(len(parts))[: len(parts) // 2]}
    halves: list[list[Any]] = [[], []]
    for n in rng.permutation(len(normal)):
        halves[normal[n].part not in learned].append(normal[n])
    ours, new = (half[:MAX_IMAGES] for half in halves)
    found = trained(ours, options, scales, folder)
    scores = np.array([found.scores(one).raw_score for one in new])
    rate = float((scores > found.threshold.value).mean())
    low, high = found.threshold.rule["false_reject_interval"]
    return {
        "rate": rate,
        "interval": [low, high],
        "covered": bool(low <= rate <= high),
        "parts": found.threshold.rule["held_out_parts"],
        "guaranteed": bool(found.threshold.rule["guaranteed"]),
        "promised_rate": found.threshold.rule["promised_rate"],
    }
