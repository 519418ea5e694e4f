"""Row locks, in the one order that all transactions use, so that they do not deadlock.

First the category, then the detector, then image roots and new images by path, then images by
id, then what depends on them: a transaction that writes results of an image has the image locked.
Locks are no stronger than needed, so that stations keep working while others change something:

=======================  ================================================================
FOR KEY SHARE            rows that must not be deleted during the transaction: the detector
                         whose result is stored, the images of a bank that is being built
FOR NO KEY UPDATE        rows that no other transaction may change: the category whose active
                         detector changes, the images whose results are stored
FOR UPDATE               rows about to be deleted; the only mode that blocks inserts of
                         referencing rows
=======================  ================================================================
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, text

from pgdefect.core.errors import Conflict


def lock_category(connection: Connection, category_id: int, *, to_delete: bool = False) -> None:
    """Lock a category's set of detectors; `to_delete` also blocks new rows that refer to it."""
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
        raise Conflict("the category was deleted in the meantime; nothing was stored")


def keep_detector(connection: Connection, detector_id: int) -> None:
    """Keep a detector from being deleted. Raises Conflict if it is gone."""
    found = connection.execute(
        text("SELECT id FROM pgdefect.detector WHERE id = :id FOR KEY SHARE"), {"id": detector_id}
    ).first()
    if found is None:
        raise Conflict(
            f"detector {detector_id} was deleted in the meantime; its last results were not "
            "stored; run the command again"
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
    """Lock images, so that no other session stores results or reviews of them.

    Returns those that are there; one that is not was deleted by another session.
    """
    strength = "UPDATE" if to_delete else "NO KEY UPDATE"
    found = connection.scalars(
        text(f"SELECT id FROM pgdefect.image WHERE id = ANY(:ids) ORDER BY id FOR {strength}"),
        {"ids": list(image_ids)},
    )
    return set(found)
