"""The libraries of the extra ``train``: there, or an error that says what to install."""

from __future__ import annotations

import importlib
from typing import Any

from pgdefect.core.errors import MissingExtra

__all__ = ["require"]


def require(module: str) -> Any:
    """Import a module of the extra ``train``, or say what to install."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise MissingExtra("training", module, "train") from error
