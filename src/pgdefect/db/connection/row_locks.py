"""The one order in which transactions lock rows, so that none of two waits for the other.

First the category, then the detector, then image roots and new images by path, then images by
id, then what hangs on them: whoever writes what was computed of an image has the image locked.
And no stronger than needed, so that a line goes on while others change something:

=======================  ================================================================
FOR KEY SHARE            must not be deleted meanwhile: the detector whose word is stored,
                         the images of a bank in the making (and what foreign keys refer to)
FOR NO KEY UPDATE        nobody else may change it meanwhile: the category whose active
                         detector changes, the images of which something is stored
FOR UPDATE               is about to be deleted; alone is in the way of new rows that refer to it
=======================  ================================================================
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, text

from pgdefect.core.errors import Conflict


def lock_category(connection: Connection, category_id: int, *, to_delete: bool = False) -> None:
    """Let nobody else change which detectors the category has; nor add to it, `to_delete`."""
    strength = "UPDATE" if to_delete else "NO KEY UPDATE"
    connection.execute(
        text(f"SELECT FROM pgdefect.category WHERE id = :id FOR {strength}"), {"id": category_id}
    )


def keep_category(connection: Connection, category_id: int) -> None:
    """Keep a category from being deleted. Raises Conflict if it is gone."""
    found = connection.execute(
        text("SELECT id FROM pgdefect.category WHERE id = :id FOR KEY SHARE"), {"id": category_id}
    ).first()
    if found is None:
        raise Conflict("the category was deleted meanwhile; nothing was stored")


def keep_detector(connection: Connection, detector_id: int) -> None:
    """Keep a detector from being deleted. Raises Conflict if it is gone."""
    found = connection.execute(
        text("SELECT id FROM pgdefect.detector WHERE id = :id FOR KEY SHARE"), {"id": detector_id}
    ).first()
    if found is None:
        raise Conflict(
            f"detector {detector_id} was deleted meanwhile, and what it said last is not stored; "
            "run the command again"
        )


def keep_images(connection: Connection, image_ids: Iterable[int]) -> None:
    """Keep training images from being deleted. Raises Conflict if one is gone."""
    ids = sorted(image_ids)
    found = connection.execute(
        text("SELECT id FROM pgdefect.image WHERE id = ANY(:ids) ORDER BY id FOR KEY SHARE"),
        {"ids": ids},
    ).all()
    if len(found) != len(ids):
        raise Conflict(
            f"{len(ids) - len(found)} of the training images were deleted during training; "
            "train again"
        )


def lock_images(
    connection: Connection, image_ids: Iterable[int], *, to_delete: bool = False
) -> set[int]:
    """Let nobody else store anything of these images, nor review them.

    Returns those that are there; one that is not was deleted by another session.
    """
    strength = "UPDATE" if to_delete else "NO KEY UPDATE"
    found = connection.scalars(
        text(f"SELECT id FROM pgdefect.image WHERE id = ANY(:ids) ORDER BY id FOR {strength}"),
        {"ids": list(image_ids)},
    )
    return set(found)
