"""Banks of other programs judge images here as they do there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inspection_peer import FaissBank, embed, params_of

from pgdefect.cli.main import run
from pgdefect.core.config import Settings
from pgdefect.core.errors import TooFewImages, UsageError, WeightsError
from pgdefect.core.types import Float32, StoredImage
from pgdefect.db.connection.engine import Database
from pgdefect.db.records.detectors import active_detector
from pgdefect.db.records.summaries import list_detectors
from pgdefect.db.search.queries import read_bank
from pgdefect.usecases.exchange.bank_files import BankOptions, open_bank
from pgdefect.usecases.exchange.export_anomalib import export_anomalib
from pgdefect.usecases.exchange.import_bank import _learned_from, _Scored, import_bank
from pgdefect.usecases.inspect.inspect import Inspector
from pgdefect.vision.images.image import read_image
from pgdefect.vision.images.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from pgdefect.vision.patchcore.patchcore_inspection import Pooling, pooled_network

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.train,
    pytest.mark.filterwarnings("ignore:::(torch|lightning|anomalib|timm|torchmetrics|torchvision)"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

LAYERS = ("blocks.2", "blocks.4")
LAYER_DIM, DIM = 96, 100
"""Neither divides the other or a number of channels: means share elements, and layers too."""
RESIZED, CROP = 128, 112
NUM_LEARNED, NUM_TRAIN = 9, 16
OPTIONS = BankOptions(image_size=(RESIZED, RESIZED), backbone="efficientnet_lite0", layers=LAYERS)
TENSOR = BankOptions(image_size=(RESIZED, RESIZED), backbone="efficientnet_lite0")


class Peer:
    """patchcore-inspection's bank of some images, and what it says of others."""

    def __init__(self, folder: Path, parts: Path) -> None:
        from pgdefect.vision.networks.backbone import find_backbone
        from pgdefect.vision.patchcore import patchcore

        self.preprocessing = Preprocessing(
            (RESIZED, RESIZED), (CROP, CROP), IMAGENET_MEAN, IMAGENET_STD
        )
        backbone = find_backbone("efficientnet_lite0")
        embedder = patchcore.build_embedder(backbone, LAYERS, self.preprocessing, None)
        self.features = embedder.lightning_model.model.feature_extractor
        self.raw = embedder.network
        train = sorted((parts / "train/good").iterdir())
        patches = np.concatenate([self.embed(path) for path in train[:NUM_LEARNED]])
        self.bank = FaissBank(patches[::10].copy())
        self.vectors = patches[::10]
        params = params_of("lite0", LAYERS, CROP, LAYER_DIM, DIM)
        self.folder = self.bank.save(folder / "model", params)

    def embed(self, path: Path) -> Float32:
        with torch.no_grad():
            maps = self.features(self._input(path))
        return embed(maps, LAYERS, LAYER_DIM, DIM)[0]

    def _input(self, path: Path) -> Any:
        return torch.from_numpy(self.preprocessing.apply(read_image(path)[1])[None])


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory, parts: Path) -> Peer:
    return Peer(tmp_path_factory.mktemp("peer"), parts)


@pytest.fixture(scope="module")
def first_import(
    new_database: Callable[..., Database],
    _trained_template: Database,
    settings: Settings,
    peer: Peer,
) -> tuple[Database, Any]:
    database = new_database(_trained_template)
    return database, import_bank(database, settings, peer.folder, "parts", OPTIONS)


@pytest.fixture
def imported(clone_of: Any, first_import: tuple[Database, Any]) -> Iterator[Database]:
    """Category ``parts`` with patchcore-inspection's bank as its active detector."""
    with clone_of(first_import[0]) as database:
        yield database


@pytest.mark.parametrize(
    ("channels", "pooling"),
    [
        ((64, 128), Pooling(3, 128, 128)),  # the proportions of the published models
        ((64, 128), Pooling(3, 128, 48)),
        ((40, 112), Pooling(3, 96, 100)),
        ((7,), Pooling(5, 3, 2)),
        ((5, 6, 4), Pooling(3, 80, 200)),
    ],
)
def test_one_convolution_a_layer_equals_unfolding_and_averaging(
    channels: tuple[int, ...], pooling: Pooling
) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = {
        f"layer{n}": torch.randn(2, count, 12 // (n + 1), 8 // (n + 1), generator=generator)
        for n, count in enumerate(channels)
    }

    class Features(torch.nn.Module):
        def forward(self, images: Any) -> Any:
            return maps

    network = pooled_network(Features(), list(maps), channels, pooling)
    with torch.no_grad():
        ours = network(torch.zeros(1)).numpy()
    expected, grid = embed(maps, list(maps), pooling.layer_dim, pooling.dim, pooling.patch_size)
    assert ours.shape == (2, *grid, pooling.dim)
    np.testing.assert_allclose(ours.reshape(-1, pooling.dim), expected, atol=1e-5)


def test_a_model_of_patchcore_inspection_gives_the_same_scores(
    imported: Database, settings: Settings, peer: Peer, parts: Path
) -> None:
    bank = active_detector(imported, "parts").bank
    np.testing.assert_array_equal(read_bank(imported, bank), peer.vectors)
    paths = sorted((parts / "test").glob("*/*.png"))
    # Its distances are squared.
    theirs = [peer.bank.image_score(peer.embed(path)) ** 0.5 for path in paths]
    for search in ("exact", "hnsw"):
        ours = _scores(imported, settings, paths, search)
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_the_images_it_learned_from_are_known_by_their_patches(
    first_import: tuple[Database, Any], settings: Settings, parts: Path
) -> None:
    database, report = first_import
    assert (report.format, report.bank_vectors, report.embedding_dim) == (
        "patchcore-inspection",
        report.bank_vectors,
        DIM,
    )
    assert (report.learned_images, report.held_out_images) == (
        NUM_LEARNED,
        NUM_TRAIN - NUM_LEARNED,
    )
    others = sorted((parts / "train/good").iterdir())[NUM_LEARNED:]
    assert report.threshold == pytest.approx(max(_scores(database, settings, others)), rel=1e-6)


def test_its_vectors_never_meet_anomalibs(
    imported: Database, settings: Settings, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"patchcore-inspection does.*to='parquet'"):
        export_anomalib(imported, settings, "parts", tmp_path / "parts.ckpt")
    plain = Preprocessing((RESIZED, RESIZED), (CROP, CROP), IMAGENET_MEAN, IMAGENET_STD)
    from pgdefect.vision.networks.backbone import find_backbone
    from pgdefect.vision.patchcore import patchcore

    backbone = find_backbone("efficientnet_lite0")
    prints = {
        patchcore.build_embedder(backbone, LAYERS, plain, None, pooling).spec.fingerprint
        for pooling in (None, Pooling(3, LAYER_DIM, DIM), Pooling(3, LAYER_DIM + 1, DIM))
    }
    assert len(prints) == 3


def test_a_shorter_side_is_resized_as_there(peer: Peer) -> None:
    """Of one aspect ratio, torchvision's size of the longer side; see `_by_shorter_side`."""
    from torchvision.transforms import v2

    for size in ((200, 300), (333, 129), (77, 77)):
        found = open_bank(peer.folder, OPTIONS, [size]).embedder.spec.preprocessing
        expected = v2.Resize(RESIZED)(torch.zeros(3, *size, dtype=torch.uint8)).shape[1:]
        assert tuple(found["image_size"]) == tuple(expected)
        assert found["center_crop"] == [CROP, CROP]


def test_published_names_are_timms_with_the_same_weights(
    imported: Database, settings: Settings, peer: Peer, tmp_path: Path
) -> None:
    """The weights themselves come from a hub, or a file: here from neither."""
    params = params_of("resnet50", ("layer2", "layer3"), CROP, 1024, DIM)
    folder = peer.bank.save(tmp_path / "model", params)
    before = list_detectors(imported, "parts")
    with pytest.raises(WeightsError, match=r"resnet50\.tv_in1k.*weights"):
        import_bank(imported, settings, folder, "parts", BankOptions(image_size=(128, 128)))
    assert list_detectors(imported, "parts") == before


# -- tensors -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tensor(tmp_path_factory: pytest.TempPathFactory, peer: Peer, parts: Path) -> Path:
    """Raw vectors of the first images, in half precision, in a dict."""
    halves = Preprocessing((RESIZED, RESIZED), None, (0.5,) * 3, (0.5,) * 3)
    train = sorted((parts / "train/good").iterdir())[:NUM_LEARNED]
    inputs = np.stack([halves.apply(read_image(path)[1]) for path in train])
    with torch.no_grad():
        patches = peer.raw(torch.from_numpy(inputs)).flatten(0, 2)[::10]
    file = tmp_path_factory.mktemp("tensor") / "bank.pt"
    torch.save({"memory_bank": patches.half().clone(), "version": 3}, file)
    return file


def test_a_tensor_is_a_bank_once_told_what_made_it(
    trained: Database,
    settings: Settings,
    tensor: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    command = ["--database-url", trained.url, "import", str(tensor), "--category", "parts"]
    assert run(command) == 2
    assert "--backbone and --image-size" in capsys.readouterr().err
    said = ["--backbone", "efficientnet_lite0", "--image-size", str(RESIZED)]
    assert run([*command, *said]) == 0
    captured = capsys.readouterr()
    assert "is active" in captured.err
    assert "no image" not in captured.err
    detector = active_detector(trained, "parts")
    np.testing.assert_array_equal(
        read_bank(trained, detector.bank), torch.load(tensor)["memory_bank"].float().numpy()
    )

    # The same network, and vectors of nothing it has seen.
    other = tmp_path / "other.pt"
    torch.save(torch.randn(500, 152, generator=torch.Generator().manual_seed(0)), other)
    report = import_bank(trained, settings, tensor, "parts", TENSOR)
    assert (report.learned_images, report.held_out_images) == (
        NUM_LEARNED,
        NUM_TRAIN - NUM_LEARNED,
    )
    assert run([*command[:3], str(other), *command[4:], *said, "--num-neighbors", "3"]) == 0
    assert "no image that was looked at has a patch that is in the bank" in capsys.readouterr().err
    assert active_detector(trained, "parts").bank.num_neighbors == 3

    narrow = tmp_path / "narrow.pt"
    torch.save(torch.zeros(5, 100), narrow)
    with pytest.raises(WeightsError, match="has 100 dimensions, and efficientnet_lite0 gives 152"):
        import_bank(trained, settings, narrow, "parts", TENSOR)


def _scores(
    database: Database, settings: Settings, paths: list[Path], search: Any = "exact"
) -> list[float]:
    def on_error(index: int, error: Exception) -> None:
        raise error

    inspector = Inspector(database, settings, "parts", search)
    names = [str(path) for path in paths]
    return [
        judged.inspection.raw_score
        for batch in inspector.judge(names, on_error)
        for _, judged in batch
    ]


# -- images of the bank, resized by another program ----------------------------------------


def resized_elsewhere(path: Path, side: int) -> Float32:
    """A photograph as torchvision and anomalib resize it: in floating point, anti-aliased."""
    from torch.nn.functional import interpolate

    pixels = torch.from_numpy(read_image(path)[1].astype(np.float32) / 255.0)
    scaled = interpolate(
        pixels.permute(2, 0, 1)[None], (side, side), mode="bilinear", antialias=True
    )[0].numpy()
    return np.asarray((scaled - 0.5) / 0.5, dtype=np.float32)  # as EfficientNet-Lite0 has it


def bank_of(paths: list[Path], side: int, file: Path, every: int = 10) -> Path:
    """A tensor of patches, as another program would save it."""
    from pgdefect.vision.networks.backbone import find_backbone
    from pgdefect.vision.patchcore import patchcore

    backbone = find_backbone("efficientnet_lite0")
    preprocessing = Preprocessing((side, side), None, backbone.mean, backbone.std)
    network = patchcore.build_embedder(backbone, LAYERS, preprocessing, None).network
    with torch.no_grad():
        inputs = torch.from_numpy(np.stack([resized_elsewhere(path, side) for path in paths]))
        patches = network(inputs).numpy()
    torch.save(torch.from_numpy(patches.reshape(-1, patches.shape[-1])[::every].copy()), file)
    return file


RESIZED_OPTIONS = BankOptions(image_size=(160, 160), backbone="efficientnet_lite0", layers=LAYERS)


def test_images_of_the_bank_are_known_through_a_resize(
    trained: Database, settings: Settings, parts: Path, tmp_path: Path
) -> None:
    """Photographs of 128 pixels, resized to 160 there in floating point and here in 8 bits."""
    train = sorted((parts / "train/good").iterdir())
    bank = bank_of(train[:NUM_LEARNED], 160, tmp_path / "bank.pt")
    report = import_bank(trained, settings, bank, "parts", RESIZED_OPTIONS)
    assert (report.learned_images, report.held_out_images) == (
        NUM_LEARNED,
        NUM_TRAIN - NUM_LEARNED,
    )


def test_a_threshold_never_comes_from_the_banks_own_images(
    trained: Database, settings: Settings, parts: Path, tmp_path: Path
) -> None:
    train = sorted((parts / "train/good").iterdir())
    bank = bank_of(train, 160, tmp_path / "bank.pt")
    with pytest.raises(TooFewImages, match=rf"0 normal training images .*\({NUM_TRAIN} it was\)"):
        import_bank(trained, settings, bank, "parts", RESIZED_OPTIONS)


def test_blank_ground_does_not_make_an_image_one_of_the_banks() -> None:
    """Vectors that images of more than half of the parts have a patch of say nothing."""
    images = [
        StoredImage(n, "parts", f"/{n}", f"{n}", "train", "normal", None, None, None, f"{n}", 1, 1)
        for n in range(4)
    ]
    own = [{1}, {1, 2, 7}, {1}, {2, 9}]
    scored = [
        _Scored(image, 0.1, vectors, None) for image, vectors in zip(images, own, strict=True)
    ]
    parts = {n: f"part {n}" for n in range(4)}
    assert _learned_from(scored, parts) == [False, True, False, True]
    # Photographs of one part are one witness.
    same = {0: "part 0", 1: "part 0", 2: "part 0", 3: "part 3"}
    assert _learned_from(scored, same) == [True, True, True, True]
