"""What a detector's scores are worth. Scores are raw distances: larger is more anomalous.

=====================  ====================================================================
image AUROC            probability that an anomalous image scores above a normal one
average precision      area under precision–recall of the image scores, as a step function
image F1-max           the best F1 any one threshold reaches
pixel AUROC, F1-max    the same over pixels at the size of the original images
AUPRO                  mean overlap with the defects' connected regions, over false-positive
                       rates up to 0.3, divided by 0.3 (Bergmann et al., MVTec AD, 2021)
=====================  ====================================================================

The published figures are scikit-learn's (`figures`), which takes raw distances as they are;
torchmetrics' would squash scores outside 0..1 through a sigmoid. scikit-learn has no AUPRO
and is too slow for a thousand resamples, so `curves` computes all of them from counts, for
many resamples at once, and the tests hold the two against each other.
"""

from pgdefect.evaluation.bootstrap import (
    group_numbers,
    image_replicates,
    percentile_interval,
    pixel_replicates,
    resampled_weights,
)
from pgdefect.evaluation.figures import average_precision, f1_max, image_auroc
from pgdefect.evaluation.pixels import (
    FPR_LIMIT,
    ImagePixels,
    PixelCounts,
    PixelFigures,
    score_edges,
)

__all__ = [
    "FPR_LIMIT",
    "ImagePixels",
    "PixelCounts",
    "PixelFigures",
    "average_precision",
    "f1_max",
    "group_numbers",
    "image_auroc",
    "image_replicates",
    "percentile_interval",
    "pixel_replicates",
    "resampled_weights",
    "score_edges",
]
