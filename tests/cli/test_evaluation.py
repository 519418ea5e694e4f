"""``pgdefect evaluate``: figures, leaks, masks, files."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score
from sqlalchemy import text

from pgdefect.core.config import Settings
from pgdefect.db.connection.engine import Database
from pgdefect.db.records.evaluations import latest_evaluations
from pgdefect.evaluation import f1_max
from pgdefect.usecases.evaluate.evaluate import EvaluateOptions, evaluate, mean_figures
from pgdefect.usecases.evaluate.evaluation_files import map_scale, results_csv, results_markdown
from pgdefect.vision.images.masks import load_mask

from .conftest import Cli, value

QUICK = ("--bootstrap", "50")
KEYS = (
    "image_auroc",
    "image_f1_max",
    "average_precision",
    "pixel_auroc",
    "pixel_f1_max",
    "aupro",
)


def change(database: Database, statement: str, **parameters: object) -> None:
    with database.begin() as connection:
        connection.execute(text(statement), parameters)


def evaluated(cli: Cli, database: Database, *arguments: object) -> dict[str, Any]:
    result = cli(database, "evaluate", "parts", *QUICK, *arguments, "--json")
    assert result.code == 0, result.err
    [found] = result.json["evaluations"]
    return dict(found)


def test_figures_are_those_of_the_stored_scores(cli: Cli, trained: Database) -> None:
    before = value(trained, "SELECT max(created_at) FROM pgdefect.inspection")
    found = evaluated(cli, trained)
    with psycopg.connect(trained.url) as connection:
        rows = connection.execute(
            "SELECT label = 'anomalous', raw_score, defect_type FROM defect.images "
            "WHERE split = 'test'"
        ).fetchall()
    truth, scores = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    assert found["image_auroc"] == pytest.approx(roc_auc_score(truth, scores))
    assert found["average_precision"] == pytest.approx(average_precision_score(truth, scores))
    assert (found["normal_images"], found["anomalous_images"]) == (4, 9)
    assert set(KEYS) <= set(found)
    assert {key: found[key] for key in KEYS if not 0.2 < found[key] <= 1.0} == {}
    assert found["false_rejects"] == int((scores > found["threshold"])[~truth].sum())
    assert found["escapes"] == int((scores <= found["threshold"])[truth].sum())
    for key in KEYS:
        low, high = found["intervals"][key]
        assert 0.0 <= low <= high <= 1.0
    types = {item["defect_type"]: item for item in found["defect_types"]}
    assert set(types) == {"chip", "scratch", "stain"}
    of_type = [r[2] in (None, "chip") for r in rows]
    assert types["chip"]["images"] == 3
    assert types["chip"]["image_auroc"] == pytest.approx(
        roc_auc_score(truth[of_type], scores[of_type])
    )
    # Nothing had to be inspected again.
    assert value(trained, "SELECT max(created_at) FROM pgdefect.inspection") == before


def test_an_evaluation_is_kept_with_the_detector(cli: Cli, trained: Database) -> None:
    found = evaluated(cli, trained)
    stored = "SELECT image_auroc FROM defect.evaluations WHERE category = 'parts' AND aupro = %s"
    assert value(trained, stored, found["aupro"]) == found["image_auroc"]
    metrics = value(trained, "SELECT metrics FROM defect.banks WHERE category = 'parts'")
    assert metrics["evaluation_id"] == found["evaluation_id"]
    assert {key: metrics[key] for key in KEYS} == {key: found[key] for key in KEYS}
    settings = value(trained, "SELECT settings FROM defect.evaluations")
    assert (settings["bootstrap"], settings["seed"], settings["leaks"]) == (50, 0, [])
    assert settings["pixel_error_bound"] < 1e-3
    again = evaluated(cli, trained, "--seed", "1")
    [latest] = latest_evaluations(trained, "parts")
    assert latest.id == again["evaluation_id"] > found["evaluation_id"]
    assert again["intervals"] != found["intervals"]
    assert {key: again[key] for key in KEYS} == {key: found[key] for key in KEYS}


def test_the_table_is_to_be_read(cli: Cli, trained: Database) -> None:
    result = cli(trained, "evaluate", "parts", *QUICK)
    assert result.code == 0
    assert result.err == ""
    lines = result.out.splitlines()
    assert lines[0].startswith("parts: 4 normal and 9 anomalous test images; patchcore version 1")
    [auroc] = [line.split() for line in lines if line.startswith("image AUROC")]
    assert float(auroc[2]) > 0.5
    assert any(line.startswith("scratch") for line in lines)
    plain = cli(trained, "evaluate", "parts", "--bootstrap", "0")
    assert " – " not in plain.out


def test_what_is_missing_is_inspected(cli: Cli, trained: Database) -> None:
    first = evaluated(cli, trained)
    change(trained, "DELETE FROM pgdefect.inspection WHERE id % 2 = 0")
    count = "SELECT count(*) FROM pgdefect.inspection WHERE search = %s"
    kept = value(trained, count, "hnsw")
    second = evaluated(cli, trained)
    assert value(trained, count, "hnsw") == kept
    assert value(trained, count, "exact") == 13 - kept
    assert second["image_auroc"] == pytest.approx(first["image_auroc"])
    evaluated(cli, trained, "--again")
    assert value(trained, count, "exact") == 13 - kept + 13
    # Maps of the fast search are too coarse to compare pixels with.
    change(trained, "UPDATE pgdefect.inspection SET search = 'fast'")
    evaluated(cli, trained)
    assert value(trained, count, "exact") == 13


def test_a_leak_is_named_and_can_be_dropped(cli: Cli, trained: Database) -> None:
    change(
        trained,
        "UPDATE pgdefect.image SET group_name = 'tile 7' "
        "WHERE path IN ('train/good/000.png', 'test/good/001.png', 'test/chip/000.png')",
    )
    result = cli(trained, "evaluate", "parts", *QUICK)
    assert result.code == 0
    assert "warning: parts: the split leaks" in result.err
    assert "part 'tile 7' is in test" in result.err
    assert "test/chip/000.png and 1 more" in result.err
    assert "train/good/000.png" in result.err
    assert "--drop-leaks" in result.err
    assert value(trained, "SELECT leaks FROM defect.evaluations") == 1
    leaking = "SELECT metrics->'leaking_images' FROM defect.banks"
    assert value(trained, leaking) == 2
    found = evaluated(cli, trained, "--drop-leaks")
    assert value(trained, leaking) == 0
    assert (found["normal_images"], found["anomalous_images"]) == (3, 8)
    assert found["dropped_images"] == 2
    [leak] = found["leaks"]
    assert (leak["kind"], leak["name"]) == ("part", "tile 7")
    with psycopg.connect(trained.url) as connection:
        [(recorded,)] = connection.execute(
            "SELECT settings FROM defect.evaluations ORDER BY evaluation_id DESC LIMIT 1"
        ).fetchall()
    assert recorded["drop_leaks"] is True
    assert recorded["leaks"][0]["name"] == "tile 7"


def test_an_image_that_was_trained_on_leaks_wherever_it_has_gone(
    cli: Cli, trained: Database
) -> None:
    change(trained, "UPDATE pgdefect.image SET split = 'test' WHERE path = 'train/good/003.png'")
    found = evaluated(cli, trained)
    assert found["normal_images"] == 5
    [leak] = found["leaks"]
    assert leak["kind"] == "sha256"
    assert leak["paths"][0].endswith("train/good/003.png")


def test_a_part_that_may_have_been_learned_under_another_name_is_named(
    cli: Cli, trained: Database
) -> None:
    change(
        trained,
        "UPDATE pgdefect.image SET group_name = 'pair ' || substr(path, 12, 3)::integer / 2 "
        "WHERE path LIKE 'train/good/%'",
    )
    assert evaluated(cli, trained)["look_alikes"] == []
    change(
        trained,
        "UPDATE pgdefect.image_embedding e SET embedding = o.embedding "
        "FROM pgdefect.image_embedding o, pgdefect.image i, pgdefect.image j "
        "WHERE e.image_id = i.id AND o.image_id = j.id AND e.extractor_id = o.extractor_id "
        "AND i.path = 'test/good/001.png' AND j.path = 'train/good/003.png'",
    )
    [pair] = evaluated(cli, trained)["look_alikes"]
    assert pair["path"].endswith("test/good/001.png")
    assert pair["other_path"].endswith("train/good/003.png")
    assert (pair["part"], pair["other_part"]) == (None, "pair 1")
    assert abs(pair["distance"]) < 1e-5 < pair["usual"]
    warned = cli(trained, "evaluate", "parts", *QUICK).err
    assert "warning: parts: 1 test parts may have been learned from under other names" in warned
    assert "test/good/001.png is like " in warned
    assert "(part 'pair 1')" in warned
    settings = value(trained, "SELECT settings FROM defect.evaluations ORDER BY 1 DESC LIMIT 1")
    assert settings["look_alikes"] == [pair]
    assert value(trained, "SELECT sum(leaks) FROM defect.evaluations") == 0


def test_a_photograph_that_gave_nothing_to_the_bank_is_no_leak_of_its_part(
    cli: Cli, trained: Database
) -> None:
    """It was scored without its part's vectors, as those were that gave some."""
    where = "(SELECT id FROM pgdefect.image WHERE path = 'train/good/{}.png')"
    change(
        trained,
        "UPDATE pgdefect.image SET group_name = 'twins' "
        "WHERE path IN ('train/good/003.png', 'train/good/004.png')",
    )
    change(
        trained,
        f"UPDATE pgdefect.memory_bank_patch SET image_id = {where.format('004')} "
        f"WHERE image_id = {where.format('003')}",
    )
    assert evaluated(cli, trained)["leaks"] == []


def test_anomalous_images_without_a_mask_take_no_part_in_pixel_figures(
    cli: Cli, trained: Database
) -> None:
    everything = evaluated(cli, trained)
    without = "UPDATE pgdefect.image SET mask_path = NULL WHERE defect_type = :type"
    change(trained, without, type="stain")
    some = evaluated(cli, trained)
    assert some["image_auroc"] == everything["image_auroc"]
    assert some["pixel_auroc"] is not None
    note = some["notes"][0]
    assert note.startswith("3 anomalous images have no ground-truth mask and take no part")
    for name in ("scratch", "chip"):
        change(trained, without, type=name)
    result = cli(trained, "evaluate", "parts", *QUICK)
    assert result.code == 0
    assert "no anomalous image has a ground-truth mask" in result.err
    none = evaluated(cli, trained)
    assert none["image_auroc"] == everything["image_auroc"]
    assert [none[key] for key in KEYS[3:]] == [None] * 3
    metrics = value(trained, "SELECT metrics FROM defect.banks")
    assert metrics["aupro"] is None


def test_files_and_masks_that_are_not_what_they_were_are_named(
    cli: Cli, trained: Database, own_files: Path
) -> None:
    shutil.copy(own_files / "test/good/000.png", own_files / "test/chip/000.png")
    (own_files / "test/stain/001.png").unlink()
    (own_files / "ground_truth/scratch/002_mask.png").write_bytes(b"no picture")
    blank = own_files / "ground_truth/scratch/001_mask.png"
    with Image.open(blank) as mask:
        Image.new("L", mask.size).save(blank)
    result = cli(trained, "evaluate", "parts", *QUICK, "--json")
    assert result.code == 1
    [found] = result.json["evaluations"]
    assert found["anomalous_images"] == 7
    reasons = sorted(item["reason"] for item in found["failed"])
    assert len(reasons) == 3
    assert sum("test/chip/000.png' has changed since it was ingested" in r for r in reasons) == 1
    assert sum("test/stain/001.png' cannot be read: no such file" in r for r in reasons) == 1
    assert sum("002_mask.png" in r for r in reasons) == 1
    assert found["notes"][0].startswith("1 anomalous images have an empty ground-truth mask")
    assert "3 files could not be read" in result.err
    # Not all test images: not the detector's headline.
    assert "aupro" not in value(trained, "SELECT metrics FROM defect.banks")


def test_a_mask_of_another_size_spoils_no_report(
    cli: Cli, trained: Database, own_files: Path, tmp_path: Path
) -> None:
    Image.new("L", (7, 5)).save(own_files / "ground_truth/chip/000_mask.png")
    out, maps = tmp_path / "out", tmp_path / "maps"
    result = cli(trained, "evaluate", "parts", *QUICK, "--output", out, "--save-maps", maps)
    assert result.code == 1
    assert "image AUROC" in result.out
    assert "000_mask.png' has 5 rows and 7 columns" in result.err
    assert {"results.csv", "results.md", "parts"} == {path.name for path in out.iterdir()}
    assert len(list((maps / "parts").iterdir())) == 13


def test_a_category_s_name_leads_out_of_no_folder(
    good: Cli, trained: Database, tmp_path: Path
) -> None:
    change(trained, "UPDATE pgdefect.category SET name = '../a/b'")
    out = tmp_path / "deep" / "out"
    good(trained, "evaluate", "../a/b", *QUICK, "--output", out)
    [folder] = [path for path in out.iterdir() if path.is_dir()]
    assert (folder / "roc.png").exists()
    assert list((tmp_path / "deep").iterdir()) == [out]


def test_all_takes_the_categories_with_such_a_detector(cli: Cli, trained: Database) -> None:
    result = cli(trained, "evaluate", "--all", "--kind", "efficient_ad")
    assert result.code == 2
    assert "no category has an active efficient_ad detector" in result.error


def test_one_label_alone_cannot_be_evaluated(cli: Cli, trained: Database) -> None:
    change(trained, "UPDATE pgdefect.image SET retired_at = now() WHERE path LIKE 'test/good%'")
    result = cli(trained, "evaluate", "parts")
    assert result.code == 1
    assert "has 0 normal and 9 anomalous labeled test images" in result.error
    assert "pgdefect ingest" in result.error
    result = cli(trained, "evaluate", "--all")
    assert result.code == 1
    assert "parts was not evaluated: evaluating needs normal" in result.err
    assert "0 normal and 9 anomalous" in result.err
    assert "could not be read" not in result.err
    result = cli(trained, "evaluate", "parts", "--split", "simulated")
    assert result.code == 1
    assert "pgdefect threshold parts --simulated" in result.error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name the categories to evaluate"),
        (["parts", "--all"], "name the categories to evaluate"),
        (["parts", "--split", "testing"], "--split is train, test, production or simulated"),
        (["parts", "--search", "fast"], "--search is exact or hnsw"),
        (["parts", "--bootstrap", "-1"], "must be 0 or more, not -1"),
        (["parts", "--seed", "-1"], "must be 0 or more, not -1"),
        (["parts", "--kind", "resnet"], "--kind is patchcore or efficient_ad"),
    ],
)
def test_wrong_words_are_refused(
    cli: Cli, trained: Database, arguments: list[str], said: str
) -> None:
    result = cli(trained, "evaluate", *arguments)
    assert result.code == 2
    assert said in result.error


def test_unknown_categories_and_those_without_detector(cli: Cli, trained: Database) -> None:
    assert "no category 'part'; known: parts" in cli(trained, "evaluate", "parts", "part").error
    change(trained, "UPDATE pgdefect.detector SET active = false")
    assert "has no active detector" in cli(trained, "evaluate", "parts").error
    assert cli(trained, "evaluate", "--all").code == 2


def test_tables_plots_and_maps_are_written(cli: Cli, trained: Database, tmp_path: Path) -> None:
    report, maps = tmp_path / "report", tmp_path / "maps"
    found = evaluated(cli, trained, "--output", report, "--save-maps", maps)
    for name in ("roc", "precision_recall", "scores", "misses"):
        with Image.open(report / "parts" / f"{name}.png") as picture:
            assert min(picture.size) > 200
    with open(report / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["defect_type"] for row in rows] == ["", "chip", "scratch", "stain"]
    assert float(rows[0]["aupro"]) == found["aupro"]
    assert float(rows[0]["image_auroc_low"]) == found["intervals"]["image_auroc"][0]
    assert rows[1]["aupro"] == ""
    markdown = (report / "results.md").read_text()
    assert f"| parts | 4 | 9 | {found['image_auroc']:.3f} [" in markdown
    names = sorted(path.name for path in (maps / "parts").iterdir())
    assert len(names) == 13
    assert names[0] == "chip_000.png"


def test_pixels_are_compared_at_the_size_of_the_photographs(
    trained: Database, settings: Settings
) -> None:
    found = evaluate(trained, settings, "parts", EvaluateOptions(bootstrap=0))
    scores, truth = [], []
    for judgement in found.judgements:
        size = (judgement.image.height, judgement.image.width)
        laid_over = found.preprocessing.map_to_original(judgement.scores.distances, size)
        mask = np.zeros(size, dtype=bool)
        if judgement.mask_path is not None:
            mask = load_mask(judgement.mask_path, size)
            assert laid_over.shape == mask.shape == (128, 128)
        scores.append(laid_over.reshape(-1))
        truth.append(mask.reshape(-1))
    exact = roc_auc_score(np.concatenate(truth), np.concatenate(scores))
    assert found.figures["pixel_auroc"] == pytest.approx(exact, abs=1e-4)
    best, _ = f1_max(np.concatenate(scores), np.concatenate(truth))
    assert found.figures["pixel_f1_max"] == pytest.approx(best, abs=1e-3)
    assert found.intervals == {}


def test_means_over_categories(trained: Database, settings: Settings) -> None:
    one = evaluate(trained, settings, "parts", EvaluateOptions(bootstrap=60))
    two = evaluate(trained, settings, "parts", EvaluateOptions(bootstrap=60, seed=1))
    means, intervals = mean_figures([one, two])
    assert means == {key: pytest.approx(one.figures[key]) for key in KEYS}
    widths = [
        i["average_precision"][1] - i["average_precision"][0] for i in (one.intervals, intervals)
    ]
    assert 0.0 <= widths[1] <= widths[0]
    assert results_csv([one, two]).splitlines()[-1].startswith("mean,")
    assert "| **mean** |" in results_markdown([one, two])
    assert "mean" not in results_csv([one])
    assert map_scale(one) >= 2 * one.threshold
