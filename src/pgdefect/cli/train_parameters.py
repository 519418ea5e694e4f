"""The parameters of `pgdefect train`: their types, help and how they are written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pgdefect.core.detector_kinds import KINDS
from pgdefect.core.words import either

Categories = Annotated[
    list[str] | None, typer.Argument(metavar="CATEGORY...", help="Categories to train.")
]
AllCategories = Annotated[bool, typer.Option("--all", help="Train every category.")]
Kind = Annotated[str, typer.Option(help=f"{either(list(KINDS))}.")]
Backbone = Annotated[
    str,
    typer.Option(
        help="A name of `pgdefect backbones`, or any timm network; several joined by + are an "
        "ensemble."
    ),
]
Layers = Annotated[
    str | None, typer.Option(help="Layers to tap, separated by commas; default by backbone.")
]
LayerWeights = Annotated[
    str | None,
    typer.Option(
        metavar="LAYER=WEIGHT,...",
        help="How much layers count in a distance, beside 1: their features are multiplied by "
        "this. `pgdefect backbones` lists the defaults, for its own layers and local contrast.",
    ),
]
Weights = Annotated[
    Path | None, typer.Option(help="A state dict to use instead of the backbone's own.")
]
ImageSize = Annotated[
    str,
    typer.Option(
        metavar="SIZE|HEIGHTxWIDTH",
        help="Images are resized to this: SIZE to the area of a square, HEIGHTxWIDTH exactly.",
    ),
]
Resize = Annotated[
    str | None,
    typer.Option(help="keep (the aspect ratio) or stretch; stretch with HEIGHTxWIDTH or a crop."),
]
LocalContrast = Annotated[
    float,
    typer.Option(
        help="Even out light and exposure: reach as a share of the image's side; 0 for none."
    ),
]
CenterCrop = Annotated[
    str | None,
    typer.Option(metavar="SIZE|HEIGHTxWIDTH", help="Then this is cut out of the middle."),
]
CoresetRatio = Annotated[
    float, typer.Option(help="Share of the patches that becomes the memory bank.")
]
MaxVectors = Annotated[int, typer.Option(help="The memory bank's, at most; 0 for no limit.")]
NumNeighbors = Annotated[int, typer.Option(help="PatchCore's score re-weighting; 1 leaves it out.")]
WorstShare = Annotated[
    float | None,
    typer.Option(
        help="The image score is the mean over this share of the patches, the worst ones; 0 "
        "takes the worst alone. 0.005, or 0 with --num-neighbors or --transform none."
    ),
]
Holdout = Annotated[
    float | None,
    typer.Option(
        help="Share of the normal images that sets the threshold. PatchCore learns from them "
        "too and compares each with other parts alone: all, up to 200 images. "
        "EfficientAD does not learn from them: 0.2."
    ),
]
FalseRejectRate = Annotated[
    float, typer.Option(help="Share of normal images the threshold may reject.")
]
LeaveOutOutliers = Annotated[
    bool,
    typer.Option(
        "--leave-out-outliers",
        help="Learn nothing from normal images that score far outside the rest, as the "
        "training before this one named them, or this one does; not from those reviewed "
        "as normal, which stay.",
    ),
]
Transform = Annotated[str, typer.Option(help="centered, unit or none.")]
PcaDim = Annotated[
    int, typer.Option(help="Dimensions kept by the centered transform; 0 keeps all.")
]
Whiten = Annotated[
    float | None,
    typer.Option(
        help="How far the centered transform evens out its axes: 0 not at all, 1 to the same "
        "variance. 0.25, or 0 with --local-contrast 0."
    ),
]
Metric = Annotated[str, typer.Option(help="cosine or l2.")]
Precision = Annotated[str, typer.Option(help="half or single: what is stored.")]
MaxPatches = Annotated[
    int | None,
    typer.Option(help="Pick the coreset from this many patches at most, drawn at random."),
]
Seed = Annotated[int, typer.Option(help="Decides hold-out, coreset, first weights.")]
BatchSize = Annotated[int, typer.Option(help="Images per extraction step.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
ModelSize = Annotated[str, typer.Option(help="EfficientAD: small or medium networks.")]
MaxSteps = Annotated[
    int,
    typer.Option(
        help="EfficientAD: training steps. The published 70,000 are for a GPU; two CPU cores "
        "take 1.8 s for each, a day and a half in all."
    ),
]
LearningRate = Annotated[float, typer.Option(help="EfficientAD: Adam's.")]
TeacherWeights = Annotated[
    Path | None,
    typer.Option(help="EfficientAD: pretrained_teacher_SIZE.pth; default: its download."),
]
ImagenetteDir = Annotated[
    Path | None,
    typer.Option(help="EfficientAD: photographs of all kinds, in folders; default: download."),
]
