"""Build a memory bank from spooled patches; score normal images without their own part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pgdefect.core.distance import (
    as_stored,
    index_expression,
    indexed_type,
    metric_named,
    nearest_vectors,
)
from pgdefect.core.errors import TooFewImages
from pgdefect.core.outliers import (
    HIDDEN,
    MEAN_PATCH_SCORE,
    find_outliers,
    suspects,
    threshold_without,
)
from pgdefect.core.progress import Progress
from pgdefect.core.threads import one_blas_thread_each
from pgdefect.core.types import (
    DefectSpace,
    DefectViewArtifact,
    Float32,
    MemoryBank,
    PatchScores,
    StoredImage,
    Threshold,
)
from pgdefect.db.records.patchcore import Calibration
from pgdefect.usecases.common.patch_search import BankSearch, score_image
from pgdefect.usecases.train.held_out import deal_parts, vectors_without
from pgdefect.usecases.train.options import TrainOptions
from pgdefect.vision.defects.defect_embedding import ComparedImage, fit_defect_space
from pgdefect.vision.defects.defect_view import DefectView
from pgdefect.vision.images.image import load_image
from pgdefect.vision.patchcore.coreset import k_center_greedy
from pgdefect.vision.patchcore.patch_spool import PatchSpool
from pgdefect.vision.patchcore.transform import (
    BLOCK,
    apply_transform,
    fit_transform,
    transformed_dim,
)

MAX_SCORED = 200
"""Images the threshold comes from; each is compared with the whole bank (1,024 patches with
71,000 vectors: 0.1 s of one core)."""
CALIBRATION_IMAGES, CALIBRATION_SIDE = 8, 32
"""Images to choose ef_search by, and how many patches high and wide a part of a large one is."""
MAX_LEFT_OUT = 0.05
"""Of the bank's vectors, those missing from the index while ef_search is chosen: those of the
parts that the images show. In an index that holds vectors of the same part a patch finds its
nearest far more easily than a new image's does (ef_search 10, 20,000 vectors of magnetic tiles:
99 % against 94 %)."""
MAX_TRIED = 64
"""Images looked at for that, where parts have many."""
SPACE_IMAGES, COMPARED_IMAGES = 240, 48
"""Images that the space of defect embeddings is learned from, and those of them that are compared
with the bank, which takes longer. The deep layers' covariances want many: with 64 images of tiles
precision@10 came out at 0.73 or 0.75, depending on which."""


def split_holdout(
    images: Sequence[StoredImage], fraction: float, seed: int
) -> tuple[list[StoredImage], list[StoredImage]]:
    """Put about `fraction` of the images aside; a group is never split, nor are copies of a file.

    Both sides have at least one image. Raises TooFewImages where all belong together.
    """
    groups = _parts(images)
    if len(groups) < 2:
        raise TooFewImages(
            f"all {len(images)} training images belong to one group (part) or are copies of one "
            "file, so that none can be held out for the threshold; add images of other parts"
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


def part_name(image: StoredImage) -> str:
    """What a threshold counts as one part, as defect.threshold_for does."""
    return f"g{image.part}" if image.part is not None else f"s{image.sha256}"


def _parts(images: Sequence[StoredImage]) -> dict[str, list[StoredImage]]:
    """Images that belong together, by name: a group's, and with it those of copies of its files.

    By what the images are called, so that another database makes the same choice.
    """
    names = [f"g{i.part}" if i.part else f"i{i.relative_path} {i.sha256}" for i in images]
    part = {name: name for name in names}

    def first(name: str) -> str:
        while part[name] != name:
            name = part[name]
        return name

    holding: dict[str, str] = {}
    for name, image in zip(names, images, strict=True):
        one, other = sorted((first(name), first(holding.setdefault(image.sha256, name))))
        part[other] = one
    groups: dict[str, list[StoredImage]] = {}
    for name, image in zip(names, images, strict=True):
        groups.setdefault(first(name), []).append(image)
    return groups


def images_to_score(images: Sequence[StoredImage], holdout: float, seed: int) -> set[int]:
    """Ids of the images that the threshold comes from: a share of `holdout`, by whole groups.

    At most MAX_SCORED: every part gives one image, and then another, until there are so many, for
    it is the number of parts that says how sure a threshold is. Raises TooFewImages where all
    images share one group.
    """
    rest, scored = split_holdout(images, holdout, seed)
    wanted = sorted([*rest, *scored] if holdout == 1.0 else scored, key=lambda i: i.id)
    rng = np.random.default_rng(seed)
    turns: list[tuple[int, float, int]] = []
    for part in _parts(wanted).values():
        order = rng.permutation(len(part)).tolist()
        turns += [(turn, float(rng.random()), part[n].id) for turn, n in enumerate(order)]
    return {image_id for _, _, image_id in sorted(turns)[:MAX_SCORED]}


def build_bank(
    spool: PatchSpool,
    image_ids: Sequence[int],
    options: TrainOptions,
    progress: Progress,
    *,
    scales: Float32 | None = None,
) -> MemoryBank:
    """Transform all patches, pick the coreset among them, remember where each came from.

    Args:
        image_ids: of the spool's images, in order.
        scales: of the raw dimensions, `(raw_dim,)`.
    """
    metric = metric_named(options.metric)
    flat = spool.patches_of(0, len(image_ids))
    candidates = _candidates(len(flat), options)
    progress("coreset", 0, 0)
    transform = fit_transform(
        flat,
        kind=options.transform,
        pca_dim=options.pca_dim,
        whiten=options.chosen_whiten,
        scales=scales,
    )
    dim = transformed_dim(transform, flat.shape[1])
    index_expression(indexed_type(options.precision, dim), dim)
    embeddings = spool.scratch((len(flat) if candidates is None else len(candidates), dim))
    for start in range(0, len(embeddings), BLOCK):
        part = slice(start, start + BLOCK)
        block = flat[part] if candidates is None else flat[candidates[part]]
        embeddings[part] = as_stored(
            apply_transform(transform, block.astype(np.float32)), options.precision
        )
    wanted = max(1, round(options.coreset_ratio * len(embeddings)))
    num_vectors = min(wanted, options.max_vectors or wanted)
    coreset = k_center_greedy(
        embeddings,
        num_vectors,
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
        coreset_ratio=(
            options.coreset_ratio if num_vectors == wanted else num_vectors / len(embeddings)
        ),
        covering_radius=coreset.covering_radius,
        num_neighbors=options.num_neighbors,
        worst_share=options.chosen_worst_share,
        raw_embeddings=None if transform.kind == "none" else flat[picked].astype(np.float16),
    )


def _candidates(num_patches: int, options: TrainOptions) -> NDArray[np.int64] | None:
    """A random subset for the coreset to be picked from, where all would be too many."""
    if options.max_patches is None or num_patches <= options.max_patches:
        return None
    rng = np.random.default_rng(options.seed)
    return np.sort(rng.choice(num_patches, options.max_patches, replace=False))


class CalibrationWindow(NamedTuple):
    """Patches of an image, `(rows * cols, dim)`, and their distances, to choose ef_search by."""

    vectors: Float32
    distances: Float32
    grid: tuple[int, int]


def calibration_window(
    rng: np.random.Generator, vectors: Float32, distances: Float32
) -> CalibrationWindow:
    """An image's patches, or of a large one a part that lies anywhere.

    Args:
        vectors: `(rows * cols, dim)`.
        distances: to their nearest, `(rows, cols)`.
    """
    rows, cols = grid = distances.shape
    high, wide = min(rows, CALIBRATION_SIDE), min(cols, CALIBRATION_SIDE)
    top, left = int(rng.integers(rows - high + 1)), int(rng.integers(cols - wide + 1))
    here = np.arange(rows * cols).reshape(grid)[top : top + high, left : left + wide].reshape(-1)
    return CalibrationWindow(vectors[here], distances.reshape(-1)[here], (high, wide))


def calibration_of(
    windows: Sequence[CalibrationWindow], left_out: NDArray[np.bool_] | None = None
) -> Calibration:
    """The queries of all windows, one after the other, and the vectors left out for them."""
    vectors, distances, grids = zip(*windows, strict=True)
    return Calibration(np.concatenate(vectors), np.concatenate(distances), grids, left_out)


def score_others(
    bank: MemoryBank,
    spool: PatchSpool,
    images: Sequence[StoredImage],
    scored: Set[int],
    options: TrainOptions,
    progress: Progress,
    *,
    kept: Set[int] = frozenset(),
    left_out: Set[int] = frozenset(),
) -> tuple[Threshold, dict[int, float]]:
    """The threshold, and the raw scores by image id that it came from.

    Images that score far outside the rest are left out of the threshold, and its rule names them
    (`find_outliers`), but not those `kept`, which a person called normal. `left_out` names more
    of them, at the end of `images`: outliers that the bank was built without.

    Args:
        images: those of the spool in order; `scored` names the ones to score. Each is compared
            exactly with a bank made from the images of *other* parts (`held_out`): not of its
            group, nor of a copy of its file.

    Raises:
        TooFewImages: where no image has another part to be compared with.
    """
    place = {image.id: n for n, image in enumerate(images)}
    learned = [image for image in images if image.id not in left_out]
    groups = [[place[image.id] for image in part] for part in _parts(learned).values()]
    ids = [image.id for image in learned]
    chosen = {place[image_id] for image_id in scored - left_out if image_id in place}
    unlearned = [place[image_id] for image_id in sorted(left_out) if image_id in place]

    def score(n: int) -> tuple[PatchScores, Float32]:
        patches = _stored_patches(bank, spool, n)
        return score_image(search, patches, spool.grids[n]), patches.mean(axis=0)

    scores: dict[int, float] = {}
    means: dict[int, float] = {}
    looks: dict[int, Float32] = {}

    def folds() -> Iterator[tuple[Float32, list[int]]]:
        for out, numbers in deal_parts(groups, chosen, options.seed):
            if len(out) < len(ids):  # else one part alone
                yield vectors_without(bank, ids, spool, out, options), numbers
        for number in unlearned:
            yield bank.embeddings[_of_other_parts(bank, images, number)], [number]

    def score_all(numbers: Sequence[int]) -> Iterator[tuple[int, float, float, Float32]]:
        with one_blas_thread_each() as num_threads, ThreadPoolExecutor(num_threads) as pool:
            for n, (result, look) in zip(numbers, pool.map(score, numbers), strict=True):
                yield images[n].id, result.raw_score, float(result.distances.mean()), look

    for vectors, numbers in folds():
        search = BankSearch(vectors, bank.metric, bank.num_neighbors, bank.worst_share)
        for image_id, one, mean, look in score_all(numbers):
            scores[image_id], means[image_id], looks[image_id] = one, mean, look
            progress("threshold", len(scores), len(chosen) + len(unlearned))
    if not scores:
        raise TooFewImages(
            "all training images that can be read are of one part, or copies of one file, so that "
            "none can be compared with another for the threshold; add images of other parts"
        )
    # A defect shows in the worst patches, another product in all.
    parts = {image.id: part_name(image) for image in images}

    def far_outside(scores: dict[int, float], means: dict[int, float]) -> frozenset[int]:
        found = find_outliers(scores, parts, ignored=left_out)
        return found | find_outliers(means, parts, limit=MEAN_PATCH_SCORE, ignored=left_out)

    outliers = far_outside(scores, means)
    # Two of a kind hide each other: those that may are scored again, without any of them.
    others = {id_: name for id_, name in parts.items() if id_ in scores and id_ not in left_out}
    alike = suspects(scores, means, looks, others)
    out = {place[image_id] for image_id in parts if parts[image_id] in alike} - set(unlearned)
    numbers = sorted(out & chosen)
    if numbers and len(out) < len(ids):
        vectors = vectors_without(bank, ids, spool, out, options)
        search = BankSearch(vectors, bank.metric, bank.num_neighbors, bank.worst_share)
        again = {id_: (one, mean) for id_, one, mean, _ in score_all(numbers)}
        found = far_outside(
            scores | {id_: one for id_, (one, _) in again.items()},
            means | {id_: mean for id_, (_, mean) in again.items()},
        )
        hidden = {
            id_ for id_ in (found - outliers) & again.keys() if again[id_][0] > HIDDEN * scores[id_]
        }
        scores |= {id_: again[id_][0] for id_ in hidden}
        outliers |= hidden
    rate = options.false_reject_rate
    return threshold_without((outliers | left_out) - kept, scores, rate, parts), scores


def calibration_for(
    bank: MemoryBank, spool: PatchSpool, images: Sequence[StoredImage], seed: int
) -> Calibration:
    """Queries to choose ef_search by: patches of a few images, without the vectors of their parts.

    Args:
        images: those of the spool in order, of two parts or more. Of as many parts as
            `MAX_LEFT_OUT` allows, and then more images of these; where parts are so few that it
            allows none, of the part that gave least to the bank.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(images)).tolist()
    chosen: list[int] = []
    left_out = np.zeros(len(bank.embeddings), dtype=np.bool_)
    least, least_left_out = order[0], np.ones_like(left_out)
    for n in order[:MAX_TRIED]:
        if len(chosen) == CALIBRATION_IMAGES:
            break
        own = ~_of_other_parts(bank, images, n)
        if own.sum() < least_left_out.sum():
            least, least_left_out = n, own
        different = not any(_same_part(images[n], images[other]) for other in chosen)
        if different and (left_out | own).mean() <= MAX_LEFT_OUT:
            chosen.append(n)
            left_out = left_out | own
    if not chosen:
        chosen, left_out = [least], least_left_out
    for n in order:
        if len(chosen) == CALIBRATION_IMAGES:
            break
        if n in chosen or not any(_same_part(images[n], images[other]) for other in chosen):
            continue
        # A copy of a file may be of another group too, of which more is in the bank.
        if not (~_of_other_parts(bank, images, n) & ~left_out).any():
            chosen.append(n)
    others = bank.embeddings[~left_out]
    windows = []
    for n in chosen:
        vectors = _stored_patches(bank, spool, n)
        _, distances = nearest_vectors(vectors, others, bank.metric)
        windows.append(calibration_window(rng, vectors, distances.reshape(spool.grids[n])))
    return calibration_of(windows, left_out)


def learn_defect_space(
    bank: MemoryBank,
    spool: PatchSpool,
    images: Sequence[StoredImage],
    view: DefectViewArtifact | None,
) -> DefectSpace:
    """How normal images differ from the other normal parts nearest to them.

    Args:
        images: those of the spool in order; a few of them are looked at, each compared with the
            bank's vectors of other parts.
    """
    look, glance = (DefectView(view), DefectView(view, orientations=1)) if view else (None, None)
    chosen = _spread(range(len(images)), SPACE_IMAGES if view else COMPARED_IMAGES)
    # Statistics of one orientation serve as well as those of all, in a quarter of the time.
    features = [
        glance(load_image(images[n].path, images[n].gray_scale)) if glance else [] for n in chosen
    ]
    compared = []
    for n in _spread(chosen, COMPARED_IMAGES):
        others = np.flatnonzero(_of_other_parts(bank, images, n))
        if not len(others):
            continue
        raw = spool.patches_of(n, n + 1).astype(np.float32)
        vectors = _stored_patches(bank, spool, n)
        positions, distances = nearest_vectors(vectors, bank.embeddings[others], bank.metric)
        raw_bank = bank.embeddings if bank.raw_embeddings is None else bank.raw_embeddings
        nearest = raw_bank[others[positions]].astype(np.float32)
        scores = distances.reshape(spool.grids[n])
        looked = look(load_image(images[n].path, images[n].gray_scale)) if look else []
        compared.append(ComparedImage(raw, nearest, scores, looked))
    return fit_defect_space(compared, features)


def _spread(numbers: Sequence[int], count: int) -> list[int]:
    """At most `count` of the numbers, evenly spread over them."""
    places = np.unique(np.linspace(0, len(numbers) - 1, count).round().astype(int))
    return [numbers[place] for place in places]


def _stored_patches(bank: MemoryBank, spool: PatchSpool, n: int) -> Float32:
    """The n-th image's patches, transformed and rounded as the bank's vectors are."""
    patches = spool.patches_of(n, n + 1).astype(np.float32)
    return as_stored(apply_transform(bank.transform, patches), bank.precision)


def _of_other_parts(bank: MemoryBank, images: Sequence[StoredImage], n: int) -> NDArray[np.bool_]:
    """Which of the bank's vectors come from other parts than the n-th image shows."""
    own = [image.id for image in images if _same_part(image, images[n])]
    return ~np.isin(bank.image_ids, own)


def _same_part(a: StoredImage, b: StoredImage) -> bool:
    return a.id == b.id or a.sha256 == b.sha256 or (a.part is not None and a.part == b.part)
