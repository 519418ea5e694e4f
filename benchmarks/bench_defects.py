"""How well defects of one type find each other, and what each part of the embedding is worth.

Every anomalous test image is searched among the others by exact cosine distance; photographs
of its own part are never counted.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.common import Context, Images, Report, server, timed

CATEGORY = "bench"


def measure(context: Context) -> Report:
    from pgdefect.core.config import Settings
    from pgdefect.core.types import DefectSpace
    from pgdefect.db.records.defects import find_defect_space, load_defect_view, raw_bank_vectors
    from pgdefect.db.search.queries import images_of
    from pgdefect.evaluation import group_numbers
    from pgdefect.evaluation.retrieval import cosine_distances, retrieval_figures
    from pgdefect.usecases.ingest import ingest_dataset
    from pgdefect.usecases.inspect.inspector import Inspector, Judged
    from pgdefect.usecases.train.options import TrainOptions
    from pgdefect.usecases.train.train import train
    from pgdefect.vision.defects.defect_embedding import anomaly, anomaly_weights, defect_embedding
    from pgdefect.vision.defects.defect_view import DefectView
    from pgdefect.vision.images.image import load_image

    images = _few(context.images) if context.quick else context.images
    settings = Settings(cache_dir=context.folder)
    with server() as database:
        ingest_dataset(database, images.dataset, CATEGORY)
        test = [i for i in images_of(database, CATEGORY, split="test") if i.known_defect_type]
        if len({image.known_defect_type for image in test}) < 2:
            return Report("defects", images.name, notes=["no two defect types to tell apart"])
        train(database, settings, CATEGORY, TrainOptions())
        inspector = Inspector(database, settings, CATEGORY, "exact")
        bank, extractor_id = inspector.detector.bank, inspector.detector.extractor_id
        space = find_defect_space(database, extractor_id, inspector.detector.id)
        with database.connect() as connection:
            artifact = load_defect_view(connection, extractor_id, settings.cache_dir)
        assert space is not None
        assert artifact is not None
        view, one_way = DefectView(artifact), DefectView(artifact, orientations=1)
        # Patch scores alone say what is anomalous, and their own spread how sharply.
        by_score = DefectSpace(space.residual, (), {"temperature": 1.0})
        found: dict[int, dict[str, Any]] = {}
        seconds: list[float] = []

        def fail(index: int, error: Exception) -> None:
            raise error

        def embeddings_of(judged: Judged, nearest: Any, once: Any, features: Any) -> dict[str, Any]:
            scores = judged.inspection.scores.distances
            everywhere = np.ones(scores.shape, dtype=bool)

            def weights_by(chosen: DefectSpace, looked: Any) -> Any:
                found = anomaly(chosen, scores, bank.patch_score_std or 1.0, looked)
                return anomaly_weights(chosen, found, everywhere)

            def embed(chosen: DefectSpace, weights: Any, looked: Any) -> Any:
                close = nearest[(weights > 0).reshape(-1)]
                return defect_embedding(chosen, weights, judged.patches, close, looked)

            score, both = weights_by(by_score, []), weights_by(space, features)
            return {
                "picture": judged.embedding,
                "residual": embed(by_score, score, []),
                "one look, by score": embed(space, score, once),
                "one look": embed(space, weights_by(space, once), once),
                "by score": embed(space, score, features),
                "default": embed(space, both, features),
            }

        for batch in inspector.judge([image.path for image in test], fail):
            for index, judged in batch:
                positions = judged.inspection.scores.positions
                assert positions is not None
                photograph = load_image(test[index].path)
                took, features = timed(lambda photograph=photograph: view(photograph))
                seconds.append(took)
                with database.connect() as connection:
                    nearest = raw_bank_vectors(connection, bank, positions.reshape(-1))
                found[index] = embeddings_of(judged, nearest, one_way(photograph), features)
        dims = np.cumsum([0, *(len(p.components) for p in (space.residual, *space.deep[1:]))])
        rows = [found[n] for n in range(len(test))]
        stacked = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
        full = stacked["default"]
        variants = {
            "picture: mean of the patch embeddings": stacked["picture"],
            "residual alone, weighed by patch scores": stacked["residual"],
            "+ deep layers, one orientation": stacked["one look, by score"],
            "+ weighed by their unlikeness, too": stacked["one look"],
            "+ four orientations: the default": full,
            "the default, weighed by patch scores alone": stacked["by score"],
            "the default without the residual": full[:, dims[1] :],
            "the default without the deepest layer": full[:, : dims[2]],
        }
        groups = group_numbers([image.part for image in test])
        types = [str(image.known_defect_type) for image in test]
    report = Report("defects", f"{len(test)} anomalous test images of {images.name}")
    for name, embeddings in variants.items():
        figures = retrieval_figures(cosine_distances(embeddings), types, groups)
        report.facts[name] = {
            "dim": embeddings.shape[1],
            "over_queries": figures.over_queries,
            "over_types": figures.over_types,
            "by_type": figures.by_type,
        }
        values = figures.over_queries
        report.notes.append(
            f"{name:45}{embeddings.shape[1]:5} dim  p@1 {values['precision_at_1']:.3f}  "
            f"p@10 {values['precision_at_10']:.3f}  mAP {values['mean_average_precision']:.3f}  "
            f"vote {values['vote_right']:.3f}  chance {values['chance']:.3f}"
        )
    report.facts["second_look_seconds"] = float(np.median(seconds))
    report.notes.append(f"the second look takes {1000 * np.median(seconds):.0f} ms an image")
    if not context.quick and all((image.part or "").isdigit() for image in test):
        default = report.facts["+ four orientations: the default"]["over_queries"]
        report.check("precision@10 of 0.75", default["precision_at_10"] >= 0.75)
        report.check("mAP of 0.55", default["mean_average_precision"] >= 0.55)
    return report


def _few(images: Images) -> Images:
    """Some of each defect type, which lie one behind the other."""
    records = images.dataset.records
    train = [record for record in records if record.split == "train"][:20]
    test = [record for record in records if record.defect_type][::8]
    return Images(images.name, replace(images.dataset, records=(*train, *test)))
