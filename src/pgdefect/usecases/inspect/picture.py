"""Judge an image in memory; nothing is stored, and of files nothing is read."""

from __future__ import annotations

from dataclasses import replace

from pgdefect.core.types import Inspection
from pgdefect.db.connection.engine import Database
from pgdefect.usecases.inspect.defects import Voter
from pgdefect.usecases.inspect.inspector import Inspector
from pgdefect.vision.images.picture import Picture


def inspect_picture(
    database: Database, inspector: Inspector, picture: Picture, *, defects: bool = True
) -> Inspection:
    """The detector's judgement; with `defects` an anomalous image is looked at a second time."""
    judged = inspector.judge_picture(picture)
    result = judged.inspection
    if not (defects and result.is_anomalous and inspector.finds_defects):
        return result
    with database.connect() as connection:
        defect = inspector.defect_finder.defect(connection, judged.embedded_patches)
    vote = Voter(database, inspector.detector).vote(defect, None, picture.file.sha256)
    return replace(result, defect=defect, vote=vote)
