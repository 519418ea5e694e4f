"""How inputs are made: good files, mutations of them, and text that looks for trouble."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image

_BYTES = st.sampled_from([0, 1, 0x7F, 0x80, 0xFE, 0xFF]) | st.integers(0, 255)
_WORDS = st.sampled_from([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80"])
_CHANGES = st.one_of(
    st.tuples(st.just("set"), st.floats(0, 1, exclude_max=True), _BYTES),
    st.tuples(st.just("word"), st.floats(0, 1, exclude_max=True), _WORDS),
    st.tuples(st.just("cut"), st.floats(0, 1), st.just(0)),
    st.tuples(st.just("drop"), st.floats(0, 1, exclude_max=True), st.integers(1, 64)),
    st.tuples(st.just("repeat"), st.floats(0, 1, exclude_max=True), st.integers(1, 64)),
    st.tuples(st.just("insert"), st.floats(0, 1), st.binary(min_size=1, max_size=16)),
)


def mutated(bases: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """One of some good files with up to eight changes at places anywhere in it."""
    changes = st.lists(_CHANGES, min_size=1, max_size=8)
    return st.builds(_change, st.sampled_from(list(bases)), changes)


def _change(base: bytes, changes: Sequence[tuple[str, float, Any]]) -> bytes:
    data = bytearray(base)
    for kind, place, value in changes:
        at = int(place * len(data))
        match kind:
            case "set" if data:
                data[at] = value
            case "word":
                data[at : at + 4] = value
            case "cut":
                del data[at:]
            case "drop":
                del data[at : at + value]
            case "repeat":
                data[at:at] = data[at : at + value]
            case "insert":
                data[at:at] = value
    return bytes(data)


# -- text ----------------------------------------------------------------------------------

TROUBLE = (
    "'; DROP TABLE pgdefect.image; --",
    '"; DROP ROLE x; --',
    "' OR '1'='1",
    "$$; SELECT pg_sleep(9); $$",
    "\\'; \\",
    "%s %(x)s {0} {x} :name $1 ?",
    "../../etc/passwd",
    "/etc/passwd",
    "..",
    ".",
    "~/x",
    "a\0b",
    "a\nb",
    "\x1b[2J\x1b]0;x\x07",
    "\u202egnp.x",
    "\ud800",
    "\ufeff",
    "ﬀ İ ß ſ 空 \u0301",
    "x" * 3000,
    "é" * 1500,
    "NaN",
    "1e999",
    "9" * 5000,
    "²",
    "٣",
    "null",
    "__proto__",
    " a ",
    "",
    "pg_x",
    "public",
)
text = st.one_of(st.sampled_from(TROUBLE), st.text(max_size=40), st.text(max_size=2000))
"""Names and cells: what breaks SQL, paths, terminals, encodings, numbers, and anything else."""

_HEADERS = st.sampled_from(
    [
        "path",
        "Path ",
        "split",
        "label",
        "defect_type",
        "defect-type",
        "part",
        "group",
        "mask",
        "line",
    ]
)
_CELLS = st.one_of(
    st.sampled_from(
        ["a.png", "b.png", "sub/c.png", "./a.png", "train", "test", "good", "0", "1", "crack"]
    ),
    text,
)


@st.composite
def tables(draw: st.DrawFn, *first: str) -> bytes:
    """A CSV file, good or not: a manifest or ``parts.csv``, as bytes."""
    headers = [*first, *draw(st.lists(_HEADERS | text, max_size=3, unique=True))]
    paths = st.sampled_from(["a.png", "b.png", "sub/c.png"]) | _CELLS
    others = st.lists(_CELLS, max_size=len(headers) - 1 + draw(st.integers(0, 1)))
    rows = draw(st.lists(st.builds(lambda one, more: [one, *more], paths, others), max_size=4))
    delimiter = draw(st.sampled_from([",", ";", "\t"]))
    quoted = draw(st.integers(0, 3)) > 0

    def cell(value: str) -> str:
        return '"' + value.replace('"', '""') + '"' if quoted else value

    lines = [delimiter.join(map(cell, row)) for row in (headers, *rows)]
    made = draw(st.sampled_from(["\n", "\r\n"])).join(lines)
    encoded = made.encode(draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"])), "surrogatepass")
    return draw(mutated([encoded])) if draw(st.integers(0, 4)) == 0 else encoded


# -- good files ----------------------------------------------------------------------------


def images() -> list[bytes]:
    """Small images of each format and mode."""
    generator = np.random.default_rng(0)
    color = Image.fromarray(generator.integers(0, 256, (13, 17, 3), dtype=np.uint8))
    wide = Image.fromarray(generator.integers(0, 65536, (13, 17), dtype=np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    found = []
    for form in ("PNG", "JPEG", "BMP", "TIFF", "WEBP"):
        found.append(_encoded(color, form, exif=exif) if form != "BMP" else _encoded(color, form))
        found.append(_encoded(color.convert("L"), form))
    for form in ("PNG", "TIFF", "WEBP"):
        found.append(_encoded(color.convert("RGBA"), form))
        found.append(_encoded(color, form, save_all=True, append_images=[color.rotate(90)]))
    for form in ("PNG", "TIFF"):
        found += [_encoded(wide, form), _encoded(color.quantize(9), form)]
    for compression in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits"):
        found.append(_encoded(color, "TIFF", compression=compression))
    found.append(_encoded(color.convert("CMYK"), "JPEG"))
    found.append(_encoded(color, "JPEG", progressive=True))
    found.append(_encoded(Image.fromarray(np.zeros((5, 5), np.float32)), "TIFF"))
    return found


def _encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def torch_files() -> list[bytes]:
    """A tensor, a dict of tensors, a checkpoint of anomalib's Patchcore; all small."""
    import torch

    bank = torch.arange(24.0).reshape(6, 4)
    resize = {"size": [64, 64], "interpolation": "bilinear", "antialias": True}
    channels = {"mean": [0.5] * 3, "std": [0.5] * 3}
    steps = [
        {"class_path": "torchvision.transforms.v2.Resize", "init_args": resize},
        {"class_path": "torchvision.transforms.v2.CenterCrop", "init_args": {"size": [48, 48]}},
        {"class_path": "torchvision.transforms.v2.Normalize", "init_args": channels},
    ]
    checkpoint = {
        "pytorch-lightning_version": "2.6",
        "state_dict": {
            "model.memory_bank": bank,
            "model.feature_extractor.feature_extractor.conv.weight": torch.ones(2, 2).half(),
        },
        "hyper_parameters": {
            "backbone": "resnet18",
            "layers": ["layer2", "layer3"],
            "num_neighbors": 9,
            "coreset_sampling_ratio": 0.1,
        },
        "anomalib_pre_processor_config": {"transform": {"init_args": {"transforms": steps}}},
    }
    values = (bank, {"bank": bank.half(), "mean": torch.zeros(4), "note": "x"}, checkpoint)
    return [_saved(value) for value in values]


def _saved(value: Any, **options: Any) -> bytes:
    import torch

    stream = BytesIO()
    torch.save(value, stream, **options)
    return stream.getvalue()


def torch_pickles() -> st.SearchStrategy[bytes]:
    """The same with the pickle changed and everything about it made to fit again.

    A change to the file itself is found by the archive's checksums and gets no further.
    """
    parts = []
    for file in torch_files():
        with zipfile.ZipFile(BytesIO(file)) as archive:
            parts.append({entry.filename: archive.read(entry) for entry in archive.infolist()})

    def build(number: int, make: Callable[[bytes], bytes]) -> bytes:
        stream = BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for name, value in parts[number].items():
                archive.writestr(name, make(value) if name.endswith("data.pkl") else value)
        return stream.getvalue()

    changes = st.lists(_CHANGES, min_size=1, max_size=4)
    return st.builds(
        lambda number, made: build(number, lambda value: _change(value, made)),
        st.integers(0, len(parts) - 1),
        changes,
    )


def weights() -> list[bytes]:
    """State dicts: an archive, a file as torch wrote them before 1.6."""
    import torch

    state = {"conv.weight": torch.ones(2, 3, 3, 3), "conv.bias": torch.zeros(2)}
    return [_saved(state), _saved(state, _use_new_zipfile_serialization=False)]


def safetensors() -> list[bytes]:
    import torch
    from safetensors.torch import save

    made: bytes = save({"conv.weight": torch.ones(2, 3, 3, 3), "conv.bias": torch.zeros(2)})
    return [made]


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
"""The settings of a model of patchcore-inspection's."""


def settings_files() -> list[bytes]:
    return [pickle.dumps(PARAMS, protocol) for protocol in (2, 4, 5)]


def flat_index() -> bytes:
    """Three vectors as FAISS writes an IndexFlatL2."""
    vectors = np.arange(24, dtype=np.float32).reshape(3, 8)
    header = struct.pack("<4siqqq?iQ", b"IxF2", 8, 3, 1 << 20, 1 << 20, True, 1, 24)
    return header + vectors.tobytes()


def other_tables() -> list[bytes]:
    """Vectors in files that are no bank of a kind that is read: .npy, .npz, Parquet."""
    import pyarrow
    import pyarrow.parquet

    vectors = np.arange(24, dtype=np.float32).reshape(3, 8)
    npy, npz, parquet = BytesIO(), BytesIO(), BytesIO()
    np.save(npy, vectors)
    np.savez(npz, bank=vectors)
    pyarrow.parquet.write_table(pyarrow.table({"a": [1.0, 2.0]}), parquet)
    return [npy.getvalue(), npz.getvalue(), parquet.getvalue()]


def onnx_file() -> bytes:
    """A graph of one convolution."""
    from onnx import TensorProto, helper

    shape = [None, 3, 8, 8]
    node = helper.make_node("Conv", ["images", "weight"], ["out"], kernel_shape=[1, 1])
    weight = helper.make_tensor("weight", TensorProto.FLOAT, [2, 3, 1, 1], [0.5] * 6)
    graph = helper.make_graph(
        [node],
        "network",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [None, 2, 8, 8])],
        [weight],
    )
    opset = [helper.make_opsetid("", 17)]
    made: bytes = helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
    return made
