"""The networks of EfficientAD as they are exported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pgdefect.core.errors import TrainingError
from pgdefect.vision.networks.optional_imports import require
from pgdefect.vision.networks.torch_tools import quiet

if TYPE_CHECKING:
    from torch import nn

__all__ = ["check_export", "outputs", "scoring_network", "teacher_network"]

BORDER = 4
"""Cells of the grid at each side that the networks, which do not pad, say nothing of."""
EXPORT_TOLERANCE = 1e-4


def teacher_network(model: Any) -> nn.Module:
    from torch import nn
    from torch.nn import functional

    class TeacherNetwork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.teacher = model.teacher

        def forward(self, images: Any) -> Any:
            features = functional.pad(self.teacher(images), (BORDER,) * 4)
            return features.permute(0, 2, 3, 1)

    return TeacherNetwork().eval()


def scoring_network(model: Any) -> nn.Module:
    """As anomalib's `EfficientAdModel.forward`, but normalized before the maps are resized.

    Scaling and drawing out commute; the maps on their own grid are what is stored.
    """
    from torch import nn
    from torch.nn import functional

    class ScoringNetwork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def scaled(self, squares: Any, kind: str) -> Any:
            on_grid = functional.pad(squares.mean(dim=1, keepdim=True), (BORDER,) * 4)
            low, high = (self.model.quantiles[f"q{end}_{kind}"] for end in "ab")
            return 0.1 * (on_grid - low) / (high - low)

        def forward(self, images: Any) -> Any:
            size, channels = images.shape[-2:], self.model.teacher_out_channels
            features = self.model.teacher(images)
            moments = self.model.mean_std
            normal = (features - moments["mean"]) / moments["std"]
            student = self.model.student(images)
            foretold = self.model.ae(images, size)
            anomaly_map = 0.5 * self.scaled(
                (normal - student[:, :channels]) ** 2, "st"
            ) + 0.5 * self.scaled((foretold - student[:, channels:]) ** 2, "ae")
            drawn = functional.interpolate(anomaly_map, size=size, mode="bilinear").flatten(1)
            return drawn.amax(1), drawn.argmax(1), anomaly_map[:, 0], features.mean(dim=(2, 3))

    return ScoringNetwork().eval()


def outputs(network: nn.Module, example: Any) -> list[NDArray[Any]]:
    torch = require("torch")
    with torch.no_grad(), quiet():
        result = network(example)
    return [value.numpy() for value in (result if isinstance(result, tuple) else (result,))]


def check_export(
    name: str, expected: Sequence[NDArray[Any]], found: Sequence[NDArray[Any]]
) -> None:
    for wanted, value in zip(expected, found, strict=True):
        error = float(np.linalg.norm(value - wanted) / np.linalg.norm(wanted))
        if not error <= EXPORT_TOLERANCE:
            raise TrainingError(
                f"the exported network of {name} differs from torch's by {error:.1e} of the norm, "
                f"more than {EXPORT_TOLERANCE:.0e}; train more steps"
            )
