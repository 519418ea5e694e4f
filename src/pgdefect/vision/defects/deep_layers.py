"""The deep layers of a backbone as ONNX, for the second look at anomalous images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgdefect.core.errors import WeightsError
from pgdefect.core.types import DefectViewArtifact
from pgdefect.vision.networks.backbone import Backbone, StateDict, known_layers, load_weights
from pgdefect.vision.networks.export_cache import cached_export
from pgdefect.vision.networks.optional_imports import require
from pgdefect.vision.networks.torch_tools import export_onnx, quiet

if TYPE_CHECKING:
    from torch import nn

__all__ = ["export_defect_view"]

SIDE = 256
"""Of the square that photographs are stretched to; a multiple of every stride."""


def export_defect_view(
    backbone: Backbone,
    weights: Path | StateDict | None,
    cache_dir: Path | None = None,
) -> DefectViewArtifact | None:
    """The backbone's deep layers, each averaged over 3 x 3 cells; from the cache, where they were
    exported before.

    A graph from `(n, 3, side, side)` to one output `(n, rows, cols, dim)` for each layer. None
    where the weights do not reach so far: those of an imported checkpoint end with the last
    layer it taps.
    """
    timm, torch = require("timm"), require("torch")
    with quiet():
        network = timm.create_model(backbone.timm_name, pretrained=False)
    try:
        _, weights_sha256 = load_weights(network, backbone, weights)
    except WeightsError:
        return None
    layers = backbone.deep_layers or known_layers(backbone)[-3:]
    identity = {
        "kind": "deep layers",
        "backbone": backbone.timm_name,
        "layers": list(layers),
        "weights": weights_sha256,
        "sizes": [SIDE, SIDE],
    }

    def export() -> bytes:
        example = torch.zeros(2, 3, SIDE, SIDE)
        return export_onnx(_deep(network, layers), example, list(layers))

    onnx = cached_export(cache_dir, identity, export)
    return DefectViewArtifact(onnx, tuple(layers), SIDE, backbone.mean, backbone.std)


def _deep(network: nn.Module, layers: tuple[str, ...]) -> nn.Module:
    from torch import nn

    modules = dict(network.named_modules())

    class DeepLayers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.pool = nn.AvgPool2d(3, 1, 1)

        def forward(self, images: Any) -> Any:
            found: dict[str, Any] = {}
            handles = [
                modules[layer].register_forward_hook(
                    lambda module, inputs, output, layer=layer: found.__setitem__(layer, output)
                )
                for layer in layers
            ]
            model: Any = self.network
            model.forward_features(images)
            for handle in handles:
                handle.remove()
            return tuple(self.pool(found[layer]).permute(0, 2, 3, 1) for layer in layers)

    return DeepLayers().eval()
