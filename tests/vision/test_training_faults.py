"""Trainings that are refused, interrupted or lack a package leave everything as it was."""

from __future__ import annotations

import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cells import TINY, bank_rows, count, state
from sqlalchemy import text

from pgdefect.core.config import Settings
from pgdefect.core.errors import (
    MissingExtra,
    TooFewImages,
    UsageError,
)
from pgdefect.core.signal_stack import widen_signal_stack
from pgdefect.db.connection.engine import Database
from pgdefect.db.records.detectors import active_detector
from pgdefect.db.search.queries import image_embeddings_of, images_of
from pgdefect.usecases.inspect.inspect import inspect
from pgdefect.usecases.train.options import TrainOptions
from pgdefect.usecases.train.train import train
from pgdefect.vision.patchcore import patchcore

pytestmark = pytest.mark.train


def test_too_few_images_are_refused_with_the_number(cells: Database, settings: Settings) -> None:
    def keep(number: int) -> None:
        with cells.begin() as connection:
            connection.execute(
                text(
                    "UPDATE pgdefect.image i SET retired_at = CASE WHEN i.id NOT IN "
                    "(SELECT t.id FROM pgdefect.image t WHERE t.category_id = c.id "
                    "AND t.split = 'train' ORDER BY t.id LIMIT :number) THEN now() END "
                    "FROM pgdefect.category c WHERE i.category_id = c.id AND c.name = 'cells'"
                ),
                {"number": number},
            )

    keep(4)
    before = state(cells)
    with pytest.raises(TooFewImages, match=r"has 4 normal.*at least 5.*project\.ingest"):
        train(cells, settings, "cells", TINY)
    assert state(cells) == before
    keep(5)
    report = train(cells, settings, "cells", TINY)
    assert (report.training_images, report.held_out_images) == (5, 5)


def test_unreadable_images_are_left_out_and_listed(
    cells: Database, settings: Settings, tmp_path: Path
) -> None:
    lost = images_of(cells, "cells", split="train")[:2]
    with cells.begin() as connection:
        for n, image in enumerate(lost):
            connection.execute(
                text("UPDATE pgdefect.image SET path = :path WHERE id = :id"),
                {"path": f"gone{n}.png", "id": image.id},
            )
    report = train(cells, settings, "cells", TINY)
    assert sorted(Path(path).name for path, _ in report.failed[:2]) == ["gone0.png", "gone1.png"]
    assert (report.training_images, report.held_out_images) == (10, 10)
    _, in_bank = bank_rows(cells, active_detector(cells, "cells"))
    assert not {i.id for i in lost} & set(in_bank)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backbone": "resnet_of_wonders"}, "unknown backbone 'resnet_of_wonders'"),
        ({"backbone": "lite0"}, "tf_efficientnet_lite0"),
        ({"layers": ("blocks.2", "blocks.99")}, r"no layer blocks\.99; it has blocks\.0"),
        ({"backbone": "mobilenetv3_small_050"}, "name the layers of mobilenetv3_small_050"),
        ({"layer_weights": {"blocks.3": 2.0}}, r"names blocks\.3; the layers tapped are blocks\.2"),
        ({"device": "cuda:7"}, "no device 'cuda:7' here; use device='cpu'"),
        ({"device": "abacus"}, "no device 'abacus'"),
    ],
)
def test_what_there_is_not_is_refused_naming_what_there_is(
    cells: Database, settings: Settings, options: dict[str, Any], words: str
) -> None:
    before = state(cells)
    with pytest.raises(UsageError, match=words):
        train(cells, settings, "cells", replace(TINY, **options))
    assert state(cells) == before


@pytest.mark.parametrize(
    "options",
    [
        {"coreset_ratio": 0.0},
        {"coreset_ratio": 1.1},
        {"holdout": 0.0},
        {"holdout": 1.1},
        {"false_reject_rate": 0.0},
        {"num_neighbors": 0},
        {"batch_size": 0},
        {"pca_dim": 0},
        {"seed": -1},
        {"max_patches": 0},
        {"max_vectors": 0},
        {"whiten": 1.5},
        {"worst_share": -0.1},
        {"worst_share": 1.1},
        {"worst_share": 0.01, "num_neighbors": 2},
        {"layer_weights": {"blocks.2": 0.0}},
        {"layer_weights": {"blocks.2": float("nan")}},
        {"layer_weights": {"blocks.2": 2.0}, "transform": "unit"},
        {"layer_weights": {"blocks.2": 2.0}, "backbone": "efficientnet_lite0+efficientnet_lite1"},
        {"metric": "manhattan"},
        {"transform": "none"},
        {"image_size": (5000, 128)},
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        TrainOptions(**options)


def test_a_file_that_is_not_what_was_ingested_is_not_learned_from(
    cells: Database, settings: Settings, tmp_path: Path
) -> None:
    """Neither for the bank nor for an image embedding."""
    images = images_of(cells, "cells")
    root = images[0].path.removesuffix(images[0].relative_path)
    for image in images:
        (tmp_path / image.relative_path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image.path, tmp_path / image.relative_path)
    with cells.begin() as connection:
        connection.execute(
            text("UPDATE pgdefect.image_root SET path = :new WHERE path = :old"),
            {"new": str(tmp_path), "old": root.rstrip("/")},
        )
    learned, defective = (
        next(i for i in images if (i.split, i.known_label) == kind)
        for kind in (("train", "normal"), ("test", "anomalous"))
    )
    shutil.copy(tmp_path / defective.relative_path, tmp_path / learned.relative_path)
    (tmp_path / defective.relative_path).write_bytes(
        (tmp_path / images[-1].relative_path).read_bytes() + b"\0"
    )
    report = train(cells, settings, "cells", replace(TINY, image_size=(96, 96)))
    assert sorted(path for path, _ in report.failed) == sorted(
        str(tmp_path / image.relative_path) for image in (learned, defective)
    )
    assert all("has changed since it was ingested" in reason for _, reason in report.failed)
    assert learned.id not in bank_rows(cells, active_detector(cells, "cells"))[1]
    embedded = image_embeddings_of(cells, report.extractor_id, [learned.id, defective.id])
    assert embedded == {}


@pytest.mark.parametrize("module", ["anomalib", "torch", "timm"])
def test_missing_extra_is_named_with_the_command(
    cells: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    before = state(cells)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=rf"'{module}'.*pip install 'pgdefect\[train\]'"):
        train(cells, settings, "cells", TINY)
    monkeypatch.undo()
    assert state(cells) == before


@pytest.mark.parametrize("stage", ["extract", "coreset", "threshold", "load", "index"])
def test_interrupted_training_leaves_everything_as_it_was(
    cells: Database, settings: Settings, stage: str, default_interrupts: None
) -> None:
    def interrupt(at: str, done: int, total: int) -> None:
        if at == stage and done:
            widen_signal_stack()
            signal.raise_signal(signal.SIGINT)

    before = state(cells)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(cells, settings, "cells", TINY, progress=interrupt)
    assert state(cells) == before
    assert signal.getsignal(signal.SIGINT) is handler
    assert not list(settings.cache_dir.glob("training-*"))
    with cells.lock("training of cells"):
        pass
    assert len(inspect(cells, settings, "cells", split="test").inspections) == 7


def test_interrupted_export_of_a_new_extractor_leaves_none(
    cells: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: Any, cache_dir: Path | None) -> None:
        raise KeyboardInterrupt

    before = state(cells)
    monkeypatch.setattr(patchcore.PatchEmbedder, "export", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(cells, settings, "cells", replace(TINY, image_size=(96, 96)))
    assert state(cells) == before


def test_interrupted_inspection_keeps_whole_batches(cells: Database, settings: Settings) -> None:
    judged = []

    def interrupt(inspection: Any) -> None:
        judged.append(inspection)
        raise KeyboardInterrupt

    before = count(cells, "pgdefect.inspection")
    with pytest.raises(KeyboardInterrupt):
        inspect(cells, settings, "cells", on_judged=interrupt)
    kept = count(cells, "pgdefect.inspection") - before
    assert 0 < kept < 19
    assert count(cells, "pgdefect.inspection_run") == 1
    resumed = inspect(cells, settings, "cells")
    assert (resumed.resumed, len(resumed.inspections)) == (kept, 19)
    assert count(cells, "pgdefect.inspection") == before + 19
    assert count(cells, "pgdefect.inspection_run") == 0
    # It is complete: the same command inspects again.
    once_more = inspect(cells, settings, "cells")
    assert once_more.resumed == 0
    assert count(cells, "pgdefect.inspection") == before + 2 * 19
    scores = [item.raw_score for item in resumed.inspections]
    assert [item.raw_score for item in once_more.inspections] == pytest.approx(scores, rel=1e-5)
    boxes = [item.worst_box for item in resumed.inspections]
    assert [item.worst_box for item in once_more.inspections] == boxes
    defects = [len(item.defect.regions) for item in resumed.inspections if item.defect]
    assert [len(i.defect.regions) for i in once_more.inspections if i.defect] == defects
