"""The cells of the notebook ``tour.ipynb``, which ``python -m docs tour`` writes with outputs."""

from __future__ import annotations

CELLS: list[tuple[str, str]] = [
    (
        "markdown",
        """
# A tour of pgdefect in Python

From a folder of photographs to verdicts, similar defects and figures, over rows in Postgres.
[python.md](python.md) explains each step. The photographs are generated: `tests/synthetic.py`
writes a folder `parts` of brushed metal plates, 16 normal ones to learn from and 13 to judge.
""",
    ),
    (
        "code",
        """
import pgdefect

project = pgdefect.open()
report = project.ingest("parts", "parts")
print(report.added + report.unchanged, "images,", len(report.failed), "unreadable")
""",
    ),
    ("markdown", "Learn what is normal. Only normal images are needed."),
    (
        "code",
        """
trained = project.train("parts", image_size=128, seed=2)
print(f"{trained.bank_vectors} vectors from {trained.training_images} images")
""",
    ),
    ("markdown", "Judge one image. The result shows itself: the image, and where it is anomalous."),
    ("code", 'project.inspect("parts/test/stain/000.png", "parts")'),
    (
        "markdown",
        """
A camera's frame is an array. Nothing is stored of it, and the detector stays loaded: a second call
takes milliseconds.
""",
    ),
    (
        "code",
        """
import numpy as np
from PIL import Image

frame = np.asarray(Image.open("parts/test/chip/000.png").convert("RGB"))
result = project.inspect(frame, "parts", name="camera 3")
print(result)
print("regions:", [region.box for region in result.regions])
""",
    ),
    ("markdown", "All test images, as a table."),
    (
        "code",
        """
found = project.inspect_all(["parts/test"], "parts")
found.to_pandas()[["verdict", "score", "x", "y", "width", "height", "known_label"]].round(3)
""",
    ),
    ("markdown", "Which stored images show the same? A contact sheet."),
    ("code", 'project.search("parts/test/chip/000.png", category="parts", k=4)'),
    ("markdown", "How good is the detector?"),
    (
        "code",
        """
measured = project.evaluate("parts", bootstrap=200)
measured
""",
    ),
    ("markdown", "And all of it is SQL."),
    (
        "code",
        """
project.sql(
    "SELECT verdict, count(*) AS images FROM defect.inspections WHERE category = %s "
    "GROUP BY 1 ORDER BY 1",
    ["parts"],
)
""",
    ),
    ("code", "project.close()"),
]
