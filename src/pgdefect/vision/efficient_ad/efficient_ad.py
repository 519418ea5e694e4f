"""Learning *normal* with anomalib's EfficientAd (Batzner et al., arXiv 2303.14535).

A pretrained teacher describes every patch of an image; a student and an autoencoder learn
to foretell these descriptions on normal images, and fail on anything else. anomalib defines
the networks, their losses and the training steps. Two things are done otherwise: images come
prepared once, from a file that is mapped into memory, and the quantiles that bring both
anomaly maps to one scale are taken once, after the last step.

The teacher alone is the extractor: image embeddings are means of its raw features. They are
not normalized by the channels' mean and deviation on a category's training images, which
are the detector's, so that the categories share one extractor.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from pgdefect.core.errors import ImageError, TrainingError, UsageError, WeightsError
from pgdefect.core.file_claims import scratch_folder
from pgdefect.core.types import ExtractorArtifact, ExtractorSpec, NetworkArtifact
from pgdefect.core.wording import option
from pgdefect.vision.efficient_ad.efficient_ad_files import (
    ModelSize,
    downloaded_teacher,
    teacher_file,
)
from pgdefect.vision.efficient_ad.efficient_ad_networks import (
    check_export,
    outputs,
    scoring_network,
    teacher_network,
)
from pgdefect.vision.images.image_cache import ImageCache
from pgdefect.vision.images.preprocess import Preprocessing
from pgdefect.vision.networks.backbone import state_sha256
from pgdefect.vision.networks.optional_imports import require
from pgdefect.vision.networks.torch_file import read_state_dict
from pgdefect.vision.networks.torch_tools import export_onnx, interruptible, quiet

__all__ = [
    "EfficientAd",
    "build",
    "input_preprocessing",
]

StepProgress = Callable[[str, int, int], None]

MIN_INPUT = 256
"""The autoencoder's last convolution needs 8 × 8 cells of 32 pixels."""


def input_preprocessing(
    image_size: tuple[int, int], center_crop: tuple[int, int] | None
) -> Preprocessing:
    """Pixels from 0 to 1: the networks normalize by ImageNet's mean and deviation themselves.

    Raises:
        UsageError: for an input that the networks are too deep for.
    """
    preprocessing = Preprocessing(
        image_size=image_size, center_crop=center_crop, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
    )
    if min(preprocessing.input_size) < MIN_INPUT:
        height, width = preprocessing.input_size
        raise UsageError(
            f"EfficientAD needs images of at least {MIN_INPUT}x{MIN_INPUT}, not {height}x{width}; "
            f"give {option('image_size', MIN_INPUT)} or more"
        )
    return preprocessing


@dataclass(frozen=True)
class EfficientAd:
    """anomalib's EfficientAd with the teacher's weights loaded."""

    spec: ExtractorSpec
    lightning_model: Any

    def fit(
        self,
        images: ImageCache,
        train: Sequence[int],
        scale: Sequence[int],
        *,
        imagenette: Path,
        max_steps: int,
        learning_rate: float,
        seed: int,
        device: str,
        progress: StepProgress,
    ) -> dict[str, float]:
        """Train on the images `train` of the cache; normalize the maps on those in `scale`.

        Gives the losses of the last step, and the quantiles.

        Raises:
            TrainingError: the images are too much alike for a teacher of such weights, or
            the learning rate is too high;
            ImageError: an image of `imagenette` cannot be read.
        """
        torch = require("torch")
        from anomalib.engine import Engine

        model = self.lightning_model
        model.lr = learning_rate
        model.imagenet_dir = imagenette
        model.report = lambda step: progress("steps", step, max_steps)
        data = _data_module(images, train)
        with (
            torch.random.fork_rng(),
            scratch_folder(Path(tempfile.gettempdir()), "pgdefect-engine-") as scratch,
            quiet(),
            _reporting(progress),
        ):
            torch.manual_seed(seed)
            # Student and autoencoder began from other random numbers when the model was built.
            for network in (model.model.student, model.model.ae):
                network.apply(lambda m: getattr(m, "reset_parameters", lambda: None)())
            engine = Engine(
                accelerator="gpu" if device.startswith("cuda") else "cpu",
                devices=1,
                default_root_dir=scratch,
                logger=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                max_steps=max_steps,
                max_epochs=-1,
                limit_val_batches=0,
                callbacks=[_no_checkpoints()],
            )
            with interruptible():
                engine.fit(model=model, datamodule=data)
            model.eval().to(device)
            model.model.quantiles.update(model.map_norm_quantiles(_loader(images, scale)))
            model.to("cpu")
        _check_finite(model.losses.values(), "the loss is not a number any more")
        quantiles = {name: float(value.detach()) for name, value in model.model.quantiles.items()}
        spans = [quantiles[f"qb_{kind}"] - quantiles[f"qa_{kind}"] for kind in ("st", "ae")]
        _check_finite(spans, "the anomaly maps are not numbers")
        if min(spans) <= 0.0:
            raise TrainingError(
                "the held-out images have anomaly maps of one value everywhere, which cannot be "
                "normalized; are the images all black?"
            )
        return {**model.losses, **quantiles}

    def export_extractor(self) -> ExtractorArtifact:
        """The teacher as ONNX, its features on the whole input's grid: zero at the border.

        Raises:
            TrainingError: where ONNX and torch disagree.
        """
        from pgdefect.vision.networks.extractor import Extractor

        network = teacher_network(self.lightning_model.model)
        example = self._example()
        expected = outputs(network, example)
        _, rows, cols, dim = expected[0].shape
        onnx = export_onnx(network, example, ["patch_embeddings"])
        artifact = ExtractorArtifact(self.spec, dim, rows, cols, onnx)
        check_export(self.spec.backbone, expected, [Extractor(artifact)(example.numpy())])
        return artifact

    def export(self) -> NetworkArtifact:
        """The trained network as ONNX.

        Raises:
            TrainingError: where ONNX and torch disagree.
        """
        from pgdefect.vision.networks.extractor import compile_graph

        network = scoring_network(self.lightning_model.model)
        example = self._example()
        names = ["image_scores", "pixels", "anomaly_maps", "mean_features"]
        onnx = export_onnx(network, example, names)
        found = [np.array(value) for value in compile_graph(onnx)(example.numpy()).to_tuple()]
        scores, _, maps, means = outputs(network, example)
        check_export("EfficientAD", [scores, maps, means], [found[0], found[2], found[3]])
        return NetworkArtifact(onnx)

    def _example(self) -> Any:
        torch = require("torch")
        height, width = Preprocessing.from_dict(self.spec.preprocessing).input_size
        generator = torch.Generator().manual_seed(0)
        return torch.rand(2, 3, height, width, generator=generator)


def build(
    size: ModelSize, preprocessing: Preprocessing, teacher_weights: Path | None
) -> EfficientAd:
    """Build anomalib's EfficientAd and load the teacher's weights, from a file or its download.

    Raises:
        MissingExtra: the extra ``train`` is not installed.
        WeightsError: weights that do not fit or cannot be had.
    """
    require("anomalib")
    model = _model_class()(
        model_size=size,
        pre_processor=False,
        post_processor=False,
        evaluator=False,
        visualizer=False,
    )
    teacher = model.model.teacher
    if teacher_weights is None:
        source, path = "anomalib's download", downloaded_teacher(size)
    else:
        source, path = f"file {teacher_weights.name}", teacher_weights
    state, wanted = read_state_dict(path), teacher.state_dict()
    wrong = [n for n in wanted if n not in state or state[n].shape != wanted[n].shape]
    if wrong or len(state) != len(wanted):
        other = "small" if size == "medium" else "medium"
        name = wrong[0] if wrong else next(n for n in state if n not in wanted)
        raise WeightsError(
            f"{path} does not hold the weights of EfficientAD's {size} teacher: {name!r} has shape "
            f"{_shape(state, name)}, not {_shape(wanted, name)}. Give anomalib's "
            f"{teacher_file(size)} with {option('teacher_weights')}, or try "
            f"{option('model_size', other)}"
        )
    if not all(bool(value.isfinite().all()) for value in state.values()):
        raise WeightsError(f"{path} holds numbers that are not finite; it is damaged")
    teacher.load_state_dict({name: state[name] for name in wanted})
    spec = ExtractorSpec(
        f"efficient_ad_{size}_teacher",
        ("features",),
        preprocessing.to_dict(),
        source,
        state_sha256(teacher.state_dict()),
    )
    return EfficientAd(spec, model)


def _model_class() -> Any:
    with quiet():
        from anomalib.models import EfficientAd as AnomalibEfficientAd

    class StoredEfficientAd(AnomalibEfficientAd):
        """EfficientAd on weights and images that have been found before."""

        report: Callable[[int], None]
        losses: dict[str, float]

        def prepare_pretrained_model(self) -> None:
            """The teacher's weights are loaded when the model is built."""

        def prepare_imagenette_data(self, image_size: Any) -> None:
            super().prepare_imagenette_data(image_size)
            pictures: Any = self.imagenet_loader.dataset
            pictures.loader = _load_picture

        def configure_optimizers(self) -> Any:
            """The rate falls at 95 % of the steps, as published; anomalib counts epochs."""
            configured: Any = super().configure_optimizers()
            scheduler = {"scheduler": configured["lr_scheduler"], "interval": "step"}
            return {**configured, "lr_scheduler": scheduler}

        def on_train_start(self) -> None:
            super().on_train_start()
            std = self.model.mean_std["std"]
            if not bool((std.isfinite() & (std > 0)).all()):
                raise TrainingError(
                    "the teacher says the same of every patch of the training images; are the "
                    "images all black, or the weights not those of a trained teacher?"
                )

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            result = super().training_step(*args, **kwargs)
            self.report(self.global_step + 1)
            return result

        def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
            """Keep the last value; Lightning's log is not used."""
            self.losses[name] = float(value)

    StoredEfficientAd.losses = {}
    return StoredEfficientAd


def _load_picture(path: str) -> Any:
    from torchvision.datasets.folder import default_loader

    try:
        return default_loader(path)
    except OSError as error:
        raise ImageError(
            f"{path}: cannot be read ({error}); remove it from {option('imagenette_dir')}"
        ) from error


def _no_checkpoints() -> Any:
    from anomalib.callbacks import ModelCheckpoint

    return ModelCheckpoint(save_top_k=0)


def _loader(images: ImageCache, indices: Sequence[int], *, shuffle: bool = False) -> Any:
    """The cache's images one by one, as anomalib's batches."""
    import torch
    from anomalib.data import ImageBatch
    from torch.utils.data import DataLoader, Dataset

    class Images(Dataset[Any]):
        def __len__(self) -> int:
            return len(indices)

        def __getitem__(self, n: int) -> Any:
            return ImageBatch(
                image=torch.from_numpy(images[indices[n]])[None],
                gt_label=torch.zeros(1, dtype=torch.bool),
            )

    return DataLoader(Images(), batch_size=None, shuffle=shuffle)


def _data_module(images: ImageCache, train: Sequence[int]) -> Any:
    """What the model asks of its trainer's data."""
    from anomalib.data import AnomalibDataModule

    class Data(AnomalibDataModule):
        def setup(self, stage: str | None = None) -> None:
            """The images are prepared."""

        def _setup(self, _stage: str | None = None) -> None:
            """Asked for by the base class alone."""

        def train_dataloader(self) -> Any:
            return _loader(images, train, shuffle=True)

    return Data(train_batch_size=1, eval_batch_size=1, num_workers=0)


@contextmanager
def _reporting(progress: StepProgress) -> Iterator[None]:
    """Let progress take the place of the bars that anomalib draws itself."""
    from types import SimpleNamespace

    module: Any = import_module("anomalib.models.image.efficient_ad.lightning_model")

    def bar(loader: Any, *, desc: str, **_: Any) -> Iterator[Any]:
        stage = "teacher" if "teacher" in desc else "scale"
        for done, batch in enumerate(loader, start=1):
            yield batch
            progress(stage, done, len(loader))

    before = module.tqdm
    module.tqdm = SimpleNamespace(tqdm=bar)
    try:
        yield
    finally:
        module.tqdm = before


def _check_finite(values: Iterable[float], what: str) -> None:
    if not all(math.isfinite(value) for value in values):
        raise TrainingError(f"{what}; train again with a lower {option('learning_rate')}")


def _shape(state: Any, name: str) -> str:
    return str(tuple(state[name].shape)) if name in state else "none"
