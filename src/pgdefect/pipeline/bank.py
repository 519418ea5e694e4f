"""Build a memory bank from spooled patches, and calibrate it on held-out images."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from pgdefect.db.banks import Calibration
from pgdefect.distance import as_stored, index_expression, indexed_type, metric_named
from pgdefect.errors import TooFewImages
from pgdefect.pipeline.options import TrainOptions
from pgdefect.pipeline.patch_search import BankSearch, score_image
from pgdefect.pipeline.progress import Progress
from pgdefect.threads import one_blas_thread_each
from pgdefect.thresholds import false_reject_rate
from pgdefect.types import Float32, MemoryBank, PatchScores, StoredImage, Threshold
from pgdefect.vision.coreset import k_center_greedy
from pgdefect.vision.patch_spool import PatchSpool
from pgdefect.vision.scoring import nearest_vectors
from pgdefect.vision.transform import BLOCK, apply_transform, fit_transform, transformed_dim

CALIBRATION_PATCHES = 4096


def split_holdout(
    images: Sequence[StoredImage], fraction: float, seed: int
) -> tuple[list[StoredImage], list[StoredImage]]:
    """Keep about `fraction` of the images out of the bank; a group is never split.

    Both parts have at least one image. Raises TooFewImages where all share one group.
    """
    groups: dict[str, list[StoredImage]] = {}
    for image in images:
        # By what the images are called, so that another database makes the same choice.
        name = f"g{image.group}" if image.group else f"i{image.relative_path} {image.sha256}"
        groups.setdefault(name, []).append(image)
    if len(groups) < 2:
        raise TooFewImages(
            f"all {len(images)} training images belong to one group (part), so that none can be "
            "held out for the threshold; add images of other parts"
        )
    names = sorted(groups)
    order = np.random.default_rng(seed).permutation(len(names))
    wanted = max(1, round(fraction * len(images)))
    held: set[str] = set()
    count = 0
    for index in order[:-1]:
        if count >= wanted:
            break
        held.add(names[index])
        count += len(groups[names[index]])
    kept = [image for name in names if name not in held for image in groups[name]]
    out = [image for name in names if name in held for image in groups[name]]
    return sorted(kept, key=lambda i: i.id), sorted(out, key=lambda i: i.id)


def build_bank(
    spool: PatchSpool, image_ids: Sequence[int], options: TrainOptions, progress: Progress
) -> MemoryBank:
    """Transform all patches, pick the coreset among them, remember where each came from.

    The bank's images are the first ones of the spool.
    """
    metric = metric_named(options.metric)
    flat = spool.patches_of(0, len(image_ids))
    candidates = _candidates(len(flat), options)
    progress("coreset", 0, 0)
    transform = fit_transform(flat, kind=options.transform, pca_dim=options.pca_dim)
    dim = transformed_dim(transform, flat.shape[1])
    index_expression(indexed_type(options.precision, dim), dim)
    embeddings = spool.scratch((len(flat) if candidates is None else len(candidates), dim))
    for start in range(0, len(embeddings), BLOCK):
        part = slice(start, start + BLOCK)
        block = flat[part] if candidates is None else flat[candidates[part]]
        embeddings[part] = as_stored(
            apply_transform(transform, block.astype(np.float32)), options.precision
        )
    coreset = k_center_greedy(
        embeddings,
        max(1, round(options.coreset_ratio * len(embeddings))),
        seed=options.seed,
        progress=lambda done, total: progress("coreset", done, total),
        device=None if options.device == "cpu" else options.device,
    )
    picked = coreset.indices if candidates is None else candidates[coreset.indices]
    image_index, row, col = spool.cells(picked)
    return MemoryBank(
        embeddings=embeddings[coreset.indices].astype(np.float32),
        image_ids=np.asarray(image_ids, dtype=np.int64)[image_index],
        rows=row.astype(np.int16),
        cols=col.astype(np.int16),
        num_images=len(image_ids),
        transform=transform,
        metric=metric,
        precision=options.precision,
        coreset_ratio=options.coreset_ratio,
        covering_radius=coreset.covering_radius,
        num_neighbors=options.num_neighbors,
        worst_share=options.worst_share,
        raw_embeddings=None if transform.kind == "none" else flat[picked].astype(np.float16),
    )


def _candidates(num_patches: int, options: TrainOptions) -> NDArray[np.int64] | None:
    """A random subset for the coreset to be picked from, where all would be too many."""
    if options.max_patches is None or num_patches <= options.max_patches:
        return None
    rng = np.random.default_rng(options.seed)
    return np.sort(rng.choice(num_patches, options.max_patches, replace=False))


def calibration_sample(
    rng: np.random.Generator, distances: Float32, num_images: int
) -> NDArray[np.int64]:
    """Which patches of one of `num_images` images to choose ef_search by.

    Half of them are drawn at random, half are those farthest from the bank: HNSW misses the
    nearest vector of far patches more often, and the anomalous ones to come are far.
    """
    flat = distances.reshape(-1)
    half = min(-(-CALIBRATION_PATCHES // (2 * num_images)), len(flat))
    farthest = np.argpartition(flat, len(flat) - half)[len(flat) - half :]
    return np.concatenate([rng.choice(len(flat), half, replace=False), farthest])


def calibrate(
    bank: MemoryBank, spool: PatchSpool, options: TrainOptions, progress: Progress
) -> tuple[Threshold, NDArray[np.float64], Calibration]:
    """Score the held-out images exactly: those of the spool behind the bank's.

    Gives the threshold, the raw scores `(num_images,)` in order, and queries to choose
    ef_search by.
    """
    search = BankSearch(bank.embeddings, bank.metric, bank.num_neighbors, bank.worst_share)
    held_out = range(bank.num_images, len(spool.grids))
    count = len(held_out)
    rng = np.random.default_rng(options.seed)

    def score(image: int) -> tuple[Float32, PatchScores]:
        patches = spool.patches_of(image, image + 1).astype(np.float32)
        vectors = as_stored(apply_transform(bank.transform, patches), bank.precision)
        return vectors, score_image(search, vectors, spool.grids[image])

    scores = np.empty(count)
    queries: list[Float32] = []
    distances: list[Float32] = []
    with one_blas_thread_each() as num_threads, ThreadPoolExecutor(num_threads) as pool:
        for n, (vectors, result) in enumerate(pool.map(score, held_out)):
            scores[n] = result.raw_score
            some = calibration_sample(rng, result.distances, count)
            queries.append(vectors[some])
            distances.append(result.distances.reshape(-1)[some])
            progress("threshold", n + 1, count)
    threshold = false_reject_rate(scores, options.false_reject_rate)
    return threshold, scores, Calibration(np.concatenate(queries), np.concatenate(distances))


def normal_residuals(bank: MemoryBank, spool: PatchSpool) -> tuple[Float32, Float32]:
    """Patches of the images that are not in the bank, and the raw bank vector nearest to each.

    Both `(num_patches, raw_dim)`: how far from normal the normal itself is.
    """
    patches, nearest = [], []
    for n in range(bank.num_images, len(spool.grids)):
        raw = spool.patches_of(n, n + 1).astype(np.float32)
        vectors = as_stored(apply_transform(bank.transform, raw), bank.precision)
        positions, _ = nearest_vectors(vectors, bank.embeddings, bank.metric)
        patches.append(raw)
        source = bank.embeddings if bank.raw_embeddings is None else bank.raw_embeddings
        nearest.append(source[positions].astype(np.float32))
    return np.concatenate(patches), np.concatenate(nearest)
