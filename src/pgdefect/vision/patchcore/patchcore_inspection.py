"""Memory banks of amazon-science/patchcore-inspection, the code of the PatchCore paper.

A model is two files: the bank as a FAISS index, and a pickle of the settings. Neither is
trusted. The pickle is walked operation by operation and read only if it makes plain data; the
index is read by its layout (``faiss/impl/index_write.cpp``: ``write_index`` of an IndexFlat),
against the size of the file. FAISS itself is not needed.

Its patch embeddings are not anomalib's: each layer's 3 x 3 neighborhoods are averaged in groups
to `layer_dim` values, and all layers' to `dim` (``patchcore/common.py``: MeanMapper, Aggregator).
Both are means over fixed elements, so a layer's part is one convolution. Its distances are
squared; ours are their roots.
"""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pgdefect.core.errors import WeightsError
from pgdefect.core.types import ExtractorSpec, Float32
from pgdefect.vision.images.preprocess import MAX_SIZE
from pgdefect.vision.networks.optional_imports import require
from pgdefect.vision.networks.torch_file import shown

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "INDEX_FILE",
    "PARAMS_FILE",
    "TIMM_NAMES",
    "InspectionModel",
    "Pooling",
    "is_pooled",
    "pooled_network",
    "read_flat_index",
    "read_model",
    "read_params",
]

INDEX_FILE = "nnscorer_search_index.faiss"
PARAMS_FILE = "patchcore_params.pkl"
MAX_PARAMS_BYTES = 1 << 20
MAX_DIM = 16_384
MAX_PATCH_SIZE = 9
"""A larger neighborhood would take gigabytes of weights; 3 and 5 are in use."""

TIMM_NAMES: Mapping[str, str] = {
    "resnet50": "resnet50.tv_in1k",
    "resnet101": "resnet101.tv_in1k",
    "resnext101": "resnext101_32x8d.tv_in1k",
    "wideresnet50": "wide_resnet50_2.tv_in1k",
    "wideresnet101": "wide_resnet101_2.tv_in1k",
}
"""Its names of torchvision's networks, and timm's of the same weights (``backbones.py``)."""

_PLAIN = {
    *("PROTO", "FRAME", "STOP", "MARK", "MEMOIZE", "BINPUT", "LONG_BINPUT", "BINGET"),
    *("LONG_BINGET", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1"),
    *("BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2"),
    *("TUPLE3", "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS"),
}
"""The operations that make plain data: none looks a name up, and none calls anything."""

_HEADER = struct.Struct("<4siqqq?i")
"""FAISS: kind, dimension, vectors, two unused numbers, trained, metric."""
_METRIC_L2 = 1


_POOLED = "pooled as patchcore-inspection does"


@dataclass(frozen=True)
class Pooling:
    """How neighborhoods become a patch embedding: each layer's `layer_dim` means, then `dim`."""

    patch_size: int
    layer_dim: int
    dim: int

    def __str__(self) -> str:
        size = f"{self.patch_size} x {self.patch_size}"
        return f"{_POOLED} ({size}, {self.layer_dim} to {self.dim})"


def is_pooled(spec: ExtractorSpec) -> bool:
    """Whether an extractor's embeddings are patchcore-inspection's; its weights say so."""
    return _POOLED in spec.weights_source


@dataclass(frozen=True)
class InspectionModel:
    """A bank `(num_vectors, embedding_dim)` and what its settings say.

    Attributes:
        backbone: patchcore-inspection's name.
        input_size: `(height, width)` the network sees, cut out of the middle of a larger image
            whose size the settings do not say.
    """

    memory_bank: Float32
    backbone: str
    layers: tuple[str, ...]
    input_size: tuple[int, int]
    pooling: Pooling


def read_model(path: Path) -> InspectionModel:
    """Read a model from its folder, or from its index's path where a folder has several.

    Raises:
        WeightsError: files are missing or damaged; the pickle would run code; the index is
            compressed or of another metric; the settings ask for what we do not do.
    """
    index, params = _files(path)
    settings = _settings(read_params(params), params)
    bank = read_flat_index(index)
    if bank.shape[1] != settings["pooling"].dim:
        raise WeightsError(
            f"{index} has vectors of {bank.shape[1]} dimensions, and {params.name} says "
            f"{settings['pooling'].dim}; these two files are not of one model"
        )
    return InspectionModel(memory_bank=bank, **settings)


def read_params(path: Path) -> dict[str, Any]:
    """The pickled settings: a dict of plain data. Nothing in the file is executed.

    Raises:
        WeightsError: the pickle does more than make plain data; the message names what.
    """
    try:
        content = path.read_bytes() if path.stat().st_size <= MAX_PARAMS_BYTES else None
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror or error}") from error
    if content is None:
        raise WeightsError(f"{path} is too large to be settings: over {MAX_PARAMS_BYTES:,} bytes")
    try:
        for operation, argument, _ in pickletools.genops(content):
            # A claimed place in the memo makes the unpickler reserve memory up to it.
            far = "PUT" in operation.name and isinstance(argument, int) and argument > len(content)
            if operation.name not in _PLAIN or far:
                what = operation.name if argument is None else f"{operation.name} {shown(argument)}"
                raise WeightsError(
                    f"{path} is more than settings: its pickle asks for {what!r}, which can run "
                    "any code. Nothing of it was executed"
                )
        loaded = _PlainUnpickler(io.BytesIO(content)).load()
    except WeightsError:
        raise
    except Exception as error:  # an unpickler documents no closed set for damaged files
        raise WeightsError(f"{path} is not a pickle of settings: {shown(str(error))}") from error
    if not isinstance(loaded, dict):
        raise WeightsError(f"{path} holds a {type(loaded).__name__}, not settings by name")
    return loaded


def read_flat_index(path: Path) -> Float32:
    """The vectors of a FAISS IndexFlatL2, `(num_vectors, embedding_dim)`.

    Raises:
        WeightsError: it is another kind of index, or its sizes are not those of the file.
    """
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER.size + 8)
            size = os.fstat(file.fileno()).st_size
            if len(header) < _HEADER.size + 8:
                raise WeightsError(f"{path} is not a FAISS index: it has {size} bytes")
            kind, dim, count, _, _, _, metric = _HEADER.unpack_from(header)
            if kind not in (b"IxF2", b"IxFl") or metric != _METRIC_L2:
                raise WeightsError(
                    f"{path} is a FAISS index of the kind {kind!r} and metric {metric}, and only a "
                    "flat one of Euclidean distances (IxF2) holds the vectors themselves"
                )
            (claimed,) = struct.unpack_from("<Q", header, _HEADER.size)
            available = (size - len(header)) // 4
            if not 0 < dim <= MAX_DIM or not 0 < count <= available or count * dim != available:
                raise WeightsError(
                    f"{path} says it holds {count:,} vectors of {dim:,} dimensions, and there is "
                    f"room for {available:,} numbers in it; it is damaged or not what it says"
                )
            if claimed != available or (size - len(header)) % 4:
                raise WeightsError(
                    f"{path} says it holds {claimed:,} numbers, and there is room for "
                    f"{available:,}; it is damaged or not what it says"
                )
            bank = np.fromfile(file, dtype="<f4", count=available).reshape(count, dim)
    except (OSError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or "it does not fit into memory"
        raise WeightsError(f"cannot read {path}: {reason}") from error
    if not np.isfinite(bank).all():
        raise WeightsError(f"{path} holds values that are not finite")
    return bank.astype(np.float32, copy=False)


def pooled_network(
    features: nn.Module, layers: Sequence[str], channels: Sequence[int], pooling: Pooling
) -> nn.Module:
    """Pixels `(n, 3, height, width)` to patch embeddings `(n, rows, cols, dim)`.

    features gives a layer's maps by name; channels are their numbers, in order. The grid is
    the first layer's; the others' are drawn out to it, as there, bilinearly.
    """
    require("torch")
    from torch import nn
    from torch.nn import functional

    class PooledNetwork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = features
            self.convolutions = nn.ModuleList()
            self.margins = []
            for weight in _pooling_weights(channels, pooling):
                used = weight.flatten(1).any(dim=1).nonzero()[:, 0]
                first, last = int(used[0]), int(used[-1]) + 1
                convolution = nn.Conv2d(
                    weight.shape[1],
                    last - first,
                    pooling.patch_size,
                    padding=(pooling.patch_size - 1) // 2,
                    bias=False,
                )
                convolution.weight.data = weight[first:last].clone()
                self.convolutions.append(convolution)
                self.margins.append((first, pooling.dim - last))

        def forward(self, images: Any) -> Any:
            maps = self.features(images)
            total: Any = None
            for layer, convolution, (before, after) in zip(
                layers, self.convolutions, self.margins, strict=True
            ):
                part = convolution(maps[layer])
                if total is not None:
                    part = functional.interpolate(
                        part, size=total.shape[-2:], mode="bilinear", align_corners=False
                    )
                part = functional.pad(part, (0, 0, 0, 0, before, after))
                total = part if total is None else total + part
            return total.permute(0, 2, 3, 1)

    return PooledNetwork().eval()


def _pooling_weights(channels: Sequence[int], pooling: Pooling) -> list[Tensor]:
    """Per layer the weights `(dim, channels, patch_size, patch_size)` of both means."""
    torch = require("torch")
    pool = torch.nn.functional.adaptive_avg_pool1d

    def mean_over_groups(inputs: int, outputs: int) -> Any:
        """The matrix `(outputs, inputs)` of torch's adaptive average."""
        return pool(torch.eye(inputs)[:, None, :], outputs)[:, 0].T

    size, layer_dim = pooling.patch_size, pooling.layer_dim
    joined = mean_over_groups(len(channels) * layer_dim, pooling.dim)
    weights = []
    for n, count in enumerate(channels):
        of_layer = mean_over_groups(count * size * size, layer_dim)
        part = joined[:, n * layer_dim : (n + 1) * layer_dim] @ of_layer
        weights.append(part.reshape(pooling.dim, count, size, size))
    return weights


class _PlainUnpickler(pickle.Unpickler):
    """Behind the walk over the operations, the same once more: no name is ever looked up."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _files(path: Path) -> tuple[Path, Path]:
    if path.is_dir():
        found = sorted(path.glob(f"*{INDEX_FILE}"))
        if len(found) != 1:
            names = ", ".join(file.name for file in found)
            raise WeightsError(
                f"{path} holds several models; name one by its index: {names}"
                if found
                else f"{path} holds no {INDEX_FILE}, which patchcore-inspection saves"
            )
        path = found[0]
    params = path.with_name(path.name.removesuffix(INDEX_FILE) + PARAMS_FILE)
    for file in (path, params):
        if not file.is_file():
            raise WeightsError(f"no file at {file}: a model is an index and {PARAMS_FILE} beside")
    return path, params


def _settings(params: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The settings checked; what we do not do is refused."""

    def get(name: str, good: bool) -> Any:
        if not good:
            said = shown(params.get(name))
            raise WeightsError(f"{path} says {name} {said}, which is not understood")
        return params[name]

    def is_count(value: Any) -> bool:
        return type(value) is int and 0 < value <= MAX_DIM

    layers, shape = params.get("layers_to_extract_from"), params.get("input_shape")
    numbers = {
        name: get(name, is_count(params.get(name)))
        for name in ("patchsize", "pretrain_embed_dimension", "target_embed_dimension")
    }
    name = get("backbone.name", isinstance(params.get("backbone.name"), str))
    get(
        "layers_to_extract_from",
        isinstance(layers, list | tuple) and bool(layers) and all(type(x) is str for x in layers),
    )
    get("input_shape", isinstance(shape, list | tuple) and len(shape) == 3
        and all(map(is_count, shape)) and shape[0] == 3 and max(shape) <= MAX_SIZE)  # fmt: skip
    get("patchsize", numbers["patchsize"] % 2 == 1 and numbers["patchsize"] <= MAX_PATCH_SIZE)
    for setting in ("patchstride", "anomaly_scorer_num_nn"):
        if params.get(setting, 1) != 1:
            raise WeightsError(
                f"{path} says {setting} {shown(params[setting])}; only models with 1 can be "
                "imported"
            )
    assert layers is not None
    assert shape is not None
    return {
        "backbone": name,
        "layers": tuple(layers),
        "input_size": (shape[1], shape[2]),
        "pooling": Pooling(
            numbers["patchsize"],
            numbers["pretrain_embed_dimension"],
            numbers["target_embed_dimension"],
        ),
    }
