"""A kind of detector added to the table is known everywhere, and by its entry alone.

Of two kinds a "PatchCore, else EfficientAD" somewhere goes unnoticed.
"""

from __future__ import annotations

import numpy as np
import psycopg
import pytest

from pgdefect.core.config import Settings
from pgdefect.core.detector_kinds import KINDS, kind_named, preference
from pgdefect.core.errors import NoMemoryBank, UsageError
from pgdefect.db.connection.engine import Database
from pgdefect.db.records.detectors import active_detector, active_version
from pgdefect.db.records.lifecycle import activate_detector, retire_detector
from pgdefect.db.schema.schema import upgrade
from pgdefect.usecases.inspect.inspector import Inspector
from pgdefect.usecases.train.choose import kind_of, settings_of, training_options
from pgdefect.vision.images.image import load_image
from tests.mean_color import MEAN_COLOR, MeanColorOptions, color_distances

from .conftest import Cli, value


@pytest.fixture
def third(trained: Database, monkeypatch: pytest.MonkeyPatch) -> Database:
    """A trained database, opened by a version that has a third kind."""
    monkeypatch.setitem(KINDS, "mean_color", MEAN_COLOR)
    # The SQL functions that know the kinds follow the table.
    assert set(upgrade(trained).sql_files) == {
        "internal/kind_noun.sql",
        "internal/kind_preference.sql",
    }
    return trained


def test_trained_judged_evaluated_searched(good: Cli, third: Database, settings: Settings) -> None:
    report = good(third, "train", "parts", "--kind", "mean_color", "--seed", 3)
    headings, _, row = (line.split() for line in report.out.splitlines())
    assert "red" in headings
    assert row[:2] == ["parts", "16"]
    bank, made = (active_detector(third, "parts", kind) for kind in ("patchcore", "mean_color"))
    assert (made.kind, made.bank_info) == ("mean_color", None)
    assert active_detector(third, "parts").id == bank.id  # PatchCore stays the preferred one

    result = good(
        third, "inspect", "--category", "parts", "--split", "test", "--kind", "mean_color", "--json"
    )
    judged = result.json["inspections"]
    assert len(judged) == 13
    one = judged[0]
    inspector = Inspector(third, settings, "parts", kind="mean_color")
    color = np.array(
        value(third, "SELECT settings->'color' FROM pgdefect.detector WHERE id = %s", made.id),
        dtype=np.float32,
    )
    pixels = inspector.preprocessing.apply(load_image(one["path"]))[None]
    grid = value(
        third, "SELECT ARRAY[rows, cols] FROM pgdefect.extractor WHERE id = %s", made.extractor_id
    )
    distances = color_distances(pixels, tuple(grid), color)[0]
    assert one["raw_score"] == pytest.approx(distances.max(), rel=1e-5)
    assert tuple(one["worst_cell"]) == np.unravel_index(distances.argmax(), distances.shape)
    assert one["detector_id"] == made.id
    search = "SELECT DISTINCT search FROM pgdefect.inspection WHERE detector_id = %s"
    assert value(third, search, made.id) == "network"

    good(third, "evaluate", "parts", "--kind", "mean_color", "--bootstrap", "50")
    auroc = value(third, "SELECT image_auroc FROM defect.detectors WHERE detector_id = %s", made.id)
    defects = [i["raw_score"] for i in judged if i["known_label"] == "anomalous"]
    normal = [i["raw_score"] for i in judged if i["known_label"] == "normal"]
    assert auroc == pytest.approx(np.mean([d > n for d in defects for n in normal]), abs=1e-6)

    found = good(
        third, "search", one["path"], "--category", "parts", "--kind", "mean_color", "--json"
    ).json
    assert found["by"] == "picture"  # it has no defect embeddings
    query = str(one["image_id"])
    listed = value(
        third,
        "SELECT array_agg(image_id ORDER BY rank) FROM "
        "defect.similar_images(%s, kind => 'mean_color', by => 'picture')",
        query,
    )
    assert listed == [neighbor["image_id"] for neighbor in found["neighbors"]]
    assert not [f for f in good(third, "doctor", "--json").json["findings"] if "detector" in str(f)]


def test_what_it_lacks_is_refused_by_its_name(cli: Cli, good: Cli, third: Database) -> None:
    good(third, "train", "parts", "--kind", "mean_color")
    inspect = ("inspect", "--category", "parts", "--split", "test", "--kind", "mean_color")
    assert "is a mean color, which searches nothing" in cli(third, *inspect, "--search=fast").err
    assert "is a mean color, which makes no patch" in cli(third, *inspect, "--keep-patches").err
    with pytest.raises(NoMemoryBank, match=r"\(mean_color\) has no memory bank"):
        _ = active_detector(third, "parts", "mean_color").bank
    good(third, *inspect)
    number = value(
        third,
        "SELECT max(s.id) FROM pgdefect.inspection s JOIN pgdefect.detector d "
        "ON d.id = s.detector_id WHERE d.kind = 'mean_color'",
    )
    with pytest.raises(
        psycopg.Error, match="was made by a mean color, which has no normal patches"
    ):
        value(third, "SELECT * FROM defect.nearest_normal(%s)", number)


def test_its_place_in_the_order(good: Cli, third: Database) -> None:
    bank = active_detector(third, "parts")
    good(third, "train", "parts", "--kind", "mean_color")
    made = active_detector(third, "parts", "mean_color")

    def preferred() -> set[int | None]:
        version = active_version(third, "parts")
        return {
            active_detector(third, "parts").id,
            version and version[0],
            value(third, "SELECT pgdefect.find_detector('parts')"),
            value(third, "SELECT detector_id FROM defect.categories WHERE category = 'parts'"),
        }

    assert preferred() == {bank.id}
    retire_detector(third, bank.id)
    assert preferred() == {made.id}
    activate_detector(third, bank.id)
    assert preferred() == {bank.id}
    for name in (*KINDS, "unheard_of"):
        asked = value(third, "SELECT pgdefect.kind_preference(%s)", name)
        assert preference(name) == min(asked, len(KINDS))


def test_a_database_with_a_kind_that_this_version_lacks(
    cli: Cli, good: Cli, third: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    good(third, "train", "parts", "--kind", "mean_color")
    monkeypatch.delitem(KINDS, "mean_color")
    upgrade(third)
    assert active_detector(third, "parts").kind == "patchcore"
    error = cli(third, "inspect", "--category", "parts", "--kind", "mean_color").error
    assert "--kind is patchcore or efficient_ad, not 'mean_color'" in error
    findings = cli(third, "doctor", "--json").json["findings"]
    assert [f["check"] for f in findings].count("unknown-kind") == 1
    retire_detector(third, active_detector(third, "parts").id)
    error = cli(third, "inspect", "--category", "parts", "--split", "test").error
    assert "unknown kind of detector 'mean_color'; this version knows: patchcore" in error


def test_settings_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "mean_color", MEAN_COLOR)
    assert settings_of("mean_color") == ["false_reject_rate", "seed"]
    options = training_options("mean_color", {"seed": 5})
    assert options == MeanColorOptions(seed=5)
    assert kind_of(options) is MEAN_COLOR
    with pytest.raises(UsageError, match="coreset_ratio goes with kind='patchcore', not with mean"):
        training_options("mean_color", {"coreset_ratio": 0.5})
    with pytest.raises(UsageError, match="kind is patchcore, efficient_ad or mean_color, not 'x'"):
        training_options("x", {})


@pytest.mark.parametrize("name", list(KINDS))
def test_the_code_that_the_table_names_is_there(name: str) -> None:
    kind = kind_named(name)
    assert isinstance(kind.code("options"), type)
    assert callable(kind.code("train"))
    assert callable(kind.code("judge"))
    assert kind_of(training_options(name, {})) is kind
