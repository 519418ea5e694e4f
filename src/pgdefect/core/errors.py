"""Every error pgdefect raises on purpose.

::

    PgdefectError                     exit code 1
    ├── UsageError                    the arguments do not fit together (exit code 2)
    ├── MissingExtra                  an optional dependency is not installed
    ├── InputError
    │   ├── DatasetError              a folder or manifest cannot be used as a data set
    │   ├── ImageError                one image file cannot be read
    │   └── BackupError               a file is no backup that this pgdefect can restore
    ├── NotFound
    │   ├── UnknownCategory
    │   ├── UnknownImage
    │   ├── UnknownDetector
    │   ├── NoActiveDetector          the category has no trained, active detector
    │   └── NoMemoryBank              the detector is a network and compares with no patches
    ├── TrainingError
    │   ├── TooFewImages
    │   └── WeightsError              a weights file does not fit the backbone
    ├── ExtractorMismatch             vectors of two extractors would meet
    ├── Conflict                      the change would break something that depends on it
    └── DatabaseError
        ├── EmbeddedServerError       the embedded Postgres cannot be set up or started
        ├── DatabaseUnavailable       nothing answers at the URL
        │   └── ServerStarting        it is starting or recovering
        ├── AuthenticationFailed
        ├── PermissionDenied          this login may not do that
        ├── UnsupportedServer         Postgres or pgvector is too old or missing
        ├── SchemaOutOfDate           `pgdefect db upgrade` is needed
        ├── DatabaseFull              no space left, or not enough memory
        ├── NoConnectionFree          of the server's, or of those this process may have
        └── Busy                      another process holds the lock this needs
            └── TransactionRolledBack                a deadlock or serialization conflict; retry

A message says what happened, the value received, and what to do. A driver's error
is wrapped once and kept as ``__cause__``.
"""

from __future__ import annotations


class PgdefectError(Exception):
    """Base of all errors raised on purpose; ``str()`` is fit to show to a user."""

    exit_code = 1


class UsageError(PgdefectError):
    exit_code = 2


class MissingExtra(PgdefectError):
    """An optional dependency is not installed.

    Parameters: the feature that needs it, the module that failed to import and
    the extra that brings it.
    """

    def __init__(self, feature: str, module: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs the package {module!r}, which is not installed. "
            f"Install it with: pip install 'pgdefect[{extra}]'"
        )
        self.extra = extra


class InputError(PgdefectError):
    pass


class DatasetError(InputError):
    pass


class ImageError(InputError):
    pass


class BackupError(InputError):
    pass


class NotFound(PgdefectError):
    pass


class UnknownCategory(NotFound):
    pass


class UnknownImage(NotFound):
    pass


class UnknownDetector(NotFound):
    pass


class NoActiveDetector(NotFound):
    pass


class NoMemoryBank(NotFound):
    pass


class TrainingError(PgdefectError):
    pass


class TooFewImages(TrainingError):
    pass


class WeightsError(TrainingError):
    pass


class ExtractorMismatch(PgdefectError):
    pass


class Conflict(PgdefectError):
    pass


class DatabaseError(PgdefectError):
    pass


class EmbeddedServerError(DatabaseError):
    pass


class DatabaseUnavailable(DatabaseError):
    pass


class ServerStarting(DatabaseUnavailable):
    pass


class AuthenticationFailed(DatabaseError):
    pass


class PermissionDenied(DatabaseError):
    pass


class UnsupportedServer(DatabaseError):
    pass


class SchemaOutOfDate(DatabaseError):
    pass


class DatabaseFull(DatabaseError):
    pass


class NoConnectionFree(DatabaseError):
    pass


class Busy(DatabaseError):
    pass


class TransactionRolledBack(Busy):
    """A deadlock, or rows that changed under a snapshot; the same again may well succeed."""
