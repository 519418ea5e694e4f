"""Which copies of a photograph its embedding tells, measured with the category's own images."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from sqlalchemy import text

from pgdefect.core.config import Settings
from pgdefect.db.connection.engine import Database
from pgdefect.db.search.queries import images_of
from pgdefect.usecases.inspect.embed import embed
from pgdefect.usecases.inspect.inspect import inspect

pytestmark = pytest.mark.slow

NEAREST = text(
    "SELECT s.distance, s.image_id FROM defect.similar_images("
    "CAST(:image AS text), k => 1, by => 'picture', all_categories => true) s"
)


def test_the_limit_says_which_copies_it_finds(
    trained: Database, settings: Settings, tmp_path: Path
) -> None:
    embed(trained, settings, "parts")
    with trained.connect() as connection:
        [limit] = connection.execute(text("SELECT * FROM defect.duplicate_limits")).all()
    assert (limit.category, limit.found_lossless) == ("parts", 1.0)
    assert limit.num_images >= 20
    assert 0 < limit.max_distance <= limit.nearest_other
    assert limit.mistaken <= 0.1
    # New copies are found, or not, as was measured.
    original = images_of(trained, "parts", split="test")[0]
    with Image.open(original.path) as picture:
        picture.save(tmp_path / "lossless.png", compress_level=1)
        picture.convert("RGB").save(tmp_path / "jpeg_90.jpg", quality=90)
    for name, share in (("lossless.png", 1.0), ("jpeg_90.jpg", limit.found_jpeg_90)):
        [copy] = inspect(trained, settings, "parts", [tmp_path / name]).inspections
        with trained.begin() as connection:
            distance, nearest = connection.execute(NEAREST, {"image": str(copy.image_id)}).one()
            connection.execute(
                text("UPDATE pgdefect.image SET retired_at = now() WHERE id = :id"),
                {"id": copy.image_id},
            )
        found = nearest == original.id and distance < limit.max_distance
        assert share in (0.0, 1.0)
        assert found == (share == 1.0), (name, distance, limit)
