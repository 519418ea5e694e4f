"""What is recorded of a data set, and what goes when something is deleted."""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rows import add_embeddings, add_extractor, add_images, count, memory_bank, store, unit_vectors
from sqlalchemy import text

from pgdefect.core.config import Settings
from pgdefect.core.errors import Conflict, DatasetError, NotFound, UnknownCategory, UnknownImage
from pgdefect.core.types import StoredImage
from pgdefect.db.connection.engine import Database
from pgdefect.db.records.catalog import move_root
from pgdefect.db.records.delete_preview import dependents
from pgdefect.db.records.lifecycle import (
    delete_category,
    delete_detector,
    delete_image,
    set_category_retired,
    set_images_retired,
)
from pgdefect.db.records.summaries import list_categories, list_detectors
from pgdefect.db.search.queries import find_image, images_of
from pgdefect.usecases.ingest import check_category_name, ingest, ingest_all
from pgdefect.usecases.inspect.inspect import inspect

NASTY = [
    "100%",
    "under_score",
    "back\\slash",
    "o'reilly",
    'double"quote',
    "'; DROP TABLE pgdefect.image; --",
    "{name} %s %(x)s :name $1",
    "Schräge Ω 漆",
]


def picture(path: Path, shade: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((40, 50, 3), shade, dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four normal images, two scratched, one of them with a mask."""
    root = tmp_path / "lids"
    for n in range(4):
        picture(root / f"train/good/{n}.png", n)
    for n in range(2):
        picture(root / f"test/scratch/{n}.png", 100 + n)
    picture(root / "ground_truth/scratch/0_mask.png", 255)
    return root


def stored(database: Database, category: str = "lids") -> dict[str, StoredImage]:
    return {image.relative_path: image for image in images_of(database, category)}


def rows_of(database: Database) -> list[tuple[object, ...]]:
    with database.connect() as connection:
        return [
            tuple(r) for r in connection.execute(text("SELECT * FROM pgdefect.image ORDER BY 1"))
        ]


# -- ingest --------------------------------------------------------------------------------


def test_an_id_given_out_twice_is_an_error_and_no_image_less(
    database: Database, folder: Path
) -> None:
    ingest(database, folder, "lids")
    before = rows_of(database)
    with database.begin() as connection:
        connection.execute(text("ALTER SEQUENCE pgdefect.image_id_seq RESTART"))
    picture(folder / "train/good/new.png", 50)
    with pytest.raises(Conflict, match="a sequence of ids was reset"):
        ingest(database, folder, "lids")
    assert rows_of(database) == before


def test_ingest_records_what_the_files_are(database: Database, folder: Path) -> None:
    report = ingest(database, folder, "lids")
    assert (report.added, report.unchanged, report.failed) == (6, 0, ())
    [problem] = report.problems
    assert "test/scratch/1.png" in problem
    images = stored(database)
    assert len(images) == 6
    scratch = images["test/scratch/0.png"]
    assert scratch.path == str(folder / "test/scratch/0.png")
    content = (folder / "test/scratch/0.png").read_bytes()
    assert scratch.sha256 == hashlib.sha256(content).hexdigest()
    assert (scratch.height, scratch.width) == (40, 50)
    assert (scratch.split, scratch.known_label, scratch.known_defect_type) == (
        "test",
        "anomalous",
        "scratch",
    )
    assert scratch.mask_path == "ground_truth/scratch/0_mask.png"
    assert images["test/scratch/1.png"].mask_path is None
    good = images["train/good/3.png"]
    assert (good.split, good.known_label, good.known_defect_type, good.part) == (
        "train",
        "normal",
        None,
        None,
    )


def test_ingest_again_changes_nothing(database: Database, folder: Path) -> None:
    ingest(database, folder, "lids")
    before = rows_of(database)
    for accept in (False, True):
        report = ingest(database, folder, "lids", accept_changes=accept)
        assert (report.added, report.unchanged, report.restored) == (0, 6, 0)
        assert report.changed == report.vanished == report.failed == ()
    assert rows_of(database) == before


def test_two_ingests_at_once_add_each_image_once(database: Database, folder: Path) -> None:
    threads = [threading.Thread(target=ingest, args=(database, folder, "lids")) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(rows_of(database)) == 6


def test_new_images_are_added_to_those_there(database: Database, folder: Path) -> None:
    ingest(database, folder, "lids")
    before = rows_of(database)
    picture(folder / "train/good/new.png", 77)
    report = ingest(database, folder, "lids")
    assert (report.added, report.unchanged) == (1, 6)
    assert rows_of(database)[:6] == before


def test_changed_and_vanished_files_are_reported_and_nothing_else(
    database: Database, folder: Path
) -> None:
    ingest(database, folder, "lids")
    before = rows_of(database)
    picture(folder / "train/good/0.png", 200)
    (folder / "test/scratch/1.png").unlink()
    for _ in range(2):
        report = ingest(database, folder, "lids")
        assert report.changed == ("train/good/0.png",)
        assert report.vanished == ("test/scratch/1.png",)
        assert (report.added, report.unchanged, report.accepted) == (0, 4, False)
        assert rows_of(database) == before


def test_accepting_changes_renews_content_and_drops_what_came_from_the_old(
    trained: Database, settings: Settings, parts: Path, tmp_path: Path
) -> None:
    root = tmp_path / "parts"
    shutil.copytree(parts, root)
    move_root(trained, str(parts), str(root))
    images = stored(trained, "parts")
    changed = next(i for p, i in images.items() if p.startswith("test/"))
    vanished = [i for p, i in images.items() if p.startswith("test/")][-1]
    for image in (changed, vanished):
        for table in ("inspection", "image_embedding"):
            assert count(trained, f"pgdefect.{table}", f"image_id = {image.id}") == 1
    inspections = count(trained, "pgdefect.inspection")
    picture(root / changed.relative_path, 9)
    content = (root / vanished.relative_path).read_bytes()
    (root / vanished.relative_path).unlink()

    report = ingest(trained, root, "parts", accept_changes=True)
    assert report.changed == (changed.relative_path,)
    assert report.vanished == (vanished.relative_path,)
    assert report.accepted
    now = stored(trained, "parts")
    assert vanished.relative_path not in now
    renewed = now[changed.relative_path]
    assert renewed.id != changed.id
    assert renewed.sha256 != changed.sha256
    assert (renewed.height, renewed.width) == (40, 50)
    assert (renewed.known_label, renewed.known_defect_type) == (
        changed.known_label,
        changed.known_defect_type,
    )
    for table in ("inspection", "image_embedding"):
        assert count(trained, f"pgdefect.{table}", f"image_id = {renewed.id}") == 0
    # What was judged is history: of the old content, with all that it rests on.
    assert count(trained, "pgdefect.inspection") == inspections
    with trained.connect() as connection:
        old = connection.execute(
            text("SELECT path, sha256, retired_at IS NOT NULL FROM pgdefect.image WHERE id = :id"),
            {"id": changed.id},
        ).one()
        told = connection.execute(
            text(
                "SELECT action, before->>'path', after->>'path' FROM pgdefect.audit "
                "WHERE object = :image ORDER BY number DESC LIMIT 1"
            ),
            {"image": f"image {changed.id}"},
        ).one()
    kept = f"{changed.relative_path}.replaced-{changed.id}"
    assert tuple(old) == (kept, changed.sha256, True)
    assert tuple(told) == ("retire image", changed.relative_path, kept)
    for table in ("inspection", "image_embedding"):
        assert count(trained, f"pgdefect.{table}", f"image_id = {changed.id}") == 1

    again = ingest(trained, root, "parts", accept_changes=True)
    assert (again.changed, again.vanished, again.restored) == ((), (), 0)
    inspect(trained, settings, "parts", split="test")
    for table in ("inspection", "image_embedding"):
        assert count(trained, f"pgdefect.{table}", f"image_id = {renewed.id}") == 1

    # What comes back is taken back, when asked.
    (root / vanished.relative_path).write_bytes(content)
    assert ingest(trained, root, "parts").restored == 0
    assert vanished.relative_path not in stored(trained, "parts")
    assert ingest(trained, root, "parts", accept_changes=True).restored == 1
    assert stored(trained, "parts")[vanished.relative_path].id == vanished.id


def test_changed_files_that_nobody_judged_keep_their_row(database: Database, folder: Path) -> None:
    ingest(database, folder, "lids")
    before = stored(database, "lids")
    picture(folder / "train/good/0.png", 9)
    assert ingest(database, folder, "lids", accept_changes=True).changed == ("train/good/0.png",)
    after = stored(database, "lids")
    assert {path: image.id for path, image in after.items()} == {
        path: image.id for path, image in before.items()
    }
    assert after["train/good/0.png"].sha256 != before["train/good/0.png"].sha256


def test_readable_files_are_recorded_when_others_are_not(database: Database, folder: Path) -> None:
    good = (folder / "train/good/0.png").read_bytes()
    (folder / "train/good/cut.png").write_bytes(good[: len(good) // 2])
    (folder / "train/good/empty.png").write_bytes(b"")
    (folder / "train/good/text.png").write_text("no image")
    report = ingest(database, folder, "lids")
    assert report.added == 6
    assert sorted(path for path, _ in report.failed) == [
        f"train/good/{name}.png" for name in ("cut", "empty", "text")
    ]
    assert all(reason for _, reason in report.failed)
    assert len(rows_of(database)) == 6


def test_image_that_became_unreadable_is_a_failure_and_keeps_its_row(
    database: Database, folder: Path
) -> None:
    ingest(database, folder, "lids")
    before = rows_of(database)
    (folder / "train/good/0.png").write_bytes(b"")
    report = ingest(database, folder, "lids", accept_changes=True)
    assert [path for path, _ in report.failed] == ["train/good/0.png"]
    assert (report.changed, report.vanished) == ((), ())
    assert rows_of(database) == before


def test_failed_ingest_leaves_no_category(database: Database, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="nowhere"):
        ingest(database, tmp_path / "nowhere", "lids")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="no images"):
        ingest(database, tmp_path / "empty", "lids")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/a.png").write_bytes(b"")
    assert len(ingest(database, tmp_path / "odd", "lids").failed) == 1
    assert list_categories(database) == []
    assert count(database, "pgdefect.image_root") == 0


def test_groups_beside_the_images_and_named_ones(database: Database, folder: Path) -> None:
    (folder / "groups.csv").write_text("path,group\ntrain/good/0.png,lid7\n")
    named = folder.parent / "named.csv"
    named.write_text("path,group\ntrain/good/0.png,lid8\ntrain/good/1.png,lid8\n")
    ingest(database, folder, "lids")
    assert stored(database)["train/good/0.png"].part == "lid7"
    assert stored(database)["train/good/1.png"].part is None
    ingest(database, folder, "named", parts=named)
    images = stored(database, "named")
    assert {images[f"train/good/{n}.png"].part for n in (0, 1)} == {"lid8"}


def test_manifest_columns_beyond_the_known_become_attributes(
    database: Database, folder: Path
) -> None:
    manifest = folder / "list.csv"
    manifest.write_text(
        "path;split;label;group;line;serial;note\n"
        'train/good/0.png;train;normal;lid7;4;0017;"a; ""b"""\n'
        "test/scratch/0.png;test;anomalous;;;;\n"
    )
    report = ingest(database, manifest, "lids")
    assert report.added == 2
    with database.connect() as connection:
        rows = connection.execute(text("SELECT attributes FROM pgdefect.image ORDER BY path DESC"))
        assert [row[0] for row in rows] == [{"line": 4, "serial": "0017", "note": 'a; "b"'}, {}]
    # A manifest that lists fewer images forgets none.
    manifest.write_text("path;split\ntrain/good/0.png;train\n")
    assert ingest(database, manifest, "lids").vanished == ()


def test_all_category_folders_are_ingested_by_name(database: Database, folder: Path) -> None:
    shutil.copytree(folder, folder.parent / "o'caps")
    (folder.parent / "notes").mkdir()
    reports = ingest_all(database, folder.parent)
    assert [(r.category, r.added) for r in reports] == [("lids", 6), ("o'caps", 6)]
    assert [c.name for c in list_categories(database)] == ["lids", "o'caps"]
    assert all(r.added == 0 and r.unchanged == 6 for r in ingest_all(database, folder.parent))


@pytest.mark.parametrize("name", NASTY)
def test_names_are_names_whatever_they_look_like(
    database: Database, folder: Path, name: str
) -> None:
    check_category_name(name)
    odd = folder.parent / name.replace("/", " ")
    shutil.copytree(folder, odd)
    picture(odd / f"train/good/{name}.png", 33)
    assert ingest(database, odd, name).added == 7
    [summary] = list_categories(database)
    assert (summary.name, summary.images, summary.train_images) == (name, 7, 5)
    assert (summary.normal_images, summary.anomalous_images) == (5, 2)
    assert find_image(database, f"{name}.png").relative_path == f"train/good/{name}.png"
    assert dependents(database, category=name).images == 7
    moved = odd.with_name("moved")
    odd.rename(moved)
    assert move_root(database, str(odd), str(moved)) == 7
    assert stored(database, name)[f"train/good/{name}.png"].path.startswith(str(moved))
    set_category_retired(database, name, True)
    delete_category(database, name)
    assert list_categories(database) == []
    assert count(database, "pgdefect.image") == count(database, "pgdefect.image_root") == 0


# -- roots ---------------------------------------------------------------------------------


def test_moved_root_is_pointed_elsewhere_with_all_its_images(
    database: Database, folder: Path
) -> None:
    ingest(database, folder, "lids")
    before = [image.id for image in stored(database).values()]
    moved = folder.rename(folder.parent / "elsewhere")
    assert move_root(database, str(folder), str(moved)) == 6
    report = ingest(database, moved, "lids")
    assert (report.added, report.unchanged) == (0, 6)
    assert [image.id for image in stored(database).values()] == before


def test_root_that_is_unknown_or_taken_is_refused(database: Database, folder: Path) -> None:
    ingest(database, folder, "lids")
    other = folder.parent / "caps"
    shutil.copytree(folder, other)
    ingest(database, other, "caps")
    with pytest.raises(NotFound, match="no images were ingested from /x; known roots: ") as caught:
        move_root(database, "/x", "/y")
    assert str(folder) in str(caught.value)
    assert str(other) in str(caught.value)
    with pytest.raises(Conflict, match="is an image root already"):
        move_root(database, str(folder), str(other))
    assert {i.path for i in stored(database).values()} == {
        str(folder / p) for p in stored(database)
    }


# -- finding -------------------------------------------------------------------------------


def test_image_is_found_by_id_end_of_path_and_start_of_hash(
    database: Database, folder: Path
) -> None:
    ingest(database, folder, "lids")
    image = stored(database)["test/scratch/1.png"]
    for word in (
        str(image.id),
        "scratch/1.png",
        "test/scratch/1.png",
        "/scratch/1.png",
        image.path,
        image.sha256,
        image.sha256[:8],
    ):
        assert find_image(database, word) == image


@pytest.mark.parametrize("word", ["99", "nothing.png", "", "/", "%", "_", "%.png", "ratch/1.png"])
def test_word_that_names_no_image_is_refused(database: Database, folder: Path, word: str) -> None:
    ingest(database, folder, "lids")
    with pytest.raises(UnknownImage, match=r"no stored image is called .* by its id"):
        find_image(database, word)


def test_hash_too_short_is_no_name(database: Database, folder: Path) -> None:
    ingest(database, folder, "lids")
    digest = stored(database)["test/scratch/1.png"].sha256
    with pytest.raises(UnknownImage):
        find_image(database, digest[:7])


def test_word_that_names_several_images_lists_them(database: Database, folder: Path) -> None:
    ingest(database, folder, "lids")
    shutil.copytree(folder, folder.parent / "caps")
    ingest(database, folder.parent / "caps", "caps")
    with pytest.raises(Conflict, match=r"^2 images are called 'good/0\.png': ") as caught:
        find_image(database, "good/0.png")
    for category in ("lids", "caps"):
        image = stored(database, category)["train/good/0.png"]
        assert f"{image.id} ({category}, train/good/0.png)" in str(caught.value)
        assert find_image(database, image.path) == image
    with pytest.raises(Conflict, match="2 images are called"):
        find_image(database, image.sha256)


def test_ambiguous_word_with_many_images_lists_five(database: Database) -> None:
    for n in range(7):
        add_images(database, f"category{n}", 1)
    with pytest.raises(Conflict, match=r"7 images .*category4, 00000\.png\), … *\. Name one"):
        find_image(database, "00000.png")


def test_wildcards_in_a_word_are_letters(database: Database, tmp_path: Path) -> None:
    for n, name in enumerate(["a_b.png", "axb.png", "a%b.png", "a\\b.png"]):
        picture(tmp_path / "odd" / name, n)
    ingest(database, tmp_path / "odd", "odd")
    for name in ("a_b.png", "a%b.png", "a\\b.png"):
        assert find_image(database, name).relative_path == name


# -- retiring and deleting -----------------------------------------------------------------


def test_retired_category_keeps_everything_and_comes_back(trained: Database) -> None:
    before = list_categories(trained)[0]
    set_category_retired(trained, "parts", True)
    assert list_categories(trained)[0].retired_at is not None
    assert list_categories(trained)[0].images == before.images
    set_category_retired(trained, "parts", False)
    assert list_categories(trained) == [before]
    for retired in (True, False):
        with pytest.raises(UnknownCategory, match="'bolts'; known: parts"):
            set_category_retired(trained, "bolts", retired)


def test_retired_image_is_out_until_activated(database: Database, folder: Path) -> None:
    ingest(database, folder, "lids")
    image = stored(database)["train/good/0.png"]
    with database.begin() as connection:
        assert set_images_retired(connection, [image.id], True) == 1
        assert set_images_retired(connection, [image.id], True) == 0
    assert "train/good/0.png" not in stored(database)
    assert list_categories(database)[0].images == 5
    report = ingest(database, folder, "lids")
    assert (report.added, report.vanished) == (0, ())
    with database.begin() as connection:
        assert set_images_retired(connection, [image.id], False) == 1
    assert stored(database)["train/good/0.png"] == image


def test_image_of_a_bank_cannot_be_deleted_until_the_bank_is(trained: Database) -> None:
    with trained.connect() as connection:
        image_id = connection.scalar(text("SELECT min(image_id) FROM pgdefect.memory_bank_patch"))
        detector_id = connection.scalar(text("SELECT id FROM pgdefect.detector"))
    assert isinstance(image_id, int)
    assert isinstance(detector_id, int)
    with pytest.raises(Conflict, match=rf"memory bank {detector_id}; retire the image and train"):
        delete_image(trained, image_id)
    assert count(trained, "pgdefect.image", f"id = {image_id}") == 1
    delete_detector(trained, detector_id)
    delete_image(trained, image_id)
    assert count(trained, "pgdefect.image", f"id = {image_id}") == 0
    assert_no_orphans(trained)


def test_preview_says_what_deleting_takes(trained: Database) -> None:
    """Image, detector, category in turn: the preview equals what is missing afterwards."""
    add_images(trained, "bystanders", 3)
    with trained.connect() as connection:
        detector_id = connection.scalar(text("SELECT id FROM pgdefect.detector"))
        image_id = connection.scalar(
            text(
                "SELECT i.id FROM pgdefect.image i JOIN pgdefect.inspection s ON s.image_id = i.id"
            )
        )
    assert isinstance(detector_id, int)
    assert isinstance(image_id, int)
    deletions: list[tuple[dict[str, object], Callable[[], None]]] = [
        ({"image_id": image_id}, lambda: delete_image(trained, image_id)),
        ({"detector_id": detector_id}, lambda: delete_detector(trained, detector_id)),
        ({"category": "parts"}, lambda: delete_category(trained, "parts")),
    ]
    for subject, delete in deletions:
        preview = dependents(trained, **subject)  # type: ignore[arg-type]
        before = totals(trained)
        delete()
        lost = tuple(a - b for a, b in zip(before, totals(trained), strict=True))
        assert lost == (
            preview.images,
            preview.detectors,
            preview.bank_vectors,
            preview.inspections,
            preview.embeddings,
            preview.held_out_scores,
            preview.thresholds,
            preview.evaluations,
        )
        assert any(lost)
        assert_no_orphans(trained)
    assert [c.name for c in list_categories(trained)] == ["bystanders"]


def test_deleting_a_trained_category_takes_all_of_it_at_once(trained: Database) -> None:
    preview = dependents(trained, category="parts")
    assert preview.detectors == 1
    assert min(preview.images, preview.bank_vectors, preview.inspections, preview.embeddings) > 5
    assert str(preview).startswith(f"category parts: {preview.images:,} images, 1 detectors, ")
    delete_category(trained, "parts")
    assert set(totals(trained)) == {0}
    assert_no_orphans(trained)
    with pytest.raises(UnknownCategory, match="there is none yet"):
        delete_category(trained, "parts")


def test_deleting_one_category_leaves_another_under_the_same_root(
    database: Database, folder: Path
) -> None:
    ingest(database, folder, "lids")
    ingest(database, folder, "same")
    delete_category(database, "lids")
    assert len(stored(database, "same")) == 6


def test_category_trained_while_it_is_deleted_is_a_conflict(database: Database) -> None:
    images = add_images(database, "parts", 3)
    extractor_id = add_extractor(database, 8)
    bank = memory_bank(unit_vectors(0, 20, 8), images)
    outcome: list[BaseException] = []

    def delete() -> None:
        try:
            delete_category(database, "parts")
        except Conflict as error:
            outcome.append(error)

    thread = threading.Thread(target=delete)

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "index" and not done:
            thread.start()
            thread.join(0.3)

    store(database, "parts", extractor_id, bank, progress)
    thread.join()
    assert len(outcome) == 1
    assert "trained in the meantime; delete it again" in str(outcome[0])
    assert len(images_of(database, "parts")) == 3
    delete_category(database, "parts")
    assert set(totals(database)) == {0}


def test_embedding_of_an_image_deleted_meanwhile_is_a_conflict(database: Database) -> None:
    images = add_images(database, "parts", 3)
    extractor_id = add_extractor(database, 8)
    delete_image(database, images[1])
    with pytest.raises(Conflict, match="another session deleted"):
        add_embeddings(database, extractor_id, images, unit_vectors(0, 3, 8))
    assert count(database, "pgdefect.image_embedding") == 0


def totals(database: Database) -> tuple[int, ...]:
    tables = (
        "image",
        "detector",
        "memory_bank_patch",
        "inspection",
        "image_embedding",
        "holdout_score",
        "detector_threshold",
        "evaluation",
    )
    return tuple(count(database, f"pgdefect.{table}") for table in tables)


def assert_no_orphans(database: Database) -> None:
    """No row refers to one that is gone, and no table of a bank is left."""
    for table, column, parent in (
        ("memory_bank_patch", "bank_id", "memory_bank"),
        ("memory_bank_patch", "image_id", "image"),
        ("memory_bank", "id", "detector"),
        ("inspection", "image_id", "image"),
        ("inspection", "detector_id", "detector"),
        ("image_embedding", "image_id", "image"),
        ("image", "category_id", "category"),
    ):
        where = f"{column} NOT IN (SELECT id FROM pgdefect.{parent})"
        assert count(database, f"pgdefect.{table}", where) == 0
    banks = count(database, "pgdefect.memory_bank")
    where = r"relkind = 'r' AND relname LIKE 'memory\_bank\_patch\__%'"
    assert count(database, "pg_class", where) == banks
    assert list_detectors(database) or banks == 0


def test_corrected_labels_are_reported_and_taken_over_when_accepted(
    database: Database, tmp_path: Path
) -> None:
    for n in range(3):
        pixels = np.full((40, 40, 3), 10 * n, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{n}.png")
    manifest = tmp_path / "parts.csv"
    heading = "path,split,label,defect_type,line\n0.png,train,normal,,1\n"
    manifest.write_text(heading + "1.png,test,normal,,1\n")
    ingest(database, manifest, "parts")
    manifest.write_text(heading + "1.png,test,anomalous,dent,2\n")
    told = ingest(database, manifest, "parts")
    assert (told.added, told.unchanged, told.relabeled) == (0, 1, ("1.png",))
    assert [image.known_label for image in images_of(database, "parts")] == ["normal", "normal"]
    taken = ingest(database, manifest, "parts", accept_changes=True)
    assert taken.relabeled == ("1.png",)
    assert [image.known_defect_type for image in images_of(database, "parts")] == [None, "dent"]
    assert ingest(database, manifest, "parts").unchanged == 2
