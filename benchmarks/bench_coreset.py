"""k-center greedy selection against anomalib's KCenterGreedy, from the same raw vectors.

10 % of the patches are picked, from the raw vectors and with the embedding transform
(centered, 64 PCA dimensions, constant coordinate) included. anomalib's time a pick does not
change with the number of picks: it is measured on a few hundred and extrapolated linearly.
"""

from __future__ import annotations

import time
import warnings

import numpy as np

from benchmarks.common import Context, Report, Row, extractor_for, prepared, timed
from pgdefect.core.types import Float32
from pgdefect.vision.patchcore.coreset import CoresetResult, k_center_greedy
from pgdefect.vision.patchcore.transform import apply_transform, fit_transform

RATIO = 0.1


def measure(context: Context) -> Report:
    num_images, peer_picks = (12, 100) if context.quick else (100, 500)
    paths = context.images.normal_training[:num_images]
    _, extractor = extractor_for("efficientnet_lite0", context.folder)
    inputs = prepared(paths, extractor.preprocessing)
    maps = [extractor(inputs[start : start + 8]) for start in range(0, len(inputs), 8)]
    embeddings = np.concatenate(maps).reshape(-1, extractor.artifact.embedding_dim)
    num_centers = int(RATIO * len(embeddings))
    peer_picks = min(peer_picks, num_centers)

    def on_raw() -> CoresetResult:
        return k_center_greedy(embeddings, num_centers)

    def as_trained() -> CoresetResult:
        return k_center_greedy(apply_transform(fit_transform(embeddings), embeddings), num_centers)

    report = Report(
        "coreset",
        f"{len(paths)} {context.images.name}: {len(embeddings):,} x {embeddings.shape[1]}",
    )
    peers, raws, trained = [], [], []
    for _ in range(context.repeat):  # in turns, so that a busy moment meets all three
        context.say(f"anomalib: {peer_picks} picks")
        picks, projection, seconds = anomalib_picks(embeddings, peer_picks)
        peers.append(projection + seconds * num_centers / peer_picks)
        seconds, raw = timed(on_raw)
        raws.append(seconds)
        seconds, transformed = timed(as_trained)
        trained.append(seconds)
    peer = float(np.median(peers))
    rates = context.rates
    product = 2 * embeddings.size * num_centers / rates.flops
    against = (
        f"anomalib.models.components.KCenterGreedy(embeddings, {RATIO}): {peer_picks} picks "
        f"measured, extrapolated linearly to {num_centers:,}"
    )
    floor = (
        f"all vectors times all picks, {2 * embeddings.size * num_centers / 1e9:.0f} GFLOP at "
        f"{rates.flops / 1e9:.0f} GFLOP/s, nothing skipped. Plain greedy reads all vectors for "
        f"each pick: {embeddings.nbytes * num_centers / rates.bytes_read:.0f} s at "
        f"{rates.bytes_read / 1e9:.0f} GB/s"
    )
    dim = 65
    report.rows = [
        Row("coreset, raw vectors", against, float(np.median(raws)), peer, 80.0, floor, product),
        Row(
            "coreset, transform included",
            against,
            float(np.median(trained)),
            peer,
            150.0,
            f"the same in {dim} dimensions",
            product * dim / embeddings.shape[1],
        ),
    ]
    few = {
        "anomalib": covering_radius(embeddings, picks),
        "raw": covering_radius(embeddings, raw.indices[:peer_picks]),
        "transformed": covering_radius(embeddings, transformed.indices[:peer_picks]),
    }
    report.check(
        f"covering radius in the raw space of {peer_picks} picks: {few['raw']:.3f}, anomalib's "
        f"{few['anomalib']:.3f}",
        few["raw"] <= few["anomalib"],
    )
    report.facts = {
        "covering_radius_of_few": few,
        "covering_radius": {
            "raw": raw.covering_radius,
            "transformed": covering_radius(embeddings, transformed.indices),
        },
        "num_centers": num_centers,
        "seconds": {"anomalib": peers, "raw": raws, "transformed": trained},
    }
    return report


def anomalib_picks(embeddings: Float32, num_picks: int) -> tuple[np.ndarray, float, float]:
    """Picks, seconds for the random projection, seconds for the picks."""
    import torch

    warnings.simplefilter("ignore")
    from anomalib.models.components import KCenterGreedy
    from anomalib.models.components.sampling import k_center_greedy as module

    module.tqdm = lambda items, **_: items
    torch.manual_seed(0)
    tensor = torch.from_numpy(embeddings)
    sampler = KCenterGreedy(tensor, (num_picks + 0.5) / len(tensor))
    start = time.perf_counter()
    sampler.model.fit(tensor)
    sampler.model.transform(tensor)
    projection = time.perf_counter() - start
    start = time.perf_counter()
    picks = np.array(sampler.select_coreset_idxs())
    return picks, projection, max(time.perf_counter() - start - projection, 0.0)


def covering_radius(embeddings: Float32, picks: np.ndarray) -> float:
    """Largest Euclidean distance of a row to its nearest pick, by plain products."""
    points = embeddings - embeddings.mean(axis=0)
    centers = points[picks]
    center_norms = np.einsum("nd,nd->n", centers, centers)
    largest = 0.0
    for start in range(0, len(points), 1024):
        block = points[start : start + 1024]
        nearest = (center_norms - 2 * (block @ centers.T)).min(axis=1)
        largest = max(largest, float((nearest + np.einsum("nd,nd->n", block, block)).max()))
    return largest**0.5
