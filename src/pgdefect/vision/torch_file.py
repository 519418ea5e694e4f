"""Files that ``torch.save`` wrote, read so that nothing in them is executed.

Such a file is a pickle in a zip archive, and a pickle can run any code. torch's safe loading
knows tensors and plain data; beyond those one global is read, as a string: the enumeration of
a Patchcore checkpoint's precision. A file that asks for anything else is refused, and so is one
whose sizes are not what they say: a few bytes can claim to be terabytes.
"""

from __future__ import annotations

import os
import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pgdefect.errors import UsageError, WeightsError
from pgdefect.types import Float32
from pgdefect.vision.backbone import require

__all__ = ["bank_of", "load_safely", "named_tensor"]


def _plain_precision(value: object) -> str:
    return str(value)


_ALLOWED = [(_plain_precision, "anomalib.PrecisionType")]


def load_safely(path: Path) -> Any:
    """What the file holds: tensors and plain data, on the CPU.

    Raises:
        WeightsError: there is no such file; it is no archive of torch's; it asks for a global
            (the message names it); its archive claims more than the file holds.
        MissingExtra: torch is not installed.
    """
    torch = require("torch")
    if not path.is_file():
        raise WeightsError(f"no file at {path}")
    _check_archive(path)
    try:
        # What torch would warn of is checked here, or refused.
        with _only_ours_allowed(), warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror or error}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError) as error:
        refused = _refused(path)
        if refused:
            raise WeightsError(
                f"{path} asks for {', '.join(refused)} to be loaded, which safe loading refuses: "
                "such a file can run any code. Nothing of it was executed. Save tensors and "
                "plain data only; a checkpoint that anomalib 2.7 or newer saves needs "
                "anomalib.PrecisionType and no more"
            ) from error
        raise WeightsError(f"{path} is not a file that can be loaded safely") from error


def bank_of(value: Any, path: Path, what: str) -> tuple[Float32, float]:
    """A tensor as a memory bank, and the rounding of its type as a share of a value.

    Raises:
        WeightsError: it is no matrix of floats, is empty, holds values that are not finite,
            or repeats its storage (``expand``), so that its size says nothing.
    """
    torch = require("torch")
    plain = value.layout is torch.strided and value.device.type == "cpu"
    if value.ndim != 2 or not value.numel() or not value.is_floating_point() or not plain:
        raise WeightsError(
            f"{what} of {path} must be a dense matrix of floats (num_vectors, embedding_dim), "
            f"not {value.dtype}, {value.layout}, of shape {tuple(value.shape)}"
            + ("; was the model trained?" if not value.numel() else "")
        )
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise WeightsError(
            f"{what} of {path} says that it has the shape {tuple(value.shape)}, and the file has "
            f"{value.untyped_storage().nbytes():,} bytes of it; save a copy: tensor.clone()"
        )
    rounding = float(torch.finfo(value.dtype).eps)
    bank = np.ascontiguousarray(value.detach().float().numpy(), dtype=np.float32)
    if not np.isfinite(bank).all():
        raise WeightsError(f"{what} of {path} holds values that are not finite")
    return bank, rounding


def named_tensor(loaded: Any, path: Path, wanted: str | None) -> tuple[str | None, Any]:
    """The bank in a file: the tensor, the one called `wanted`, or the only matrix.

    Raises:
        UsageError: `wanted` is not there, or is needed; the message lists what there is.
        WeightsError: there is no tensor at all.
    """
    torch = require("torch")
    if torch.is_tensor(loaded):
        if wanted is not None:
            raise UsageError(f"{path} holds one tensor without a name; leave --tensor out")
        return None, loaded
    if not isinstance(loaded, Mapping):
        raise WeightsError(f"{path} holds a {type(loaded).__name__} and no tensor")
    tensors = {str(name): value for name, value in loaded.items() if torch.is_tensor(value)}
    listing = ", ".join(
        f"{name} {value.dtype} {tuple(value.shape)}" for name, value in tensors.items()
    )
    if wanted is not None:
        if wanted not in tensors:
            raise UsageError(f"{path} has no tensor {wanted!r}; it has {listing or 'none'}")
        return wanted, tensors[wanted]
    matrices = [name for name, value in tensors.items() if value.ndim == 2]
    if len(matrices) != 1:
        raise UsageError(
            f"{path} holds {len(matrices)} matrices; name the bank with --tensor: {listing}"
            if matrices
            else f"{path} holds no matrix of vectors, only: {listing or 'no tensor'}"
        )
    return matrices[0], tensors[matrices[0]]


def _check_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror or error}") from error
    except zipfile.BadZipFile as error:
        raise WeightsError(
            f"{path} is not a file that can be loaded safely: torch.save has made zip archives "
            "since version 1.6, and this is none. Load it where it came from, and save it again"
        ) from error
    claimed, size = sum(entry.file_size for entry in entries), os.path.getsize(path)
    if claimed > size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise WeightsError(
            f"{path} is not an archive of torch's, which compresses nothing: it has {size:,} "
            f"bytes and claims {claimed:,}"
        )


@contextmanager
def _only_ours_allowed() -> Iterator[None]:
    """Let torch load our globals and no other: libraries add theirs to its list on import."""
    serialization = require("torch").serialization
    before = serialization.get_safe_globals()
    serialization.clear_safe_globals()
    serialization.add_safe_globals(_ALLOWED)
    try:
        yield
    finally:
        serialization.clear_safe_globals()
        serialization.add_safe_globals(before)


def _refused(path: Path) -> list[str]:
    """The globals a file asks for that are not allowed; none where it is no such file."""
    torch = require("torch")
    try:
        with _only_ours_allowed():
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # damaged in whatever way: then no global is to blame
        return []
    return sorted(set(names))
