"""Files of other programs' banks, read without running or believing them."""

from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from pgdefect.core.errors import DatabaseError, UsageError, WeightsError
from pgdefect.usecases.exchange.bank_files import BankOptions, open_bank
from pgdefect.usecases.exchange.import_bank import require_plausible
from pgdefect.vision.networks.extractor import compile_graph
from pgdefect.vision.networks.torch_file import bank_of, load_safely, named_tensor, read_state_dict
from pgdefect.vision.patchcore.anomalib_checkpoint import read_checkpoint
from pgdefect.vision.patchcore.patchcore_inspection import (
    INDEX_FILE,
    PARAMS_FILE,
    Pooling,
    read_flat_index,
    read_model,
    read_params,
)

pytestmark = pytest.mark.train

torch = pytest.importorskip("torch")

PARAMS: dict[str, Any] = {
    "backbone.name": "wideresnet50",
    "layers_to_extract_from": ("layer2", "layer3"),
    "input_shape": (3, 224, 224),
    "pretrain_embed_dimension": 1024,
    "target_embed_dimension": 8,
    "patchsize": 3,
    "patchstride": 1,
    "anomaly_scorer_num_nn": 1,
}
NETWORK = "model.feature_extractor.feature_extractor."
VECTORS = np.random.default_rng(0).standard_normal((20, 8)).astype(np.float32)


class Malicious:
    """Unpickled, it runs a command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder as patchcore-inspection saves it."""
    return save_model(tmp_path / "model")


def save_model(folder: Path, prepend: str = "", **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    index = faiss.IndexFlatL2(8)
    index.add(VECTORS)
    faiss.write_index(index, str(folder / (prepend + INDEX_FILE)))
    params = {name: value for name, value in (PARAMS | changes).items() if value is not None}
    (folder / (prepend + PARAMS_FILE)).write_bytes(pickle.dumps(params, pickle.HIGHEST_PROTOCOL))
    return folder


# -- patchcore-inspection ----------------------------------------------------------------


def test_a_model_is_read_as_faiss_and_pickle_wrote_it(model: Path) -> None:
    found = read_model(model)
    np.testing.assert_array_equal(found.memory_bank, VECTORS)
    assert (found.backbone, found.layers) == ("wideresnet50", ("layer2", "layer3"))
    assert (found.input_size, found.pooling) == ((224, 224), Pooling(3, 1024, 8))


def test_of_several_models_one_is_named(tmp_path: Path) -> None:
    for n in (1, 2):
        save_model(tmp_path / "model", f"Ensemble-{n}-2_", patchsize=2 * n + 1)
    with pytest.raises(WeightsError, match=r"several models.*Ensemble-1-2_nn.*Ensemble-2-2_nn"):
        read_model(tmp_path / "model")
    assert read_model(tmp_path / "model" / f"Ensemble-2-2_{INDEX_FILE}").pooling.patch_size == 5


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_settings_that_would_run_code_are_refused_and_none_runs(
    model: Path, tmp_path: Path, protocol: int
) -> None:
    marker = tmp_path / "executed"
    evil = pickle.dumps(PARAMS | {"x": Malicious(marker)}, protocol)
    (model / PARAMS_FILE).write_bytes(evil)
    with pytest.raises(WeightsError, match="Nothing of it was executed"):
        read_model(model)
    assert not marker.exists()
    pickle.loads(evil)  # which shows that it would have
    assert marker.exists()


@pytest.mark.parametrize(
    "content",
    [
        # Harmless all the same; each looks a name up or calls something.
        pickle.dumps({"a": np.float32(1)}),
        pickle.dumps({"a": Path("x")}),
        pickle.dumps({"a": {1, 2}}),
        b"cos\nsystem\n(S'true'\ntR.",
        b"(S'true'\nios\nsystem\n.",
        b"\x80\x04P0\n.",
        # The place in the memo makes the unpickler reserve 32 GB.
        b"\x80\x02}r\xff\xff\xff\xff.",
        # Sizes beyond the end, a stack that is empty, nothing at all.
        b"\x80\x04\x8c\xff.",
        b"\x80\x04X\xff\xff\xff\x7fa.",
        b"\x80\x04s.",
        b"\x80\x04h\x07.",
        # A value appended to a dict, and a list as a key of one.
        b"\x80\x04}Na.",
        b"\x80\x04}]Ns.",
        b"",
        pickle.dumps(["no", "dict"]),
        b" " * (1 << 21),
    ],
    ids=lambda content: repr(content[:24]),
)
def test_what_is_more_or_less_than_settings_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / PARAMS_FILE).write_bytes(content)
    with pytest.raises(WeightsError, match=PARAMS_FILE):
        read_params(tmp_path / PARAMS_FILE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"anomaly_scorer_num_nn": 5}, "anomaly_scorer_num_nn 5; only models with 1"),
        ({"patchstride": 2}, "patchstride 2; only models with 1"),
        ({"patchsize": 4}, "patchsize 4"),
        ({"patchsize": True}, "patchsize True"),
        # Gigabytes of weights, and of pixels.
        ({"patchsize": 99}, "patchsize 99"),
        ({"input_shape": (3, 16_384, 16_384)}, "input_shape"),
        ({"pretrain_embed_dimension": 10**12}, "pretrain_embed_dimension 1000000000000"),
        ({"target_embed_dimension": 16}, "has vectors of 8 dimensions, and .* says 16"),
        ({"layers_to_extract_from": ()}, "layers_to_extract_from"),
        ({"layers_to_extract_from": None}, "layers_to_extract_from None"),
        ({"input_shape": (224, 224)}, "input_shape"),
        ({"backbone.name": 3}, "backbone.name 3"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_settings_that_we_cannot_follow_are_named(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(WeightsError, match=message):
        read_model(save_model(tmp_path / "model", **changes))


def _index(count: int = 20, dim: int = 8, numbers: int = 160, kind: bytes = b"IxF2") -> bytes:
    header = struct.pack("<4siqqq?iQ", kind, dim, count, 1 << 20, 1 << 20, True, 1, numbers)
    return header + VECTORS.tobytes()


def test_the_layout_is_faiss_own(model: Path) -> None:
    assert (model / INDEX_FILE).read_bytes() == _index()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_index(count=1 << 60), "room for 160 numbers"),
        (_index(count=-1), "room for 160 numbers"),
        (_index(dim=-8), "room for 160 numbers"),
        (_index(dim=2**31 - 1), "room for 160 numbers"),
        (_index(count=21), "room for 160 numbers"),
        (_index(numbers=1 << 62), "says it holds 4,611,686,018,427,387,904 numbers"),
        (_index(numbers=159), "says it holds 159 numbers"),
        (_index()[:-2], "room for 159 numbers"),
        (_index() + b"..", "damaged"),
        (_index(kind=b"IxFI"), "IxFI"),
        (_index(kind=b"IwPQ"), "IwPQ"),
        (_index()[:30], "it has 30 bytes"),
        (b"", "it has 0 bytes"),
        (_index()[:-4] + struct.pack("<f", np.nan), "not finite"),
    ],
)
def test_an_index_that_is_not_what_it_says_is_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / INDEX_FILE).write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        read_flat_index(tmp_path / INDEX_FILE)


def test_a_compressed_index_of_faiss_is_refused(tmp_path: Path) -> None:
    index = faiss.index_factory(8, "SQ8")
    index.train(VECTORS)
    index.add(VECTORS)
    faiss.write_index(index, str(tmp_path / INDEX_FILE))
    with pytest.raises(WeightsError, match="only a flat one"):
        read_flat_index(tmp_path / INDEX_FILE)


def test_what_the_settings_do_not_say_has_to_be_given(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"224x224 pixels.*give it as image_size"):
        open_bank(model, BankOptions(), [])
    other = save_model(tmp_path / "other", **{"backbone.name": "vit_swin_base"})
    with pytest.raises(UsageError, match=r"'vit_swin_base'.*wideresnet50.*give backbone"):
        open_bank(other, BankOptions(image_size=(256, 256)), [])
    with pytest.raises(UsageError, match="leave out num_neighbors"):
        open_bank(model, BankOptions(image_size=(256, 256), num_neighbors=9), [])
    with pytest.raises(UsageError, match=r"2 aspect ratios.*HEIGHTxWIDTH"):
        open_bank(model, BankOptions(image_size=(256, 256)), [(100, 100), (100, 150)])
    with pytest.raises(UsageError, match="image_size with it"):
        BankOptions(center_crop=(224, 224))


# -- tensors -----------------------------------------------------------------------------


def saved(path: Path, value: Any, **options: Any) -> Path:
    torch.save(value, path, **options)
    return path


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_a_tensor_of_any_float_is_read(tmp_path: Path, dtype: str) -> None:
    tensor = torch.from_numpy(VECTORS).to(getattr(torch, dtype))
    path = saved(tmp_path / "bank.pt", tensor)
    bank, rounding = bank_of(named_tensor(load_safely(path), path, None)[1], path, "it")
    assert bank.dtype == np.float32
    np.testing.assert_allclose(bank, VECTORS, rtol=rounding)


def test_a_part_of_a_larger_tensor_is_read(tmp_path: Path) -> None:
    path = saved(tmp_path / "bank.pt", torch.arange(80.0).reshape(8, 10).T[2:5])
    bank, _ = bank_of(load_safely(path), path, "it")
    np.testing.assert_array_equal(bank, np.arange(80.0).reshape(8, 10).T[2:5])


def test_in_a_dict_the_only_matrix_is_taken_or_one_named(tmp_path: Path) -> None:
    bank = torch.zeros(3, 4)
    path = saved(tmp_path / "one.pt", {"bank": bank, "mean": torch.zeros(4), "note": "x", "n": 3})
    assert named_tensor(load_safely(path), path, None)[0] == "bank"
    path = saved(tmp_path / "two.pt", {"bank": bank, "other": torch.zeros(2, 2)})
    with pytest.raises(UsageError, match=r"tensor: bank torch.float32 \(3, 4\), other"):
        named_tensor(load_safely(path), path, None)
    assert named_tensor(load_safely(path), path, "other")[1].shape == (2, 2)
    with pytest.raises(UsageError, match=r"no tensor 'x'; it has bank .*, other"):
        named_tensor(load_safely(path), path, "x")
    path = saved(tmp_path / "list.pt", [1, 2])
    with pytest.raises(WeightsError, match="holds a list"):
        named_tensor(load_safely(path), path, None)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(5), "must be a dense matrix"),
        (torch.zeros(2, 3, 4), "must be a dense matrix"),
        (torch.zeros(0, 4), "must be a dense matrix"),
        (torch.ones(2, 2, dtype=torch.int64), "not torch.int64"),
        (torch.full((2, 2), torch.inf), "not finite"),
        (torch.eye(3).to_sparse(), "not torch.float32, torch.sparse_coo"),
        (torch.zeros(3, 3, device="meta"), "must be a dense matrix"),
        # A thousand bytes that claim to be 4 TB.
        (torch.zeros(1).expand(10**9, 1000), "the file has 4 bytes"),
    ],
)
def test_a_tensor_that_is_no_bank_is_refused(tmp_path: Path, tensor: Any, message: str) -> None:
    path = saved(tmp_path / "bank.pt", tensor)
    with pytest.raises(WeightsError, match=message):
        bank_of(load_safely(path), path, "it")


def test_a_tensor_that_would_run_code_is_refused_and_none_runs(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    path = saved(tmp_path / "bank.pt", {"bank": torch.zeros(2, 2), "x": Malicious(marker)})
    with pytest.raises(WeightsError, match=r"asks for (posix|nt)\.system"):
        load_safely(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)  # which shows that it would have
    assert marker.exists()


def test_a_value_that_would_take_all_memory_is_refused(tmp_path: Path) -> None:
    """Safe loading knows bytearray, and 40 bytes ask for a petabyte of it."""
    import zipfile

    path = saved(tmp_path / "bank.pt", torch.zeros(2, 2))
    with zipfile.ZipFile(path) as archive:
        content = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in content.items():
            evil = b"\x80\x02cbuiltins\nbytearray\n\x8a\x07" + (10**15).to_bytes(7, "little")
            archive.writestr(name, evil + b"\x85R." if name.endswith("data.pkl") else value)
    with pytest.raises(WeightsError, match="loaded safely"):
        load_safely(path)


def checkpoint(**changes: Any) -> dict[str, Any]:
    """As anomalib saves one, as far as it is read; changes are to its state or settings."""
    state = {"model.memory_bank": torch.zeros(3, 4)}
    settings = {"backbone": "resnet18", "layers": ["layer2"], "num_neighbors": 9}
    for name, value in changes.items():
        (settings if name in settings else state)[name] = value
    return {"pytorch-lightning_version": "2", "state_dict": state, "hyper_parameters": settings}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # A weight of two bytes that claims to be 2 TB: made single precision, it would be 4.
        ({NETWORK + "w": torch.zeros(1).half().expand(10**9, 1000)}, "the file has 2 bytes"),
        ({NETWORK + "w": "a word"}, "holds no state dict"),
        ({NETWORK + "w": torch.eye(3).to_sparse()}, "not a dense tensor"),
        ({"num_neighbors": 10**30}, "num_neighbors 1000"),
        ({"num_neighbors": 0}, "num_neighbors 0"),
        ({"layers": [["a"]]}, "does not say which network"),
        ({"backbone": ["x" * 10_000]}, r"does not say which network made it.{1,600}$"),
    ],
    ids=lambda value: "",
)
def test_a_checkpoint_whose_parts_are_not_what_they_are_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = saved(tmp_path / "model.ckpt", checkpoint(**changes))
    with pytest.raises(WeightsError, match=message):
        read_checkpoint(path)
    assert read_checkpoint(saved(path, checkpoint(**{"7": 7}))).num_neighbors == 9


@pytest.mark.parametrize("backbone", ["hf-hub:someone/evil", "local-dir:/tmp", "resnet18.nosuch"])
def test_a_network_is_one_that_timm_has_and_no_address(tmp_path: Path, backbone: str) -> None:
    pytest.importorskip("timm")
    path = saved(tmp_path / "model.ckpt", checkpoint(backbone=backbone))
    with pytest.raises(UsageError, match="unknown backbone"):
        open_bank(path, BankOptions(image_size=(64, 64)), [])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_that_are_cut_off_or_lie_are_refused(tmp_path: Path, suffix: str) -> None:
    from safetensors.torch import save_file

    path = tmp_path / f"weights{suffix}"
    state = {"module.w": torch.ones(2, 3)}
    if suffix == ".pth":
        saved(path, {"model": state})
    else:
        save_file(state, path)
    whole = path.read_bytes()
    assert list(read_state_dict(path)) == ["w"]
    for length in (0, 9, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match=path.name):
            read_state_dict(path)
    if suffix == ".pth":
        saved(path, {"w": torch.zeros(1).expand(10**9, 1000)})
        with pytest.raises(WeightsError, match="the file has 4 bytes"):
            read_state_dict(path)


def test_a_network_that_is_none_is_said() -> None:
    with pytest.raises(DatabaseError, match=r"of 9 bytes cannot be run: .*train the category"):
        compile_graph(b"not onnx!")


def test_an_archive_whose_sizes_lie_is_refused(tmp_path: Path) -> None:
    import zipfile

    path = saved(tmp_path / "bank.pt", torch.arange(12.0).reshape(3, 4))
    with zipfile.ZipFile(path) as archive:
        content = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in content.items():
            archive.writestr(name, bytes(1 << 20) if name.endswith("data/0") else value)
    with pytest.raises(WeightsError, match="compresses nothing"):
        load_safely(tmp_path / "bomb.pt")
    # 12 numbers in the record, and 200 of them, 50 rows, in the pickle.
    with zipfile.ZipFile(tmp_path / "lie.pt", "w") as archive:
        for name, value in content.items():
            larger = value.replace(b"K\x0ct", b"K\xc8t").replace(b"K\x03K\x04", b"K\x32K\x04")
            archive.writestr(name, larger if name.endswith("data.pkl") else value)
    with pytest.raises(WeightsError, match="loaded safely"):
        load_safely(tmp_path / "lie.pt")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="loaded safely"):
        load_safely(path)


def test_a_tensor_does_not_say_what_made_it(tmp_path: Path) -> None:
    path = saved(tmp_path / "bank.pt", torch.zeros(3, 4))
    with pytest.raises(UsageError, match="give backbone and image_size"):
        open_bank(path, BankOptions(), [])
    with pytest.raises(UsageError, match="give image_size"):
        open_bank(path, BankOptions(backbone="efficientnet_lite0"), [])


@pytest.mark.parametrize(
    ("vectors", "said"),
    [
        (np.zeros((6, 3)), "6 zero vectors of 6"),
        (np.vstack([np.zeros((4, 3)), np.eye(3)]), "4 zero vectors of 7"),
        (np.full((6, 3), 3e38), "values up to 3e[+]38"),
        (np.full((6, 3), np.nan), "values up to nan"),
        (np.full((6, 3), 0.5), "6 vectors that are all the same"),
    ],
    ids=["zeros", "mostly zeros", "huge", "nan", "the same"],
)
def test_banks_that_could_judge_nothing_are_refused(vectors: Any, said: str) -> None:
    with pytest.raises(WeightsError, match=said):
        require_plausible(np.float32(vectors), Path("bank.pt"))
    require_plausible(np.float32(np.eye(4)), Path("bank.pt"))
