"""What depends on a category, detector or image: the preview of a deletion."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import text

from pgdefect.db.connection.engine import Database
from pgdefect.db.records.catalog import category_id
from pgdefect.db.records.lifecycle import find_detector


@dataclass(frozen=True)
class Dependents:
    """What depends on a category, detector or image: the preview of a deletion."""

    subject: str
    images: int = 0
    detectors: int = 0
    bank_vectors: int = 0
    inspections: int = 0
    embeddings: int = 0
    held_out_scores: int = 0
    thresholds: int = 0
    evaluations: int = 0
    defect_embeddings: int = 0
    regions: int = 0
    kept_patches: int = 0
    reviews: int = 0

    def __str__(self) -> str:
        counts = {
            "images": self.images,
            "detectors": self.detectors,
            "memory-bank vectors": self.bank_vectors,
            "inspections": self.inspections,
            "image embeddings": self.embeddings,
            "held-out scores": self.held_out_scores,
            "thresholds": self.thresholds,
            "evaluations": self.evaluations,
            "defect embeddings": self.defect_embeddings,
            "anomalous regions": self.regions,
            "images' kept patches": self.kept_patches,
            "reviews": self.reviews,
        }
        parts = [f"{count:,} {name}" for name, count in counts.items() if count]
        return f"{self.subject}: {', '.join(parts) if parts else 'nothing depends on it'}"


def dependents(
    database: Database,
    *,
    category: str | None = None,
    detector_id: int | None = None,
    image_id: int | None = None,
) -> Dependents:
    """What deleting one category, detector or image would take with it."""
    with database.connect() as connection:
        if detector_id is not None:
            subject = f"detector {detector_id} of {find_detector(connection, detector_id)[1]}"
        elif image_id is not None:
            subject = f"image {image_id}"
        else:
            assert category is not None
            category_id(connection, category)
            subject = f"category {category}"
        row = connection.execute(
            text("""
            WITH d AS (
                SELECT d.id FROM pgdefect.detector d
                JOIN pgdefect.category c ON c.id = d.category_id
                WHERE d.id = :detector OR c.name = :category
            ), i AS (
                SELECT i.id FROM pgdefect.image i
                JOIN pgdefect.category c ON c.id = i.category_id
                WHERE i.id = :image OR c.name = :category
            )
            SELECT (SELECT count(*) FROM i), (SELECT count(*) FROM d),
                   (SELECT coalesce(sum(num_vectors), 0) FROM pgdefect.memory_bank
                    WHERE id IN (SELECT id FROM d)),
                   (SELECT count(*) FROM pgdefect.inspection
                    WHERE image_id IN (SELECT id FROM i) OR detector_id IN (SELECT id FROM d)),
                   (SELECT count(*) FROM pgdefect.image_embedding
                    WHERE image_id IN (SELECT id FROM i)),
                   (SELECT count(*) FROM pgdefect.holdout_score
                    WHERE image_id IN (SELECT id FROM i) OR detector_id IN (SELECT id FROM d)),
                   (SELECT count(*) FROM pgdefect.detector_threshold
                    WHERE detector_id IN (SELECT id FROM d)),
                   (SELECT count(*) FROM pgdefect.evaluation
                    WHERE detector_id IN (SELECT id FROM d)),
                   (SELECT count(*) FROM pgdefect.defect_embedding
                    WHERE image_id IN (SELECT id FROM i) OR detector_id IN (SELECT id FROM d)),
                   (SELECT count(*) FROM pgdefect.defect_region
                    WHERE image_id IN (SELECT id FROM i) OR detector_id IN (SELECT id FROM d)),
                   (SELECT count(*) FROM pgdefect.image_patches
                    WHERE image_id IN (SELECT id FROM i)),
                   (SELECT count(*) FROM pgdefect.review
                    WHERE image_id IN (SELECT id FROM i))"""),
            {"detector": detector_id, "category": category, "image": image_id},
        ).one()
        return Dependents(subject, *(int(value) for value in row))
