"""Defect embeddings end to end: regions, searches by defect, votes, embedding again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import text

from pgdefect.core.config import Settings
from pgdefect.core.errors import NotFound, UsageError
from pgdefect.core.types import StoredImage
from pgdefect.db.connection.engine import Database
from pgdefect.db.records.defects import (
    defect_embeddings,
    find_defect_space,
    load_defect_view,
    region_embeddings,
)
from pgdefect.db.records.detectors import active_detector
from pgdefect.db.records.reviews import review_image
from pgdefect.db.search.queries import images_of
from pgdefect.usecases.evaluate.retrieval import evaluate_retrieval
from pgdefect.usecases.inspect.embed import embed
from pgdefect.usecases.inspect.inspect import inspect
from pgdefect.usecases.search.search import Query, SearchOptions, SearchReport, combined, search
from pgdefect.vision.defects.defect_view import DefectView
from pgdefect.vision.images.image import load_image
from pgdefect.vision.images.masks import load_mask
from pgdefect.vision.images.preprocess import Preprocessing


def defective(database: Database) -> list[StoredImage]:
    return [i for i in images_of(database, "parts", split="test") if i.known_label == "anomalous"]


def test_every_anomalous_image_has_an_embedding_and_regions_on_its_defect(
    trained: Database, settings: Settings, parts: Path
) -> None:
    images = defective(trained)
    detector = active_detector(trained, "parts")
    extractor_id = detector.extractor_id
    space = find_defect_space(trained, extractor_id, detector.id)
    assert space is not None
    assert len(space.deep) == 3
    embeddings = defect_embeddings(trained, extractor_id, [image.id for image in images])
    assert embeddings.keys() == {image.id for image in images}
    for _, embedding in embeddings.values():
        assert embedding.shape == (space.embedding_dim,)
        assert np.linalg.norm(embedding) == pytest.approx(1.0, abs=1e-3)
    with trained.connect() as connection:
        boxes = {
            row[0]: row[1:]
            for row in connection.execute(
                text(
                    "SELECT image_id, x, y, width, height, peak_score, area "
                    "FROM pgdefect.defect_region WHERE rank = 1"
                )
            )
        }
    hits = 0
    for image in images:
        x, y, width, height, peak, area = boxes[image.id]
        assert 0 < area < 1
        assert peak > 0
        mask = load_mask(str(parts / str(image.mask_path)), (image.height, image.width))
        hits += bool(mask[y : y + height, x : x + width].any())
    assert hits >= len(images) - 1


def test_normal_images_have_none(trained: Database) -> None:
    normal = [i.id for i in images_of(trained, "parts", split="test") if i.known_label == "normal"]
    detector = active_detector(trained, "parts")
    with trained.connect() as connection:
        rejected = set(
            connection.scalars(text("SELECT image_id FROM pgdefect.inspection WHERE is_anomalous"))
        )
    found = defect_embeddings(trained, detector.extractor_id, normal)
    assert found.keys() == rejected & set(normal)


def test_the_default_is_by_defect_for_an_anomalous_image_and_by_picture_for_a_normal_one(
    trained: Database, settings: Settings
) -> None:
    with trained.connect() as connection:
        worst, best = connection.execute(
            text(
                "SELECT (array_agg(image_id ORDER BY raw_score DESC))[1], "
                "(array_agg(image_id ORDER BY raw_score))[1] FROM pgdefect.inspection"
            )
        ).one()
    report = search(trained, settings, Query([str(worst)]), SearchOptions(k=5))
    assert report.by == "defect"
    assert report.regions
    assert all(n.region is not None for n in report.neighbors)
    assert search(trained, settings, Query([str(best)]), SearchOptions(k=5)).by == "picture"
    by_region = search(trained, settings, Query([str(worst)]), SearchOptions(k=5, by="region"))
    assert [n.rank for n in by_region.neighbors] == list(range(1, len(by_region.neighbors) + 1))


def test_a_crop_around_the_defect_finds_what_its_region_finds(
    trained: Database, settings: Settings
) -> None:
    image = max(defective(trained), key=lambda i: i.id)
    whole = search(trained, settings, Query([str(image.id)]), SearchOptions(k=3, by="region"))
    box = whole.regions[0]
    crop = search(trained, settings, Query([str(image.id)], crop=box), SearchOptions(k=3))
    assert crop.by == "region"
    assert crop.regions == (box,)
    assert [n.image.id for n in crop.neighbors] == [n.image.id for n in whole.neighbors]
    assert [n.distance for n in crop.neighbors] == pytest.approx(
        [n.distance for n in whole.neighbors], abs=0.02
    )
    with trained.connect() as connection:
        region_id = connection.scalar(
            text("SELECT id FROM pgdefect.defect_region WHERE image_id = :id AND rank = 1"),
            {"id": image.id},
        )
    stored = search(trained, settings, Query(region=region_id), SearchOptions(k=3))
    assert [n.image.id for n in stored.neighbors] == [n.image.id for n in whole.neighbors]
    with pytest.raises(UsageError, match="does not lie in an image"):
        search(trained, settings, Query([str(image.id)], crop=(0, 0, 999, 5)), SearchOptions())


def test_counter_examples_push_their_kind_down(trained: Database, settings: Settings) -> None:
    images = defective(trained)
    first = images[0]
    other = next(i for i in images if i.known_defect_type != first.known_defect_type)
    options = SearchOptions(k=8, by="defect", label="anomalous")

    def distance_to_kind_of(report: SearchReport, kind: str | None) -> float:
        return float(
            np.mean([n.distance for n in report.neighbors if n.image.known_defect_type == kind])
        )

    plain = search(trained, settings, Query([str(first.id)]), options)
    pushed = search(trained, settings, Query([str(first.id)], unlike=[str(other.id)]), options)
    assert distance_to_kind_of(pushed, other.known_defect_type) > distance_to_kind_of(
        plain, other.known_defect_type
    )
    assert other.id not in {n.image.id for n in pushed.neighbors}


def test_examples_that_cancel_out_are_refused() -> None:
    vector = np.array([1.0, 0.0], dtype=np.float32)
    assert combined([vector], [np.array([0.0, 1.0], dtype=np.float32)]) == pytest.approx(
        [0.894427, -0.447214]
    )
    with pytest.raises(UsageError, match="cancel out"):
        combined([vector, -vector], [])


def test_the_vote_is_recorded_and_a_review_changes_it_at_once(
    trained: Database, settings: Settings
) -> None:
    images = defective(trained)
    report = inspect(trained, settings, "parts", split="test")
    voted = [i for i in report.inspections if i.is_anomalous]
    assert voted
    assert all(i.vote is not None for i in voted)
    one = voted[0]
    assert one.vote is not None
    assert len(images) == 9
    assert sum(one.vote.counts.values()) == one.vote.k == 3
    with trained.connect() as connection:
        stored = connection.execute(
            text("SELECT vote, probable_defect_type FROM pgdefect.inspection WHERE id = :id"),
            {"id": one.inspection_id},
        ).one()
    assert stored.vote["counts"] == dict(one.vote.counts)
    assert stored.probable_defect_type == one.vote.defect_type
    for image in images:
        if image.id != one.image_id:
            review_image(trained, str(image.id), "anomalous", defect_type="dent")
    again = search(trained, settings, Query([str(one.image_id)]), SearchOptions())
    assert again.vote is not None
    assert again.vote.counts == {"dent": 3}
    assert again.vote.defect_type == "dent"
    assert all(n.image.known_defect_type == "dent" for n in again.neighbors if n.image.known_label)


def test_without_defects_what_is_stored_of_them_stays(
    trained: Database, settings: Settings
) -> None:
    def stored() -> list[Sequence[object]]:
        with trained.connect() as connection:
            votes = "SELECT id, vote FROM pgdefect.inspection ORDER BY id"
            regions = "SELECT id, image_id FROM pgdefect.defect_region ORDER BY id"
            return [connection.execute(text(query)).all() for query in (votes, regions)]

    votes, regions = stored()
    report = inspect(trained, settings, "parts", split="test", defects=False)
    assert all(i.defect is None and i.vote is None for i in report.inspections)
    votes_now, regions_now = stored()
    assert (votes_now[: len(votes)], regions_now) == (votes, regions)


def test_embed_makes_what_is_missing_and_changes_no_verdict(
    trained: Database, settings: Settings
) -> None:
    images = defective(trained)
    detector = active_detector(trained, "parts")
    ids = [image.id for image in images]
    before = defect_embeddings(trained, detector.extractor_id, ids)
    regions = region_embeddings(trained, detector.extractor_id, ids)
    with trained.begin() as connection:
        connection.execute(text("DELETE FROM pgdefect.defect_embedding"))
        connection.execute(text("DELETE FROM pgdefect.defect_region"))
        inspections = connection.scalar(text("SELECT count(*) FROM pgdefect.inspection"))
    report = embed(trained, settings, "parts")
    assert report.defect_embeddings >= len(ids)
    assert report.failed == ()
    after = defect_embeddings(trained, detector.extractor_id, ids)
    for id_ in ids:
        assert after[id_][1] == pytest.approx(before[id_][1], abs=2e-3)
        assert len(region_embeddings(trained, detector.extractor_id, ids)[id_]) == len(regions[id_])
    assert embed(trained, settings, "parts").defect_embeddings == 0
    assert embed(trained, settings, "parts", again=True).defect_embeddings >= len(ids)
    with trained.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM pgdefect.inspection")) == inspections


def test_a_detector_of_an_older_version_says_to_train_again(
    trained: Database, settings: Settings
) -> None:
    with trained.begin() as connection:
        connection.execute(text("UPDATE pgdefect.memory_bank SET patch_score_std = NULL"))
    image = defective(trained)[0]
    with pytest.raises(NotFound, match=r"train again: project\.train\('parts'\)"):
        search(trained, settings, Query([str(image.id)]), SearchOptions(by="defect"))
    assert search(trained, settings, Query([str(image.id)]), SearchOptions()).by == "picture"
    report = inspect(trained, settings, "parts", split="test")
    assert all(i.defect is None for i in report.inspections)


@pytest.mark.train
def test_the_second_look_is_torchs(trained: Database, settings: Settings, parts: Path) -> None:
    import timm
    import torch

    from pgdefect.vision.networks.backbone import find_backbone, load_weights

    detector = active_detector(trained, "parts")
    with trained.connect() as connection:
        artifact = load_defect_view(connection, detector.extractor_id, settings.cache_dir)
    assert artifact is not None
    image = load_image(str(next(parts.glob("test/good/*.png"))))
    backbone = find_backbone("efficientnet_lite0")
    network = timm.create_model(backbone.timm_name, pretrained=False).eval()
    load_weights(network, backbone, None)
    preprocessing = Preprocessing((256, 256), mean=backbone.mean, std=backbone.std)
    inputs = torch.from_numpy(preprocessing.apply(image))[None]
    layers = dict(zip(artifact.layers, DefectView(artifact)(image), strict=True))
    expected = dict.fromkeys(layers, 0.0)
    for axes in ([], [3], [2], [2, 3]):
        with torch.no_grad():
            values = network.bn1(network.conv_stem(inputs.flip(axes)))
            for number, block in enumerate(network.blocks):
                values = block(values)
                if (name := f"blocks.{number}") in layers:
                    pooled = torch.nn.functional.avg_pool2d(values, 3, 1, 1).flip(axes)
                    expected[name] = expected[name] + pooled[0].permute(1, 2, 0).numpy() / 4
    for name, found in layers.items():
        assert np.linalg.norm(found - expected[name]) / np.linalg.norm(found) < 1e-5


def test_retrieval_figures_of_generated_defects(trained: Database, settings: Settings) -> None:
    with pytest.raises(UsageError, match="without_parts"):
        evaluate_retrieval(trained, settings, "parts")
    report = evaluate_retrieval(trained, settings, "parts", without_parts=True)
    by_defect = report.by["defect"].over_queries
    assert report.images == len(defective(trained))
    assert by_defect["mean_average_precision"] > by_defect["chance"] + 0.2
    assert by_defect["mean_average_precision"] > report.by["picture"].over_queries["chance"]
    with trained.connect() as connection:
        kept = connection.scalar(text("SELECT metrics->'retrieval'->'defect' FROM defect.banks"))
    assert kept["precision_at_1"] == by_defect["precision_at_1"]
