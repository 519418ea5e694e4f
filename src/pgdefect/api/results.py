"""What comes back: judgements, neighbors and evaluations, over NumPy, with pictures of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pgdefect.api.tables import Table, frame, html_table
from pgdefect.core.boxes import Box
from pgdefect.core.errors import ImageError
from pgdefect.core.json_shapes import inspection_json, neighbor_json
from pgdefect.core.types import AnomalousRegion, Label, Neighbor, Vote
from pgdefect.core.types import Inspection as Judgement
from pgdefect.pictures.contact_sheet import inspection_panel
from pgdefect.pictures.render import overlay
from pgdefect.usecases.common.picture_files import ground_truth
from pgdefect.usecases.evaluate.evaluate import Evaluation as Measured
from pgdefect.usecases.pictures import search_sheet, short_path
from pgdefect.usecases.search.search import SearchReport
from pgdefect.vision.images.image import load_image
from pgdefect.vision.images.preprocess import Preprocessing

if TYPE_CHECKING:
    import pandas
    from PIL.Image import Image as PillowImage

Rgb = NDArray[np.uint8]
Float32 = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Inspection:
    """A detector's judgement of one image.

    In a notebook it shows itself: the picture beside its anomaly map.
    """

    judgement: Judgement = field(repr=False)
    preprocessing: Preprocessing = field(repr=False)
    pixels: Rgb | None = field(default=None, repr=False, compare=False)
    """Of an image that was in memory; files are read again when they are to be shown."""

    @property
    def path(self) -> str:
        """The file, or the name of an image in memory."""
        return self.judgement.path

    @property
    def category(self) -> str:
        return self.judgement.category

    @property
    def verdict(self) -> Label:
        return self.judgement.verdict

    @property
    def is_anomalous(self) -> bool:
        return self.judgement.is_anomalous

    @property
    def score(self) -> float:
        """The normalized score, 0 to 1, on one scale for all detectors: anomalous above 0.5."""
        return self.judgement.normalized_score

    @property
    def raw_score(self) -> float:
        """In the unit of the detector's distances; anomalous above `threshold`."""
        return self.judgement.raw_score

    @property
    def threshold(self) -> float:
        return self.judgement.threshold

    @property
    def patch_scores(self) -> Float32:
        """float32 `(rows, cols)`: of each patch, in the unit of `raw_score`."""
        return self.judgement.scores.distances

    @property
    def worst_box(self) -> Box:
        """`(x, y, width, height)` in pixels of the patch that is least normal."""
        return self.judgement.worst_box

    @property
    def regions(self) -> tuple[AnomalousRegion, ...]:
        """Where it departs from normal, the worst first; empty for a normal image."""
        return self.judgement.defect.regions if self.judgement.defect else ()

    @property
    def vote(self) -> Vote | None:
        """What the most similar known defects are called: a guess, where there is ground."""
        return self.judgement.vote

    @property
    def known_label(self) -> Label | None:
        """Of a stored image: the newest review's, else the data set's."""
        return self.judgement.known_label

    @property
    def image_id(self) -> int | None:
        """Of the stored image; None where nothing was stored."""
        return self.judgement.image_id

    @property
    def inspection_id(self) -> int | None:
        return self.judgement.inspection_id

    @property
    def image(self) -> Rgb:
        """uint8 `(height, width, 3)`. Raises ImageError where the file cannot be read any more."""
        if self.pixels is not None:
            return self.pixels
        return load_image(self.path, self.judgement.gray_scale)

    @property
    def anomaly_map(self) -> Float32:
        """float32 `(height, width)`: the patch scores laid over the image."""
        return self._map_over(self.image)

    def overlay(self) -> Rgb:
        """uint8 `(height, width, 3)`: the image in gray under its anomaly map."""
        image = self.image
        return overlay(
            image,
            self._map_over(image),
            threshold=self.threshold,
            worst_box=self.worst_box if self.is_anomalous else None,
        )

    def panel(self) -> PillowImage:
        """Picture, anomaly map and, where known, ground truth side by side."""
        image = self.image
        size = (image.shape[0], image.shape[1])
        return inspection_panel(
            image,
            self._map_over(image),
            ground_truth(self.judgement.mask_path, size, [], self.path),
            title=os.path.basename(self.path),
            threshold=self.threshold,
            score=self.raw_score,
            verdict=self.verdict,
            worst_box=self.worst_box,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values, as ``pgdefect inspect`` prints them; the map is left out."""
        return inspection_json(self.judgement)

    def _map_over(self, image: Rgb) -> Float32:
        return self.preprocessing.map_to_original(
            self.patch_scores, (image.shape[0], image.shape[1])
        )

    def _repr_png_(self) -> bytes | None:
        try:
            return png(self.panel())
        except ImageError:
            return None  # the text is shown instead

    def __repr__(self) -> str:
        return (
            f"Inspection({self.verdict}, score {self.score:.3f}, raw {self.raw_score:.4g}, "
            f"threshold {self.threshold:.4g}, {short_path(self.path)!r})"
        )


@dataclass(frozen=True, repr=False, eq=False)
class Inspections(Table[Inspection]):
    """Judgements in the order of the files.

    Attributes:
        failed: path and reason of files that could not be read.
        problems: lines about what a folder holds besides images.
    """

    failed: tuple[tuple[str, str], ...] = ()
    problems: tuple[str, ...] = ()


def inspection_columns(inspection: Inspection) -> Mapping[str, Any]:
    """A judgement's numbers by name, for a table."""
    box = inspection.worst_box
    return {
        "path": inspection.path,
        "verdict": inspection.verdict,
        "score": inspection.score,
        "raw_score": inspection.raw_score,
        "threshold": inspection.threshold,
        **{name: box[n] for n, name in enumerate(("x", "y", "width", "height"))},
        "probably": inspection.vote.defect_type if inspection.vote else None,
        "known_label": inspection.known_label,
        "image_id": inspection.image_id,
    }


@dataclass(frozen=True, eq=False)
class SearchResult(Sequence[Neighbor]):
    """The stored images most like a query, nearest first; a sequence of neighbors.

    In a notebook it shows itself: a contact sheet.
    """

    report: SearchReport = field(repr=False)
    pixels: Rgb | None = field(default=None, repr=False, compare=False)

    @property
    def by(self) -> Literal["picture", "defect", "region"]:
        """What was compared."""
        return self.report.by

    @property
    def inspection(self) -> Inspection | None:
        """The judgement of the query; None where a stored region was looked for."""
        found, preprocessing = self.report.inspection, self.report.preprocessing
        if found is None or preprocessing is None:
            return None
        return Inspection(found, preprocessing, self.pixels)

    @property
    def neighbors(self) -> tuple[Neighbor, ...]:
        return self.report.neighbors

    @property
    def vote(self) -> Vote | None:
        return self.report.vote

    def contact_sheet(self) -> PillowImage:
        """Query, anomaly map, neighbors and what matched, in one picture."""
        return search_sheet(self.report, self.pixels)

    def to_pandas(self) -> pandas.DataFrame:
        """One row for each neighbor. Raises MissingExtra without pandas."""
        return frame([_neighbor_columns(one) for one in self.neighbors])

    def to_json(self) -> dict[str, Any]:
        """Plain values, as ``pgdefect search`` prints them."""
        return self.report.to_json()

    def __getitem__(self, index: Any) -> Any:
        return self.neighbors[index]

    def __len__(self) -> int:
        return len(self.neighbors)

    def _repr_png_(self) -> bytes | None:
        try:
            return png(self.contact_sheet())
        except ImageError:
            return None

    def __repr__(self) -> str:
        return f"SearchResult({len(self)} images like {self.report.query!r}, by {self.by})"


def _neighbor_columns(neighbor: Neighbor) -> dict[str, Any]:
    row = neighbor_json(neighbor)
    region = row.pop("region")
    return {**row, "region_box": region and tuple(region["box"])}


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a detector is worth on labeled images."""

    measured: Measured = field(repr=False)

    @property
    def category(self) -> str:
        return self.measured.category

    @property
    def figures(self) -> Mapping[str, float | None]:
        """By name (``image_auroc``, ``aupro``, …); None where `notes` say why there is none."""
        return self.measured.figures

    @property
    def intervals(self) -> Mapping[str, tuple[float, float]]:
        """The 95 % intervals of figures that have one."""
        return self.measured.intervals

    @property
    def notes(self) -> tuple[str, ...]:
        return self.measured.notes

    @property
    def failed(self) -> tuple[tuple[str, str], ...]:
        """Path and reason of images that were left out."""
        return self.measured.failed

    def misses(self) -> tuple[list[str], list[str]]:
        """Paths of false rejects and of escapes, the worst first."""
        rejects, escapes = self.measured.misses()
        return [j.image.path for j in rejects], [j.image.path for j in escapes]

    def to_pandas(self) -> pandas.DataFrame:
        """One row for each figure, with its interval. Raises MissingExtra without pandas."""
        return frame(self._rows(), ("figure", "value", "low", "high"))

    def to_json(self) -> dict[str, Any]:
        """Plain values, as ``pgdefect evaluate`` prints them."""
        return self.measured.to_json()

    def _rows(self) -> list[dict[str, Any]]:
        nowhere = (None, None)
        return [
            {
                "figure": name,
                "value": value,
                "low": self.intervals.get(name, nowhere)[0],
                "high": self.intervals.get(name, nowhere)[1],
            }
            for name, value in self.figures.items()
        ]

    def _repr_html_(self) -> str:
        return html_table(self._rows())

    def __repr__(self) -> str:
        auroc = self.figures.get("image_auroc")
        shown = "none" if auroc is None else f"{auroc:.3f}"
        return f"Evaluation({self.category!r}, image AUROC {shown})"


def png(picture: PillowImage) -> bytes:
    """A picture as the bytes of a PNG file."""
    stream = BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()
