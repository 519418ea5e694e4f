"""The same memory bank in anomalib and here gives the same numbers, on real images."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import text

from pgdefect.cli.main import run
from pgdefect.core.config import Settings
from pgdefect.core.errors import ImageError, TooFewImages, UsageError, WeightsError
from pgdefect.core.types import Float32, Inspection
from pgdefect.db.connection.engine import Database
from pgdefect.db.records import lifecycle
from pgdefect.db.records.detectors import active_detector
from pgdefect.db.records.summaries import list_detectors
from pgdefect.db.search.queries import nearest_normal, read_bank, similar_patches
from pgdefect.usecases.demo import solar_cells
from pgdefect.usecases.exchange.bank_files import BankOptions
from pgdefect.usecases.exchange.export_anomalib import export_anomalib
from pgdefect.usecases.exchange.import_bank import import_bank
from pgdefect.usecases.ingest import ingest
from pgdefect.usecases.inspect.inspect import inspect
from pgdefect.usecases.inspect.inspector import Inspector
from pgdefect.usecases.train.options import TrainOptions
from pgdefect.usecases.train.train import train
from pgdefect.vision.images.image import read_image
from pgdefect.vision.images.preprocess import Preprocessing
from pgdefect.vision.patchcore.anomalib_checkpoint import read_checkpoint

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.train,
    pytest.mark.filterwarnings("ignore:::(torch|lightning|anomalib|timm|torchmetrics|torchvision)"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

SIDE = 128
HALVES = (0.5, 0.5, 0.5)
PREPROCESSING = Preprocessing(image_size=(SIDE, SIDE), mean=HALVES, std=HALVES)
LAYERS = ("blocks.2", "blocks.4")
SIZED = BankOptions(image_size=(SIDE, SIDE))
NUM_TRAIN, NUM_HELD_OUT, NUM_TEST = 8, 5, 6
SIZES = [(97, 211), (301, 133), (251, 251), (64, 500), (333, 89), (129, 127)]


@dataclass(frozen=True)
class Peer:
    """A model that anomalib trained, its checkpoint, and images it has not seen."""

    model: Any
    checkpoint: Path
    folder: Path
    test: list[Path]


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Peer:
    """Solar cells cut to odd sizes; the first train anomalib's own Patchcore and Engine."""
    from anomalib.models import Patchcore

    from pgdefect.vision.networks.backbone import find_backbone, load_weights

    folder = tmp_path_factory.mktemp("cells")
    train, test = _cells(folder)
    model = Patchcore(
        backbone="tf_efficientnet_lite0",
        layers=list(LAYERS),
        pre_trained=False,
        coreset_sampling_ratio=0.1,
        num_neighbors=1,
        pre_processor=False,
        post_processor=False,
        evaluator=False,
        visualizer=False,
    )
    load_weights(
        model.model.feature_extractor.feature_extractor, find_backbone("efficientnet_lite0"), None
    )
    torch.manual_seed(0)  # anomalib starts its coreset at random
    engine = _engine(folder)
    engine.fit(model=model, train_dataloaders=_loader(train[:NUM_TRAIN]))
    checkpoint = folder / "anomalib.ckpt"
    engine.trainer.save_checkpoint(checkpoint)
    return Peer(model.eval(), checkpoint, folder, test)


@pytest.fixture(scope="module")
def _imported_template(
    new_database: Callable[..., Database], _template: Database, settings: Settings, peer: Peer
) -> Database:
    database = new_database(_template)
    ingest(database, peer.folder / "cells", "cells")
    import_bank(database, settings, peer.checkpoint, "cells", SIZED)
    return database


@pytest.fixture
def imported(
    new_database: Callable[..., Database], _imported_template: Database
) -> Iterator[Database]:
    """The category that the images are of, with anomalib's bank as its detector."""
    database = new_database(_imported_template)
    yield database
    database.dispose()


@pytest.fixture
def cells(imported: Database) -> Database:
    """The category without a detector; the extractor is stored, which saves its export."""
    lifecycle.delete_detector(imported, active_detector(imported, "cells").id)
    return imported


@pytest.fixture(scope="module")
def _followed_template(
    new_database: Callable[..., Database], _trained_template: Database, settings: Settings
) -> Database:
    """Category `parts` trained on images that anomalib can prepare too."""
    database = new_database(_trained_template)
    options = TrainOptions(image_size=(SIDE, SIDE), resize="stretch", local_contrast=None)
    train(database, settings, "parts", options)
    return database


@pytest.fixture
def followed(clone_of: Any, _followed_template: Database) -> Iterator[Database]:
    with clone_of(_followed_template) as database:
        yield database


def _set_num_neighbors(database: Database, count: int) -> None:
    with database.begin() as connection:
        connection.execute(text("UPDATE pgdefect.memory_bank SET num_neighbors = :n"), {"n": count})


def test_the_bank_comes_over_as_it_is(imported: Database, peer: Peer) -> None:
    bank = active_detector(imported, "cells").bank
    np.testing.assert_array_equal(read_bank(imported, bank), peer.model.model.memory_bank.numpy())
    assert (bank.metric.name, bank.transform.kind, bank.precision) == ("l2", "none", "single")


@pytest.mark.parametrize("num_neighbors", [1, 9])
def test_image_scores_and_anomaly_maps_equal_anomalibs(
    imported: Database, settings: Settings, peer: Peer, num_neighbors: int
) -> None:
    _set_num_neighbors(imported, num_neighbors)
    ours = _judge(imported, settings, peer.test)
    expected = _predict(peer.model, peer.test, num_neighbors)
    assert num_neighbors == 1 or any(i.raw_score < i.scores.distances.max() for i in ours)
    _assert_equal(ours, expected, peer.model)


def test_the_database_gives_the_same_image_scores(
    imported: Database, settings: Settings, peer: Peer
) -> None:
    exact, hnsw = (
        [i.raw_score for i in _judge(imported, settings, peer.test, kind)]
        for kind in ("exact", "hnsw")
    )
    np.testing.assert_allclose(hnsw, exact, rtol=1e-5)


def test_the_threshold_leaves_out_images_the_bank_was_made_from(
    cells: Database, settings: Settings, peer: Peer
) -> None:
    report = import_bank(cells, settings, peer.checkpoint, "cells", SIZED)
    assert (report.learned_images, report.held_out_images) == (NUM_TRAIN, NUM_HELD_OUT)
    held_out = sorted((peer.folder / "cells/train/good").iterdir())[NUM_TRAIN:]
    scores = [i.raw_score for i in _judge(cells, settings, held_out)]
    assert report.threshold == pytest.approx(max(scores), rel=1e-6)
    assert report.failed == ()


def test_a_given_threshold_is_taken(cells: Database, settings: Settings, peer: Peer) -> None:
    report = import_bank(cells, settings, peer.checkpoint, "cells", SIZED, threshold=0.25)
    detector = active_detector(cells, "cells")
    assert detector.threshold == report.threshold == 0.25
    assert detector.score_center < 0.25


def test_without_other_normal_images_a_threshold_is_asked_for(
    cells: Database, settings: Settings, peer: Peer
) -> None:
    with cells.begin() as connection:
        connection.execute(
            text("UPDATE pgdefect.image SET retired_at = now() WHERE path > 'train/good/008.png'")
        )
    with pytest.raises(TooFewImages, match="give threshold"):
        import_bank(cells, settings, peer.checkpoint, "cells", SIZED)
    assert list_detectors(cells, "cells") == []


def test_what_is_not_known_of_an_imported_bank_is_null(
    imported: Database, settings: Settings, peer: Peer
) -> None:
    report = inspect(imported, settings, "cells", [peer.test[0]])
    image_id = report.inspections[0].image_id
    assert image_id is not None
    match = nearest_normal(imported, image_id)
    assert match.normal_image_id is match.normal_row is match.normal_box is None
    assert match.score == pytest.approx(report.inspections[0].raw_score, rel=1e-5)
    first, *others = similar_patches(imported, report.detector.bank.id, 0, 3)
    assert (first.position, first.distance, first.image_id, first.row) == (0, 0.0, None, None)
    assert len(others) == 2


@pytest.mark.parametrize("num_neighbors", [1, 9])
def test_export_gives_anomalib_the_same_predictions(
    imported: Database, settings: Settings, peer: Peer, tmp_path: Path, num_neighbors: int
) -> None:
    _set_num_neighbors(imported, num_neighbors)
    file = tmp_path / "ours.ckpt"
    report = export_anomalib(imported, settings, "cells", file)
    assert report.vectors == "as stored"
    ours = _judge(imported, settings, peer.test)
    model = _load(file)
    assert model.model.num_neighbors == num_neighbors
    np.testing.assert_array_equal(
        model.model.memory_bank.numpy(), peer.model.model.memory_bank.numpy()
    )
    _assert_equal(ours, _predict(model, peer.test, num_neighbors), model)

    # Through anomalib's Engine, with its labels from our threshold.
    model.pre_processor = None
    predictions = _engine(tmp_path).predict(model=model, dataloaders=_loader(peer.test))
    np.testing.assert_allclose(
        torch.cat([p.pred_score for p in predictions]), [i.raw_score for i in ours], rtol=1e-4
    )
    labels = torch.cat([p.pred_label for p in predictions]).tolist()
    assert labels == [i.is_anomalous for i in ours]


def test_anomalib_reads_the_files_itself_after_an_export(
    imported: Database, settings: Settings, peer: Peer, tmp_path: Path
) -> None:
    """Its resize differs in rounding, so the scores do; they stay within a few percent."""
    from anomalib.data import PredictDataset

    export_anomalib(imported, settings, "cells", tmp_path / "ours.ckpt")
    folder = peer.test[0].parent
    predictions = _engine(tmp_path).predict(
        model=_load(tmp_path / "ours.ckpt"), dataset=PredictDataset(folder)
    )
    theirs = {Path(p.image_path[0]): float(p.pred_score) for p in predictions}
    ours = {Path(i.path): i.raw_score for i in _judge(imported, settings, sorted(theirs))}
    assert theirs.keys() == ours.keys()
    np.testing.assert_allclose([theirs[path] for path in ours], list(ours.values()), rtol=0.05)


def test_a_transformed_bank_is_exported_from_the_images_it_came_from(
    followed: Database, settings: Settings, tmp_path: Path
) -> None:
    file = tmp_path / "parts.ckpt"
    report = export_anomalib(followed, settings, "parts", file)
    assert (report.vectors, report.threshold) == ("read again", None)
    bank = active_detector(followed, "parts").bank
    found = read_checkpoint(file)
    assert found.memory_bank.shape == (bank.num_vectors, 152)
    # Each raw vector, transformed, is the stored one up to its rounding to half precision.
    from pgdefect.core.distance import as_stored
    from pgdefect.vision.patchcore.transform import apply_transform

    again = as_stored(apply_transform(bank.transform, found.memory_bank), bank.precision)
    np.testing.assert_allclose(again, read_bank(followed, bank), atol=2e-3)
    assert found.preprocessing() == Preprocessing((128, 128), mean=HALVES, std=HALVES)
    assert _load(file).model.memory_bank.shape == (bank.num_vectors, 152)


def test_a_changed_image_stops_such_an_export(
    followed: Database, settings: Settings, tmp_path: Path
) -> None:
    with followed.begin() as connection:
        connection.execute(text("UPDATE pgdefect.image_root SET path = '/nowhere'"))
    with pytest.raises(ImageError, match="/nowhere"):
        export_anomalib(followed, settings, "parts", tmp_path / "parts.ckpt")
    assert list(tmp_path.iterdir()) == []


class _Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_malicious_pickle_is_refused_without_executing(
    cells: Database, settings: Settings, peer: Peer, tmp_path: Path, legacy: bool
) -> None:
    marker, file = tmp_path / "executed", tmp_path / "bad.ckpt"
    checkpoint = torch.load(peer.checkpoint, weights_only=False)
    checkpoint["callbacks"] = {"x": _Malicious(marker)}
    torch.save(checkpoint, file, _use_new_zipfile_serialization=not legacy)
    # The names in a file of the format before torch 1.6 are not listed.
    message = "loaded safely" if legacy else r"asks for (posix|nt)\.system"
    with pytest.raises(WeightsError, match=message):
        import_bank(cells, settings, file, "cells", SIZED)
    assert not marker.exists()


def test_only_the_precision_is_allowed(peer: Peer, tmp_path: Path) -> None:
    """A class of anomalib's that is harmless is refused all the same."""
    from anomalib import LearningType

    checkpoint = torch.load(peer.checkpoint, weights_only=False)
    checkpoint["hyper_parameters"]["learning_type"] = LearningType.ONE_CLASS
    torch.save(checkpoint, tmp_path / "other.ckpt")
    with pytest.raises(WeightsError, match=r"asks for anomalib\.LearningType to be loaded"):
        read_checkpoint(tmp_path / "other.ckpt")


def test_what_others_allow_is_not_allowed_here(peer: Peer, tmp_path: Path) -> None:
    checkpoint = torch.load(peer.checkpoint, weights_only=False)
    checkpoint["callbacks"] = {"x": _Malicious(tmp_path / "executed")}
    torch.save(checkpoint, tmp_path / "bad.ckpt")
    with torch.serialization.safe_globals([os.system]):
        before = set(torch.serialization.get_safe_globals())  # torch keeps them in no order
        with pytest.raises(WeightsError, match="system"):
            read_checkpoint(tmp_path / "bad.ckpt")
        assert set(torch.serialization.get_safe_globals()) == before
    assert not (tmp_path / "executed").exists()


def test_what_we_write_needs_no_global(
    imported: Database, settings: Settings, tmp_path: Path
) -> None:
    export_anomalib(imported, settings, "cells", tmp_path / "ours.ckpt")
    assert torch.serialization.get_unsafe_globals_in_checkpoint(tmp_path / "ours.ckpt") == []


def _change(checkpoint: dict[str, Any], path: str, value: Any) -> None:
    *keys, last = path.split("/")
    for key in keys:
        checkpoint = checkpoint[key]
    if value is None:
        del checkpoint[last]
    else:
        checkpoint[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("state_dict/model.memory_bank", torch.zeros(5), "must be a dense matrix"),
        ("state_dict/model.memory_bank", torch.empty(0), "was the model trained"),
        ("state_dict/model.memory_bank", torch.zeros(4, 7), "has 7 dimensions"),
        ("state_dict/model.memory_bank", torch.ones(2, 152, dtype=torch.int64), "floats"),
        ("state_dict/model.memory_bank", torch.full((4, 152), torch.nan), "not finite"),
        ("state_dict/model.memory_bank", None, "not a checkpoint of anomalib's Patchcore"),
        ("state_dict", None, "no state_dict"),
        ("hyper_parameters/layers", [1, 2], "does not say which network"),
        ("hyper_parameters/backbone", "nonsense", "unknown backbone"),
        (
            "state_dict/model.feature_extractor.feature_extractor.conv_stem.weight",
            None,
            "do not fit",
        ),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else "",
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    cells: Database,
    settings: Settings,
    peer: Peer,
    tmp_path: Path,
    path: str,
    value: Any,
    message: str,
) -> None:
    checkpoint = torch.load(peer.checkpoint, weights_only=False)
    _change(checkpoint, path, value)
    torch.save(checkpoint, tmp_path / "odd.ckpt")
    with pytest.raises((WeightsError, UsageError), match=message):
        import_bank(cells, settings, tmp_path / "odd.ckpt", "cells", SIZED)
    assert list_detectors(cells, "cells") == []


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", pickle.dumps([1]), "zip", None])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes | str | None) -> None:
    file = tmp_path / "x.ckpt"
    if content == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("data.pkl", "nonsense")
    elif isinstance(content, bytes):
        file.write_bytes(content)
    with pytest.raises(WeightsError, match=str(file)):
        read_checkpoint(file)


def test_a_checkpoint_that_does_not_say_its_image_size_asks_for_it(
    cells: Database, settings: Settings, peer: Peer
) -> None:
    with pytest.raises(UsageError, match="give image_size"):
        import_bank(cells, settings, peer.checkpoint, "cells")


def test_the_pre_processor_of_a_checkpoint_is_understood(
    imported: Database, settings: Settings, peer: Peer, tmp_path: Path
) -> None:
    from anomalib.models import Patchcore
    from anomalib.pre_processing.pre_processor import PreProcessor
    from torchvision.transforms import v2

    checkpoint = torch.load(peer.checkpoint, weights_only=False)

    def described(pre_processor: Any) -> Any:
        checkpoint["anomalib_pre_processor_config"] = pre_processor.checkpoint_config()
        torch.save(checkpoint, tmp_path / "one.ckpt")
        return read_checkpoint(tmp_path / "one.ckpt").preprocessing()

    paper = Patchcore.configure_pre_processor((256, 250), (224, 220))
    assert described(paper) == Preprocessing((256, 250), (224, 220))
    assert described(Patchcore.configure_pre_processor()) == Preprocessing((256, 256))
    shorter_side = PreProcessor(v2.Compose([v2.Resize(256), v2.Normalize(HALVES, HALVES)]))
    for odd in (shorter_side, PreProcessor(v2.Compose([v2.Grayscale(3), v2.Resize((9, 9))]))):
        with pytest.raises(WeightsError, match="image_size"):
            described(odd)


def test_on_the_command_line(
    cells: Database, peer: Peer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = ("--database-url", cells.url)
    assert run([*url, "import", str(peer.checkpoint), "--category", "cells"]) == 2
    assert "--image-size" in capsys.readouterr().err
    command = ["import", str(peer.checkpoint), "--category", "cells", "--image-size", "128"]
    assert run([*url, *command, "--json"]) == 0
    assert '"learned_images": 8' in capsys.readouterr().out
    assert run([*url, "export", "cells", str(tmp_path / "out" / "cells.ckpt")]) == 0
    assert "as stored" in capsys.readouterr().out
    assert read_checkpoint(tmp_path / "out" / "cells.ckpt").layers == LAYERS


def _cells(folder: Path) -> tuple[list[Path], list[Path]]:
    """Normal cells to train and hold out, anomalous ones to test, each of another odd size."""
    from PIL import Image

    dataset = solar_cells("solar_mono")
    normal = [r.path for r in dataset.records if r.split == "train"]
    anomalous = [r.path for r in dataset.records if r.label == "anomalous"]
    made: list[list[Path]] = []
    for name, paths in (
        ("train/good", normal[: NUM_TRAIN + NUM_HELD_OUT]),
        ("test/crack", anomalous[:NUM_TEST]),
    ):
        place = folder / "cells" / name
        place.mkdir(parents=True)
        made.append([])
        for n, path in enumerate(paths):
            height, width = SIZES[n % len(SIZES)]
            with Image.open(Path(dataset.root) / path) as image:
                image.resize((width, height)).save(place / f"{n:03}.png")
            made[-1].append(place / f"{n:03}.png")
    return made[0], made[1]


def _inputs(paths: list[Path]) -> Float32:
    return np.stack([PREPROCESSING.apply(read_image(path)[1]) for path in paths])


def _loader(paths: list[Path]) -> Any:
    from anomalib.data import ImageBatch
    from torch.utils.data import DataLoader, IterableDataset

    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            for path in paths:
                yield ImageBatch(image=torch.from_numpy(_inputs([path])))

    return DataLoader(Stream(), batch_size=None)


def _engine(folder: Path) -> Any:
    from anomalib.engine import Engine

    return Engine(
        accelerator="cpu",
        devices=1,
        default_root_dir=folder / "anomalib",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _load(file: Path) -> Any:
    from anomalib.models import Patchcore

    return Patchcore.load_from_checkpoint(file, map_location="cpu").eval()


def _judge(
    database: Database, settings: Settings, paths: list[Path], search: Any = "exact"
) -> list[Inspection]:
    def on_error(index: int, error: ImageError) -> None:
        raise error

    inspector = Inspector(database, settings, "cells", search)
    names = [str(path) for path in paths]
    return [judged.inspection for batch in inspector.judge(names, on_error) for _, judged in batch]


def _predict(model: Any, paths: list[Path], num_neighbors: int) -> tuple[Any, Any, Any]:
    """Anomalib's image scores `(n,)`, anomaly maps and, before upsampling, patch scores."""
    seen: list[Any] = []
    hook = model.model.anomaly_map_generator.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0])
    )
    before, model.model.num_neighbors = model.model.num_neighbors, num_neighbors
    try:
        with torch.no_grad():
            result = model.model(torch.from_numpy(_inputs(paths)))
    finally:
        hook.remove()
        model.model.num_neighbors = before
    return result.pred_score, result.anomaly_map, seen[0]


def _assert_equal(ours: list[Inspection], expected: tuple[Any, Any, Any], model: Any) -> None:
    scores, maps, patch_scores = expected
    np.testing.assert_allclose([i.raw_score for i in ours], scores.numpy(), rtol=1e-4)
    grids = np.stack([i.scores.distances for i in ours])
    np.testing.assert_allclose(grids, patch_scores[:, 0].numpy(), rtol=1e-4)
    with torch.no_grad():
        drawn = model.model.anomaly_map_generator(
            torch.from_numpy(grids)[:, None], torch.Size((SIDE, SIDE))
        )
    np.testing.assert_allclose(drawn.numpy(), maps.numpy(), rtol=1e-4)
