"""The tables of schema ``pgdefect``, as SQLAlchemy models.

Vector columns carry no dimension: partitions of one parent hold vectors of different
extractors or transforms. Each partition has a CHECK on the dimension and an HNSW index
on the cast to it (`pgdefect.core.distance.index_expression`).
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

from pgvector.sqlalchemy import HALFVEC, VECTOR
from sqlalchemy import (
    CheckConstraint,
    Computed,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Index,
    LargeBinary,
    MetaData,
    SmallInteger,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, INTEGER, JSONB, REAL
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import BigInteger

from pgdefect.core.distance import METRICS
from pgdefect.core.words import LABELS, SPLITS
from pgdefect.db.schema.names import SCHEMA

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    """Typed columns: str is text, int is bigint unless a column says otherwise."""

    metadata = MetaData(schema=SCHEMA, naming_convention=NAMING)
    type_annotation_map: ClassVar = {
        str: Text,
        int: BigInteger,
        float: Double,
        bytes: LargeBinary,
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB,
    }


def one_of(column: str, words: tuple[str, ...]) -> str:
    """SQL text of a CHECK that lets only these words into a column."""
    return f"{column} IN ({', '.join(map(repr, words))})"


def _created_at() -> Mapped[datetime]:
    return mapped_column(server_default=func.now())


def _identity() -> Mapped[int]:
    return mapped_column(Identity(always=True), primary_key=True)


class Category(Base):
    """A product, as in MVTec AD (``leather``).

    gray_scale: by kind of sample (``uint16``), the value that is white; NULL before the first
    image. It may grow while the first images are recorded, and is settled then.
    """

    __tablename__ = "category"
    __table_args__ = (CheckConstraint("length(name) BETWEEN 1 AND 100", name="name_length"),)

    id: Mapped[int] = _identity()
    name: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[datetime] = _created_at()
    retired_at: Mapped[datetime | None]
    gray_scale: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    gray_scale_settled: Mapped[bool] = mapped_column(server_default=text("false"))


class ImageRoot(Base):
    """A directory that image paths are relative to; one row to change when it moves."""

    __tablename__ = "image_root"

    id: Mapped[int] = _identity()
    path: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[datetime] = _created_at()


class Image(Base):
    """One photograph of one part.

    label and defect_type are the data set's word, the reviewed ones that of the newest review
    (a trigger keeps them so); the known ones, a review's before the data set's, are what
    searches, votes and figures go by.
    """

    __tablename__ = "image"
    __table_args__ = (
        UniqueConstraint("category_id", "root_id", "path"),
        CheckConstraint("sha256 ~ '^[0-9a-f]{64}$'", name="sha256_hex"),
        CheckConstraint(one_of("split", SPLITS), name="split_known"),
        CheckConstraint(
            "(split = 'simulated') = (simulation IS NOT NULL)", name="simulated_says_how"
        ),
        CheckConstraint(one_of("label", LABELS), name="label_known"),
        CheckConstraint("defect_type IS NULL OR label = 'anomalous'", name="defect_is_anomalous"),
        CheckConstraint("width > 0 AND height > 0", name="size_positive"),
        CheckConstraint("jsonb_typeof(attributes) = 'object'", name="attributes_object"),
        Index("ix_image_sha256", "sha256", postgresql_ops={"sha256": "text_pattern_ops"}),
        Index("ix_image_root_id", "root_id"),
        CheckConstraint(one_of("reviewed_label", LABELS), name="reviewed_label_known"),
        Index("ix_image_category_id_known_defect_type", "category_id", "known_defect_type"),
        Index("ix_image_category_id_group_name", "category_id", "group_name"),
        Index("ix_image_created_at", "created_at"),
        Index(
            "ix_image_attributes",
            "attributes",
            postgresql_using="gin",
            postgresql_ops={"attributes": "jsonb_path_ops"},
        ),
    )

    id: Mapped[int] = _identity()
    category_id: Mapped[int] = mapped_column(ForeignKey(Category.id))
    root_id: Mapped[int] = mapped_column(ForeignKey(ImageRoot.id))
    path: Mapped[str]
    sha256: Mapped[str]
    num_bytes: Mapped[int]
    height: Mapped[int] = mapped_column(INTEGER)
    width: Mapped[int] = mapped_column(INTEGER)
    split: Mapped[str]
    label: Mapped[str | None]
    defect_type: Mapped[str | None]
    mask_path: Mapped[str | None]
    group_name: Mapped[str | None]
    attributes: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))
    simulation: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    created_at: Mapped[datetime] = _created_at()
    retired_at: Mapped[datetime | None]
    taken_at: Mapped[datetime | None]
    reviewed_label: Mapped[str | None]
    reviewed_defect_type: Mapped[str | None]
    known_label: Mapped[str | None] = mapped_column(
        Text, Computed("COALESCE(reviewed_label, label)", persisted=True)
    )
    known_defect_type: Mapped[str | None] = mapped_column(
        Text,
        Computed(
            "CASE WHEN reviewed_label IS NULL THEN defect_type ELSE reviewed_defect_type END",
            persisted=True,
        ),
    )


class Extractor(Base):
    """Backbone, layers, preprocessing and weights; vectors of two never meet in one query."""

    __tablename__ = "extractor"
    __table_args__ = (
        CheckConstraint("embedding_dim > 0 AND rows > 0 AND cols > 0", name="shape_positive"),
    )

    id: Mapped[int] = _identity()
    fingerprint: Mapped[str] = mapped_column(unique=True)
    backbone: Mapped[str]
    layers: Mapped[list[str]] = mapped_column(ARRAY(Text))
    preprocessing: Mapped[dict[str, Any]]
    weights_source: Mapped[str]
    weights_sha256: Mapped[str]
    embedding_dim: Mapped[int] = mapped_column(INTEGER)
    rows: Mapped[int] = mapped_column(INTEGER)
    cols: Mapped[int] = mapped_column(INTEGER)
    onnx: Mapped[bytes] = mapped_column(deferred=True)
    onnx_sha256: Mapped[str]
    created_at: Mapped[datetime] = _created_at()


class DetectorRow(Base):
    """One trained version for a category; at most one per category and kind is active."""

    __tablename__ = "detector"
    __table_args__ = (
        UniqueConstraint("category_id", "kind", "version"),
        CheckConstraint("kind ~ '^[a-z][a-z0-9_]{0,39}$'", name="kind_word"),
        CheckConstraint("state IN ('ready', 'retired')", name="state_known"),
        CheckConstraint("state = 'ready' OR NOT active", name="retired_is_inactive"),
        CheckConstraint("threshold > score_center", name="threshold_above_center"),
        Index(
            "uq_detector_active",
            "category_id",
            "kind",
            unique=True,
            postgresql_where=text("active"),
        ),
        Index("ix_detector_extractor_id", "extractor_id"),
    )

    id: Mapped[int] = _identity()
    category_id: Mapped[int] = mapped_column(ForeignKey(Category.id))
    extractor_id: Mapped[int] = mapped_column(ForeignKey(Extractor.id))
    kind: Mapped[str]
    version: Mapped[int] = mapped_column(INTEGER)
    state: Mapped[str]
    active: Mapped[bool]
    threshold: Mapped[float]
    threshold_rule: Mapped[dict[str, Any]]
    score_center: Mapped[float]
    settings: Mapped[dict[str, Any]]
    metrics: Mapped[dict[str, Any]]
    library_versions: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = _created_at()


class DetectorThreshold(Base):
    """Every threshold a detector has had, with the rule that made it; the newest is in force.

    ``detector`` repeats that one. Only `defect.set_threshold` and training write either.
    """

    __tablename__ = "detector_threshold"
    __table_args__ = (
        CheckConstraint("threshold > score_center", name="above_center"),
        Index("ix_detector_threshold_detector_id", "detector_id"),
    )

    id: Mapped[int] = _identity()
    detector_id: Mapped[int] = mapped_column(ForeignKey(DetectorRow.id, ondelete="CASCADE"))
    threshold: Mapped[float]
    score_center: Mapped[float]
    rule: Mapped[dict[str, Any]]
    set_by: Mapped[str] = mapped_column(server_default=text("session_user"))
    created_at: Mapped[datetime] = _created_at()


class HoldoutScore(Base):
    """Raw score of a normal training image against other parts' vectors: thresholds come from it.

    The image itself may be in the bank; a network has not learned from it. An outlier scored far
    outside the rest: thresholds are chosen without it, unless a review says that it is normal.
    """

    __tablename__ = "holdout_score"
    __table_args__ = (Index("ix_holdout_score_image_id", "image_id"),)

    detector_id: Mapped[int] = mapped_column(
        ForeignKey(DetectorRow.id, ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    image_id: Mapped[int] = mapped_column(
        ForeignKey(Image.id, ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    raw_score: Mapped[float]
    outlier: Mapped[bool] = mapped_column(server_default=text("false"))


class Evaluation(Base):
    """What a detector's scores of one split's labeled images are worth."""

    __tablename__ = "evaluation"
    __table_args__ = (
        CheckConstraint(
            "jsonb_typeof(metrics) = 'object' AND jsonb_typeof(settings) = 'object'",
            name="metrics_object",
        ),
        Index("ix_evaluation_detector_id", "detector_id"),
    )

    id: Mapped[int] = _identity()
    detector_id: Mapped[int] = mapped_column(ForeignKey(DetectorRow.id, ondelete="CASCADE"))
    threshold: Mapped[float]
    split: Mapped[str]
    normal_images: Mapped[int] = mapped_column(INTEGER)
    anomalous_images: Mapped[int] = mapped_column(INTEGER)
    metrics: Mapped[dict[str, Any]]
    settings: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = _created_at()


class DetectorModel(Base):
    """The network of a detector that has no memory bank (EfficientAD), as ONNX."""

    __tablename__ = "detector_model"

    detector_id: Mapped[int] = mapped_column(
        ForeignKey(DetectorRow.id, ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    onnx: Mapped[bytes] = mapped_column(deferred=True)
    onnx_sha256: Mapped[str]


class MemoryBankRow(Base):
    """A PatchCore detector's part; it shares the detector's id."""

    __tablename__ = "memory_bank"
    __table_args__ = (
        CheckConstraint(
            one_of("operator", tuple(metric.operator for metric in METRICS.values())),
            name="operator_known",
        ),
        CheckConstraint("precision IN ('half', 'single')", name="precision_known"),
        CheckConstraint("indexed_type IN ('vector', 'halfvec')", name="indexed_type_known"),
        CheckConstraint("worst_share BETWEEN 0 AND 1", name="worst_share_range"),
        CheckConstraint("ef_search BETWEEN 1 AND 1000", name="ef_search_range"),
        CheckConstraint("ef_search_fast BETWEEN 1 AND ef_search", name="ef_search_fast_range"),
    )

    id: Mapped[int] = mapped_column(
        ForeignKey(DetectorRow.id, ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    num_images: Mapped[int] = mapped_column(INTEGER)
    num_vectors: Mapped[int] = mapped_column(INTEGER)
    embedding_dim: Mapped[int] = mapped_column(INTEGER)
    precision: Mapped[str]
    indexed_type: Mapped[str]
    metric: Mapped[str]
    operator: Mapped[str]
    transform: Mapped[str]
    transform_mean: Mapped[list[float] | None] = mapped_column(ARRAY(REAL), deferred=True)
    transform_components: Mapped[list[list[float]] | None] = mapped_column(
        ARRAY(REAL, dimensions=2), deferred=True
    )
    transform_constant: Mapped[float | None]
    coreset_ratio: Mapped[float]
    covering_radius: Mapped[float]
    num_neighbors: Mapped[int] = mapped_column(INTEGER)
    worst_share: Mapped[float] = mapped_column(server_default=text("0"))
    ef_search: Mapped[int] = mapped_column(INTEGER)
    ef_search_recall: Mapped[float]
    ef_search_fast: Mapped[int] = mapped_column(INTEGER)
    patch_score_std: Mapped[float | None]
    defect_parameters: Mapped[bytes | None] = mapped_column(deferred=True)
    defect_settings: Mapped[dict[str, Any] | None] = mapped_column(deferred=True)


class MemoryBankPatch(Base):
    """A stored patch embedding and the normal image and grid cell it came from.

    image_id 0: where it came from is not known (an imported bank); row and col mean nothing.

    No foreign keys: they would make attaching and detaching a bank lock ``image`` and
    ``memory_bank`` against writers. The writer checks instead.
    """

    __tablename__ = "memory_bank_patch"
    __table_args__ = ({"postgresql_partition_by": "LIST (bank_id)"},)

    bank_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    position: Mapped[int] = mapped_column(INTEGER, primary_key=True, autoincrement=False)
    image_id: Mapped[int]
    row: Mapped[int] = mapped_column(SmallInteger)
    col: Mapped[int] = mapped_column(SmallInteger)
    embedding: Mapped[Any] = mapped_column(VECTOR(), nullable=False)


class ImageEmbedding(Base):
    """One vector per image and extractor, for retrieval."""

    __tablename__ = "image_embedding"
    __table_args__ = (
        Index("ix_image_embedding_image_id", "image_id"),
        {"postgresql_partition_by": "LIST (extractor_id)"},
    )

    extractor_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    image_id: Mapped[int] = mapped_column(
        ForeignKey(Image.id, ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    embedding: Mapped[Any] = mapped_column(HALFVEC(), nullable=False)


class DefectSpaceRow(Base):
    """How an extractor's defect embeddings are made (`pgdefect.vision.defects.defect_embedding`).

    Made with the extractor's first PatchCore detector and never changed: its vectors have one
    dimension, and its second look is one network (onnx, where there is one). parameters, a .npz
    file of NumPy's, serve detectors without defect_parameters of their own in memory_bank.
    """

    __tablename__ = "defect_space"
    __table_args__ = (CheckConstraint("embedding_dim > 0", name="dim_positive"),)

    extractor_id: Mapped[int] = mapped_column(
        ForeignKey(Extractor.id, ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    embedding_dim: Mapped[int] = mapped_column(INTEGER)
    parameters: Mapped[bytes]
    onnx: Mapped[bytes | None] = mapped_column(deferred=True)
    onnx_sha256: Mapped[str | None]
    settings: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = _created_at()


class DefectEmbedding(Base):
    """One vector per inspected image, from its anomalous patches; the newest detector's."""

    __tablename__ = "defect_embedding"
    __table_args__ = (
        Index("ix_defect_embedding_image_id", "image_id"),
        Index("ix_defect_embedding_detector_id", "detector_id"),
        {"postgresql_partition_by": "LIST (extractor_id)"},
    )

    extractor_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    image_id: Mapped[int] = mapped_column(
        ForeignKey(Image.id, ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    detector_id: Mapped[int] = mapped_column(ForeignKey(DetectorRow.id, ondelete="CASCADE"))
    embedding: Mapped[Any] = mapped_column(HALFVEC(), nullable=False)


class DefectRegion(Base):
    """A connected anomalous region of an inspected image, with an embedding of its own.

    rank counts from 1, worst peak first; x, y, width, height in pixels; num_patches in grid
    cells, area as a share of the image; the scores are the detector's patch scores.
    """

    __tablename__ = "defect_region"
    __table_args__ = (
        CheckConstraint("x >= 0 AND y >= 0 AND width > 0 AND height > 0", name="box_positive"),
        Index("ix_defect_region_image_id", "image_id"),
        Index("ix_defect_region_detector_id", "detector_id"),
        {"postgresql_partition_by": "LIST (extractor_id)"},
    )

    extractor_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    id: Mapped[int] = mapped_column(
        primary_key=True,
        autoincrement=False,
        server_default=text("nextval('pgdefect.defect_region_id_seq'::regclass)"),
    )
    image_id: Mapped[int] = mapped_column(ForeignKey(Image.id, ondelete="CASCADE"))
    detector_id: Mapped[int] = mapped_column(ForeignKey(DetectorRow.id, ondelete="CASCADE"))
    rank: Mapped[int] = mapped_column(SmallInteger)
    x: Mapped[int] = mapped_column(INTEGER)
    y: Mapped[int] = mapped_column(INTEGER)
    width: Mapped[int] = mapped_column(INTEGER)
    height: Mapped[int] = mapped_column(INTEGER)
    num_patches: Mapped[int] = mapped_column(INTEGER)
    area: Mapped[float] = mapped_column(REAL)
    peak_score: Mapped[float] = mapped_column(REAL)
    mean_score: Mapped[float] = mapped_column(REAL)
    embedding: Mapped[Any] = mapped_column(HALFVEC(), nullable=False)


class MemoryBankRaw(Base):
    """A bank's vectors as the extractor made them, in half precision; searches do not touch it.

    Defect embeddings are made from them: what an anomalous patch is, minus the nearest normal.
    """

    __tablename__ = "memory_bank_raw"
    __table_args__ = ({"postgresql_partition_by": "LIST (bank_id)"},)

    bank_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    position: Mapped[int] = mapped_column(INTEGER, primary_key=True, autoincrement=False)
    embedding: Mapped[Any] = mapped_column(HALFVEC(), nullable=False)


class ImagePatches(Base):
    """All patch embeddings of one image, row by row, kept where an inspection is asked to."""

    __tablename__ = "image_patches"
    __table_args__ = (
        CheckConstraint("cardinality(embeddings) = rows * cols", name="grid_filled"),
        Index("ix_image_patches_image_id", "image_id"),
    )

    extractor_id: Mapped[int] = mapped_column(
        ForeignKey(Extractor.id, ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    image_id: Mapped[int] = mapped_column(
        ForeignKey(Image.id, ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    rows: Mapped[int] = mapped_column(SmallInteger)
    cols: Mapped[int] = mapped_column(SmallInteger)
    embeddings: Mapped[list[Any]] = mapped_column(ARRAY(HALFVEC()))


class SearchSetting(Base):
    """The ef_search that reached the recall wanted, stored by a recall check that fixes."""

    __tablename__ = "search_setting"
    __table_args__ = (
        CheckConstraint("searched IN ('picture', 'defect', 'region')", name="searched_known"),
        CheckConstraint("ef_search BETWEEN 1 AND 1000", name="ef_search_range"),
    )

    extractor_id: Mapped[int] = mapped_column(
        ForeignKey(Extractor.id, ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    searched: Mapped[str] = mapped_column(primary_key=True)
    ef_search: Mapped[int] = mapped_column(INTEGER)
    recall: Mapped[float]
    checked_at: Mapped[datetime] = _created_at()


class Review(Base):
    """What a person said of an image; the newest is in force, none is ever changed."""

    __tablename__ = "review"
    __table_args__ = (
        CheckConstraint(one_of("label", LABELS), name="label_known"),
        CheckConstraint("defect_type IS NULL OR label = 'anomalous'", name="defect_is_anomalous"),
        Index("ix_review_image_id_created_at", "image_id", "created_at"),
    )

    id: Mapped[int] = _identity()
    image_id: Mapped[int] = mapped_column(ForeignKey(Image.id, ondelete="CASCADE"))
    label: Mapped[str]
    defect_type: Mapped[str | None]
    note: Mapped[str | None]
    reviewer: Mapped[str] = mapped_column(server_default=text("session_user"))
    created_at: Mapped[datetime] = _created_at()


class ReviewWithdrawal(Base):
    """That a review was a mistake: it no longer counts, and stays in the history."""

    __tablename__ = "review_withdrawal"

    review_id: Mapped[int] = mapped_column(
        ForeignKey(Review.id, ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    note: Mapped[str | None]
    withdrawn_by: Mapped[str] = mapped_column(server_default=text("session_user"))
    created_at: Mapped[datetime] = _created_at()


class Audit(Base):
    """Who changed what: triggers add to it, nobody changes it.

    hash is the SHA-256 of what the entry says and of the hash before it; number has no gaps.
    """

    __tablename__ = "audit"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[datetime]
    who: Mapped[str]
    action: Mapped[str]
    object: Mapped[str]
    before: Mapped[dict[str, Any] | None]
    after: Mapped[dict[str, Any] | None]
    hash: Mapped[str]


class AuditHead(Base):
    """The newest entry's number and hash: one row, locked by whoever adds an entry."""

    __tablename__ = "audit_head"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    hash: Mapped[str]


class InspectionRow(Base):
    """What a detector said of an image at one time, under the threshold in force then.

    An event: rows are added and never changed, but for the vote on the defect type. The
    verdict in force is that of the newest by (inspected_at, created_at, id).

    event: "inspection" is the first of its image by any detector, "re-inspection" any later
    look, "re-judgement" stored scores under another threshold (`defect.rejudge`); a trigger
    chooses between the first two, and dates the look as the row. inspected_at: when the detector
    looked at the image, which a re-judgement has from the event that it rests on; created_at:
    when this row was made. station: where, by default the login. event_key: whose request it
    answers; one image gets one event for each key.
    """

    __tablename__ = "inspection"
    __table_args__ = (
        CheckConstraint("search IN ('hnsw', 'fast', 'exact', 'network')", name="search_known"),
        CheckConstraint(
            "event IN ('inspection', 're-inspection', 're-judgement')", name="event_known"
        ),
        CheckConstraint("length(event_key) BETWEEN 1 AND 200", name="event_key_length"),
        Index("ix_inspection_image", "image_id", "inspected_at", "created_at", "id"),
        Index(
            "ix_inspection_detector_image",
            *("detector_id", "image_id", "inspected_at", "created_at", "id"),
        ),
        Index(
            "uq_inspection_event_key_image_id",
            "event_key",
            "image_id",
            unique=True,
            postgresql_where=text("event_key IS NOT NULL"),
        ),
        Index(
            "uq_inspection_first",
            "image_id",
            unique=True,
            postgresql_where=text("event = 'inspection'"),
        ),
        CheckConstraint(
            "vote IS NULL OR (jsonb_typeof(vote) = 'object' "
            "AND jsonb_typeof(vote->'counts') = 'object' "
            "AND jsonb_typeof(vote->'k') = 'number' AND jsonb_typeof(vote->'support') = 'number' "
            "AND jsonb_typeof(vote->'needed') = 'number') IS TRUE",
            name="vote_shape",
        ),
    )

    id: Mapped[int] = _identity()
    image_id: Mapped[int] = mapped_column(ForeignKey(Image.id, ondelete="CASCADE"))
    detector_id: Mapped[int] = mapped_column(ForeignKey(DetectorRow.id, ondelete="CASCADE"))
    raw_score: Mapped[float]
    normalized_score: Mapped[float]
    threshold: Mapped[float]
    is_anomalous: Mapped[bool] = mapped_column(Computed("raw_score > threshold", persisted=True))
    worst_row: Mapped[int] = mapped_column(SmallInteger)
    worst_col: Mapped[int] = mapped_column(SmallInteger)
    anomaly_map: Mapped[list[list[float]]] = mapped_column(ARRAY(REAL, dimensions=2))
    nearest_positions: Mapped[list[list[int]] | None] = mapped_column(ARRAY(INTEGER, dimensions=2))
    search: Mapped[str]
    created_at: Mapped[datetime] = _created_at()
    vote: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    probable_defect_type: Mapped[str | None]
    event: Mapped[str]
    inspected_at: Mapped[datetime]
    station: Mapped[str | None] = mapped_column(server_default=text("session_user"))
    event_key: Mapped[str | None]


class InspectionRun(Base):
    """A run of ``pgdefect inspect`` that has not come to its end; the same command resumes it.

    digest: of the detector, its threshold, the search and the files; event_key: what the run's
    inspections carry. The row goes when the run is complete.
    """

    __tablename__ = "inspection_run"
    __table_args__ = (Index("ix_inspection_run_detector_id", "detector_id"),)

    digest: Mapped[str] = mapped_column(primary_key=True)
    detector_id: Mapped[int] = mapped_column(ForeignKey(DetectorRow.id, ondelete="CASCADE"))
    event_key: Mapped[str]
    started_at: Mapped[datetime] = _created_at()


class SqlFile(Base):
    """Which version of each file of ``sql/`` the database holds."""

    __tablename__ = "sql_file"

    name: Mapped[str] = mapped_column(primary_key=True)
    sha256: Mapped[str]
    applied_at: Mapped[datetime] = _created_at()
