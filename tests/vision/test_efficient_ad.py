"""EfficientAD, the whole way with random teacher weights and a handful of steps.

What such a detector finds is worth nothing; that its scores are anomalib's, and that it
stands beside PatchCore in the same tables, is what is tested.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import text

from pgdefect.cli.main import run
from pgdefect.core.config import Settings
from pgdefect.core.errors import (
    DatabaseError,
    DatasetError,
    ImageError,
    NoActiveDetector,
    NoMemoryBank,
    PgdefectError,
    TooFewImages,
    UsageError,
    WeightsError,
)
from pgdefect.core.types import StoredImage, Threshold
from pgdefect.db.connection.engine import Database
from pgdefect.db.records.delete_preview import dependents
from pgdefect.db.records.detectors import active_detector
from pgdefect.db.records.efficient_ad import load_network, store_network
from pgdefect.db.records.extractors import load_extractor
from pgdefect.db.records.lifecycle import (
    activate_detector,
    delete_detector,
    delete_image,
    retire_detector,
    set_images_retired,
)
from pgdefect.db.records.summaries import list_categories, list_detectors
from pgdefect.db.search.queries import images_of, nearest_normal
from pgdefect.usecases.evaluate.evaluate import EvaluateOptions, evaluate
from pgdefect.usecases.inspect.inspect import inspect
from pgdefect.usecases.search.search import Query, SearchOptions, search
from pgdefect.usecases.train.options import EfficientAdOptions
from pgdefect.usecases.train.train_network import NetworkReport, train_network
from pgdefect.vision.efficient_ad import efficient_ad
from pgdefect.vision.efficient_ad.efficient_ad_files import downloaded_teacher, find_imagenette
from pgdefect.vision.efficient_ad.inference import Network
from pgdefect.vision.images.preprocess import batches
from pgdefect.vision.networks.extractor import Extractor, image_embeddings
from tests.synthetic import write_dataset

pytestmark = pytest.mark.train

SIZE = (256, 256)
TRAINED_ON = 7
"""Normal training images, enough for each of the three parts they are divided into."""


@dataclass(frozen=True)
class Ingredients:
    """What a user would have downloaded, and options that use it."""

    weights: Path
    imagenette: Path

    @property
    def options(self) -> EfficientAdOptions:
        return EfficientAdOptions(
            max_steps=2, teacher_weights=self.weights, imagenette_dir=self.imagenette, holdout=0.5
        )


@dataclass(frozen=True)
class Trained:
    """A database whose category `parts` has both kinds; the network before its export."""

    database: Database
    report: NetworkReport
    model: efficient_ad.EfficientAd
    stages: list[str]


@pytest.fixture(scope="module")
def ingredients(tmp_path_factory: pytest.TempPathFactory) -> Ingredients:
    import torch
    from anomalib.models.image.efficient_ad.torch_model import SmallPatchDescriptionNetwork

    folder = tmp_path_factory.mktemp("ingredients")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        torch.save(SmallPatchDescriptionNetwork(384).state_dict(), folder / "teacher.pth")
    rng = np.random.default_rng(0)
    for kind in ("dog", "church"):
        (folder / "imagenette" / kind).mkdir(parents=True)
        for n in range(2):
            noise = rng.integers(0, 256, (8, 12, 3), dtype=np.uint8)
            picture = Image.fromarray(noise).resize((120, 80), Image.Resampling.BICUBIC)
            picture.save(folder / "imagenette" / kind / f"{n}.jpg")
    return Ingredients(folder / "teacher.pth", folder / "imagenette")


def _all_but_a_few(images: list[StoredImage]) -> list[StoredImage]:
    """Images but for a normal one and three anomalous ones."""
    few = [i for i in images if i.known_label == "normal"][:1]
    few += [i for i in images if i.known_label == "anomalous"][::4]
    return [image for image in images if image not in few]


@pytest.fixture(scope="module")
def trained_network(
    new_database: Callable[..., Database],
    _trained_template: Database,
    settings: Settings,
    ingredients: Ingredients,
) -> Trained:
    database = new_database(_trained_template)
    spare = images_of(database, "parts", split="train")[TRAINED_ON:]
    for image in _all_but_a_few(images_of(database, "parts", split="test")):
        delete_image(database, image.id)
    with database.begin() as connection:
        set_images_retired(connection, [image.id for image in spare], True)
        connection.execute(
            text("UPDATE pgdefect.image SET group_name = 'one part' WHERE id = ANY(:ids)"),
            {"ids": [i.id for i in images_of(database, "parts", split="train")[:2]]},
        )
    built: list[efficient_ad.EfficientAd] = []
    stages: list[str] = []
    original = efficient_ad.build

    def build(*args: Any) -> efficient_ad.EfficientAd:
        built.append(original(*args))
        return built[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(efficient_ad, "build", build)
        report = train_network(
            database,
            settings,
            "parts",
            ingredients.options,
            progress=lambda stage, done, total: stages.append(f"{stage} {done}/{total}"),
        )
    return Trained(database, report, built[0], stages)


@pytest.fixture
def both(clone_of: Any, trained_network: Trained) -> Iterator[Database]:
    """`parts` with a PatchCore and an EfficientAD detector."""
    with clone_of(trained_network.database) as database:
        yield database


def rows(database: Database, statement: str, **parameters: Any) -> list[Any]:
    with database.connect() as connection:
        return list(connection.execute(text(statement), parameters))


def count(database: Database, table: str) -> int:
    return int(rows(database, f"SELECT count(*) FROM {table}")[0][0])


# -- the whole way -------------------------------------------------------------------------


def test_the_exported_network_says_what_anomalib_predicts(
    both: Database, trained_network: Trained, settings: Settings, tmp_path: Path
) -> None:
    from anomalib.data import PredictDataset
    from anomalib.engine import Engine

    from pgdefect.vision.networks.torch_tools import quiet

    # Pictures of the network's own size: the two resize a little differently.
    folder = write_dataset(
        tmp_path / "parts", num_train=1, num_test_normal=1, num_per_defect=1, seed=5, size=SIZE
    )
    paths = sorted((folder / "test").rglob("*.png"))
    with quiet():
        engine = Engine(
            accelerator="cpu",
            default_root_dir=tmp_path,
            logger=False,
            enable_progress_bar=False,
        )
        predictions = [
            engine.predict(
                trained_network.model.lightning_model,
                dataset=PredictDataset(path),
                return_predictions=True,
            )
            for path in paths
        ]
    detector = active_detector(both, "parts", "efficient_ad")
    extractor = load_extractor(both, detector.extractor_id, settings.cache_dir)
    network = Network(load_network(both, detector.id, settings.cache_dir), extractor)
    [batch] = batches(paths, network.preprocessing, 8, num_threads=1, on_error=lambda i, e: None)
    embeddings, scores = network(batch.inputs)

    expected = [float(found[0].pred_score) for found in predictions]
    assert [found.raw_score for found in scores] == pytest.approx(expected, rel=1e-4)
    for found, prediction in zip(scores, predictions, strict=True):
        full = prediction[0].anomaly_map.numpy().squeeze()
        drawn = network.preprocessing.map_to_original(found.distances, SIZE)
        assert found.distances.shape == (64, 64) == (extractor.rows, extractor.cols)
        # Between cell centers both are bilinear.
        np.testing.assert_allclose(drawn, full, rtol=1e-4, atol=1e-5)
        y, x = np.unravel_index(full.argmax(), SIZE)
        assert (found.worst_row, found.worst_col) == (y // 4, x // 4)
        assert found.positions is None
    patches = Extractor(extractor)(batch.inputs)
    assert patches.shape == (len(paths), 64, 64, 384)
    assert (patches[:, :4] == 0).all()
    np.testing.assert_allclose(embeddings, image_embeddings(patches), atol=1e-5)


def test_a_training_leaves_a_detector_whose_threshold_is_from_images_of_its_own(
    both: Database, trained_network: Trained
) -> None:
    report = trained_network.report
    normal = {image.id: image for image in images_of(both, "parts", split="train")}
    assert report.failed == ()
    assert report.training_images + report.scale_images + report.held_out_images == TRAINED_ON
    [(kind, version, active, rule, settings, threshold)] = rows(
        both,
        "SELECT kind, version, active, threshold_rule, settings, threshold "
        "FROM pgdefect.detector WHERE id = :id",
        id=report.detector_id,
    )
    assert (kind, version, active) == ("efficient_ad", 1, True)
    held_out = dict(
        rows(
            both,
            "SELECT image_id, raw_score FROM pgdefect.holdout_score WHERE detector_id = :id",
            id=report.detector_id,
        )
    )
    learned = set(settings["training_images"])
    assert len(held_out) == report.held_out_images == rule["held_out_images"] > 0
    assert learned | held_out.keys() == set(normal)
    assert not learned & held_out.keys()
    groups = [{normal[i].part for i in ids if normal[i].part} for ids in (learned, held_out)]
    assert not groups[0] & groups[1]
    assert threshold == pytest.approx(max(held_out.values()))
    assert settings["teacher_weights"] == "teacher.pth"
    assert all(np.isfinite(value) for value in report.losses.values())
    assert {"steps 1/2", "steps 2/2", "scale 1/1", "threshold 1/3"} <= set(trained_network.stages)
    assert [d.kind for d in list_detectors(both, "parts")] == ["efficient_ad", "patchcore"]
    assert count(both, "pgdefect.memory_bank") == 1


def test_inspections_of_both_stand_in_the_same_tables(both: Database, settings: Settings) -> None:
    detector = active_detector(both, "parts", "efficient_ad")
    before = count(both, "pgdefect.inspection")
    report = inspect(both, settings, "parts", split="test", kind="efficient_ad")
    assert report.detector == detector
    assert len(report.inspections) == before
    assert count(both, "pgdefect.inspection") == 2 * before
    stored = rows(
        both,
        "SELECT i.raw_score, i.search, i.nearest_positions, cardinality(i.anomaly_map), v.kind, "
        "v.worst_box, v.verdict FROM pgdefect.inspection i "
        "JOIN defect.inspections v ON v.inspection_id = i.id WHERE i.detector_id = :id",
        id=detector.id,
    )
    by_score = {inspection.raw_score: inspection for inspection in report.inspections}
    for score, kind_of_search, nearest, cells, kind, box, verdict in stored:
        assert (kind_of_search, nearest, cells, kind) == ("network", None, 64 * 64, "efficient_ad")
        assert box == ",".join(map(str, by_score[score].worst_box))
        assert verdict == by_score[score].verdict
    kinds = dict(rows(both, "SELECT kind, count(*) FROM defect.inspections GROUP BY kind"))
    assert kinds == {"patchcore": before, "efficient_ad": before}
    # One row a category, though two detectors are active.
    assert [c.name for c in list_categories(both)] == ["parts"]
    assert list_categories(both)[0].detector_id == active_detector(both, "parts").id
    # The same again is the same.
    again = inspect(both, settings, "parts", split="test", kind="efficient_ad")
    assert [i.raw_score for i in again.inspections] == [i.raw_score for i in report.inspections]


def test_both_are_evaluated_and_compared(both: Database, settings: Settings) -> None:
    for kind in ("patchcore", "efficient_ad"):
        evaluate(both, settings, "parts", EvaluateOptions(kind=kind, bootstrap=0))
    [network, bank] = rows(
        both,
        "SELECT kind, image_auroc, pixel_auroc, num_vectors, threshold, size "
        "FROM defect.detectors WHERE active ORDER BY kind",
    )
    assert (network.kind, bank.kind) == ("efficient_ad", "patchcore")
    assert network.num_vectors is None
    assert bank.num_vectors > 0
    assert network.size.endswith("MB")
    for row in (network, bank):
        assert 0.0 <= row.image_auroc <= 1.0
        assert 0.0 <= row.pixel_auroc <= 1.0


def test_the_teachers_image_embeddings_are_searched(both: Database, settings: Settings) -> None:
    images = images_of(both, "parts")
    query = next(image for image in images if image.split == "test")
    detectors = {kind: active_detector(both, "parts", kind) for kind in KINDS}
    assert detectors["patchcore"].extractor_id != detectors["efficient_ad"].extractor_id
    embedded = dict(
        rows(both, "SELECT extractor_id, count(*) FROM pgdefect.image_embedding GROUP BY 1")
    )
    assert embedded[detectors["efficient_ad"].extractor_id] == len(images)
    asked = Query([query.path])
    found = {
        kind: search(both, settings, asked, SearchOptions(k=5, by="picture", kind=kind))
        for kind in KINDS
    }
    unsaid = search(both, settings, asked, SearchOptions(k=5, by="picture"))
    assert unsaid.neighbors == found["patchcore"].neighbors
    for kind, report in found.items():
        assert report.inspection is not None
        assert report.inspection.detector_id == detectors[kind].id
        listed = rows(
            both,
            "SELECT image_id, distance "
            "FROM defect.similar_images(:q, k => 5, kind => :m, by => 'picture')",
            q=str(query.id),
            m=kind,
        )
        assert [n.image.id for n in report.neighbors] == [row.image_id for row in listed]
    retire_detector(both, detectors["patchcore"].id)
    alone = search(both, settings, asked, SearchOptions(k=5))
    assert alone.by == "picture"  # a network has no defect embeddings
    assert alone.neighbors == found["efficient_ad"].neighbors
    listed = rows(both, "SELECT image_id FROM defect.similar_images(:q, k => 5)", q=str(query.id))
    assert [row.image_id for row in listed] == [n.image.id for n in alone.neighbors]
    with pytest.raises(PgdefectError, match="no embedding by an active 'patchcore' detector"):
        rows(
            both,
            "SELECT * FROM defect.similar_images(:q, kind => 'patchcore')",
            q=str(query.id),
        )


KINDS = ("patchcore", "efficient_ad")


def test_what_only_a_memory_bank_can_say_is_refused(both: Database, settings: Settings) -> None:
    detector = active_detector(both, "parts", "efficient_ad")
    [judged, *_] = inspect(both, settings, "parts", split="test", kind="efficient_ad").inspections
    assert judged.image_id is not None
    with pytest.raises(PgdefectError, match="made by an EfficientAD network"):
        rows(both, "SELECT * FROM defect.nearest_normal(:id)", id=judged.inspection_id)
    assert nearest_normal(both, judged.image_id).bank_position >= 0  # PatchCore's inspection
    with pytest.raises(NoMemoryBank, match=f"detector {detector.id} of parts"):
        _ = detector.bank
    with pytest.raises(UsageError, match="leave out search='exact'"):
        inspect(both, settings, "parts", split="test", kind="efficient_ad", search="exact")


# -- versions ------------------------------------------------------------------------------


def test_versions_of_one_kind_leave_the_other_alone(both: Database, settings: Settings) -> None:
    bank, first = (active_detector(both, "parts", kind) for kind in KINDS)
    second = store_network(
        both,
        category_id=first.category_id,
        extractor_id=first.extractor_id,
        network=load_network(both, first.id, settings.cache_dir),
        threshold=Threshold(2.0, 1.0, {"rule": "given"}),
        holdout_scores={},
        settings={},
        metrics={},
        library_versions={},
    )

    def active() -> set[int]:
        return {d.id for d in list_detectors(both) if d.active}

    assert active() == {bank.id, second}
    assert active_detector(both, "parts", "efficient_ad").version == 2
    activate_detector(both, first.id)
    assert active() == {bank.id, first.id}
    assert active_detector(both, "parts").kind == "patchcore"
    retire_detector(both, bank.id)
    assert active_detector(both, "parts").id == first.id
    with pytest.raises(NoActiveDetector, match="of the kind patchcore"):
        active_detector(both, "parts", "patchcore")
    activate_detector(both, bank.id)
    inspect(both, settings, "parts", split="test", kind="efficient_ad")
    assert dependents(both, detector_id=first.id).bank_vectors == 0
    for detector_id in (first.id, second):
        delete_detector(both, detector_id)
    assert count(both, "pgdefect.detector_model") == 0
    assert active() == {bank.id}
    assert {d.kind for d in list_detectors(both)} == {"patchcore"}
    assert inspect(both, settings, "parts", split="test").detector.id == bank.id


def test_a_damaged_network_is_noticed(both: Database, tmp_path: Path) -> None:
    detector = active_detector(both, "parts", "efficient_ad")
    with both.begin() as connection:
        connection.execute(text("UPDATE pgdefect.detector_model SET onnx = '\\x00'"))
    with pytest.raises(DatabaseError, match=f"detector {detector.id} does not match its checksum"):
        load_network(both, detector.id, tmp_path)


def test_interrupted_training_leaves_nothing(
    trained: Database, settings: Settings, ingredients: Ingredients
) -> None:
    spare = images_of(trained, "parts", split="train")[TRAINED_ON:]
    with trained.begin() as connection:
        set_images_retired(connection, [image.id for image in spare], True)

    def interrupted(stage: str, done: int, total: int) -> None:
        if stage == "steps":
            raise KeyboardInterrupt

    def state() -> list[int]:
        tables = ("detector", "extractor", "image_embedding", "holdout_score", "detector_model")
        return [count(trained, f"pgdefect.{table}") for table in tables]

    before, files = state(), set(settings.cache_dir.iterdir())
    with pytest.raises(KeyboardInterrupt):
        train_network(trained, settings, "parts", ingredients.options, progress=interrupted)
    assert state() == before
    assert set(settings.cache_dir.iterdir()) == files


# -- what goes wrong -----------------------------------------------------------------------


def test_a_file_that_is_not_the_teacher_is_refused(
    ingredients: Ingredients, tmp_path: Path
) -> None:
    import torch

    preprocessing = efficient_ad.input_preprocessing(SIZE, None)

    def refuse(path: Path, expected: str, size: Any = "small") -> None:
        with pytest.raises(WeightsError, match=expected):
            efficient_ad.build(size, preprocessing, path)

    refuse(tmp_path / "none.pth", "no weights file")
    shutil.copy(__file__, tmp_path / "text.pth")
    refuse(tmp_path / "text.pth", "not a file of tensors that can be loaded safely")
    refuse(ingredients.weights, "try model_size='small'", "medium")
    state = torch.load(ingredients.weights, weights_only=True)
    torch.save({**state, "more": torch.zeros(1)}, tmp_path / "more.pth")
    refuse(tmp_path / "more.pth", "'more' has shape")
    state["conv1.bias"][0] = float("nan")
    torch.save(state, tmp_path / "nan.pth")
    refuse(tmp_path / "nan.pth", "not finite")


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Anomalib's caches, empty."""
    from anomalib.utils import path

    monkeypatch.setattr(path, "get_pretrained_weights_dir", lambda: tmp_path / "weights")
    monkeypatch.setattr(path, "get_datasets_dir", lambda: tmp_path / "data")
    return tmp_path


def test_what_cannot_be_downloaded_is_named_with_the_option_that_helps(
    caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from anomalib.data.utils import download

    def unreachable(*args: Any, filename: Path, **kwargs: Any) -> None:
        filename.write_bytes(b"the first few bytes")
        raise URLError("no route to host")

    monkeypatch.setattr(download, "urlretrieve", unreachable)
    for offline, reason in (("1", "HF_HUB_OFFLINE"), ("0", "no route to host")):
        monkeypatch.setenv("HF_HUB_OFFLINE", offline)
        with pytest.raises(WeightsError) as weights:
            downloaded_teacher("medium")
        for word in (reason, "pretrained_teacher_medium.pth", "https://", "teacher_weights"):
            assert word in str(weights.value)
        with pytest.raises(DatasetError) as pictures:
            find_imagenette(None)
        for word in (reason, "imagenette2.tgz", "https://", "imagenette_dir"):
            assert word in str(pictures.value)
    # What was cut short is not taken for whole the next time.
    assert [path for path in caches.rglob("*") if path.is_file()] == []


def test_a_download_is_checked_and_kept(
    caches: Path, ingredients: Ingredients, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hashlib

    from anomalib.data.utils import download
    from anomalib.models.image.efficient_ad import lightning_model

    content = caches / "content/efficientad_pretrained_weights"
    content.mkdir(parents=True)
    shutil.copy(ingredients.weights, content / "pretrained_teacher_small.pth")
    archive = Path(shutil.make_archive(str(caches / "archive"), "zip", content.parent))
    fetched: list[str] = []

    def urlretrieve(url: str, filename: Path, **kwargs: Any) -> None:
        fetched.append(url)
        shutil.copy(archive, filename)

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(download, "urlretrieve", urlretrieve)
    with pytest.raises(WeightsError, match="does not match the required hash"):
        downloaded_teacher("small")
    known = replace(
        lightning_model.WEIGHTS_DOWNLOAD_INFO,
        hashsum=hashlib.sha256(archive.read_bytes()).hexdigest(),
    )
    monkeypatch.setattr(lightning_model, "WEIGHTS_DOWNLOAD_INFO", known)
    for _ in range(2):
        assert downloaded_teacher("small").read_bytes() == ingredients.weights.read_bytes()
    assert fetched == [known.url] * 2


def test_pictures_of_all_kinds_must_be_there_and_readable(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no images in folders"):
        find_imagenette(tmp_path / "none")
    (tmp_path / "dog").mkdir()
    with pytest.raises(DatasetError, match="no images in folders"):
        find_imagenette(tmp_path)
    (tmp_path / "dog/1.jpg").write_bytes(b"not a picture")
    assert find_imagenette(tmp_path) == tmp_path
    with pytest.raises(ImageError, match=r"1\.jpg: cannot be read"):
        efficient_ad._load_picture(str(tmp_path / "dog/1.jpg"))


def test_too_few_parts_are_refused(
    trained: Database, settings: Settings, ingredients: Ingredients
) -> None:
    with trained.begin() as connection:
        connection.execute(
            text("UPDATE pgdefect.image SET group_name = (id % 2)::text WHERE split = 'train'")
        )
    with pytest.raises(TooFewImages, match="fewer than three groups"):
        train_network(trained, settings, "parts", ingredients.options)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--kind", "efficientad"], "--kind is patchcore or efficient_ad"),
        (
            ["--kind", "efficient_ad", "--coreset-ratio", "0.1", "--pca-dim", "8"],
            "--coreset-ratio, --pca-dim goes with --kind patchcore, not with efficient_ad",
        ),
        (["--max-steps", "5"], "--max-steps goes with --kind efficient_ad"),
        (["--kind", "efficient_ad", "--max-steps", "1"], "--max-steps must be at least 2"),
        (["--kind", "efficient_ad", "--model-size", "large"], "--model-size is small or medium"),
        (["--kind", "efficient_ad", "--learning-rate", "0"], "--learning-rate must lie"),
        (["--kind", "efficient_ad", "--image-size", "128"], "at least 256x256, not 128x128"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    trained: Database,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    expected: str,
) -> None:
    assert run(["--database-url", trained.url, "train", "parts", *arguments]) == 2
    assert expected in capsys.readouterr().err


def test_the_command_line_trains_and_inspects_with_either(
    both: Database, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def cli(*arguments: str) -> str:
        assert run(["--database-url", both.url, *arguments]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    listed = cli("detectors")
    assert [word in listed for word in ("patchcore", "efficient_ad")] == [True, True]
    image = next(i for i in images_of(both, "parts") if i.split == "test").path
    for kind in KINDS:
        maps = str(tmp_path / kind)
        printed = cli(
            "inspect", image, "--category", "parts", "--kind", kind, "--save-maps", maps, "--json"
        )
        assert f'"kind": "{kind}"' in printed
        assert len(list(Path(maps).glob("*.png"))) == 1
        cli("search", image, "--kind", kind, "--sheet", f"{maps}/sheet.png")
    assert run(["--database-url", both.url, "inspect", image, "--category", "parts"]) == 0
