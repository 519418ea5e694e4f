"""Memory banks that other programs wrote: what the file says, and what has to be said of it.

A bank is worth nothing without the network that made its vectors, to the pixel. Where a file
names it, its word counts; where it does not, the options must, and nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pgdefect.core.errors import UsageError
from pgdefect.core.types import Float32
from pgdefect.core.wording import option
from pgdefect.vision.images.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from pgdefect.vision.networks.backbone import StateDict, backbone_of_timm, find_backbone
from pgdefect.vision.networks.torch_file import bank_of, load_safely, named_tensor
from pgdefect.vision.patchcore import patchcore
from pgdefect.vision.patchcore.anomalib_checkpoint import (
    AnomalibBank,
    bank_of_checkpoint,
    is_checkpoint,
)
from pgdefect.vision.patchcore.patchcore_inspection import (
    INDEX_FILE,
    PARAMS_FILE,
    TIMM_NAMES,
    InspectionModel,
    read_model,
)

__all__ = ["BankFile", "BankOptions", "open_bank"]

Size = tuple[int, int]


@dataclass(frozen=True)
class BankOptions:
    """What a user says of a bank, where its file does not; sizes are `(height, width)`.

    Attributes:
        tensor: the name of the bank in a file of several tensors.
    """

    image_size: Size | None = None
    center_crop: Size | None = None
    backbone: str | None = None
    layers: tuple[str, ...] = ()
    weights: Path | None = None
    num_neighbors: int | None = None
    tensor: str | None = None

    def __post_init__(self) -> None:
        if self.center_crop is not None and self.image_size is None:
            raise UsageError(
                f"{option('center_crop')} cuts out of a resized image: give {option('image_size')} "
                "with it"
            )
        if self.num_neighbors is not None and self.num_neighbors < 1:
            raise UsageError(
                f"{option('num_neighbors')} must be at least 1, not {self.num_neighbors}"
            )


@dataclass(frozen=True)
class BankFile:
    """A bank `(num_vectors, embedding_dim)` and the network that makes such vectors.

    Attributes:
        format: anomalib, tensor or patchcore-inspection.
        rounding: of the vectors' values, as a share.
        coreset_ratio: 1 where it is not known.
    """

    format: str
    memory_bank: Float32 = field(repr=False)
    embedder: patchcore.PatchEmbedder = field(repr=False)
    num_neighbors: int
    rounding: float = 0.0
    coreset_ratio: float = 1.0


def open_bank(path: Path, options: BankOptions, image_sizes: Collection[Size]) -> BankFile:
    """Read a bank by what it is: a folder or a FAISS index, a checkpoint, a tensor.

    Args:
        image_sizes: those of the category's images.

    Raises:
        WeightsError: the file is damaged, unsafe or of something else; weights do not fit.
        UsageError: the file does not say enough (the message says what to give), or says
            itself what an option says.
        MissingExtra: the extra ``train`` is not installed.
    """
    if path.is_dir() or path.name.endswith((INDEX_FILE, PARAMS_FILE)):
        index = path.with_name(path.name.replace(PARAMS_FILE, INDEX_FILE))
        return _of_inspection(read_model(index), index, options, image_sizes)
    loaded = load_safely(path)
    if is_checkpoint(loaded):
        return _of_anomalib(bank_of_checkpoint(loaded, path), path, options)
    return _of_tensor(loaded, path, options)


def _of_anomalib(found: AnomalibBank, path: Path, options: BankOptions) -> BankFile:
    for name in ("backbone", "layers", "weights", "num_neighbors", "tensor"):
        if getattr(options, name):
            raise UsageError(f"an anomalib checkpoint says this itself: leave out {option(name)}")
    backbone = backbone_of_timm(found.backbone)
    preprocessing = _resized(options, backbone.mean, backbone.std) or found.preprocessing()
    if preprocessing is None:
        raise UsageError(
            f"{path} does not say what its images were resized to; give {option('image_size')}"
        )
    weights = StateDict(f"checkpoint {path.name}", found.weights)
    embedder = patchcore.build_embedder(backbone, found.layers, preprocessing, weights)
    return BankFile(
        "anomalib",
        found.memory_bank,
        embedder,
        found.num_neighbors,
        found.rounding,
        found.coreset_ratio,
    )


def _of_tensor(loaded: Any, path: Path, options: BankOptions) -> BankFile:
    name, tensor = named_tensor(loaded, path, options.tensor)
    missing = [
        option(name)
        for name, value in (
            ("backbone", options.backbone),
            ("image_size", options.image_size),
        )
        if value is None
    ]
    if missing or options.backbone is None:
        raise UsageError(
            f"{path} holds vectors and not what made them; give {' and '.join(missing)}, and "
            f"{option('layers')}, {option('weights')}, {option('center_crop')} and "
            f"{option('num_neighbors')} where they were not the usual"
        )
    bank, rounding = bank_of(tensor, path, f"the tensor {name}" if name else "the tensor")
    backbone = find_backbone(options.backbone)
    preprocessing = _resized(options, backbone.mean, backbone.std)
    assert preprocessing is not None
    embedder = patchcore.build_embedder(
        backbone, options.layers or backbone.layers, preprocessing, options.weights
    )
    return BankFile("tensor", bank, embedder, options.num_neighbors or 1, rounding)


def _of_inspection(
    found: InspectionModel, path: Path, options: BankOptions, image_sizes: Collection[Size]
) -> BankFile:
    for name in ("num_neighbors", "tensor"):
        if getattr(options, name):
            raise UsageError(
                f"a model of patchcore-inspection says this itself: leave out {option(name)}"
            )
    backbone = options.backbone or TIMM_NAMES.get(found.backbone)
    if backbone is None:
        raise UsageError(
            f"{path} was made with the backbone {found.backbone!r}, and which of timm's has its "
            f"weights is known for {', '.join(sorted(TIMM_NAMES))} only; give "
            f"{option('backbone')}, and "
            f"{option('layers')} unless they are called {', '.join(found.layers)} in timm too"
        )
    if options.image_size is None:
        height, width = found.input_size
        raise UsageError(
            f"{path} says that {height}x{width} pixels were cut out of its images, and not what "
            "they were resized to before (resize of run_patchcore.py, 256 by default); give it "
            f"as {option('image_size')}"
        )
    preprocessing = Preprocessing(
        _by_shorter_side(options.image_size, image_sizes),
        options.center_crop or found.input_size,
        IMAGENET_MEAN,
        IMAGENET_STD,
    )
    embedder = patchcore.build_embedder(
        find_backbone(backbone),
        options.layers or found.layers,
        preprocessing,
        options.weights,
        found.pooling,
    )
    return BankFile("patchcore-inspection", found.memory_bank, embedder, 1)


def _by_shorter_side(size: Size, image_sizes: Collection[Size]) -> Size:
    """What resizing the shorter side to `size` makes of the images, if the same of all.

    torchvision's Resize with one number: the longer side keeps the aspect ratio, rounded down.
    """
    if size[0] != size[1]:
        return size
    made = {
        (size[0], size[0] * width // height) if height <= width
        else (size[0] * height // width, size[0])
        for height, width in image_sizes
    }  # fmt: skip
    if len(made) > 1:
        raise UsageError(
            "patchcore-inspection resizes an image's shorter side, and the category's images "
            f"have {len(made)} aspect ratios; give {option('image_size')} as HEIGHTxWIDTH to "
            "resize all "
            "to one size, which changes the scores"
        )
    return made.pop() if made else size


def _resized(
    options: BankOptions, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> Preprocessing | None:
    if options.image_size is None:
        return None
    return Preprocessing(options.image_size, options.center_crop, mean, std)
