"""Everything a user can choose about a training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from pgdefect.core.distance import Precision, metric_named
from pgdefect.core.errors import UsageError
from pgdefect.core.thresholds import DEFAULT_FALSE_REJECT_RATE
from pgdefect.core.wording import option
from pgdefect.core.words import check_word
from pgdefect.vision.efficient_ad.efficient_ad_files import ModelSize
from pgdefect.vision.images.preprocess import MAX_SIZE, MIN_LOCAL_CONTRAST
from pgdefect.vision.networks.backbone import BACKBONES, DEFAULT_BACKBONE
from pgdefect.vision.networks.extractor import BATCH_SIZE
from pgdefect.vision.patchcore.transform import DEFAULT_PCA_DIM

DEFAULT_LOCAL_CONTRAST = 0.1
DEFAULT_WHITEN = 0.25
LONG = 4
"""Times as long as it is wide, from which on an image is a strip: at the area of a square image its
shorter side would be less than half of the square's, and what is on it too small to be seen."""
DEFAULT_MAX_VECTORS = 20_000
"""More made detectors of magnetic tiles slower and not better (docs/accuracy.md)."""
DEFAULT_WORST_SHARE = 0.005
"""Five patches of 256 x 256 pixels: steadier than the worst one alone (docs/accuracy.md)."""


class Options(Protocol):
    """What a user can choose about the training of a kind: a dataclass."""

    def recorded(self) -> dict[str, Any]:
        """The options as they are stored with the detector; of a file only its name."""


@dataclass(frozen=True)
class TrainOptions:
    """Everything a user can choose about a PatchCore training; sizes are `(height, width)`.

    layer_weights, whiten and worst_share: None takes what serves best with the rest, which
    `chosen_layer_weights`, `chosen_whiten` and `chosen_worst_share` tell.
    """

    backbone: str = DEFAULT_BACKBONE
    layers: tuple[str, ...] = ()
    layer_weights: Mapping[str, float] | None = None
    weights: Path | None = None
    image_size: tuple[int, int] = (256, 256)
    center_crop: tuple[int, int] | None = None
    resize: Literal["keep", "stretch"] = "keep"
    local_contrast: float | None = DEFAULT_LOCAL_CONTRAST
    coreset_ratio: float = 0.1
    max_vectors: int | None = DEFAULT_MAX_VECTORS
    num_neighbors: int = 1
    worst_share: float | None = None
    holdout: float = 1.0
    false_reject_rate: float = DEFAULT_FALSE_REJECT_RATE
    leave_out_outliers: bool = False
    transform: Literal["centered", "unit", "none"] = "centered"
    pca_dim: int | None = DEFAULT_PCA_DIM
    whiten: float | None = None
    metric: str = "cosine"
    precision: Precision = "half"
    max_patches: int | None = None
    seed: int = 0
    batch_size: int = BATCH_SIZE
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_word("transform", self.transform, ("centered", "unit", "none"))
        check_word("precision", self.precision, ("half", "single"))
        check_word("resize", self.resize, ("keep", "stretch"))
        if not 0.0 < self.coreset_ratio <= 1.0:
            raise UsageError(
                f"{option('coreset_ratio')} must be above 0 and at most 1, not {self.coreset_ratio}"
            )
        _check_rates(self.holdout, self.false_reject_rate)
        if "+" in self.backbone and (self.layers or self.weights):
            raise UsageError(
                f"each backbone of an ensemble ({self.backbone}) has its own layers and weights: "
                f"leave out {option('layers')} and {option('weights')}"
            )
        self._check_layer_weights()
        if self.num_neighbors < 1:
            raise UsageError(
                f"{option('num_neighbors')} must be at least 1, not {self.num_neighbors}"
            )
        if not 0.0 <= self.chosen_worst_share <= 1.0:
            raise UsageError(
                f"{option('worst_share')} must lie between 0 and 1, not {self.worst_share}"
            )
        if self.worst_share and self.num_neighbors > 1:
            raise UsageError(
                f"{option('worst_share')} averages the worst patches and {option('num_neighbors')} "
                "re-weights the worst "
                "one: choose one of them"
            )
        if self.max_vectors is not None and self.max_vectors < 1:
            raise UsageError(
                f"{option('max_vectors')} must be at least 1, or 0 for no limit, not "
                f"{self.max_vectors}"
            )
        if self.max_patches is not None and self.max_patches < 1:
            raise UsageError(f"{option('max_patches')} must be at least 1, not {self.max_patches}")
        if self.batch_size < 1:
            raise UsageError(f"{option('batch_size')} must be at least 1, not {self.batch_size}")
        _check_seed(self.seed)
        if self.pca_dim is not None and self.pca_dim < 1:
            raise UsageError(
                f"{option('pca_dim')} must be at least 1, or 0 to keep all, not {self.pca_dim}"
            )
        if not 0.0 <= self.chosen_whiten <= 1.0:
            raise UsageError(f"{option('whiten')} must lie between 0 and 1, not {self.whiten}")
        _check_sizes(self.image_size, self.center_crop)
        if self.resize == "keep" and self.center_crop is not None:
            raise UsageError(
                f"{option('center_crop')} cuts out of images of one size: use it with "
                f"{option('resize', 'stretch')}"
            )
        if self.local_contrast is not None and not (
            MIN_LOCAL_CONTRAST <= self.local_contrast <= 1.0
        ):
            raise UsageError(
                f"{option('local_contrast')} must be from {MIN_LOCAL_CONTRAST} to 1, or 0 to leave "
                "it out, "
                f"not {self.local_contrast}"
            )
        if metric_named(self.metric).directions_only and self.transform == "none":
            raise UsageError(
                f"{self.metric} distance compares directions: use "
                f"{option('transform', 'centered')} (the default) or unit with it, or "
                f"{option('metric', 'l2')} with {option('transform', 'none')}"
            )

    @property
    def chosen_layer_weights(self) -> Mapping[str, float]:
        """What was asked for; else the backbone's own, for its own layers and images with local
        contrast, where the transform can carry weights.
        """
        if self.layer_weights is not None:
            return self.layer_weights
        backbone = BACKBONES.get(self.backbone)
        if backbone is None or self.transform != "centered" or self.local_contrast is None:
            return {}
        its_own = not self.layers or set(self.layers) == set(backbone.layers)
        return dict(backbone.layer_weights) if its_own else {}

    def least_side(self, sizes: Iterable[tuple[int, int]]) -> int | None:
        """What the shorter side of strips is at least resized to, if there are any.

        Args:
            sizes: `(height, width)` of the category's images.
        """
        if self.resize != "keep" or all(max(size) <= LONG * min(size) for size in sizes):
            return None
        return min(self.image_size) // 2

    @property
    def chosen_whiten(self) -> float:
        """What was asked for; else none without local contrast, where it and layer weights cost
        accuracy if images are few and exposures differ (docs/accuracy.md).
        """
        if self.whiten is not None:
            return self.whiten
        return 0.0 if self.local_contrast is None else DEFAULT_WHITEN

    @property
    def chosen_worst_share(self) -> float:
        """What was asked for; else a mean over few patches, but the worst one alone where
        PatchCore's scores are wanted as published: re-weighted, or with no transform.
        """
        if self.worst_share is not None:
            return self.worst_share
        published = self.num_neighbors > 1 or self.transform == "none"
        return 0.0 if published else DEFAULT_WORST_SHARE

    def _check_layer_weights(self) -> None:
        if not self.layer_weights:
            return
        for layer, weight in self.layer_weights.items():
            if not 0.0 < weight < math.inf:
                raise UsageError(
                    f"{option('layer_weights')} must be above 0, and {layer}'s is {weight:g}; "
                    "leave a layer "
                    f"out with {option('layers')}"
                )
        if "+" in self.backbone:
            raise UsageError(
                f"the layers of an ensemble ({self.backbone}) have one weight: leave out "
                f"{option('layer_weights')}"
            )
        if self.transform != "centered":
            raise UsageError(
                f"{option('layer_weights')} are part of {option('transform', 'centered')}: use it "
                "with them"
            )

    def recorded(self) -> dict[str, Any]:
        """The options as they are stored with the detector; of a file only its name."""
        values = asdict(self)
        values["layer_weights"] = dict(self.chosen_layer_weights)
        values["whiten"] = self.chosen_whiten
        values["worst_share"] = self.chosen_worst_share
        values["weights"] = None if self.weights is None else self.weights.name
        return values


@dataclass(frozen=True)
class EfficientAdOptions:
    """Everything a user can choose about an EfficientAD training; sizes are `(height, width)`.

    max_steps and learning_rate are as published.
    """

    model_size: ModelSize = "small"
    max_steps: int = 70_000
    learning_rate: float = 1e-4
    teacher_weights: Path | None = None
    imagenette_dir: Path | None = None
    image_size: tuple[int, int] = (256, 256)
    center_crop: tuple[int, int] | None = None
    holdout: float = 0.2
    false_reject_rate: float = DEFAULT_FALSE_REJECT_RATE
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_word("model_size", self.model_size, ("small", "medium"))
        if self.max_steps < 2:
            raise UsageError(f"{option('max_steps')} must be at least 2, not {self.max_steps}")
        if not 0.0 < self.learning_rate < 1.0:
            raise UsageError(
                f"{option('learning_rate')} must lie between 0 and 1, not {self.learning_rate}"
            )
        _check_rates(self.holdout, self.false_reject_rate)
        if self.holdout == 1.0:
            raise UsageError(
                f"{option('holdout', 1)} would leave EfficientAD no image to learn from"
            )
        _check_seed(self.seed)
        _check_sizes(self.image_size, self.center_crop)

    def recorded(self) -> dict[str, Any]:
        """The options as they are stored with the detector; of files only their names."""
        values = asdict(self)
        for name in ("teacher_weights", "imagenette_dir"):
            values[name] = None if values[name] is None else values[name].name
        return values


def _check_rates(holdout: float, false_reject_rate: float) -> None:
    if not 0.0 < holdout <= 1.0:
        raise UsageError(f"{option('holdout')} must be above 0 and at most 1, not {holdout}")
    if not 0.0 < false_reject_rate < 1.0:
        raise UsageError(
            f"{option('false_reject_rate')} must lie between 0 and 1, not {false_reject_rate}"
        )


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise UsageError(f"{option('seed')} must be 0 or more, not {seed}")


def _check_sizes(image_size: tuple[int, int], center_crop: tuple[int, int] | None) -> None:
    for name, size in (("image_size", image_size), ("center_crop", center_crop)):
        if size is not None and max(size) > MAX_SIZE:
            raise UsageError(f"{option(name)} must be at most {MAX_SIZE} a side, not {max(size)}")
