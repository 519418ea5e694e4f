from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from pgdefect.core.errors import DatasetError, UsageError
from pgdefect.vision.images.dataset import Dataset, ImageRecord, scan, scan_categories
from pgdefect.vision.images.image import load_image
from pgdefect.vision.images.masks import load_mask

MAGNETIC_TILE = Path(__file__).parents[3] / "shared" / "data" / "magnetic_tile"


def put(root: Path, *names: str) -> None:
    """Empty files do: a scan reads names only."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def paths(dataset: Dataset) -> list[str]:
    return [record.path for record in dataset.records]


# --- folders -------------------------------------------------------------------------------


@pytest.fixture
def tile(tmp_path: Path) -> Path:
    root = tmp_path / "tile"
    put(
        root,
        *("train/good/000.png", "train/good/001.PNG", "test/good/000.png"),
        *("test/crack/000.png", "test/crack/001.jpg", "test/fray/000.bmp"),
        *("ground_truth/crack/000_mask.png", "ground_truth/crack/001.png"),
        "ground_truth/fray/000_mask.tif",
    )
    return root


def test_mvtec_layout(tile: Path) -> None:
    dataset = scan(tile)
    assert dataset.root == tile
    assert dataset.layout == "mvtec"
    assert dataset.problems == ()
    crack = ("test", "anomalous", "crack")
    assert dataset.records == (
        ImageRecord("test/crack/000.png", *crack, "ground_truth/crack/000_mask.png"),
        ImageRecord("test/crack/001.jpg", *crack, "ground_truth/crack/001.png"),
        ImageRecord(
            "test/fray/000.bmp", "test", "anomalous", "fray", "ground_truth/fray/000_mask.tif"
        ),
        ImageRecord("test/good/000.png", "test", "normal"),
        ImageRecord("train/good/000.png", "train", "normal"),
        ImageRecord("train/good/001.PNG", "train", "normal"),
    )
    assert len(set(dataset.records)) == 6


def test_relative_path_gives_an_absolute_root(tile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tile.parent)
    assert scan("tile") == scan(tile)


def test_mvtec_problems(tile: Path) -> None:
    put(tile, "test/crack/002.png", "ground_truth/crack/009_mask.png", "validation/good/000.png")
    put(tile, "train/crack/000.png", "test/stray.png", "test/readme.txt")
    dataset = scan(tile)
    assert len(dataset.records) == 9
    assert "test/crack/002.png" in paths(dataset)
    records = {record.path: record for record in dataset.records}
    assert records["validation/good/000.png"] == ImageRecord(
        "validation/good/000.png", "train", "normal"
    )
    assert records["train/crack/000.png"].defect_type == "crack"
    assert sorted(dataset.problems) == [
        "'ground_truth/crack/009_mask.png' is the mask of no image",
        "'test': 1 photographs skipped, in no folder of a type",
        "1 images in 'test/crack' have no mask in 'ground_truth/crack', 'test/crack/002.png' first",
    ]


def test_mvtec_with_only_tests_and_no_masks(tmp_path: Path) -> None:
    put(tmp_path, "test/crack/000.png", "test/good/000.png")
    dataset = scan(tmp_path)
    assert dataset.layout == "mvtec"
    assert dataset.problems == ()
    assert [record.mask_path for record in dataset.records] == [None, None]


def test_mvtec_folders_in_folders(tmp_path: Path) -> None:
    put(tmp_path, "test/crack/day 1/7.png", "ground_truth/crack/day 1/7_mask.png")
    (record,) = scan(tmp_path).records
    assert (record.defect_type, record.mask_path) == (
        "crack",
        "ground_truth/crack/day 1/7_mask.png",
    )


def test_flat_folder(tmp_path: Path) -> None:
    put(tmp_path, "b.png", "a.JPEG", "sub/c.webp", "notes.txt", "d.heic", "e.png.part")
    dataset = scan(tmp_path)
    assert dataset.layout == "flat"
    assert dataset.problems == ()
    assert dataset.records == tuple(
        ImageRecord(path, "train", "normal") for path in ("a.JPEG", "b.png", "sub/c.webp")
    )


@pytest.mark.parametrize(
    ("split", "label", "expected"),
    [
        ("train", None, ("train", "normal")),
        ("test", None, ("test", None)),
        ("test", "good", ("test", "normal")),
        (None, "1", ("test", "anomalous")),
        (None, "normal", ("train", "normal")),
    ],
)
def test_flat_split_and_label(
    tmp_path: Path, split: str | None, label: str | None, expected: tuple[str, str | None]
) -> None:
    put(tmp_path, "a.png")
    (record,) = scan(tmp_path, split=split, label=label).records
    assert (record.split, record.label) == expected


def test_unknown_split_and_label(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    with pytest.raises(UsageError, match="unknown split 'val'"):
        scan(tmp_path, split="val")
    with pytest.raises(UsageError, match="unknown label 'perhaps'"):
        scan(tmp_path, label="perhaps")


def test_split_and_label_do_not_fit_a_layout_that_says_them(tile: Path) -> None:
    with pytest.raises(UsageError, match="only with a plain folder"):
        scan(tile, split="test")


def test_hidden_files_and_archive_leftovers_are_skipped(tmp_path: Path) -> None:
    put(tmp_path, "a.png", ".b.png", "._a.png", ".cache/c.png", "__MACOSX/._a.png")
    put(tmp_path, "__MACOSX/d.png")
    assert paths(scan(tmp_path)) == ["a.png"]
    assert scan(tmp_path).problems == ()


def test_links(tmp_path: Path) -> None:
    root = tmp_path / "root"
    put(tmp_path, "elsewhere/x.png")
    put(root, "sub/a.png")
    (root / "0_again").symlink_to("sub")
    (root / "sub" / "up").symlink_to("..")
    (root / "self").symlink_to("self")
    (root / "self.png").symlink_to("self.png")
    (root / "gone.png").symlink_to("nowhere")
    (root / "outside").symlink_to(tmp_path / "elsewhere")
    (root / "file.png").symlink_to("sub/a.png")
    dataset = scan(root)
    assert paths(dataset) == ["file.png", "outside/x.png", "sub/a.png"]
    assert len(dataset.problems) == 2
    assert all("broken link" in problem for problem in dataset.problems)


def test_pipes_are_never_opened(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    os.mkfifo(tmp_path / "b.png")
    dataset = scan(tmp_path)
    assert paths(dataset) == ["a.png"]
    assert dataset.problems == ("'b.png' is a broken link or no regular file; skipped",)
    os.mkfifo(tmp_path / "groups.csv")
    with pytest.raises(DatasetError, match="not a file"):
        scan(tmp_path)
    with pytest.raises(DatasetError, match="neither a folder nor a manifest"):
        scan(tmp_path / "groups.csv")


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    bad = os.fsencode(tmp_path)
    (tmp_path / "sub").mkdir()
    os.mkdir(bad + b"/caf\xe9")
    for name in (b"/caf\xe9/c.png", b"/sub/\xff.png"):
        with open(bad + name, "wb"):
            pass
    dataset = scan(tmp_path)
    assert paths(dataset) == ["a.png"]
    assert sorted(dataset.problems) == [
        r"'caf\udce9' is not valid UTF-8; skipped, rename it",
        r"'sub/\udcff.png' is not valid UTF-8; skipped, rename it",
    ]


def test_defect_type_that_is_not_utf8(tile: Path) -> None:
    folder = os.fsencode(tile / "test") + b"/caf\xe9"
    os.mkdir(folder)
    with open(folder + b"/0.png", "wb"):
        pass
    dataset = scan(tile)
    assert len(dataset.records) == 6
    assert dataset.problems == (r"'test/caf\udce9' is not valid UTF-8; skipped, rename it",)


def test_odd_but_valid_names(tmp_path: Path) -> None:
    names = ["new\nline.png", "quote'\".png", "空 间.png", "%s{0}.png", "a;drop.png"]
    put(tmp_path, *names)
    assert paths(scan(tmp_path)) == sorted(names)


def test_unreadable_folder_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "a.png", "locked/test/b.png")
    real = os.scandir

    def scandir(path: os.PathLike[str]) -> object:
        if os.fspath(path).endswith("test"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    dataset = scan(tmp_path)
    assert paths(dataset) == ["a.png"]
    (problem,) = dataset.problems
    assert problem.endswith("test' cannot be read: Permission denied; skipped")


def test_nothing_to_scan(tmp_path: Path) -> None:
    for missing in ("absent", "nul\0", "x" * 300):
        with pytest.raises(DatasetError, match="does not exist or may not be read"):
            scan(tmp_path / missing)
    put(tmp_path, "notes.txt", "train/good/notes.txt")
    with pytest.raises(DatasetError, match="no image in train/good and test"):
        scan(tmp_path)
    with pytest.raises(DatasetError, match=r"no file with a suffix of \.apng \.bmp"):
        scan(tmp_path / "train" / "good")
    put(tmp_path, "part.png")
    with pytest.raises(DatasetError, match="neither a folder nor a manifest"):
        scan(tmp_path / "part.png")


def test_no_images_says_what_was_skipped(tmp_path: Path) -> None:
    put(tmp_path, "train/good/0.heic", "test/good/notes.txt")
    with pytest.raises(DatasetError, match=r"1 \.heic \(a picture format that is not read"):
        scan(tmp_path)


def test_categories(tmp_path: Path) -> None:
    put(tmp_path, "nut/train/good/0.png", "bolt/test/crack/0.png", "loose/0.png", "a.png")
    put(tmp_path, ".hidden/train/good/0.png", "odd/test/0.png")
    categories = scan_categories(tmp_path)
    assert list(categories.items()) == [("bolt", tmp_path / "bolt"), ("nut", tmp_path / "nut")]
    with pytest.raises(DatasetError, match=r"2 categories \(bolt, nut\), not one"):
        scan(tmp_path)
    with pytest.raises(DatasetError, match="no category"):
        scan_categories(tmp_path / "loose")
    for path in ("a.png", "absent"):
        with pytest.raises(DatasetError, match="is not a folder"):
            scan_categories(tmp_path / path)


# --- manifests -----------------------------------------------------------------------------


def manifest(root: Path, text: str, encoding: str = "utf-8") -> Path:
    put(root, "a.png", "b.png", "sub/c.png", "masks/c.png")
    path = root / "list.csv"
    path.write_bytes(text.encode(encoding))
    return path


def test_manifest(tmp_path: Path) -> None:
    file = manifest(
        tmp_path,
        "Path, Split ,label,Defect type,group,mask,line speed,station,\n"
        "sub/c.png,,defective,crack,T-7,masks/c.png,1.5,007,x\n"
        "\n"
        'a.png,,good,,,,3,"north, left",\n'
        "b.png,test,,,,,,,\n",
    )
    dataset = scan(file)
    assert dataset.root == tmp_path
    assert dataset.layout == "manifest"
    assert dataset.problems == ()
    a, b, c = dataset.records
    assert a == ImageRecord(
        "a.png", "train", "normal", attributes={"line speed": 3, "station": "north, left"}
    )
    assert b == ImageRecord("b.png", "test", None)
    assert c == ImageRecord(
        *("sub/c.png", "test", "anomalous", "crack", "masks/c.png", "T-7"),
        {"line speed": 1.5, "station": "007"},
    )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_manifest_dialects(tmp_path: Path, encoding: str, delimiter: str, newline: str) -> None:
    rows = [["path", "label", "ort"], ["a.png", "normal", "Köln"], ["b.png", "1", "北"]]
    text = newline.join(delimiter.join(row) for row in rows)
    a, b = scan(manifest(tmp_path, text, encoding)).records
    assert (a.label, a.attributes) == ("normal", {"ort": "Köln"})
    assert (b.label, b.split, b.attributes) == ("anomalous", "test", {"ort": "北"})


@pytest.mark.parametrize(
    ("given", "label", "split"),
    [
        ("normal", "normal", "train"),
        ("Good", "normal", "train"),
        ("0", "normal", "train"),
        ("ANOMALOUS", "anomalous", "test"),
        ("defective", "anomalous", "test"),
        ("1", "anomalous", "test"),
        ("", None, "test"),
    ],
)
def test_manifest_labels(tmp_path: Path, given: str, label: str | None, split: str) -> None:
    (record,) = scan(manifest(tmp_path, f"path,label\na.png,{given}\n")).records
    assert (record.label, record.split) == (label, split)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("path,target\na.png,good\nb.png,bad\n", "column 'target' is read as label"),
        ("img,Is Defect\na.png,0\nb.png,1\n", "column 'Is Defect' is read as label"),
        ("path,anomaly\na.png,False\nb.png,True\n", "column 'anomaly' is read as label"),
        ("sep=;\r\npath;label\r\na.png;gut\r\nb.png;schlecht\r\n", None),
        ("path|label|split\na.png|OK|Training\nb.png|NG|testing\n", None),
        ('path, label\n"a.png", "good"\n"b.png", "bad"\n', None),
    ],
)
def test_manifests_as_other_programs_write_them(
    tmp_path: Path, text: str, problem: str | None
) -> None:
    dataset = scan(manifest(tmp_path, text))
    assert [(r.label, r.split, r.attributes) for r in dataset.records] == [
        ("normal", "train", {}),
        ("anomalous", "test", {}),
    ]
    assert dataset.problems == ((problem,) if problem else ())


def test_a_column_that_could_be_labels_and_is_not(tmp_path: Path) -> None:
    dataset = scan(manifest(tmp_path, "path,class\na.png,screw\nb.png,nut\n"))
    assert [(r.label, r.attributes["class"]) for r in dataset.records] == [
        (None, "screw"),
        (None, "nut"),
    ]
    [problem] = dataset.problems
    assert problem.startswith("no column label: 'class' is kept as an attribute")


def test_manifest_with_only_paths(tmp_path: Path) -> None:
    dataset = scan(manifest(tmp_path, "path\nb.png\na.png\n"))
    assert dataset.records == tuple(ImageRecord(path, "test", None) for path in ("a.png", "b.png"))


def test_manifest_defect_type_implies_the_label(tmp_path: Path) -> None:
    text = "path,label,defect-type\na.png,,crack\nb.png,0,good\nsub/c.png,,none\n"
    found = [(r.label, r.defect_type) for r in scan(manifest(tmp_path, text)).records]
    assert found == [("anomalous", "crack"), ("normal", None), (None, None)]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("0", 0), ("-12", -12), ("1.50", 1.5), ("-.5", -0.5), ("1e3", 1000.0), ("2.", 2.0)],
        *[("007", "007"), ("1_000", "1_000"), ("nan", "nan"), ("inf", "inf"), ("1e999", "1e999")],
        *[("12345678901234567890", "12345678901234567890"), ("e5", "e5"), (".", "."), ("-", "-")],
        *[("true", "true"), ("٣", "٣"), ("0x10", "0x10"), ("1.2.3", "1.2.3"), ("+49", "+49")],
        ("__import__('os')", "__import__('os')"),
    ],
)
def test_attribute_values(tmp_path: Path, text: str, value: object) -> None:
    (record,) = scan(manifest(tmp_path, f"path;x\na.png;{text}\n")).records
    assert record.attributes == {"x": value}
    assert type(record.attributes["x"]) is type(value)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("picture,label\na.png,0\n", "line 1: no column 'path'"),
        ("path,x,x\na.png,1,2\n", "line 1: column 'x' twice"),
        ("path,label\na.png,0\nb.png,maybe\n", "line 3: unknown label 'maybe'"),
        ('path,note\na.png,"two\nlines"\n../x.png,\n', "line 4: path '../x.png' is outside"),
        ("path\na.png\nsub/../../x.png\n", "line 3: path .* is outside"),
        ("path\n/etc/passwd\n", "line 2: path '/etc/passwd' is outside"),
        ("path,mask\na.png,../m.png\n", "line 2: mask '../m.png' is outside"),
        ("path\na.png\n\nb.png\nsub/../a.png\n", "line 5: 'a.png' is already on line 2"),
        ("path,label\na.png,0\n,1\n", "line 3: no path"),
        ("path,split\na.png,val\n", "line 2: unknown split 'val'"),
        ("path,label,defect_type\na.png,0,crack\n", "line 2: label '0' but defect type 'crack'"),
        ("path,label\na.png,0,extra\n", "line 2: 3 cells under 2 columns"),
        ("path,x\na.png,1\0\n", "line 2: a NUL character"),
        ('path,x\na.png,1\nb.png,"open\n', "line 3: unexpected end of data"),
        ('path,x\na.png,"b"c\n', "line 2: "),
        (f"path,x\na.png,{'x' * 140_000}\n", "line 2: field larger than field limit"),
        ("", "line 1: no column 'path'"),
        ("path,label\n", "no row names an image that exists"),
        ("path,label\nz.png,0\n", "no row names an image that exists.*line 2: no file 'z.png'"),
    ],
)
def test_manifest_errors_name_the_line(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(DatasetError, match=fault) as caught:
        scan(manifest(tmp_path, text))
    assert "list.csv" in str(caught.value)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_manifest_that_is_not_utf8(tmp_path: Path, encoding: str) -> None:
    line = 3 if encoding == "latin-1" else 1
    with pytest.raises(DatasetError, match=f"line {line}: byte 0x.. is not UTF-8"):
        scan(manifest(tmp_path, "path,x\na.png,1\nb.png,é\n", encoding))


@pytest.mark.parametrize("content", [b"secret,word\n", b"path\n\xe9secret\n"])
def test_what_a_linked_table_holds_is_not_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "elsewhere").write_bytes(content)
    (tmp_path / "list.csv").symlink_to("elsewhere")
    with pytest.raises(DatasetError, match=r"list\.csv") as caught:
        scan(tmp_path / "list.csv")
    assert "secret" not in str(caught.value)
    assert "0xe9" not in str(caught.value)


def test_manifest_names_what_is_not_there(tmp_path: Path) -> None:
    long = "x" * 300 + ".png"
    text = f"path,mask\na.png,none.png\nz.png,\nsub,\n{long},\n"
    dataset = scan(manifest(tmp_path, text))
    assert dataset.records == (ImageRecord("a.png", "test", None),)
    assert dataset.problems == (
        "list.csv line 2: no mask 'none.png'; left out",
        "list.csv line 3: no file 'z.png'; skipped",
        "list.csv line 4: no file 'sub'; skipped",
        f"list.csv line 5: no file '{long}'; skipped",
    )


def test_manifest_absolute_paths_inside_the_root(tmp_path: Path) -> None:
    root = tmp_path / "real"
    file = manifest(root, f"path\n{root}/a.png\n./sub//c.png\n")
    assert paths(scan(file)) == ["a.png", "sub/c.png"]
    (tmp_path / "link").symlink_to("real")
    dataset = scan(tmp_path / "link" / "list.csv")
    assert dataset.root == tmp_path / "link"
    assert paths(dataset) == ["a.png", "sub/c.png"]


def test_manifest_takes_no_split_or_label(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="only with a plain folder"):
        scan(manifest(tmp_path, "path\na.png\n"), label="normal")


# --- parts ---------------------------------------------------------------------------------


def test_parts_file_in_the_root(tile: Path) -> None:
    (tile / "parts.csv").write_text(
        "path,part\ntrain/good/000.png,A\n./test/good/000.png,B\ntest/crack/000.png,\nx.png,C\n"
    )
    dataset = scan(tile)
    parts = {record.path: record.part for record in dataset.records if record.part}
    assert parts == {"train/good/000.png": "A", "test/good/000.png": "B"}
    assert dataset.problems == ("parts.csv line 5: no image 'x.png' in the data set",)


def test_which_parts_count(tmp_path: Path) -> None:
    root = tmp_path / "root"
    file = manifest(root, "path,part\na.png,M\nb.png,\n")
    (root / "parts.csv").write_text("path,part\na.png,R\nb.png,R\n")
    assert [record.part for record in scan(file).records] == ["M", "R"]
    other = tmp_path / "other.csv"
    other.write_text("part;path\nX;a.png\n")
    assert [record.part for record in scan(file, parts=other).records] == ["X", None]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("path,tile\na.png,1\n", "line 1: no column 'part'"),
        ("name,part\na.png,1\n", "line 1: no column 'path'"),
        ("path,part\na.png,1\na.png,2\n", "line 3: 'a.png' shows another part on line 2"),
    ],
)
def test_parts_file_errors(tmp_path: Path, text: str, fault: str) -> None:
    put(tmp_path, "a.png")
    (tmp_path / "parts.csv").write_text(text)
    with pytest.raises(DatasetError, match=fault):
        scan(tmp_path)


def test_parts_file_that_is_absent(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    with pytest.raises(DatasetError, match="not a file that exists"):
        scan(tmp_path, parts=tmp_path / "absent.csv")


def test_old_names_of_parts(tmp_path: Path) -> None:
    root = tmp_path / "root"
    put(root, "a.png")
    (root / "groups.csv").write_text("Path,Group\na.png,old\n")
    assert [record.part for record in scan(root).records] == ["old"]
    (root / "parts.csv").write_text("path,group\na.png,new\n")
    dataset = scan(root)
    assert [record.part for record in dataset.records] == ["new"]
    assert dataset.problems == ("groups.csv is not read: parts.csv is there",)


def test_a_manifest_called_as_a_parts_file(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    file = tmp_path / "parts.csv"
    file.write_text("path,label\na.png,normal\n")
    assert [record.label for record in scan(file).records] == ["normal"]


def test_a_part_beside_a_group(tmp_path: Path) -> None:
    file = manifest(tmp_path, "path,group,part\na.png,G,P\n")
    [record] = scan(file).records
    assert (record.part, record.attributes) == ("P", {"group": "G"})


# --- real images ---------------------------------------------------------------------------


@pytest.mark.skipif(not MAGNETIC_TILE.is_dir(), reason="the magnetic tile images are absent")
def test_magnetic_tile() -> None:
    dataset = scan(MAGNETIC_TILE)
    assert dataset.layout == "mvtec"
    assert dataset.problems == ()
    assert len(dataset.records) == 1344
    assert Counter((r.split, r.label, r.defect_type) for r in dataset.records) == {
        ("train", "normal", None): 696,
        ("test", "normal", None): 256,
        ("test", "anomalous", "blowhole"): 115,
        ("test", "anomalous", "uneven"): 103,
        ("test", "anomalous", "break"): 85,
        ("test", "anomalous", "crack"): 57,
        ("test", "anomalous", "fray"): 32,
    }
    assert all(record.part for record in dataset.records)
    assert all((r.mask_path is None) == (r.label == "normal") for r in dataset.records)
    splits = {(record.part, record.split) for record in dataset.records}
    assert len(splits) == len({group for group, _ in splits})

    empty: Counter[str | None] = Counter()
    for record in dataset.records:
        if record.mask_path is not None:
            size = load_image(dataset.root / record.path).shape[:2]
            mask = load_mask(dataset.root / record.mask_path, size)
            empty[record.defect_type] += not mask.any()
    assert +empty == {"uneven": 4}


def test_a_scanned_image_loads(tmp_path: Path) -> None:
    (tmp_path / "train" / "good").mkdir(parents=True)
    Image.new("L", (9, 5), 77).save(tmp_path / "train" / "good" / "0.png")
    dataset = scan(tmp_path)
    assert load_image(dataset.root / dataset.records[0].path).shape == (5, 9, 3)
