"""What training any detector needs: devices, silence, Ctrl-C, export to ONNX."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pgdefect.core.errors import UsageError
from pgdefect.core.wording import option
from pgdefect.vision.networks.optional_imports import require

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["check_device", "export_onnx", "interruptible", "library_versions", "quiet"]


def check_device(device: str) -> None:
    """Raises UsageError for a device torch does not have."""
    torch = require("torch")
    if device == "cpu":
        return
    if device.startswith("cuda") and torch.cuda.is_available():
        return
    raise UsageError(f"torch has no device {device!r} here; use {option('device', 'cpu')}")


def library_versions() -> dict[str, str]:
    """Versions of what decides a detector's numbers."""
    from importlib.metadata import version

    return {
        name: version(name)
        for name in ("pgdefect", "anomalib", "torch", "timm", "openvino", "numpy", "pillow")
    }


def export_onnx(
    network: nn.Module, example: Tensor, outputs: Sequence[str], *, any_size: bool = False
) -> bytes:
    """A network of images as ONNX, with any batch size, and any size of images if asked for."""
    torch = require("torch")
    dim = torch.export.Dim
    shape = {0: dim.AUTO, 2: dim.AUTO, 3: dim.AUTO} if any_size else {0: dim("num_images")}
    with torch.no_grad(), quiet():
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=list(outputs),
            dynamic_shapes=(shape,),
        )
        onnx: bytes = program.model_proto.SerializeToString()
    return onnx


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C through: Lightning turns it into an exit and ignores further ones."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as ended:
        if isinstance(ended.__context__, KeyboardInterrupt):
            signal.signal(signal.SIGINT, before)
            raise KeyboardInterrupt from ended
        raise


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' own warnings and chatter from users, who can act on none of it."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)
