"""Several backbones as one extractor: their patch embeddings side by side.

The memory bank is one, of patches that all networks have looked at, and so are the distances: what
averages over separate banks would need to bring their scores to one scale.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pgdefect.types import ExtractorSpec
from pgdefect.vision.backbone import Backbone
from pgdefect.vision.patchcore import PatchEmbedder, build_embedder
from pgdefect.vision.preprocess import Preprocessing

if TYPE_CHECKING:
    from torch import nn

__all__ = ["build_ensemble", "joined"]


def build_ensemble(backbones: Sequence[Backbone], preprocessing: Preprocessing) -> PatchEmbedder:
    """Each backbone with its own layers and weights; images are prepared as for the first.

    Raises what `build_embedder` does.
    """
    return joined(
        backbones, [build_embedder(one, one.layers, preprocessing, None) for one in backbones]
    )


def joined(backbones: Sequence[Backbone], members: Sequence[PatchEmbedder]) -> PatchEmbedder:
    """One embedder of several; the patch grid is the first one's.

    Every member's patch embedding is scaled to length 1, or the network with the largest numbers
    would decide alone. Lightning drives the first one's model, of which nothing is used.
    """
    spec = ExtractorSpec(
        "+".join(backbone.name for backbone in backbones),
        tuple(
            f"{backbone.name}.{layer}"
            for backbone, member in zip(backbones, members, strict=True)
            for layer in member.spec.layers
        ),
        members[0].spec.preprocessing,
        " + ".join(member.spec.weights_source for member in members),
        hashlib.sha256(
            "\n".join(member.spec.weights_sha256 for member in members).encode()
        ).hexdigest(),
    )
    network = _network(backbones, [member.network for member in members])
    return PatchEmbedder(spec, members[0].lightning_model, network)


def _network(backbones: Sequence[Backbone], networks: Sequence[nn.Module]) -> nn.Module:
    """Images, normalized for the first backbone, to embeddings `(n, rows, cols, dim)`."""
    import torch
    from torch import nn
    from torch.nn import functional

    first = backbones[0]

    class Ensemble(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.networks = nn.ModuleList(networks)

        def forward(self, images: Any) -> Any:
            found: list[Any] = []
            for backbone, network in zip(backbones, self.networks, strict=True):
                embeddings = functional.normalize(network(_renormalized(images, backbone)), dim=-1)
                if found:
                    maps = functional.interpolate(
                        embeddings.permute(0, 3, 1, 2),
                        size=found[0].shape[1:3],
                        mode="bilinear",
                        align_corners=False,
                    )
                    embeddings = maps.permute(0, 2, 3, 1)
                found.append(embeddings)
            return torch.cat(found, dim=-1)

    def _renormalized(images: Any, backbone: Backbone) -> Any:
        if (backbone.mean, backbone.std) == (first.mean, first.std):
            return images
        shape = (1, 3, 1, 1)
        scale = torch.tensor(first.std) / torch.tensor(backbone.std)
        offset = (torch.tensor(first.mean) - torch.tensor(backbone.mean)) / torch.tensor(
            backbone.std
        )
        return images * scale.reshape(shape).to(images) + offset.reshape(shape).to(images)

    return Ensemble().eval()
