"""What folders are taken as: the layouts that people have, drawn small."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pgdefect.core.errors import DatasetError, UsageError
from pgdefect.usecases.common.files import list_images
from pgdefect.vision.images.dataset import Dataset, scan, scan_categories
from pgdefect.vision.images.folder_words import mask_stem, meaning_of

SIZE = 24
Draw = Callable[..., None]


def photograph(*paths: Path) -> None:
    for n, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(n).integers(60, 200, (SIZE, SIZE), dtype=np.uint8)
        Image.fromarray(noise).save(path, "JPEG" if path.suffix.lower() == ".jpg" else None)


def mask(*paths: Path, marks: bool = True, value: int = 255) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn = np.zeros((SIZE, SIZE), np.uint8)
        drawn[5:9, 5:9] = value * marks
        Image.fromarray(drawn).save(path)


def read(dataset: Dataset) -> dict[tuple[str, str | None, str | None], int]:
    return dict(Counter((r.split, r.label, r.defect_type) for r in dataset.records))


def masks_of(dataset: Dataset) -> dict[str, str]:
    return {r.path: r.mask_path for r in dataset.records if r.mask_path}


def taken_as(dataset: Dataset) -> dict[str, str]:
    return {row.folder: row.taken_as for row in dataset.folders}


def left_out(dataset: Dataset) -> dict[tuple[str, str], int]:
    return {(one.suffix, one.reason): one.count for one in dataset.skipped}


def test_good_crack_and_masks_in_a_folder_of_their_own(tmp_path: Path) -> None:
    photograph(*(tmp_path / f"good/{n}.png" for n in range(21)))
    photograph(*(tmp_path / f"crack/{n}.png" for n in range(5)))
    mask(*(tmp_path / f"mask/crack/{n}.png" for n in range(5)))
    dataset = scan(tmp_path)
    assert read(dataset) == {("train", "normal", None): 21, ("test", "anomalous", "crack"): 5}
    assert masks_of(dataset) == {f"crack/{n}.png": f"mask/crack/{n}.png" for n in range(5)}
    assert taken_as(dataset) == {
        "good": "normal, train",
        "crack": "anomalous (crack), test",
        "mask/crack": "masks",
    }


@pytest.mark.parametrize("truth", ["label", "ground_truth", "Masks", "gt", "annotations"])
@pytest.mark.parametrize("ending", ["", "_mask", "-gt", "_Label", ".seg"])
def test_where_masks_lie_and_what_they_are_called(tmp_path: Path, truth: str, ending: str) -> None:
    photograph(tmp_path / "Normal/a.jpg", tmp_path / "abnormal/b.jpg")
    mask(tmp_path / truth / f"b{ending}.png")
    dataset = scan(tmp_path)
    assert read(dataset) == {("train", "normal", None): 1, ("test", "anomalous", "abnormal"): 1}
    assert masks_of(dataset) == {"abnormal/b.jpg": f"{truth}/b{ending}.png"}


def test_a_folder_of_a_visa_category(tmp_path: Path) -> None:
    photograph(*(tmp_path / f"Data/Images/Normal/{n:04d}.JPG" for n in range(8)))
    photograph(*(tmp_path / f"Data/Images/Anomaly/{n:03d}.JPG" for n in range(8)))
    mask(*(tmp_path / f"Data/Masks/Anomaly/{n:03d}.png" for n in range(8)), value=1)
    (tmp_path / "image_anno.csv").write_text("image,label,mask\n")
    dataset = scan(tmp_path)
    assert read(dataset) == {("train", "normal", None): 8, ("test", "anomalous", "Anomaly"): 8}
    assert masks_of(dataset)["Data/Images/Anomaly/003.JPG"] == "Data/Masks/Anomaly/003.png"
    assert left_out(dataset) == {(".csv", "no image"): 1}


def visa(root: Path) -> Path:
    """Two products, and the table of all of them."""
    lines = ["object,split,label,image,mask"]
    for name in ("candle", "pcb1"):
        for split, n in (("train", 0), ("test", 1)):
            path = f"{name}/Data/Images/Normal/{n:04d}.JPG"
            photograph(root / path)
            lines.append(f"{name},{split},normal,{path},")
        photograph(root / f"{name}/Data/Images/Anomaly/000.JPG")
        mask(root / f"{name}/Data/Masks/Anomaly/000.png", value=1)
        lines.append(
            f"{name},test,anomaly,{name}/Data/Images/Anomaly/000.JPG,"
            f"{name}/Data/Masks/Anomaly/000.png"
        )
    (root / "split_csv").mkdir()
    table = root / "split_csv" / "1cls.csv"
    table.write_text("\n".join(lines) + "\n")
    return table


def test_visa_as_a_whole(tmp_path: Path) -> None:
    table = visa(tmp_path)
    with pytest.raises(DatasetError, match=r"2 categories \(candle, pcb1\), not one"):
        scan(tmp_path)
    assert list(scan_categories(tmp_path)) == ["candle", "pcb1"]
    dataset = scan(table, category="Candle")
    assert dataset.root == tmp_path
    assert read(dataset) == {
        ("train", "normal", None): 1,
        ("test", "normal", None): 1,
        ("test", "anomalous", None): 1,
    }
    assert list(masks_of(dataset).values()) == ["candle/Data/Masks/Anomaly/000.png"]
    assert "3 rows are of other products than 'candle'" in dataset.problems
    with pytest.raises(DatasetError, match=r"lists 2 products under 'object' \(candle, pcb1\)"):
        scan(table, category="leather")


@pytest.mark.parametrize("good", ["good", "Good", "OK", "ok", "Normal", "good_parts"])
def test_a_test_folder_of_good_parts_is_normal(tmp_path: Path, good: str) -> None:
    photograph(tmp_path / f"train/{good}/0.bmp", tmp_path / f"test/{good}/1.bmp")
    photograph(tmp_path / "test/ko/2.bmp")
    mask(tmp_path / "ground_truth/ko/2.png")
    dataset = scan(tmp_path)
    assert read(dataset) == {
        ("train", "normal", None): 1,
        ("test", "normal", None): 1,
        ("test", "anomalous", "ko"): 1,
    }
    assert masks_of(dataset) == {"test/ko/2.bmp": "ground_truth/ko/2.png"}


def test_names_of_splits_in_any_case(tmp_path: Path) -> None:
    photograph(tmp_path / "TRAIN/Good/0.png", tmp_path / "Testing/Crack/1.png")
    mask(tmp_path / "GroundTruth/crack/1_MASK.png")
    dataset = scan(tmp_path)
    assert read(dataset) == {("train", "normal", None): 1, ("test", "anomalous", "Crack"): 1}
    assert masks_of(dataset) == {"Testing/Crack/1.png": "GroundTruth/crack/1_MASK.png"}


def test_masks_of_several_parts_and_validation_as_mvtec_loco_has_them(tmp_path: Path) -> None:
    photograph(tmp_path / "train/good/0.png", tmp_path / "validation/good/0.png")
    photograph(tmp_path / "test/logical_anomalies/007.png", tmp_path / "test/good/0.png")
    folder = tmp_path / "ground_truth/logical_anomalies/007"
    mask(folder / "000.png")
    drawn = np.zeros((SIZE, SIZE), np.uint8)
    drawn[20:, 20:] = 237
    Image.fromarray(drawn).save(folder / "001.png")
    dataset = scan(tmp_path)
    assert dataset.problems == ()
    assert read(dataset) == {
        ("train", "normal", None): 2,
        ("test", "normal", None): 1,
        ("test", "anomalous", "logical_anomalies"): 1,
    }
    assert masks_of(dataset) == {
        "test/logical_anomalies/007.png": "ground_truth/logical_anomalies/007"
    }
    assert {row.folder: row.count for row in dataset.folders if row.taken_as == "masks"} == {
        "ground_truth/logical_anomalies": 2
    }


def test_mvtec_ad_2(tmp_path: Path) -> None:
    photograph(tmp_path / "train/good/0_regular.png", tmp_path / "validation/good/1_regular.png")
    photograph(tmp_path / "test_public/good/2_regular.png")
    photograph(tmp_path / "test_public/bad/3_shift_1.png", tmp_path / "test_private/4.png")
    mask(tmp_path / "test_public/ground_truth/bad/3_shift_1_mask.png")
    dataset = scan(tmp_path)
    assert read(dataset) == {
        ("train", "normal", None): 2,
        ("test", "normal", None): 1,
        ("test", "anomalous", "bad"): 1,
        ("test", None, None): 1,
    }
    assert list(masks_of(dataset)) == ["test_public/bad/3_shift_1.png"]


def test_masks_beside_photographs(tmp_path: Path) -> None:
    for n in range(4):
        marks = n == 3
        photograph(tmp_path / f"tiles/MT_Free/Imgs/n{n}.jpg")
        mask(tmp_path / f"tiles/MT_Free/Imgs/n{n}.png", marks=False)
        photograph(tmp_path / f"labels/kos{n:02d}/Part0.jpg")
        mask(tmp_path / f"labels/kos{n:02d}/Part0_label.bmp", marks=marks)
        photograph(tmp_path / f"gt/train/{10000 + n}.png")
        mask(tmp_path / f"gt/train/{10000 + n}_GT.png", marks=marks)
    dataset = scan(tmp_path)
    assert read(dataset) == {
        ("train", "normal", None): 10,
        ("test", "anomalous", None): 1,
        ("train", "anomalous", None): 1,
    }
    assert masks_of(dataset) == {
        "labels/kos03/Part0.jpg": "labels/kos03/Part0_label.bmp",
        "gt/train/10003.png": "gt/train/10003_GT.png",
    }
    assert sum(row.count for row in dataset.folders if row.taken_as == "masks") == 12


def test_the_magnetic_tiles_own_download(tmp_path: Path) -> None:
    for kind in ("Free", "Blowhole", "Uneven"):
        for n in range(2):
            photograph(tmp_path / f"MT_{kind}/Imgs/exp{n}_num_{kind}.jpg")
            mask(tmp_path / f"MT_{kind}/Imgs/exp{n}_num_{kind}.png", marks=kind != "Free")
    (tmp_path / "README.md").touch()
    dataset = scan(tmp_path)
    assert read(dataset) == {
        ("train", "normal", None): 2,
        ("test", "anomalous", "MT_Blowhole"): 2,
        ("test", "anomalous", "MT_Uneven"): 2,
    }
    assert len(masks_of(dataset)) == 4


def test_a_folder_of_training_photographs_and_their_labels_as_dagm_has_them(tmp_path: Path) -> None:
    for split in ("Train", "Test"):
        photograph(*(tmp_path / split / f"{n:04d}.PNG" for n in range(4)))
        mask(tmp_path / split / "Label/0002_label.PNG")
        (tmp_path / split / "Label/Labels.txt").touch()
    dataset = scan(tmp_path)
    assert read(dataset) == {
        ("train", "normal", None): 3,
        ("train", "anomalous", None): 1,
        ("test", "normal", None): 3,
        ("test", "anomalous", None): 1,
    }
    assert masks_of(dataset)["Test/0002.PNG"] == "Test/Label/0002_label.PNG"
    assert {row.why for row in dataset.folders} == {
        "",
        "its mask marks something",
        "has no mask, as others have",
    }


def test_types_of_defects_below_a_folder_of_bad_parts(tmp_path: Path) -> None:
    photograph(tmp_path / "OK/1.png", tmp_path / "NG/scratch/2.png", tmp_path / "NG/dent/3.png")
    assert read(scan(tmp_path)) == {
        ("train", "normal", None): 1,
        ("test", "anomalous", "scratch"): 1,
        ("test", "anomalous", "dent"): 1,
    }


def test_folders_that_sort_good_and_bad_parts_alike_are_no_types(tmp_path: Path) -> None:
    photograph(tmp_path / "good/left/1.png", tmp_path / "good/right/2.png")
    photograph(tmp_path / "bad/left/3.png", tmp_path / "bad/right/4.png")
    assert read(scan(tmp_path)) == {("train", "normal", None): 2, ("test", "anomalous", "bad"): 2}


def test_types_that_only_the_masks_folders_say(tmp_path: Path) -> None:
    photograph(*(tmp_path / f"images/{n}.jpg" for n in range(4)))
    mask(tmp_path / "masks/crack/1.png", tmp_path / "masks/hole/2.png")
    dataset = scan(tmp_path)
    assert read(dataset) == {
        ("train", "normal", None): 2,
        ("test", "anomalous", "crack"): 1,
        ("test", "anomalous", "hole"): 1,
    }


def test_a_folder_of_unknown_name_that_holds_masks(tmp_path: Path) -> None:
    photograph(*(tmp_path / f"good/g{n}.jpg" for n in range(3)))
    photograph(*(tmp_path / f"crack/c{n}.jpg" for n in range(3)))
    mask(*(tmp_path / f"pixelwise/c{n}.png" for n in range(3)))
    dataset = scan(tmp_path)
    assert read(dataset) == {("train", "normal", None): 3, ("test", "anomalous", "crack"): 3}
    assert len(masks_of(dataset)) == 3
    [row] = [row for row in dataset.folders if row.taken_as == "masks"]
    assert row.why == "two-valued, and called like the photographs in 'crack'"


def test_two_valued_photographs_are_photographs(tmp_path: Path) -> None:
    """Binarized boards: content is asked only where names leave it open."""
    mask(*(tmp_path / f"train/good/{n}.png" for n in range(3)))
    mask(*(tmp_path / f"test/short/{n}.png" for n in range(3)))
    mask(tmp_path / "ground_truth/short/0_mask.png")
    assert read(scan(tmp_path)) == {
        ("train", "normal", None): 3,
        ("test", "anomalous", "short"): 3,
    }


@pytest.mark.parametrize(
    ("beside", "photographs"), [("part_label.jpg", 2), ("part.png", 2), ("part (2).jpg", 2)]
)
def test_what_only_looks_like_the_name_of_a_mask(
    tmp_path: Path, beside: str, photographs: int
) -> None:
    photograph(tmp_path / "part.jpg", tmp_path / beside)
    assert read(scan(tmp_path)) == {("train", "normal", None): photographs}


def test_a_defect_type_called_label(tmp_path: Path) -> None:
    photograph(tmp_path / "train/good/0.png", tmp_path / "test/label/1.png")
    mask(tmp_path / "ground_truth/label/1_mask.png")
    dataset = scan(tmp_path)
    assert read(dataset) == {("train", "normal", None): 1, ("test", "anomalous", "label"): 1}
    assert masks_of(dataset) == {"test/label/1.png": "ground_truth/label/1_mask.png"}


@pytest.mark.parametrize(
    ("folders", "named"),
    [
        (["Positive", "Negative"], "Negative"),
        (["0", "1"], "0"),
        (["good", "ok_with_scratch"], "ok_with_scratch"),
        (["good", "2"], "2"),
        (["Good", "Bad", "Unknown"], "Unknown"),
        (["good", "new batch"], "new batch"),
        (["bad", "pictures of monday"], "pictures of monday"),
        (["crack", "scratch"], "crack"),
        (["train/good", "train/normal wear"], "train/normal wear"),
        (["train/day1", "train/day2"], "train/day1"),
    ],
)
def test_two_readings_that_would_learn_different_things_are_refused(
    tmp_path: Path, folders: list[str], named: str
) -> None:
    photograph(*(tmp_path / folder / "1.png" for folder in folders))
    with pytest.raises(DatasetError, match="can be read in two ways") as caught:
        scan(tmp_path)
    assert repr(named) in str(caught.value)
    assert "Say what each is with folder " in str(caught.value)
    assert len(scan(tmp_path, only_photographs=True).records) == len(folders)


@pytest.mark.parametrize(
    ("files", "named"),
    [
        (["gelb/1.png", "dunkel/1.png"], "dunkel"),
        (["good/1.png", "good/bad/2.png"], "good/bad"),
        (["normal/1.png", "normal/edge/scratch/2.png"], "normal/edge/scratch"),
        (["good/1.png", "bad/good/2.png"], "bad/good"),
        (["good/1.png", "overlay/1.png"], "overlay"),
        (["001_good.png", "002_bad.png"], "."),
        (["OK_1.png", "NG_1.png"], "."),
        (["part1.png", "scratch1.png"], "."),
        (["train/1.png", "train/NG_2.png", "test/bad/3.png"], "train"),
    ],
)
def test_what_would_be_learned_as_normal_without_a_word_is_refused(
    tmp_path: Path, files: list[str], named: str
) -> None:
    photograph(*(tmp_path / file for file in files))
    with pytest.raises(DatasetError, match="can be read in two ways") as caught:
        scan(tmp_path)
    assert f"{named!r}: normal photographs" in str(caught.value)
    assert read(scan(tmp_path, label="normal")) == {("train", "normal", None): len(files)} or (
        named in ("train", "good/bad", "bad/good", "normal/edge/scratch", "overlay")
    )


@pytest.mark.parametrize(
    "files",
    [
        ["cam1/1.png", "cam2/1.png"],
        ["A/1.png", "B/1.png"],
        ["left/1.png", "right/1.png"],
        ["2026-05-01/1.png", "2026-05-02/1.png"],
        ["monday/1.png", "tuesday/1.png"],
        ["chip_1.png", "chip_2.png"],
        ["oil filter 1.png", "oil filter 2.png"],
        ["IMG_0001.png", "IMG_0002.png"],
    ],
)
def test_batches_of_a_flat_folder_are_normal(tmp_path: Path, files: list[str]) -> None:
    photograph(*(tmp_path / file for file in files))
    assert read(scan(tmp_path)) == {("train", "normal", None): 2}


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("Gutteile", "Schlechtteile"),
        ("gut", "Ausschuß"),
        ("i.O.", "n.i.O."),
        ("bon", "défauts"),
        ("bueno", "defectuoso"),
        ("buoni", "difettosi"),
        ("正常", "异常"),
        ("良品", "不良品"),
        ("양품", "불량"),
    ],
)
def test_labels_in_other_languages(tmp_path: Path, good: str, bad: str) -> None:
    photograph(tmp_path / good / "1.png", tmp_path / bad / "2.png")
    dataset = scan(tmp_path)
    assert read(dataset) == {("train", "normal", None): 1, ("test", "anomalous", bad): 1}
    assert {row.why for row in dataset.folders} == {""}


def test_splits_inside_folders_of_labels(tmp_path: Path) -> None:
    photograph(tmp_path / "good/train/1.png", tmp_path / "good/test/2.png")
    photograph(tmp_path / "bad/test/3.png")
    assert read(scan(tmp_path)) == {
        ("train", "normal", None): 1,
        ("test", "normal", None): 1,
        ("test", "anomalous", "bad"): 1,
    }


@pytest.mark.parametrize(
    "ending",
    ["Mask", "_m", "_annotated", "_binary", "_roi", "_anomaly_mask", "_mask_0", "_p0", " (mask)"],
)
def test_masks_beside_photographs_whatever_is_added_to_the_name(
    tmp_path: Path, ending: str
) -> None:
    photograph(tmp_path / "good/1.png", tmp_path / "bad/10.png", tmp_path / "bad/11.png")
    mask(tmp_path / f"bad/10{ending}.png", tmp_path / f"bad/11{ending}.png")
    dataset = scan(tmp_path)
    assert read(dataset) == {("train", "normal", None): 1, ("test", "anomalous", "bad"): 2}
    assert masks_of(dataset) == {f"bad/{n}.png": f"bad/{n}{ending}.png" for n in (10, 11)}


def test_a_caller_says_what_folders_are(tmp_path: Path) -> None:
    photograph(tmp_path / "Positive/1.png", tmp_path / "Negative/2.png", tmp_path / "old/3.png")
    said = {"positive": "anomalous", "Negative": "normal", "old": "skip"}
    dataset = scan(tmp_path, said=said)
    assert read(dataset) == {("train", "normal", None): 1, ("test", "anomalous", "Positive"): 1}
    assert left_out(dataset) == {(".png", "in a folder that was to be left out"): 1}
    assert read(scan(tmp_path, label="normal")) == {("train", "normal", None): 3}
    with pytest.raises(UsageError, match="'old' was said to be 'odd'"):
        scan(tmp_path, said={"old": "odd"})


@pytest.mark.parametrize("name", ["crack", "NG", "ground_truth"])
def test_a_folder_of_defects_or_masks_alone_is_not_learned(tmp_path: Path, name: str) -> None:
    draw = mask if name == "ground_truth" else photograph
    draw(tmp_path / name / "1.png", tmp_path / name / "2.png")
    with pytest.raises(DatasetError, match="label='anomalous'"):
        scan(tmp_path / name)
    assert read(scan(tmp_path / name, label="bad")) == {("test", "anomalous", None): 2}


def test_a_folder_of_test_photographs_is_not_learned(tmp_path: Path) -> None:
    photograph(tmp_path / "test/good/1.png", tmp_path / "test/crack/2.png")
    assert read(scan(tmp_path / "test")) == {
        ("test", "normal", None): 1,
        ("test", "anomalous", "crack"): 1,
    }


def test_a_normal_photograph_with_a_marked_mask_is_left_out(tmp_path: Path) -> None:
    photograph(tmp_path / "MT_Free/Imgs/1.jpg", tmp_path / "MT_Free/Imgs/2.jpg")
    mask(tmp_path / "MT_Free/Imgs/1.png", marks=False)
    mask(tmp_path / "MT_Free/Imgs/2.png")
    dataset = scan(tmp_path)
    assert [record.path for record in dataset.records] == ["MT_Free/Imgs/1.jpg"]
    assert left_out(dataset) == {(".jpg", "called normal, and its mask marks something"): 1}
    assert any("2.jpg" in problem for problem in dataset.problems)


def test_thumbnails_and_hidden_files_are_left_out_and_counted(tmp_path: Path) -> None:
    photograph(tmp_path / "a.jpg", tmp_path / "a_thumb.jpg", tmp_path / "thumbs/a.jpg")
    photograph(tmp_path / "@eaDir/a.jpg", tmp_path / ".thumbnails/a.png", tmp_path / "._a.jpg")
    photograph(tmp_path / "__MACOSX/._a.jpg", tmp_path / "bell_thumb.jpg")
    for name in ("Thumbs.db", "notes.txt", "b.heic"):
        (tmp_path / name).touch()
    dataset = scan(tmp_path)
    assert [record.path for record in dataset.records] == ["a.jpg", "bell_thumb.jpg"]
    hidden = "hidden, or left by an archive or a file manager"
    assert left_out(dataset) == {
        (".jpg", hidden): 3,
        (".png", hidden): 1,
        (".db", hidden): 1,
        (".jpg", "a thumbnail"): 2,
        (".txt", "no image"): 1,
        (".heic", "a picture format that is not read: convert it to PNG or TIFF"): 1,
    }


def test_what_is_inspected_is_decided_in_the_same_place(tmp_path: Path) -> None:
    photograph(tmp_path / "good/1.png", tmp_path / "crack/2.png", tmp_path / "3.png")
    mask(tmp_path / "mask/crack/2.png", tmp_path / "3_mask.png")
    (tmp_path / "notes.txt").touch()

    def names(*paths: Path) -> list[str]:
        return sorted(Path(file).name for file in list_images(paths).files)

    assert names(tmp_path) == ["1.png", "2.png", "3.png"]
    assert names(tmp_path / "**" / "*.png") == ["1.png", "2.png", "3.png"]
    assert names(tmp_path / "3.png", tmp_path / "3_mask.png") == ["3.png"]
    assert names(tmp_path / "3_mask.png") == ["3_mask.png"]
    found = {(s.suffix, s.reason): s.count for s in list_images([tmp_path / "*"]).skipped}
    assert found[".txt", "no image"] == 1


def test_many_folders_of_one_reading_are_one_row(tmp_path: Path) -> None:
    for n in range(20):
        photograph(tmp_path / f"kos{n:02d}/Part0.jpg")
        mask(tmp_path / f"kos{n:02d}/Part0_label.bmp", marks=False)
    rows = {(row.folder, row.taken_as): row.count for row in scan(tmp_path).folders}
    assert rows == {("* (20 folders)", "normal, train"): 20, ("* (20 folders)", "masks"): 20}


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        *[(name, "normal") for name in ("good", "OK", "MT_Free", "non_defective", "defect-free")],
        *[(name, "normal") for name in ("GoodParts", "no crack", "normal_test", "Pass")],
        *[(name, "anomalous") for name in ("bad", "NG", "not_ok", "no_good", "Anomaly", "ko")],
        *[(name, "defect") for name in ("crack", "MT_Blowhole", "faulty_imprint", "broken large")],
        *[(name, "doubtful") for name in ("Positive", "0", "ok_with_scratch", "normal_wear")],
        *[(name, "masks") for name in ("ground_truth", "GT", "crack_masks", "Masks")],
        *[(name, "perhaps masks") for name in ("label", "Annotations")],
        *[(name, "train") for name in ("train", "Training", "train_set")],
        *[(name, "test") for name in ("test_public", "TEST")],
        *[(name, "unknown") for name in ("cam1", "2024-05-01", "glove")],
    ],
)
def test_what_names_mean(name: str, meaning: str) -> None:
    assert meaning_of(name).meaning == meaning


@pytest.mark.parametrize(
    ("stem", "of"),
    [
        *[("000_mask", "000"), ("Part0_label", "Part0"), ("10000_GT", "10000"), ("a-mask", "a")],
        *[
            ("a.seg", "a"),
            ("mask_a", "a"),
            ("a_ground_truth", "a"),
            ("3_shift_1_mask", "3_shift_1"),
        ],
        *[("unmask", None), ("bigt", None), ("mask", None), ("a_masked", None)],
    ],
)
def test_the_name_of_a_mask(stem: str, of: str | None) -> None:
    assert mask_stem(stem) == of
