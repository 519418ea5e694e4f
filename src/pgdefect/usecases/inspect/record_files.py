"""The files of inspected images: found among the stored ones, or recorded."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
from sqlalchemy import Connection

from pgdefect.core.errors import ImageError, TransactionRolledBack
from pgdefect.core.types import StoredImage
from pgdefect.db.connection.row_locks import lock_images
from pgdefect.db.records import catalog
from pgdefect.db.records.extractors import store_image_embeddings
from pgdefect.db.search.queries import images_by_sha256, stored_images
from pgdefect.usecases.common.stored_files import changed
from pgdefect.usecases.inspect.inspector import Inspector, Judged
from pgdefect.usecases.inspect.photo_context import PhotoContext
from pgdefect.vision.images.image import ImageFile

__all__ = ["matching", "record_files"]


def matching(
    connection: Connection,
    category: str,
    judged: Sequence[Judged],
    known: dict[str, StoredImage],
) -> list[StoredImage | None]:
    """The stored image each file is, by path where the list came from the database, else by
    content: the one at the same path if several are alike.
    """
    by_content = images_by_sha256(connection, category, [item.file.sha256 for item in judged])
    listed = [known.get(str(item.file.path)) for item in judged]
    there = stored_images(connection, [image.id for image in listed if image is not None])
    found: list[StoredImage | None] = []
    for item, image in zip(judged, listed, strict=True):
        alike = by_content.get(item.file.sha256, [])
        same = [one for one in alike if one.path == os.path.abspath(item.file.path)]
        found.append((image and there.get(image.id)) or next(iter(same or alike), None))
    return found


def record_files(
    connection: Connection,
    inspector: Inspector,
    judged: Sequence[Judged],
    images: Sequence[StoredImage | None],
    contexts: Mapping[str, PhotoContext],
) -> list[StoredImage | ImageError]:
    """Add files that are new as production images, what is known of them, and image embeddings.

    An error for a file that is new where another content is recorded under its name, and for a
    production image of which another part, time or attribute is recorded. Images of a data set
    keep what that says of them.
    """
    category_id = inspector.detector.category_id
    result: list[StoredImage | ImageError | None] = [
        image if image is None or image.sha256 == item.file.sha256 else changed(image)
        for item, image in zip(judged, images, strict=True)
    ]
    unknown = {n: os.path.abspath(judged[n].file.path) for n, one in enumerate(result) if not one}
    others = catalog.recorded_at(connection, category_id, unknown.values())
    there = stored_images(connection, list(others.values()))
    new: dict[str, list[tuple[int, catalog.NewImage]]] = {}
    for n, path in unknown.items():
        if (row := there.get(others.get(path, 0))) is not None:
            result[n] = changed(row)
        else:
            folder, name = os.path.split(path)
            new.setdefault(folder, []).append(
                (n, _production_image(name, judged[n].file, contexts.get(path)))
            )
    roots = {folder: catalog.ensure_root(connection, folder) for folder in sorted(new)}
    for folder, root_id in roots.items():
        added = [one for _, one in new[folder]]
        image_ids = catalog.add_images(connection, category_id, root_id, added)
        rows = stored_images(connection, image_ids)
        for (n, made), image_id in zip(new[folder], image_ids, strict=True):
            row = rows[image_id]
            result[n] = row if row.sha256 == made.sha256 else changed(row)
    ids = {image.id: n for n, image in enumerate(result) if isinstance(image, StoredImage)}
    lock_images(connection, ids)
    held = {id_: image.sha256 for id_, image in stored_images(connection, list(ids)).items()}
    if held != {id_: judged[n].file.sha256 for id_, n in ids.items()}:
        # The next attempt finds out what the files are now.
        raise TransactionRolledBack(
            "images were deleted or replaced while they were inspected; run the command again"
        )
    for id_, n in ids.items():
        said = contexts.get(str(judged[n].file.path))
        image = result[n]
        if said is None or not isinstance(image, StoredImage) or image.split != "production":
            continue
        if not catalog.add_context(connection, id_, said.attributes, said.part, said.taken_at):
            result[n] = ImageError(
                f"{image.path!r} was recorded with another part, time or attribute than is said "
                "of it now; see image "
                f"{id_} in defect.images, or leave the photograph out"
            )
    ids = {id_: n for id_, n in ids.items() if isinstance(result[n], StoredImage)}
    if ids:
        store_image_embeddings(
            connection,
            inspector.detector.extractor_id,
            list(ids),
            np.stack([judged[n].embedding for n in ids.values()]),
        )
    return [one for one in result if one is not None]


def _production_image(name: str, file: ImageFile, context: PhotoContext | None) -> catalog.NewImage:
    context = context or PhotoContext()
    return catalog.NewImage(
        path=name,
        sha256=file.sha256,
        num_bytes=file.num_bytes,
        height=file.height,
        width=file.width,
        split="production",
        group_name=context.part,
        attributes=context.attributes,
        taken_at=context.taken_at,
    )
