"""Train an EfficientAD detector for a category: prepare, train, normalize maps, export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pgdefect.core.config import Settings
from pgdefect.core.errors import TooFewImages
from pgdefect.core.outliers import find_outliers, threshold_without
from pgdefect.core.progress import Progress, silent
from pgdefect.core.types import ExtractorArtifact, NetworkArtifact, StoredImage, Threshold
from pgdefect.core.wording import option
from pgdefect.db.access.roles import require_owner
from pgdefect.db.connection.engine import Database
from pgdefect.db.records.catalog import category_id as find_category
from pgdefect.db.records.efficient_ad import store_network
from pgdefect.db.records.extractors import find_extractor, load_extractor, store_extractor
from pgdefect.db.records.outliers import Outlier, outliers_of, reviewed_as_normal
from pgdefect.db.search.queries import images_of
from pgdefect.usecases.common.duplicate_limit import measure_duplicate_limit
from pgdefect.usecases.common.embedding import embed_images
from pgdefect.usecases.common.stored_files import image_batches
from pgdefect.usecases.train.bank import part_name, split_holdout
from pgdefect.usecases.train.options import EfficientAdOptions
from pgdefect.usecases.train.train import MIN_IMAGES, Clock, learnable
from pgdefect.vision.efficient_ad import efficient_ad
from pgdefect.vision.efficient_ad.efficient_ad_files import find_imagenette
from pgdefect.vision.efficient_ad.inference import Network
from pgdefect.vision.images.image_cache import ImageCache
from pgdefect.vision.images.preprocess import Preprocessing
from pgdefect.vision.networks.extractor import BATCH_SIZE, Extractor
from pgdefect.vision.networks.torch_tools import check_device, library_versions

SCALE_SHARE = 0.25
"""Of the held-out images: what their maps' quantiles are taken from. Each gives 65,536 values."""
MIN_THRESHOLD = 1e-3
"""0 is what nine of ten pixels of normal images stay under; thresholds lie far above it."""


@dataclass(frozen=True)
class NetworkReport:
    """What a training made; losses of the last step, and seconds by stage.

    Attributes:
        outliers: held-out normal images that scored far outside the rest, worst first, which the
            threshold is chosen without; with them it would be threshold_with_outliers.
    """

    category: str
    detector_id: int
    training_images: int
    scale_images: int
    held_out_images: int
    steps: int
    losses: dict[str, float]
    threshold: float
    extractor_id: int
    seconds: dict[str, float] = field(default_factory=dict)
    failed: tuple[tuple[str, str], ...] = ()
    outliers: tuple[Outlier, ...] = ()
    threshold_with_outliers: float | None = None

    @property
    def made(self) -> dict[str, float]:
        """What sums up the detector, by heading."""
        return {"steps": self.steps, "loss": self.losses["train_loss"]}


def train_network(
    database: Database,
    settings: Settings,
    category: str,
    options: EfficientAdOptions,
    *,
    progress: Progress = silent,
) -> NetworkReport:
    """Learn what is normal for a category by EfficientAD, from its normal training images.

    A share of them (`holdout`, by group) is not trained on. A quarter of these puts the two
    anomaly maps to one scale; the others set the threshold and are for nothing else, so that
    its promise holds for new images. The new detector replaces the active one of its kind in
    the transaction that stores it; interrupted at any moment before, nothing changes.

    Raises:
        UnknownCategory, TooFewImages, UsageError, WeightsError, DatasetError, MissingExtra,
        TrainingError; Busy: the category is being trained already.
    """
    with database.connect() as connection:
        category_id = find_category(connection, category)
    require_owner(database, "training")
    with database.lock(f"training of {category}"):
        return _train(database, settings, category, category_id, options, progress)


@dataclass(frozen=True)
class _Prepared:
    """Images in the cache: their places there, by what they are for; places: by image id."""

    places: dict[int, int]
    train: list[int]
    scale: list[int]
    held_out: list[int]

    @property
    def learned(self) -> list[int]:
        """Ids of the images that the detector has learned from."""
        ids = self.ids
        return sorted(ids[place] for place in [*self.train, *self.scale])

    @property
    def counts(self) -> tuple[int, int, int]:
        return len(self.train), len(self.scale), len(self.held_out)

    @property
    def ids(self) -> dict[int, int]:
        """Image id by place."""
        return {place: image_id for image_id, place in self.places.items()}


def _train(
    database: Database,
    settings: Settings,
    category: str,
    category_id: int,
    options: EfficientAdOptions,
    progress: Progress,
) -> NetworkReport:
    clock = Clock()
    everything = images_of(database, category)
    splits = _split(category, learnable(category, everything), options)
    failed: list[tuple[str, str]] = []
    with clock("extractor"):
        model, preprocessing, imagenette = _model(options, progress)
    with ImageCache(settings.cache_dir, preprocessing) as cache:
        with clock("prepare"):
            images = _prepare(category, splits, cache, preprocessing, failed, progress)
        with clock("train"):
            losses = _fit(model, cache, images, imagenette, options, progress)
        with clock("export"):
            artifact, graph = _export(database, settings, model, progress)
        with clock("threshold"):
            scores = _score(Network(artifact, graph), cache, images, progress)
            threshold = _threshold(database, scores, splits[2], options)
    with clock("store"):
        extractor_id = store_extractor(database, graph)
        detector_id = store_network(
            database,
            category_id=category_id,
            extractor_id=extractor_id,
            network=artifact,
            threshold=threshold,
            holdout_scores=scores,
            settings={**options.recorded(), "training_images": images.learned},
            metrics={"losses": losses},
            library_versions=library_versions(),
        )
    with clock("embed"):
        detector = (detector_id, extractor_id)
        failed += _embed_rest(database, settings, *detector, everything, dict(failed), progress)
    with database.connect() as connection:
        outliers = outliers_of(connection, detector_id)
    return NetworkReport(
        category,
        detector_id,
        *images.counts,
        options.max_steps,
        losses,
        threshold.value,
        extractor_id,
        clock.seconds,
        tuple(failed),
        outliers.images,
        outliers.threshold_with_outliers,
    )


def _model(
    options: EfficientAdOptions, progress: Progress
) -> tuple[efficient_ad.EfficientAd, Preprocessing, Path]:
    """The networks before their training, their input, the folder of other photographs."""
    progress("extractor", 0, 0)
    check_device(options.device)
    preprocessing = efficient_ad.input_preprocessing(options.image_size, options.center_crop)
    model = efficient_ad.build(options.model_size, preprocessing, options.teacher_weights)
    imagenette = find_imagenette(options.imagenette_dir)
    progress("extractor", 1, 1)
    return model, preprocessing, imagenette


def _prepare(
    category: str,
    splits: Sequence[Sequence[StoredImage]],
    cache: ImageCache,
    preprocessing: Preprocessing,
    failed: list[tuple[str, str]],
    progress: Progress,
) -> _Prepared:
    """Read the images into the cache. Raises TooFewImages."""
    images = [image for split in splits for image in split]
    places: dict[int, int] = {}
    for batch in image_batches(images, preprocessing, BATCH_SIZE, failed):
        places.update((images[n].id, cache.count + k) for k, n in enumerate(batch.indices))
        cache.append(batch)
        progress("prepare", len(places) + len(failed), len(images))
    train, scale, held_out = (
        [places[image.id] for image in split if image.id in places] for split in splits
    )
    if len(places) < MIN_IMAGES or not (train and scale and held_out):
        raise TooFewImages(
            f"only {len(places)} of {len(images)} training images of {category!r} can be "
            f"read, and {MIN_IMAGES} are needed; first: {failed[0][1]}"
        )
    return _Prepared(places, train, scale, held_out)


def _fit(
    model: efficient_ad.EfficientAd,
    cache: ImageCache,
    images: _Prepared,
    imagenette: Path,
    options: EfficientAdOptions,
    progress: Progress,
) -> dict[str, float]:
    """Train, and normalize the maps; returns the losses of the last step."""
    return model.fit(
        cache,
        images.train,
        images.scale,
        imagenette=imagenette,
        max_steps=options.max_steps,
        learning_rate=options.learning_rate,
        seed=options.seed,
        device=options.device,
        progress=progress,
    )


def _export(
    database: Database, settings: Settings, model: efficient_ad.EfficientAd, progress: Progress
) -> tuple[NetworkArtifact, ExtractorArtifact]:
    """The trained network, and the teacher as extractor; the stored one where there is one."""
    progress("export", 0, 0)
    artifact = model.export()
    extractor_id = find_extractor(database, model.spec.fingerprint)
    graph = (
        model.export_extractor()
        if extractor_id is None
        else load_extractor(database, extractor_id, settings.cache_dir)
    )
    progress("export", 1, 1)
    return artifact, graph


def _score(
    network: Network, cache: ImageCache, images: _Prepared, progress: Progress
) -> dict[int, float]:
    """Raw score by image id of the held-out images."""
    ids = images.ids
    scores: dict[int, float] = {}
    for place in images.held_out:
        [found] = network(cache[place][None])[1]
        scores[ids[place]] = found.raw_score
        progress("threshold", len(scores), len(images.held_out))
    return scores


def _threshold(
    database: Database,
    scores: dict[int, float],
    held_out: Sequence[StoredImage],
    options: EfficientAdOptions,
) -> Threshold:
    """From the scores by image id of normal images, without those far outside the rest."""
    shown = {image.id: part_name(image) for image in held_out}
    with database.connect() as connection:
        kept = reviewed_as_normal(connection, [*scores])
    outliers = find_outliers(scores, shown) - kept
    threshold = threshold_without(outliers, scores, options.false_reject_rate, shown)
    return replace(threshold, value=max(threshold.value, MIN_THRESHOLD))


def _embed_rest(
    database: Database,
    settings: Settings,
    detector_id: int,
    extractor_id: int,
    everything: Sequence[StoredImage],
    unread: Mapping[str, str],
    progress: Progress,
) -> list[tuple[str, str]]:
    """Embed the images that could be read. Returns path and reason of failures."""
    extractor = Extractor(load_extractor(database, extractor_id, settings.cache_dir))
    rest = [image for image in everything if image.path not in unread]
    failed = embed_images(database, extractor, extractor_id, rest, progress)
    measure_duplicate_limit(database, extractor, detector_id, extractor_id, everything)
    return failed


def _split(
    category: str, normal: Sequence[StoredImage], options: EfficientAdOptions
) -> tuple[list[StoredImage], list[StoredImage], list[StoredImage]]:
    """Images to train on, to normalize maps with, and for the threshold; no part in two of them."""
    if len({image.part or image.id for image in normal}) < 3:
        raise TooFewImages(
            f"the {len(normal)} training images of {category!r} belong to fewer than three groups "
            "(parts): one to learn from, one to normalize the maps and one for the threshold; "
            "add images of other parts"
        )
    scale_share = SCALE_SHARE * options.holdout
    rest, held_out = split_holdout(normal, options.holdout - scale_share, options.seed)
    share = scale_share / (1.0 - options.holdout + scale_share)
    if len({image.part or image.id for image in rest}) < 2:
        raise TooFewImages(
            f"{option('holdout', options.holdout)} leaves nothing of {len(normal)} images to "
            "learn from"
        )
    train, scale = split_holdout(rest, share, options.seed)
    return train, scale, held_out
