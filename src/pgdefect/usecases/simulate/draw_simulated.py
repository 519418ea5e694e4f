"""Draw defects on normal images and record them: both files and rows, or neither."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pgdefect.core.errors import Conflict, DatasetError, ImageError, UsageError
from pgdefect.core.file_claims import new_claimed, remove_unclaimed
from pgdefect.core.progress import Progress, silent
from pgdefect.core.threads import num_cpus
from pgdefect.core.types import StoredImage
from pgdefect.core.wording import option
from pgdefect.db.connection.engine import Database
from pgdefect.db.records import catalog
from pgdefect.db.records.simulations import add_simulated
from pgdefect.pictures.render import save_png
from pgdefect.usecases.common.stored_files import changed
from pgdefect.vision.defects.simulate import (
    CONTRASTS,
    KINDS,
    SIZES,
    Contrast,
    Kind,
    Size,
    generator,
    simulate_defect,
)
from pgdefect.vision.images.image import load_image, probe_image, read_image

STAGING = ".pgdefect-"
"""What the names of folders begin with that pictures are drawn in."""
CANDIDATES = 5
"""How many source images are tried for one defect."""


@dataclass(frozen=True)
class Recipe:
    """One defect to draw; its number alone decides size, contrast and source, given the seed."""

    number: int
    kind: Kind
    size: Size
    contrast: Contrast
    seed: int

    @property
    def path(self) -> str:
        name = f"seed{self.seed}-{self.number:05d}-{self.size}-{self.contrast}"
        return f"{self.kind}/{name}.png"

    @property
    def mask_path(self) -> str:
        return f"masks/{self.path.removesuffix('.png')}_mask.png"


@dataclass(frozen=True)
class _Made:
    """A simulated image on disk, not yet recorded."""

    recipe: Recipe
    new: catalog.NewImage


def recipes(kinds: Iterable[Kind], count: int, seed: int) -> list[Recipe]:
    """`count` defects, balanced over kinds, sizes and contrasts; more begin with the same.

    A block of one per kind and size takes each contrast as often; three blocks have every
    combination once. Leaving kinds out leaves the others as they are.
    """
    wanted = set(kinds)
    found: list[Recipe] = []
    block = 0
    while len(found) < count:
        for s, size in enumerate(SIZES):
            contrast = list(CONTRASTS)[(s + block) % len(CONTRASTS)]
            for k, kind in enumerate(KINDS):
                number = (block * len(SIZES) + s) * len(KINDS) + k
                if kind in wanted and len(found) < count:
                    found.append(Recipe(number, kind, size, contrast, seed))
        block += 1
    return found


def draw(
    database: Database,
    category_id: int,
    folder: str,
    todo: Sequence[Recipe],
    sources: Sequence[StoredImage],
    progress: Progress = silent,
) -> list[tuple[str, str]]:
    """Draw images and masks beside their place; move them there as the rows are committed.

    Returns path and reason of sources that could not be used, and were passed over.
    Raises UsageError for a folder that cannot be written, Conflict where foreign files are in
    the way, DatasetError where no source will do.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        remove_unclaimed(Path(folder).glob(f"{STAGING}*"))
        staging, held = new_claimed(Path(folder), STAGING)
    except OSError as error:
        raise UsageError(
            f"simulated images cannot be written to {folder!r}: {error.strerror}. Name another "
            f"folder with {option('output')}"
        ) from error
    moved: list[Path] = []
    failed: list[tuple[str, str]] = []
    try:
        made = _draw_all(staging, todo, sources, failed, progress)
        pairs = [
            (staging / name, Path(folder) / name)
            for item in made
            for name in (item.recipe.path, item.recipe.mask_path)
        ]
        for new, place in pairs:
            if place.exists() and digest(place) != digest(new):
                raise Conflict(
                    f"{str(place)!r} is there already and not of this simulation. Move it away, "
                    f"or name another folder with {option('output')}"
                )
        with database.begin() as connection:
            add_simulated(connection, category_id, folder, [item.new for item in made])
            for new, place in pairs:
                place.parent.mkdir(parents=True, exist_ok=True)
                os.replace(new, place)
                moved.append(place)
    except BaseException:
        for place in moved:
            place.unlink(missing_ok=True)
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if held is not None:
            os.close(held)
        for parent in {place.parent for place in moved} or {Path(folder)}:
            remove_empty(parent, {Path(folder)})
    return failed


def _draw_all(
    staging: Path,
    todo: Sequence[Recipe],
    sources: Sequence[StoredImage],
    failed: list[tuple[str, str]],
    progress: Progress,
) -> list[_Made]:
    made: list[_Made] = []
    pool = ThreadPoolExecutor(num_cpus(), "pgdefect-simulate")
    try:
        for item, problems in pool.map(lambda recipe: _draw_one(staging, recipe, sources), todo):
            failed += problems
            made.append(item)
            progress("simulate", len(made), len(todo))
    finally:
        pool.shutdown(cancel_futures=True)
    return made


def _draw_one(
    staging: Path, recipe: Recipe, sources: Sequence[StoredImage]
) -> tuple[_Made, list[tuple[str, str]]]:
    """Draw a recipe on its source, or on the next one that can be read and is large enough."""
    problems: list[tuple[str, str]] = []
    order = _order(recipe, len(sources))
    for place, index in enumerate(order[:CANDIDATES]):
        source, other = sources[index], sources[order[(place + 1) % len(order)]]
        try:
            file, pixels = read_image(source.path, source.gray_scale)
            if file.sha256 != source.sha256:
                raise changed(source)
            drawn = simulate_defect(
                pixels,
                recipe.kind,
                recipe.size,
                recipe.contrast,
                generator(recipe.seed, source.sha256, recipe.number),
                texture=load_image(other.path, other.gray_scale) if other is not source else None,
            )
        except ImageError as error:
            problems.append((source.path, str(error)))
            continue
        image = drawn.image
        gray = bool((image[..., :1] == image).all())
        written = save_png(image[..., 0] if gray else image, staging / recipe.path)
        save_png(drawn.mask, staging / recipe.mask_path)
        found = probe_image(written)
        new = catalog.NewImage(
            path=recipe.path,
            sha256=found.sha256,
            num_bytes=found.num_bytes,
            height=found.height,
            width=found.width,
            split="simulated",
            label="anomalous",
            defect_type=recipe.kind,
            mask_path=recipe.mask_path,
            group_name=source.part or f"image-{source.id}",
            simulation={
                "kind": recipe.kind,
                "size": recipe.size,
                "contrast": recipe.contrast,
                "area": round(drawn.area, 6),
                "gray_difference": round(drawn.gray_difference, 2),
                "seed": recipe.seed,
                "number": recipe.number,
                "source_image_id": source.id,
            },
        )
        return _Made(recipe, new), problems
    raise DatasetError(
        f"none of {len(problems)} normal images tried can take a {recipe.size} {recipe.kind} "
        f"defect; the first, {problems[0][0]!r}: {problems[0][1]}"
    )


def _order(recipe: Recipe, num_sources: int) -> list[int]:
    """Which source a recipe takes, then those to try instead; each comes once in a round."""
    turn, place = divmod(recipe.number, num_sources)
    order = np.random.default_rng([recipe.seed, turn]).permutation(num_sources)
    return [int(index) for index in np.roll(order, -place)]


def digest(path: Path) -> str | None:
    """A file's sha256 in hex, None where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def remove_empty(folder: Path, tops: set[Path]) -> None:
    """Remove a folder and those above it, up to one of `tops`, while they are empty."""
    for place in (folder, *folder.parents):
        try:
            place.rmdir()
        except OSError:
            return
        if place in tops:
            return
