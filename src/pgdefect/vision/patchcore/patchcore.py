"""Learning *normal* with anomalib's PatchCore.

anomalib defines the network, its layers' pooling and concatenation, and drives training
with its Engine. Two steps are replaced: patch embeddings come from the exported graph, so
that training and inspection see the same numbers, and the coreset is picked by
`pgdefect.vision.patchcore.coreset`.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pgdefect.core.errors import TrainingError, UsageError
from pgdefect.core.file_claims import scratch_folder
from pgdefect.core.types import ExtractorArtifact, ExtractorSpec, Float32
from pgdefect.core.wording import option
from pgdefect.vision.images.preprocess import KEEP_MULTIPLE, Batch, Preprocessing
from pgdefect.vision.networks.backbone import (
    Backbone,
    StateDict,
    check_layers,
    load_weights,
    state_sha256,
)
from pgdefect.vision.networks.export_cache import cached_export
from pgdefect.vision.networks.extractor import Extractor
from pgdefect.vision.networks.optional_imports import require
from pgdefect.vision.networks.torch_tools import export_onnx, interruptible, quiet
from pgdefect.vision.patchcore.patchcore_inspection import Pooling, pooled_network

if TYPE_CHECKING:
    from torch import nn

__all__ = ["PatchEmbedder", "build_embedder", "run_engine", "side_by_side"]

EXPORT_TOLERANCE = 1e-5


@dataclass(frozen=True)
class PatchEmbedder:
    """anomalib's PatchCore with weights loaded, not yet exported."""

    spec: ExtractorSpec
    lightning_model: Any
    network: nn.Module

    def scales(self, weights: Mapping[str, float]) -> Float32 | None:
        """What each dimension of a patch embedding is multiplied by, `(dim,)`, where its layer has
        a weight; None without any.

        Raises:
            UsageError: for a layer that is not tapped.
        """
        unknown = sorted(weights.keys() - set(self.spec.layers))
        if unknown:
            raise UsageError(
                f"{option('layer_weights')} names {', '.join(unknown)}; the layers tapped are "
                f"{', '.join(self.spec.layers)}"
            )
        if not weights:
            return None
        dims = self.lightning_model.model.feature_extractor.out_dims
        return np.concatenate(
            [
                np.full(dim, weights.get(layer, 1.0), dtype=np.float32)
                for layer, dim in zip(self.spec.layers, dims, strict=True)
            ]
        )

    def export(self, cache_dir: Path | None = None) -> ExtractorArtifact:
        """The network as ONNX, with any batch size, and any size of images where their aspect
        ratio is kept; from the cache, where it was exported before.

        Raises:
            TrainingError: where ONNX and torch disagree on noise by more than 1e-5 of the norm.
        """
        torch = require("torch")
        preprocessing = Preprocessing.from_dict(self.spec.preprocessing)
        any_size = preprocessing.resize == "keep"
        height, width = preprocessing.input_size
        # With any size the second one is of odd multiples: neither shape nor padding is fixed.
        sizes = [(height, width), *([(15 * KEEP_MULTIPLE, 17 * KEEP_MULTIPLE)] if any_size else [])]
        generator = torch.Generator().manual_seed(0)
        noises = [torch.randn(2, 3, *size, generator=generator) for size in sizes]
        with torch.no_grad(), quiet():
            expected = [self.network(noise).numpy() for noise in noises]
        _, rows, cols, dim = expected[0].shape
        if any_size and (KEEP_MULTIPLE % (height / rows) or KEEP_MULTIPLE % (width / cols)):
            raise TrainingError(
                f"the layers {', '.join(self.spec.layers)} of {self.spec.backbone} have a patch "
                f"every {height / rows:g} pixels, which does not divide the {KEEP_MULTIPLE} that "
                f"sides are multiples of; use finer layers, or {option('resize', 'stretch')}"
            )

        def export() -> bytes:
            with even_padding(self.network) if any_size else nullcontext():
                return export_onnx(
                    self.network, noises[-1], ["patch_embeddings"], any_size=any_size
                )

        identity = {
            "kind": "patch embeddings",
            "backbone": self.spec.backbone,
            "layers": list(self.spec.layers),
            "weights": [self.spec.weights_source, self.spec.weights_sha256],
            "sizes": "any" if any_size else [height, width],
        }
        onnx = cached_export(cache_dir, identity, export)
        artifact = ExtractorArtifact(self.spec, dim, rows, cols, onnx)
        extractor = Extractor(artifact)
        for noise, embeddings in zip(noises, expected, strict=True):
            difference = extractor(noise.numpy()) - embeddings
            error = float(np.linalg.norm(difference) / np.linalg.norm(embeddings))
            if not error <= EXPORT_TOLERANCE:
                raise TrainingError(
                    f"the exported network of {self.spec.backbone} differs from torch's by "
                    f"{error:.1e} of the norm, more than {EXPORT_TOLERANCE:.0e}; use another "
                    "backbone or layers"
                    + (f", or {option('resize', 'stretch')}" if any_size else "")
                )
        return artifact

    def embed(self, images: Float32, device: str) -> Float32:
        """Patch embeddings by torch on `device`, `(n, rows, cols, dim)`."""
        torch = require("torch")
        with torch.no_grad():
            result: Float32 = (
                self.network.to(device)(torch.from_numpy(images).to(device)).cpu().numpy()
            )
        return result


def build_embedder(
    backbone: Backbone,
    layers: tuple[str, ...],
    preprocessing: Preprocessing,
    weights: Path | StateDict | None,
    pooling: Pooling | None = None,
) -> PatchEmbedder:
    """Build anomalib's Patchcore for a backbone and load its weights.

    Args:
        pooling: make patch embeddings as patchcore-inspection does, not anomalib.

    Raises:
        MissingExtra: the extra ``train`` is not installed.
        UsageError: a layer the backbone does not have.
        WeightsError: weights that do not fit or cannot be had.
    """
    require("anomalib")
    check_layers(backbone, layers)
    model = _patchcore_class()(
        backbone=backbone.timm_name,
        layers=list(layers),
        pre_trained=False,
        pre_processor=False,
        post_processor=False,
        evaluator=False,
        visualizer=False,
    )
    features = model.model.feature_extractor.feature_extractor
    source, digest = load_weights(features, backbone, weights)
    network = _network(model.model)
    if pooling is not None:
        extractor = model.model.feature_extractor
        network = pooled_network(extractor, layers, extractor.out_dims, pooling)
        source, digest = f"{source}, {pooling}", state_sha256(network.state_dict())
    spec = ExtractorSpec(backbone.name, layers, preprocessing.to_dict(), source, digest)
    return PatchEmbedder(spec, model, network)


@contextmanager
def even_padding(network: nn.Module) -> Iterator[None]:
    """Convolutions that pad by TensorFlow's rule ("same") do so as for an even input.

    Their padding depends on the input's size, which would take the exporter minutes to
    reason about; where all sides are multiples of the strides there is nothing to depend on.
    """
    from timm.layers.conv2d_same import Conv2dSame
    from torch.nn import functional

    def forward_of(conv: Any) -> Callable[[Any], Any]:
        before, after = [], []
        for size, stride, dilation in zip(
            conv.kernel_size, conv.stride, conv.dilation, strict=True
        ):
            total = max(dilation * (size - 1) + 1 - stride, 0)
            before.append(total // 2)
            after.append(total - total // 2)
        padding = (before[1], after[1], before[0], after[0])

        def forward(images: Any) -> Any:
            return functional.conv2d(
                functional.pad(images, padding),
                conv.weight,
                conv.bias,
                conv.stride,
                0,
                conv.dilation,
                conv.groups,
            )

        return forward

    changed = [module for module in network.modules() if isinstance(module, Conv2dSame)]
    for module in changed:
        module.forward = forward_of(module)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in changed:
            del module.forward


def run_engine(
    embedder: PatchEmbedder,
    batches: Iterable[Batch],
    consume: Callable[[Batch], None],
    *,
    device: str,
) -> None:
    """Drive anomalib's Engine over the batches, handing each one to `consume`."""
    require("anomalib")
    from anomalib.data import ImageBatch
    from anomalib.engine import Engine
    from torch import from_numpy
    from torch.utils.data import DataLoader, IterableDataset

    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            for batch in batches:
                # Lightning fetches ahead of the step that uses a batch.
                model.fetched.append(batch)
                yield ImageBatch(image=from_numpy(batch.inputs))

    model = embedder.lightning_model
    model.fetched = deque()
    model.consume = consume
    with scratch_folder(Path(tempfile.gettempdir()), "pgdefect-engine-") as scratch, quiet():
        engine = Engine(
            accelerator="gpu" if device.startswith("cuda") else "cpu",
            devices=1,
            default_root_dir=scratch,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        with interruptible():
            engine.fit(model=model, train_dataloaders=DataLoader(Stream(), batch_size=None))


def _patchcore_class() -> Any:
    with quiet():
        from anomalib.models import Patchcore
    import torch

    class StreamedPatchcore(Patchcore):
        """Patchcore whose training steps hand the batch on and keep nothing in memory."""

        fetched: deque[Batch]
        consume: Callable[[Batch], None]

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            self.consume(self.fetched.popleft())
            return torch.tensor(0.0, requires_grad=True, device=self.device)

        def fit(self) -> None:
            """The coreset is picked by the caller, who knows the transform."""

    return StreamedPatchcore


def _network(patchcore_model: nn.Module) -> nn.Module:
    """Pixels to patch embeddings as anomalib computes them, channels last."""
    from torch import nn

    class PatchNetwork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patchcore = patchcore_model

        def forward(self, images: Any) -> Any:
            model: Any = self.patchcore
            features = model.feature_extractor(images)
            pooled = {layer: model.feature_pooler(value) for layer, value in features.items()}
            return model.generate_embedding(pooled).permute(0, 2, 3, 1)

    return PatchNetwork().eval()


Normalization = tuple[Sequence[float], Sequence[float]]
"""Mean and standard deviation of the pixels a network was trained on, by channel."""


def side_by_side(
    networks: Sequence[nn.Module], normalizations: Sequence[Normalization]
) -> nn.Module:
    """Images, normalized for the first network, to the embeddings of all, one after another.

    Each network's embedding of a patch has length 1; the patch grid is the first one's.
    """
    import torch
    from torch import nn
    from torch.nn import functional

    first_mean, first_std = (torch.tensor(values) for values in normalizations[0])

    class SideBySide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.networks = nn.ModuleList(networks)

        def forward(self, images: Any) -> Any:
            found: list[Any] = []
            for network, normalization in zip(self.networks, normalizations, strict=True):
                embeddings = functional.normalize(
                    network(renormalized(images, *normalization)), dim=-1
                )
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

    def renormalized(images: Any, mean: Sequence[float], std: Sequence[float]) -> Any:
        if (mean, std) == tuple(normalizations[0]):
            return images
        scale = first_std / torch.tensor(std)
        offset = (first_mean - torch.tensor(mean)) / torch.tensor(std)
        return images * scale.reshape(1, 3, 1, 1).to(images) + offset.reshape(1, 3, 1, 1).to(images)

    return SideBySide().eval()
