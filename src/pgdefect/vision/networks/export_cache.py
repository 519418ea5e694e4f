"""Exported graphs, kept in the cache: torch takes some 15 seconds to export a network.

A file is named for all that decides its content: the network, its weights and the libraries that
export it. It begins with the checksum of the rest, so a damaged one is not used but replaced.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from pgdefect.core.cached_files import write_cached

__all__ = ["EXPORTS", "cached_export"]

EXPORTS = "exports"
"""The folder of the cache that keeps them."""
MAX_KEPT = 24
"""Graphs; the ones that were not used for longest are removed."""
_LIBRARIES = ("pgdefect", "anomalib", "torch", "timm", "onnx", "onnxscript")
_DIGEST_BYTES = 32


def cached_export(
    cache_dir: Path | None, identity: Mapping[str, object], export: Callable[[], bytes]
) -> bytes:
    """A graph from the cache, or exported now and kept there.

    Args:
        cache_dir: where the cache is; None exports without one.
        identity: what decides the graph, beside the versions of libraries: the network, its
            layers, the checksum of its weights, sizes. Must be JSON.
        export: makes the graph, as ONNX.
    """
    if cache_dir is None:
        return export()
    key = {"identity": identity, "versions": {name: version(name) for name in _LIBRARIES}}
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    path = cache_dir / EXPORTS / f"{name}.onnx"
    kept = _read(path)
    if kept is not None:
        return kept
    onnx = export()
    write_cached(path, hashlib.sha256(onnx).digest() + onnx)
    _remove_oldest(path.parent)
    return onnx


def _read(path: Path) -> bytes | None:
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, onnx = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(onnx).digest() != digest:
        return None
    with suppress(OSError):
        os.utime(path)
    return onnx


def _remove_oldest(folder: Path) -> None:
    with suppress(OSError):
        found = sorted(folder.glob("*.onnx"), key=lambda path: path.stat().st_mtime)
        for path in found[:-MAX_KEPT]:
            path.unlink(missing_ok=True)
