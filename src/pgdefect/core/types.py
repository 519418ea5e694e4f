"""What crosses between ``vision`` and ``db``: frozen dataclasses over NumPy arrays."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pgdefect.core.arrays import Float32 as Float32
from pgdefect.core.arrays import Int32 as Int32
from pgdefect.core.distance import Metric, Precision
from pgdefect.core.errors import NoMemoryBank
from pgdefect.core.wording import command

Label = Literal["normal", "anomalous"]
DetectorKind = str
"""The name of one of `pgdefect.core.detector_kinds.KINDS`."""
SearchBy = Literal["picture", "defect", "region"]
UNKNOWN_IMAGE = 0
"""In a bank's image_ids: the image is not known. No image has this id."""


@dataclass(frozen=True)
class ExtractorSpec:
    """What decides the numbers an extractor makes; two that differ never share a query."""

    backbone: str
    layers: tuple[str, ...]
    preprocessing: Mapping[str, Any]
    weights_source: str
    weights_sha256: str

    @property
    def fingerprint(self) -> str:
        """sha256 over everything but the weights' whereabouts."""
        identity = {
            "backbone": self.backbone,
            "layers": list(self.layers),
            "preprocessing": dict(self.preprocessing),
            "weights_sha256": self.weights_sha256,
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class ExtractorArtifact:
    """An exported extractor: a graph from `(n, 3, height, width)` to `(n, rows, cols, dim)`."""

    spec: ExtractorSpec
    embedding_dim: int
    rows: int
    cols: int
    onnx: bytes = field(repr=False)

    @property
    def onnx_sha256(self) -> str:
        return hashlib.sha256(self.onnx).hexdigest()


@dataclass(frozen=True)
class NetworkArtifact:
    """An exported EfficientAD network, teacher included; the extractor holds its preprocessing.

    A graph from `(n, 3, height, width)` to the image scores `(n,)`, the pixel of each, counted
    row by row over the input, `(n,)` int64, the anomaly maps `(n, rows, cols)` on the
    extractor's grid, and the means of the extractor's patch embeddings `(n, dim)`.
    """

    onnx: bytes = field(repr=False)

    @property
    def onnx_sha256(self) -> str:
        return hashlib.sha256(self.onnx).hexdigest()


@dataclass(frozen=True)
class EmbeddingTransform:
    """Parameters of the map from raw to searched vectors (`pgdefect.vision.patchcore.transform`).

    Attributes:
        kind: ``none`` leaves vectors as they are, ``unit`` scales them to unit length,
            ``centered`` is normalize([(x - mean) @ components.T, constant]).
        mean: `(raw_dim,)`.
        components: `(pca_dim, raw_dim)`, orthogonal rows of unit length, longer where axes are
            whitened, with columns scaled where layers are weighted; None for no projection.
    """

    kind: Literal["none", "unit", "centered"]
    mean: Float32 | None = None
    components: Float32 | None = None
    constant: float | None = None


@dataclass(frozen=True)
class MemoryBank:
    """The coreset of a category's normal patches, ready to be stored.

    Attributes:
        embeddings: `(num_vectors, embedding_dim)`, transformed and rounded as stored.
        raw_embeddings: `(num_vectors, raw_dim)`, the same before the transform, or None where
            there is none.
        image_ids, rows, cols: `(num_vectors,)`, where each vector came from; image id 0 where that
            is not known.
    """

    embeddings: Float32
    image_ids: NDArray[np.int64]
    rows: NDArray[np.int16]
    cols: NDArray[np.int16]
    num_images: int
    transform: EmbeddingTransform
    metric: Metric
    precision: Precision
    coreset_ratio: float
    covering_radius: float
    num_neighbors: int
    worst_share: float = 0.0
    raw_embeddings: NDArray[np.float16] | None = None


@dataclass(frozen=True)
class Whitening:
    """A vector x `(raw_dim,)` becomes `components @ (x - center)`, components `(dim, raw_dim)`."""

    center: Float32
    components: Float32


@dataclass(frozen=True)
class DefectViewArtifact:
    """The deep layers of a backbone, for a second look at anomalous images.

    A graph from `(n, 3, side, side)` to one output `(n, rows, cols, dim)` for each of the layers,
    the deepest last.

    Attributes:
        side: of the square that photographs are stretched to.
        mean, std: of the channels.
    """

    onnx: bytes = field(repr=False)
    layers: tuple[str, ...]
    side: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def onnx_sha256(self) -> str:
        return hashlib.sha256(self.onnx).hexdigest()


@dataclass(frozen=True)
class DefectSpace:
    """How an extractor's defect embeddings are made (`pgdefect.vision.defects.defect_embedding`).

    Attributes:
        deep: of each layer of the second look; empty where there is none. All layers but the
            deepest weigh anomaly, all but the first are pooled.
    """

    residual: Whitening
    deep: tuple[Whitening, ...]
    settings: Mapping[str, Any]

    @property
    def embedding_dim(self) -> int:
        return sum(len(part.components) for part in (self.residual, *self.deep[1:]))


@dataclass(frozen=True)
class AnomalousRegion:
    """A connected anomalous region found in an image.

    Attributes:
        box: `(x, y, width, height)` in pixels.
        num_patches: grid cells.
        area: share of the image; scores are the detector's patch scores.
        embedding: `(embedding_dim,)`, of unit length.
    """

    box: tuple[int, int, int, int]
    num_patches: int
    area: float
    peak_score: float
    mean_score: float
    embedding: Float32 = field(repr=False)


@dataclass(frozen=True)
class Defect:
    """Where and how an image departs from normal; embedding: `(embedding_dim,)`, unit length."""

    embedding: Float32 = field(repr=False)
    regions: tuple[AnomalousRegion, ...]


@dataclass(frozen=True)
class Threshold:
    """Raw score above which an image is anomalous, and the rule it came from.

    center is the median raw score of the normal images the rule looked at; the normalized
    score is measured in units of value - center.
    """

    value: float
    center: float
    rule: Mapping[str, Any]


@dataclass(frozen=True)
class BankInfo:
    """What a query against a stored memory bank needs to know.

    Attributes:
        patch_score_std: of the patches of normal images; None in banks of older versions.
    """

    id: int
    num_vectors: int
    embedding_dim: int
    metric: Metric
    precision: Precision
    transform: EmbeddingTransform
    coreset_ratio: float
    num_neighbors: int
    ef_search: int
    ef_search_fast: int
    worst_share: float = 0.0
    patch_score_std: float | None = None


@dataclass(frozen=True)
class Detector:
    """A trained version for one category, as read from the database."""

    id: int
    category_id: int
    category: str
    extractor_id: int
    kind: DetectorKind
    version: int
    active: bool
    threshold: float
    score_center: float
    bank_info: BankInfo | None

    @property
    def bank(self) -> BankInfo:
        """The memory bank. Raises NoMemoryBank for a detector of a kind that has none."""
        if self.bank_info is None:
            raise NoMemoryBank(
                f"detector {self.id} of {self.category} ({self.kind}) has no memory bank; "
                f"PatchCore detectors have: {command('train', self.category)}"
            )
        return self.bank_info


@dataclass(frozen=True)
class StoredImage:
    """A row of ``image`` with its category and full path.

    known_label and known_defect_type are the newest review's, else the data set's;
    gray_scale is the category's (`vision.images.gray_scale`), None where it has none.
    """

    id: int
    category: str
    path: str
    relative_path: str
    split: str
    known_label: Label | None
    known_defect_type: str | None
    part: str | None
    mask_path: str | None
    sha256: str
    height: int
    width: int
    gray_scale: Mapping[str, float | None] | None = field(default=None, repr=False, compare=False)

    @property
    def defect_shown(self) -> str | None:
        """The defect type as people are shown it: a simulated one says that it is."""
        named = self.known_defect_type
        return f"{named} (simulated)" if self.split == "simulated" else named


@dataclass(frozen=True)
class PatchScores:
    """What a detector says of one image, patch by patch.

    EfficientAD has no bank: distances are then its anomaly map, positions None, the raw
    score the highest value of the map drawn out to the network's input, and the worst patch
    the cell that this pixel lies in.

    Attributes:
        distances: `(rows, cols)` float32, in the bank's metric.
        positions: `(rows, cols)` int32, the nearest bank vector of each patch. Distances that make
            the raw score are exact.
    """

    distances: Float32
    positions: Int32 | None
    worst_row: int
    worst_col: int
    raw_score: float


MIN_VOTERS, MAX_VOTERS = 3, 10


def num_voters(known: int) -> int:
    """How many of the known defects most like one are asked for its type: the root of how many are
    known, rounded up, within `MIN_VOTERS` and `MAX_VOTERS`.

    Asked were all of a few, the most frequent type would win whatever the defect is like.
    """
    return min(MAX_VOTERS, max(MIN_VOTERS, math.isqrt(max(known, 1) - 1) + 1))


@dataclass(frozen=True)
class Vote:
    """What the defects most like an image's are called: a guess at its defect type.

    Attributes:
        counts: how many of the `k` nearest images whose defect type is known have which, the most
            frequent first. Fewer than `needed` for the first one are no ground for a guess, nor is
            a nearest known defect farther away, by cosine `distance`, than the `limit` within
            which those of one type lie from one another; None where too few are known to say.
    """

    k: int
    counts: Mapping[str, int]
    needed: int
    distance: float | None = None
    limit: float | None = None

    @property
    def support(self) -> int:
        return next(iter(self.counts.values()), 0)

    @property
    def is_unlike(self) -> bool:
        """Whether it is farther from every known defect than known ones of a type are."""
        return self.distance is not None and self.limit is not None and self.distance > self.limit

    @property
    def defect_type(self) -> str | None:
        """The guess, if there is ground for one."""
        if self.is_unlike:
            return None
        return next(iter(self.counts)) if self.support >= max(self.needed, 1) else None

    def __str__(self) -> str:
        if self.is_unlike:
            return "unlike any known defect"
        guess = self.defect_type or "in doubt"
        voters = sum(self.counts.values())
        if self.defect_type:
            return f"{guess} {self.support} of {voters}"
        return f"{guess}: " + ", ".join(f"{name} {n}" for name, n in self.counts.items())


@dataclass(frozen=True)
class Inspection:
    """A detector's judgement of one image file.

    Attributes:
        defect: where and how it departs from normal; made of anomalous images by PatchCore.
    """

    path: str
    category: str
    detector_id: int
    threshold: float
    raw_score: float
    normalized_score: float
    scores: PatchScores = field(repr=False)
    worst_box: tuple[int, int, int, int]
    search: Literal["hnsw", "fast", "exact", "network"]
    image_id: int | None = None
    inspection_id: int | None = None
    known_label: Label | None = None
    known_defect_type: str | None = None
    mask_path: str | None = None
    defect: Defect | None = field(default=None, repr=False)
    vote: Vote | None = None
    gray_scale: Mapping[str, float | None] | None = field(default=None, repr=False, compare=False)

    @property
    def is_anomalous(self) -> bool:
        return self.raw_score > self.threshold

    @property
    def verdict(self) -> Label:
        return "anomalous" if self.is_anomalous else "normal"


@dataclass(frozen=True)
class Region:
    """A stored anomalous region of an image.

    Attributes:
        box: `(x, y, width, height)` in pixels; the scores are the detector's patch scores.
        area: a share of the image.
        num_patches: grid cells.
    """

    id: int
    box: tuple[int, int, int, int]
    peak_score: float
    mean_score: float
    area: float
    num_patches: int


@dataclass(frozen=True)
class Neighbor:
    """A retrieved image; distance is the cosine distance of what was compared, 0 to 2.

    Attributes:
        region: the one found, or, by defect, the image's worst.
        copies: how many near-duplicates this one stands for, itself included.
    """

    rank: int
    image: StoredImage
    distance: float
    region: Region | None = None
    copies: int = 1

    @property
    def similarity(self) -> float:
        return 1.0 - self.distance


@dataclass(frozen=True)
class PatchNeighbor:
    """A retrieved memory-bank vector with the normal image and grid cell it came from.

    Those are None in an imported bank.
    """

    rank: int
    position: int
    distance: float
    similarity: float | None
    image_id: int | None
    path: str | None
    row: int | None
    col: int | None


@dataclass(frozen=True)
class FolderReading:
    """What a folder's files are taken as; why is empty where the name leaves no doubt."""

    folder: str
    taken_as: str
    count: int
    why: str = ""


@dataclass(frozen=True)
class Skipped:
    """Files that are left out, of one suffix (in lower case) for one reason."""

    suffix: str
    reason: str
    count: int
