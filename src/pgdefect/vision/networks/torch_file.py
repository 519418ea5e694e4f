"""Files that ``torch.save`` wrote, and .safetensors, read so that nothing in them is executed.

The former is a pickle in a zip archive, and a pickle can run any code. torch's safe loading
knows tensors and plain data; beyond those one global is read, as a string: the enumeration of
a Patchcore checkpoint's precision. A file that asks for anything else is refused, and so is one
whose sizes are not what they say: a few bytes can claim to be terabytes.

Neither torch nor safetensors documents what a damaged file raises, so whatever it is becomes a
WeightsError, which keeps it as its cause.
"""

from __future__ import annotations

import os
import reprlib
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pgdefect.core.errors import UsageError, WeightsError
from pgdefect.core.types import Float32
from pgdefect.core.wording import option
from pgdefect.vision.networks.optional_imports import require

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["bank_of", "load_safely", "named_tensor", "read_state_dict", "shown", "state_of"]

_LISTED = 20
"""Tensors that a message lists at most."""


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
    require("torch")
    if not path.is_file():
        raise WeightsError(f"no file at {path}")
    _check_archive(path)
    return _load(path)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a .safetensors, or a torch file read with safe loading only.

    Also from the files without an archive that torch wrote before version 1.6.

    Raises:
        WeightsError: there is no such file, or it is something else.
        MissingExtra: torch is not installed.
    """
    require("torch")
    if not path.is_file():
        raise WeightsError(f"no weights file at {path}")
    if path.suffix == ".safetensors":
        loaded = _load_safetensors(path)
    else:
        if _is_archive(path):
            _check_archive(path)
        loaded = _load(path)
    for key in ("state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    state = state_of(loaded, path)
    return {name.removeprefix("module."): value for name, value in state.items()}


def state_of(loaded: Any, path: Path) -> dict[str, Tensor]:
    """What a file held as a state dict: plain tensors by name, as large as they say.

    Raises:
        WeightsError: it is something else.
    """
    torch = require("torch")
    if not isinstance(loaded, Mapping) or not all(
        isinstance(name, str) and torch.is_tensor(value) for name, value in loaded.items()
    ):
        raise WeightsError(
            f"{path} holds no state dict (a mapping of names to tensors). Save it with "
            "torch.save(model.state_dict(), …) or as .safetensors"
        )
    for name, value in loaded.items():
        if not _is_plain(value):
            raise WeightsError(
                f"{shown(name)} of {path} is not a dense tensor, but {value.layout} on "
                f"{value.device.type}; save a copy: tensor.to_dense().cpu()"
            )
        _check_whole(value, path, shown(name))
    return dict(loaded)


def bank_of(value: Any, path: Path, what: str) -> tuple[Float32, float]:
    """A tensor as a memory bank, and the rounding of its type as a share of a value.

    Raises:
        WeightsError: it is no matrix of floats, is empty, holds values that are not finite,
            or repeats its storage (``expand``), so that its size says nothing.
    """
    torch = require("torch")
    floats = value.is_floating_point() and _is_plain(value)
    if value.ndim != 2 or not value.numel() or not floats:
        raise WeightsError(
            f"{what} of {path} must be a dense matrix of floats (num_vectors, embedding_dim), "
            f"not {value.dtype}, {value.layout}, of shape {tuple(value.shape)}"
            + ("; was the model trained?" if not value.numel() else "")
        )
    _check_whole(value, path, what)
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
            raise UsageError(
                f"{path} holds one tensor without a name; leave {option('tensor')} out"
            )
        return None, loaded
    if not isinstance(loaded, Mapping):
        raise WeightsError(f"{path} holds a {type(loaded).__name__} and no tensor")
    tensors = {
        str(name): value
        for name, value in loaded.items()
        if isinstance(name, str | int) and torch.is_tensor(value)
    }
    listing = ", ".join(
        f"{shown(name)} {value.dtype} {tuple(value.shape)}"
        for name, value in list(tensors.items())[:_LISTED]
    ) + (f" and {len(tensors) - _LISTED} more" if len(tensors) > _LISTED else "")
    if wanted is not None:
        if wanted not in tensors:
            raise UsageError(f"{path} has no tensor {wanted!r}; it has {listing or 'none'}")
        return wanted, tensors[wanted]
    matrices = [name for name, value in tensors.items() if value.ndim == 2]
    if len(matrices) != 1:
        raise UsageError(
            f"{path} holds {len(matrices)} matrices; name the bank with {option('tensor')}: "
            f"{listing}"
            if matrices
            else f"{path} holds no matrix of vectors, only: {listing or 'no tensor'}"
        )
    return matrices[0], tensors[matrices[0]]


def shown(value: object) -> str:
    """A value from a file as a message shows it: names as they are, all else short."""
    if isinstance(value, str) and len(value) <= 200 and value.isprintable():
        return value
    return _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100


def _is_plain(value: Tensor) -> bool:
    """Whether a tensor's values lie in memory, one by one."""
    torch = require("torch")
    return value.layout is torch.strided and value.device.type == "cpu" and not value.is_quantized


def _check_whole(value: Tensor, path: Path, what: str) -> None:
    """Raises WeightsError for a tensor that repeats its storage: its size says nothing."""
    held = value.untyped_storage().nbytes()
    if value.numel() * value.element_size() > held:
        raise WeightsError(
            f"{what} of {path} says that it has the shape {tuple(value.shape)}, and the file has "
            f"{held:,} bytes of it; save a copy: tensor.clone()"
        )


def _load(path: Path) -> Any:
    torch = require("torch")
    try:
        # What torch would warn of is checked here, or refused.
        with _only_ours_allowed(), warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:
        refused = _refused(path)
        if refused:
            raise WeightsError(
                f"{path} asks for {', '.join(refused)} to be loaded, which safe loading refuses: "
                "such a file can run any code. Nothing of it was executed. Save tensors and "
                "plain data only; a checkpoint that anomalib 2.7 or newer saves needs "
                "anomalib.PrecisionType and no more"
            ) from error
        raise WeightsError(
            f"{path} is not a file of tensors that can be loaded safely; it may be damaged. Save "
            "it again with torch.save(…)"
        ) from error


def _load_safetensors(path: Path) -> Any:
    load_file = require("safetensors.torch").load_file
    try:
        return load_file(path)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise WeightsError(f"{path} cannot be read as .safetensors: {reason}") from error


def _is_archive(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # one, then, and damaged
        return True
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror or error}") from error


def _check_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # BadZipFile, and others where the directory is damaged
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
