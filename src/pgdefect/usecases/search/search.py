"""Find the stored images most like an image, a part of one, or several."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from pgdefect.core.config import Settings
from pgdefect.core.detector_kinds import check_kind
from pgdefect.core.errors import DatasetError, ExtractorMismatch, ImageError, UsageError
from pgdefect.core.json_shapes import inspection_json, neighbor_json
from pgdefect.core.types import (
    AnomalousRegion,
    Defect,
    DetectorKind,
    Float32,
    Inspection,
    Neighbor,
    SearchBy,
    StoredImage,
    Vote,
)
from pgdefect.core.wording import blank, option
from pgdefect.core.words import COMPARED, LABELS, SPLITS, check_word
from pgdefect.db.connection.engine import Database
from pgdefect.db.search.queries import categories_by_sha256, find_image, images_by_sha256
from pgdefect.db.search.search import (
    MissingEmbeddings,
    SearchFilter,
    SearchPlan,
    explain_nearest,
    missing_embeddings,
    nearest,
    stored_region,
)
from pgdefect.usecases.common.stored_files import only_unchanged
from pgdefect.usecases.inspect.defects import Voter
from pgdefect.usecases.inspect.inspector import Inspector, Judged
from pgdefect.vision.images.image import probe_image
from pgdefect.vision.images.picture import Picture
from pgdefect.vision.images.preprocess import Preprocessing
from pgdefect.vision.networks.extractor import image_embeddings, unit_vectors

MAX_K = 10_000
UNLIKE_WEIGHT = 0.5
"""What counter-examples count for against examples (Rocchio, 1971)."""


@dataclass(frozen=True)
class Query:
    """What to look for: images by file, id, end of path or start of sha256.

    Attributes:
        like: examples, one or more.
        unlike: counter-examples.
        crop: `(x, y, width, height)` in pixels of the one example.
        region: a stored region's id, instead of examples.
    """

    like: Sequence[str] = ()
    unlike: Sequence[str] = ()
    crop: tuple[int, int, int, int] | None = None
    region: int | None = None

    def __post_init__(self) -> None:
        if (self.region is None) == (not self.like):
            raise UsageError(
                "name an image to look for, or a stored region with "
                f"{option('region', blank('ID'))}"
            )
        if self.region is not None and (self.unlike or self.crop):
            raise UsageError(
                f"{option('unlike')} and {option('crop')} go with an image, not with "
                f"{option('region')}"
            )
        if self.crop is not None and (len(self.like) > 1 or self.unlike):
            raise UsageError(
                f"{option('crop')} is of one image; leave out {option('like')} and "
                f"{option('unlike')}"
            )


@dataclass(frozen=True)
class SearchOptions:
    """How to look, and among which images; None does not restrict.

    Attributes:
        all_categories: not the query's own alone.
        exclude_part: no image of the query's part.
        fold: near-duplicates count as one.
    """

    k: int = 10
    by: SearchBy | None = None
    all_categories: bool = False
    label: str | None = None
    defect_type: str | None = None
    split: str | None = None
    part: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    attributes: dict[str, Any] | None = None
    max_distance: float | None = None
    exclude_part: bool = False
    simulated: bool = False
    fold: bool = True
    exact: bool = False
    explain: bool = False
    kind: DetectorKind | None = None

    def __post_init__(self) -> None:
        check_k(self.k)
        check_word("by", self.by, COMPARED)
        check_word("label", self.label, LABELS)
        check_word("split", self.split, SPLITS)
        check_kind(self.kind)
        if self.max_distance is not None and not 0.0 <= self.max_distance <= 2.0:
            raise UsageError(
                f"{option('max_distance')} must be between 0 and 2 (cosine distance), got "
                f"{self.max_distance}"
            )


@dataclass(frozen=True)
class Example:
    """A judged image of a query; image where it is a stored one."""

    word: str
    judged: Judged
    inspector: Inspector
    image: StoredImage | None

    @property
    def inspection(self) -> Inspection:
        if self.image is None:
            return self.judged.inspection
        return replace(
            self.judged.inspection,
            image_id=self.image.id,
            known_label=self.image.known_label,
            known_defect_type=self.image.known_defect_type,
        )


@dataclass(frozen=True)
class SearchReport:
    """What was looked for and found, nearest first.

    Attributes:
        inspection: the first example's, with its regions where it is anomalous; None where the
            query is a stored region.
        by: which embeddings were compared.
        plan: how, if asked for.
        regions: what of the first example was looked for, or is anomalous.
        missing: stored images that could not be listed, because they have no such embedding yet.
    """

    query: str
    category: str
    image: StoredImage | None
    inspection: Inspection | None
    preprocessing: Preprocessing | None
    by: SearchBy
    neighbors: tuple[Neighbor, ...]
    regions: tuple[tuple[int, int, int, int], ...] = ()
    vote: Vote | None = None
    plan: SearchPlan | None = None
    missing: MissingEmbeddings | None = None
    like: tuple[str, ...] = ()
    unlike: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Verdict and neighbors as plain values."""
        return {
            "query": inspection_json(self.inspection) if self.inspection else None,
            "by": self.by,
            "regions": [list(box) for box in self.regions],
            "plan": self.plan,
            "neighbors": [neighbor_json(neighbor) for neighbor in self.neighbors],
            "missing_embeddings": self.missing and self.missing.missing,
        }


def search(
    database: Database,
    settings: Settings,
    query: Query,
    options: SearchOptions,
    *,
    category: str | None = None,
    inspectors: Mapping[str, Inspector] | None = None,
    pictures: Mapping[str, Picture] | None = None,
) -> SearchReport:
    """Judge the query and list the k stored images most like it; nothing is stored.

    The verdict is that of the category's active detector (of `kind`). Compared are, by
    `picture`, its extractor's image embeddings; by `defect`, what departs from normal in the
    whole image; by `region`, the query's worst region, or its crop, with the most similar
    region of each image. If `by` does not say: `region` for a crop or a stored region,
    `defect` for an image that is anomalous by verdict or by what is known of it, else `picture`.

    Neighbors come from the same category unless `all_categories`; the examples themselves
    and copies of their files are never among them, images with simulated defects only if
    `simulated`.

    Args:
        inspectors: by category, loaded already.
        pictures: images in memory by the word that stands for them in the query; `category` is
            theirs.

    Raises:
        UnknownImage, Conflict: the word names no stored image, or several;
        UsageError: a new file needs its category named;
        ExtractorMismatch: examples of categories that two extractors see;
        NotFound: no defect embeddings to search by.
    """
    if query.region is not None:
        return _search_region(database, query.region, options)
    loaded = dict(inspectors or {})
    examples = [
        _example(database, settings, word, category, options.kind, loaded, pictures or {})
        for word in (*query.like, *query.unlike)
    ]
    first = examples[0]
    detector = first.inspector.detector
    for other in examples:
        if other.inspector.detector.extractor_id != detector.extractor_id:
            raise ExtractorMismatch(
                f"{first.word!r} and {other.word!r} are seen by different extractors "
                f"({detector.extractor_id} for {detector.category}, "
                f"{other.inspector.detector.extractor_id} for "
                f"{other.inspector.detector.category}), whose embeddings do not compare"
            )
    by = options.by or _by(first, query)
    region = _region_in_crop(database, first, query.crop) if query.crop else None
    inspection = _with_defect(database, first)
    vectors = [
        _vector(database, example, by, inspection if example is first else None, region)
        for example in examples
    ]
    where = _filter(options, detector.category, examples)
    embedding = combined(vectors[: len(query.like)], vectors[len(query.like) :])
    neighbors, plan = _nearest(database, by, detector.extractor_id, embedding, where, options)
    boxes = [region] if region else inspection.defect.regions if inspection.defect else []
    return SearchReport(
        first.word,
        detector.category,
        first.image,
        inspection,
        first.inspector.preprocessing,
        by,
        neighbors,
        tuple(found.box for found in boxes),
        inspection.vote,
        plan,
        missing_embeddings(database, by, detector.extractor_id, where.category),
        tuple(query.like),
        tuple(query.unlike),
    )


def combined(like: Sequence[Float32], unlike: Sequence[Float32]) -> Float32:
    """The unit vector towards the examples and away from the counter-examples.

    Same rule in SQL: defect.similar_images.
    """
    towards = unit_vectors(np.stack(like)).mean(axis=0, keepdims=True)
    if unlike:
        towards -= UNLIKE_WEIGHT * unit_vectors(np.stack(unlike)).mean(axis=0, keepdims=True)
    if not np.linalg.norm(towards) > 1e-6:
        raise UsageError("the examples and counter-examples cancel out; leave some of them out")
    found: Float32 = unit_vectors(towards)[0]
    return found


def check_k(k: int) -> None:
    """Raises UsageError for a number of neighbors that cannot be asked for."""
    if not 1 <= k <= MAX_K:
        raise UsageError(f"{option('k')} must lie between 1 and {MAX_K:,}, not {k}")


def _by(first: Example, query: Query) -> SearchBy:
    if query.crop is not None:
        return "region"
    return "defect" if _is_defective(first) and first.inspector.finds_defects else "picture"


def _is_defective(example: Example) -> bool:
    """By the detector's verdict, or by what is known of the image, which the detector may miss."""
    inspection = example.inspection
    return inspection.is_anomalous or inspection.known_label == "anomalous"


def _with_defect(database: Database, example: Example) -> Inspection:
    """The inspection, with regions and a guess at the defect type where it is anomalous."""
    inspection = example.inspection
    if not _is_defective(example) or not example.inspector.finds_defects:
        return inspection
    defect = _defect(database, example)
    vote = Voter(database, example.inspector.detector).vote(
        defect, inspection.image_id, example.judged.file.sha256
    )
    return replace(inspection, defect=defect, vote=vote)


def _defect(database: Database, example: Example) -> Defect:
    with database.connect() as connection:
        return example.inspector.defect_finder.defect(connection, example.judged.embedded_patches)


def _region_in_crop(
    database: Database, example: Example, crop: tuple[int, int, int, int]
) -> AnomalousRegion:
    image = example.judged.embedded_patches
    try:
        with database.connect() as connection:
            return example.inspector.defect_finder.within(connection, image, crop)
    except ValueError as error:
        raise UsageError(f"{option('crop')}: {error}") from error


def _vector(
    database: Database,
    example: Example,
    by: SearchBy,
    inspection: Inspection | None,
    region: AnomalousRegion | None,
) -> Float32:
    """What of an example is compared."""
    if by == "picture" and region is None:
        return example.judged.embedding
    if region is not None:
        if by != "picture":
            return region.embedding
        image = example.judged.embedded_patches
        mask = example.inspector.preprocessing.cells_in(
            region.box, image.scores.distances.shape, image.size
        )
        whole: Float32 = image_embeddings(image.patches[mask][None, None])[0]
        return whole
    defect = inspection.defect if inspection else None
    if defect is None:
        defect = _defect(database, example)
    return defect.embedding if by == "defect" else defect.regions[0].embedding


def _filter(options: SearchOptions, category: str, examples: Sequence[Example]) -> SearchFilter:
    return SearchFilter(
        category=None if options.all_categories else category,
        label=options.label,
        defect_type=options.defect_type,
        split=options.split,
        part=options.part,
        since=options.since,
        until=options.until,
        attributes=options.attributes,
        max_distance=options.max_distance,
        except_images=tuple(e.image.id for e in examples if e.image is not None),
        except_part=options.exclude_part,
        except_sha256=tuple(e.judged.file.sha256 for e in examples),
        simulated=options.simulated,
    )


def _nearest(
    database: Database,
    by: SearchBy,
    extractor_id: int,
    embedding: Float32,
    where: SearchFilter,
    options: SearchOptions,
) -> tuple[tuple[Neighbor, ...], SearchPlan | None]:
    """The neighbors, and how they were looked for, if asked for."""
    k, exact, fold = options.k, options.exact, options.fold
    found = nearest(database, by, extractor_id, embedding, k, where, exact=exact, fold=fold)
    plan = None
    if options.explain:
        plan = explain_nearest(database, by, extractor_id, k, where, exact=exact, fold=fold)
    return tuple(found), plan


def _search_region(database: Database, region_id: int, options: SearchOptions) -> SearchReport:
    """Look for what a stored region shows."""
    if options.by not in (None, "region", "defect"):
        raise UsageError(
            f"a region is compared with regions or defects: {option('by', 'region')} or defect"
        )
    region = stored_region(database, region_id)
    by = options.by or "region"
    where = replace(
        _filter(options, region.image.category, ()),
        except_images=(region.image.id,),
        except_sha256=(region.image.sha256,),
    )
    neighbors, plan = _nearest(database, by, region.extractor_id, region.embedding, where, options)
    return SearchReport(
        f"region {region_id}",
        region.image.category,
        region.image,
        None,
        None,
        by,
        neighbors,
        (region.region.box,),
        None,
        plan,
        missing_embeddings(database, by, region.extractor_id, where.category),
    )


def _example(
    database: Database,
    settings: Settings,
    word: str,
    category: str | None,
    kind: DetectorKind | None,
    inspectors: dict[str, Inspector],
    pictures: Mapping[str, Picture],
) -> Example:
    if (picture := pictures.get(word)) is not None and category is not None:
        image, path = None, word
    else:
        picture = None
        image, path, category = _resolve(database, word, category)
    if category not in inspectors:
        inspectors[category] = Inspector(database, settings, category, kind=kind)
    if image is not None and not os.path.lexists(path):
        raise DatasetError(
            f"the file of image {image.id}, {path!r}, does not exist. If its folder has moved, say "
            "where it is now with: pgdefect move-root OLD NEW"
        )
    inspector = inspectors[category]
    judged = inspector.judge_picture(picture) if picture else _judge(inspector, path, image)
    if image is None or image.category != category:
        with database.connect() as connection:
            alike = images_by_sha256(connection, category, [judged.file.sha256])
        image = next(iter(alike.get(judged.file.sha256, [])), None)
    return Example(word, judged, inspectors[category], image)


def _resolve(
    database: Database, query: str, category: str | None
) -> tuple[StoredImage | None, str, str]:
    """The stored image if there is one, the file to read, the category to judge it in."""
    if not os.path.lexists(query):
        image = find_image(database, query, category)
        return image, image.path, category or image.category
    if category is not None:
        return None, query, category
    digest = probe_image(Path(query), {}).sha256
    with database.connect() as connection:
        holding, known = categories_by_sha256(connection, digest)
    if len(holding) == 1:
        return None, query, holding[0]
    if not holding and len(known) == 1:
        return None, query, known[0]
    raise UsageError(
        f"name the category of {query!r} with {option('category')}; "
        f"known: {', '.join(holding or known) or 'none yet'}"
    )


def _judge(inspector: Inspector, path: str, image: StoredImage | None) -> Judged:
    """What the detector says of a file, which is refused where it is not the stored image's."""

    def fail(index: int, error: ImageError) -> None:
        raise error

    accept = only_unchanged([image]) if image is not None else None
    return next(iter(inspector.judge([path], fail, accept)))[0][1]
