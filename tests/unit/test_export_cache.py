"""Exported graphs in the cache: one export for the same network, and never a damaged graph."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pgdefect.vision.networks import export_cache
from pgdefect.vision.networks.export_cache import EXPORTS, MAX_KEPT, cached_export

LITE = {"kind": "patch embeddings", "layers": ["blocks.2"], "weights": "aa"}


class Exporter:
    """Exports another graph at each call."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> bytes:
        self.calls += 1
        return b"graph %d" % self.calls


@pytest.fixture
def export() -> Exporter:
    return Exporter()


def test_a_network_is_exported_once(tmp_path: Path, export: Exporter) -> None:
    assert cached_export(tmp_path, LITE, export) == b"graph 1"
    assert cached_export(tmp_path, dict(reversed(LITE.items())), export) == b"graph 1"


@pytest.mark.parametrize(
    "other", [{"weights": "bb"}, {"layers": ["blocks.2", "blocks.4"]}, {"kind": "deep layers"}]
)
def test_another_network_is_another_export(
    tmp_path: Path, export: Exporter, other: dict[str, object]
) -> None:
    cached_export(tmp_path, LITE, export)
    assert cached_export(tmp_path, {**LITE, **other}, export) == b"graph 2"


def test_other_libraries_export_anew(
    tmp_path: Path, export: Exporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached_export(tmp_path, LITE, export)
    monkeypatch.setattr(export_cache, "version", lambda name: "99")
    assert cached_export(tmp_path, LITE, export) == b"graph 2"


@pytest.mark.parametrize("damage", [b"", b"x" * 10, None])
def test_a_damaged_file_is_replaced(tmp_path: Path, export: Exporter, damage: bytes | None) -> None:
    cached_export(tmp_path, LITE, export)
    [path] = (tmp_path / EXPORTS).iterdir()
    content = path.read_bytes()
    path.write_bytes(content[:-1] if damage is None else damage)
    assert cached_export(tmp_path, LITE, export) == b"graph 2"
    assert cached_export(tmp_path, LITE, export) == b"graph 2"


def test_without_a_cache_and_with_one_that_cannot_be_written(
    tmp_path: Path, export: Exporter
) -> None:
    assert cached_export(None, LITE, export) == b"graph 1"
    (tmp_path / EXPORTS).write_text("a file where the folder should be")
    assert cached_export(tmp_path, LITE, export) == b"graph 2"


def test_an_export_that_fails_leaves_nothing(tmp_path: Path, export: Exporter) -> None:
    def interrupted() -> bytes:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_export(tmp_path, LITE, interrupted)
    assert not (tmp_path / EXPORTS).exists()
    assert cached_export(tmp_path, LITE, export) == b"graph 1"


def test_the_ones_not_used_for_longest_go(tmp_path: Path, export: Exporter) -> None:
    for number in range(MAX_KEPT):
        cached_export(tmp_path, {"weights": number}, export)
        for path in (tmp_path / EXPORTS).iterdir():
            os.utime(path, (path.stat().st_mtime - 60, path.stat().st_mtime - 60))
    assert cached_export(tmp_path, {"weights": 0}, export) == b"graph 1"  # used now
    cached_export(tmp_path, {"weights": MAX_KEPT}, export)
    assert len(list((tmp_path / EXPORTS).iterdir())) == MAX_KEPT
    assert cached_export(tmp_path, {"weights": 0}, export) == b"graph 1"
    assert cached_export(tmp_path, {"weights": 1}, export) == b"graph %d" % (MAX_KEPT + 2)
