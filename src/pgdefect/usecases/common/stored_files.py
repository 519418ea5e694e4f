"""The files of stored images: read in batches, and refused where they are not what was stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from pgdefect.core.errors import ImageError
from pgdefect.core.types import StoredImage
from pgdefect.core.wording import blank, command, option
from pgdefect.vision.images.image import ImageFile
from pgdefect.vision.images.preprocess import Batch, Preprocessing, batches

__all__ = ["changed", "image_batches", "only_unchanged"]


def changed(image: StoredImage) -> ImageError:
    """What is said of a stored image whose file holds something else now."""
    since = {"production": "inspected", "simulated": "drawn"}.get(image.split, "ingested")
    match image.split:
        case "production":
            remedy = (
                "give each photograph a name of its own, or inspect it with "
                f"{option('store', False)}"
            )
        case "simulated":
            remedy = (
                f"start over with: {command('simulate', image.category, remove=True, yes=True)}"
            )
        case _:
            again = command("ingest", blank("PATH"), category=image.category, accept_changes=True)
            remedy = f"update it with: {again}"
    return ImageError(f"{image.path!r} has changed since it was {since}; {remedy}")


def only_unchanged(images: Sequence[StoredImage]) -> Callable[[int, ImageFile], None]:
    """For `batches` of these images' paths: raises ImageError for a file that has changed."""

    def accept(index: int, file: ImageFile) -> None:
        if file.sha256 != images[index].sha256:
            raise changed(images[index])

    return accept


def image_batches(
    images: Sequence[StoredImage],
    preprocessing: Preprocessing,
    batch_size: int,
    failed: list[tuple[str, str]],
) -> Iterator[Batch]:
    """Prepared images of one category, batch by batch.

    Path and reason of those that cannot be read, or are not what was stored, go to `failed`.
    """

    def on_error(index: int, error: ImageError) -> None:
        failed.append((images[index].path, str(error)))

    return batches(
        [image.path for image in images],
        preprocessing,
        batch_size,
        num_threads=2,
        on_error=on_error,
        accept=only_unchanged(images),
        scale=images[0].gray_scale if images else None,
    )
