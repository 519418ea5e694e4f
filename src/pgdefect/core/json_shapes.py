"""Judgements and neighbors as plain JSON values: one shape for every front end."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pgdefect.core.types import Inspection, Neighbor, Vote


def inspection_json(inspection: Inspection) -> dict[str, Any]:
    """An inspection; the anomaly map itself is left out."""
    return {
        "path": inspection.path,
        "category": inspection.category,
        "verdict": inspection.verdict,
        "normalized_score": inspection.normalized_score,
        "raw_score": inspection.raw_score,
        "threshold": inspection.threshold,
        "worst_box": list(inspection.worst_box),
        "worst_cell": [inspection.scores.worst_row, inspection.scores.worst_col],
        "known_label": inspection.known_label,
        "known_defect_type": inspection.known_defect_type,
        "detector_id": inspection.detector_id,
        "image_id": inspection.image_id,
        "inspection_id": inspection.inspection_id,
        "regions": [
            {
                "box": list(region.box),
                "area": region.area,
                "peak_score": region.peak_score,
                "mean_score": region.mean_score,
            }
            for region in (inspection.defect.regions if inspection.defect else ())
        ],
        "probable_defect_type": inspection.vote and inspection.vote.defect_type,
        "vote": inspection.vote and vote_json(inspection.vote),
    }


def vote_json(vote: Vote) -> dict[str, Any]:
    """A guess at the defect type, with its ground."""
    return {
        "counts": dict(vote.counts),
        "support": vote.support,
        "needed": vote.needed,
        "distance": vote.distance,
        "limit": vote.limit,
        "unlike": vote.is_unlike,
    }


def neighbor_json(neighbor: Neighbor) -> dict[str, Any]:
    """A retrieved image."""
    region = neighbor.region
    return {
        "rank": neighbor.rank,
        "distance": neighbor.distance,
        "similarity": neighbor.similarity,
        "image_id": neighbor.image.id,
        "category": neighbor.image.category,
        "known_label": neighbor.image.known_label,
        "known_defect_type": neighbor.image.known_defect_type,
        "split": neighbor.image.split,
        "part": neighbor.image.part,
        "path": neighbor.image.path,
        "copies": neighbor.copies,
        "region": region
        and {"id": region.id, "box": list(region.box), "peak_score": region.peak_score},
    }


def failed_json(failed: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    """Files that could not be used, and why."""
    return [{"path": path, "reason": reason} for path, reason in failed]
