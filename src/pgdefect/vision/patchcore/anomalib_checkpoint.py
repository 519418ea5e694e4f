"""Memory banks in and out of anomalib's Patchcore checkpoints (Lightning ``.ckpt``).

They are read as `vision.networks.torch_file` reads. What is written needs no global at all.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgdefect.core.errors import UsageError, WeightsError
from pgdefect.core.types import Float32
from pgdefect.core.wording import option
from pgdefect.vision.images.preprocess import Preprocessing
from pgdefect.vision.networks.optional_imports import require
from pgdefect.vision.networks.torch_file import bank_of, load_safely, shown, state_of

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "AnomalibBank",
    "bank_of_checkpoint",
    "is_checkpoint",
    "read_checkpoint",
    "write_checkpoint",
]

_NETWORK = "model.feature_extractor.feature_extractor."
_BANK = "model.memory_bank"
_TRANSFORMS = "torchvision.transforms.v2."
_MAX_NUM_NEIGHBORS = 1000


@dataclass(frozen=True)
class AnomalibBank:
    """What a Patchcore checkpoint holds of use here.

    Attributes:
        memory_bank: `(num_vectors, embedding_dim)`.
        rounding: of its values, as a share.
        backbone: timm's name.
        weights: the feature network's state dict.
        pre_processor: anomalib's description of the transform, None where the model has none.
    """

    memory_bank: Float32 = field(repr=False)
    rounding: float
    backbone: str
    layers: tuple[str, ...]
    num_neighbors: int
    coreset_ratio: float
    weights: Mapping[str, Tensor] = field(repr=False)
    pre_processor: Mapping[str, Any] | None

    def preprocessing(self) -> Preprocessing | None:
        """The pre-processor in our terms; None where the model has none.

        Both resize bilinearly with antialiasing, anomalib in floating point and we to whole
        8-bit values: features differ slightly unless both are given prepared images.

        Raises:
            WeightsError: it does more than resize, crop and normalize.
        """
        return None if self.pre_processor is None else _preprocessing(self.pre_processor)


def is_checkpoint(loaded: Any) -> bool:
    """Whether what a file held is a Lightning checkpoint, anomalib's or not."""
    signs = {"state_dict", "hyper_parameters", "pytorch-lightning_version"}
    return isinstance(loaded, Mapping) and not signs.isdisjoint(loaded)


def read_checkpoint(path: Path) -> AnomalibBank:
    """Read a checkpoint of anomalib's Patchcore; nothing in it is executed.

    Raises:
        WeightsError: it cannot be loaded safely (the message names the global refused), or
            holds no Patchcore memory bank.
    """
    return bank_of_checkpoint(load_safely(path), path)


def bank_of_checkpoint(checkpoint: Any, path: Path) -> AnomalibBank:
    """What a checkpoint that `path` held is of use for. Raises WeightsError as reading does."""
    if not isinstance(checkpoint, Mapping):
        raise WeightsError(f"{path} is not a checkpoint: it holds a {type(checkpoint).__name__}")
    settings = checkpoint.get("hyper_parameters")
    state = checkpoint.get("state_dict")
    if not isinstance(settings, Mapping) or not isinstance(state, Mapping):
        raise WeightsError(f"{path} is not a Lightning checkpoint: it has no state_dict")
    if not require("torch").is_tensor(state.get(_BANK)):
        raise WeightsError(f"{path} is not a checkpoint of anomalib's Patchcore: no {_BANK}")
    bank, rounding = bank_of(state[_BANK], path, "the memory bank")
    backbone, layers = settings.get("backbone"), settings.get("layers")
    num_neighbors = settings.get("num_neighbors")
    if (
        not isinstance(backbone, str)
        or not isinstance(layers, list | tuple)
        or not layers
        or not all(isinstance(layer, str) for layer in layers)
        or not isinstance(num_neighbors, int)
        or not 1 <= num_neighbors <= _MAX_NUM_NEIGHBORS
    ):
        raise WeightsError(
            f"{path} does not say which network made it: backbone {shown(backbone)}, layers "
            f"{shown(layers)}, num_neighbors {shown(num_neighbors)}"
        )
    network = {
        name: value
        for name, value in state.items()
        if isinstance(name, str) and name.startswith(_NETWORK)
    }
    description = checkpoint.get("anomalib_pre_processor_config")
    ratio = settings.get("coreset_sampling_ratio")
    return AnomalibBank(
        memory_bank=bank,
        rounding=rounding,
        backbone=backbone,
        layers=tuple(layers),
        num_neighbors=num_neighbors,
        coreset_ratio=float(ratio) if isinstance(ratio, int | float) and 0 < ratio <= 1 else 1.0,
        weights={
            name.removeprefix(_NETWORK): value.float() if value.is_floating_point() else value
            for name, value in state_of(network, path).items()
        },
        pre_processor=(
            description.get("transform") or None if isinstance(description, Mapping) else None
        ),
    )


def write_checkpoint(
    path: Path,
    memory_bank: Float32,
    state: Mapping[str, Tensor],
    *,
    backbone: str,
    layers: tuple[str, ...],
    num_neighbors: int,
    coreset_ratio: float,
    preprocessing: Preprocessing,
    threshold: float | None,
) -> None:
    """Write a checkpoint that ``Patchcore.load_from_checkpoint`` reads.

    Args:
        memory_bank: raw vectors `(num_vectors, embedding_dim)`.
        state: the state dict of anomalib's Lightning model, weights loaded.
        backbone: timm's name.
        threshold: on raw image scores. Scores stay raw in anomalib, labels follow the threshold if
            there is one. The file is whole or not there.
    """
    from importlib.metadata import version

    torch = require("torch")
    state = {**state, "_is_fitted": torch.tensor([True]), _BANK: torch.from_numpy(memory_bank)}
    limit = float("nan") if threshold is None else threshold
    for kind in ("image", "pixel"):
        state[f"post_processor._{kind}_threshold"] = torch.tensor(limit)
        for end in ("min", "max"):
            state[f"post_processor.{kind}_{end}"] = torch.tensor(float("nan"))
    # Whatever the scores, anomalib's labels compare them with 1 - sensitivity.
    sensitivity = 0.5 if threshold is None else 1.0 - threshold
    checkpoint = {
        "epoch": 1,
        "global_step": 0,
        "pytorch-lightning_version": version("lightning"),
        "state_dict": state,
        "hparams_name": "kwargs",
        "hyper_parameters": {
            "backbone": backbone,
            "layers": list(layers),
            "pre_trained": False,
            "coreset_sampling_ratio": coreset_ratio,
            "num_neighbors": num_neighbors,
            "precision": "float32",
        },
        "anomalib_components_enabled": {
            "pre_processor": True,
            "post_processor": True,
            "evaluator": False,
            "visualizer": False,
        },
        "anomalib_pre_processor_config": {"transform": _description(preprocessing)},
        "anomalib_post_processor_config": {
            "enable_normalization": False,
            "enable_thresholding": threshold is not None,
            "enable_threshold_matching": False,
            "image_sensitivity": sensitivity,
            "pixel_sensitivity": sensitivity,
        },
    }
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        # A file object, because torch turns an error of the disk on a path into its own.
        with open(temporary, "wb") as file:
            torch.save(checkpoint, file)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _description(preprocessing: Preprocessing) -> dict[str, Any]:
    """What anomalib's ``transform_to_spec`` makes of the same steps."""
    steps: list[tuple[str, dict[str, Any]]] = [
        (
            "Resize",
            {
                "size": list(preprocessing.image_size),
                "interpolation": preprocessing.interpolation,
                "max_size": None,
                "antialias": True,
            },
        )
    ]
    if preprocessing.center_crop is not None:
        steps.append(("CenterCrop", {"size": list(preprocessing.center_crop)}))
    channels = {"mean": list(preprocessing.mean), "std": list(preprocessing.std)}
    steps.append(("Normalize", {**channels, "inplace": False}))
    return _step("Compose", {"transforms": [_step(name, arguments) for name, arguments in steps]})


def _step(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"class_path": _TRANSFORMS + name, "init_args": arguments}


def _preprocessing(description: Mapping[str, Any]) -> Preprocessing:
    try:
        steps = [
            (step["class_path"].rpartition(".")[2], step["init_args"])
            for step in description["init_args"]["transforms"]
        ]
        names = [name for name, _ in steps]
        if [name for name in names if name != "CenterCrop"] != ["Resize", "Normalize"] or (
            "CenterCrop" in names[2:]
        ):
            raise UsageError(f"its steps are {shown(', '.join(names)) or 'none'}")
        found = dict(steps)
        resize, normalize = found["Resize"], found["Normalize"]
        return Preprocessing(
            image_size=resize["size"],
            center_crop=found.get("CenterCrop", {}).get("size"),
            mean=tuple(normalize["mean"]),
            std=tuple(normalize["std"]),
            interpolation=resize.get("interpolation", "bilinear"),
        )
    except (UsageError, LookupError, TypeError, AttributeError, ValueError) as error:
        raise WeightsError(
            "the checkpoint's pre-processor is not a resize to height and width, an optional "
            f"center crop and a normalization ({shown(str(error))}); say what to use instead with "
            f"{option('image_size')}"
        ) from error
