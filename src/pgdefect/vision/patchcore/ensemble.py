"""Several backbones as one extractor: their patch embeddings side by side.

The memory bank is one, of patches that all networks have looked at, and so are the distances: what
averages over separate banks would need to bring their scores to one scale.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from pgdefect.core.types import ExtractorSpec
from pgdefect.vision.images.preprocess import Preprocessing
from pgdefect.vision.networks.backbone import Backbone
from pgdefect.vision.patchcore.patchcore import PatchEmbedder, build_embedder, side_by_side

__all__ = ["build_ensemble", "joined"]


def build_ensemble(backbones: Sequence[Backbone], preprocessing: Preprocessing) -> PatchEmbedder:
    """Each backbone with its own layers and weights; images are prepared as for the first.

    Raises:
        what: `build_embedder` does.
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
    network = side_by_side(
        [member.network for member in members],
        [(backbone.mean, backbone.std) for backbone in backbones],
    )
    return PatchEmbedder(spec, members[0].lightning_model, network)
