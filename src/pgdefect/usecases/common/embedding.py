"""Image embeddings: make those that are missing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from pgdefect.core.progress import Progress, silent
from pgdefect.core.types import StoredImage
from pgdefect.db.connection.engine import Database
from pgdefect.db.records.extractors import images_without_embedding, store_image_embeddings
from pgdefect.usecases.common.stored_files import image_batches
from pgdefect.vision.images.preprocess import Preprocessing
from pgdefect.vision.networks.extractor import BATCH_SIZE, Extractor, image_embeddings


def embed_images(
    database: Database,
    extractor: Extractor,
    extractor_id: int,
    images: Sequence[StoredImage],
    progress: Progress = silent,
) -> list[tuple[str, str]]:
    """Make the image embeddings that are missing; returns path and reason of failures."""
    with database.connect() as connection:
        missing = set(
            images_without_embedding(connection, extractor_id, [image.id for image in images])
        )
    todo = by_input_size(
        [image for image in images if image.id in missing], extractor.preprocessing
    )
    failed: list[tuple[str, str]] = []
    stream = image_batches(todo, extractor.preprocessing, BATCH_SIZE, failed)
    done = 0
    for batch in stream:
        embeddings = image_embeddings(extractor(batch.inputs))
        ids = [todo[index].id for index in batch.indices]
        database.transact(
            partial(
                store_image_embeddings,
                extractor_id=extractor_id,
                image_ids=ids,
                embeddings=embeddings,
            )
        )
        done += len(ids)
        progress("embed", done, len(todo))
    return failed


def by_input_size(images: Sequence[StoredImage], preprocessing: Preprocessing) -> list[StoredImage]:
    """The images in an order that fills batches, which hold inputs of one size."""
    return sorted(images, key=lambda i: preprocessing.input_size_of((i.height, i.width)))
