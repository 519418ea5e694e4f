"""The README's commands and statements, run in order in a fresh database, as they are printed."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from pgdefect.cli.main import run
from pgdefect.db.connection.engine import Database
from tests.synthetic import defective_part, normal_part, write_dataset

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
SIZE = (128, 128)
KEPT = {"scratch": 4, "stain": 2, "chip": 2}
"""Anomalous images by defect type: eight."""


def blocks(language: str) -> list[str]:
    """The README's code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """The arguments of every pgdefect command in the README, in order."""
    lines = [line for block in blocks("console") for line in block.splitlines()]
    return [shlex.split(line)[2:] for line in lines if line.startswith("$ pgdefect ")]


def statements() -> list[str]:
    text = re.sub(r"--[^\n]*", "", "\n".join(blocks("sql")))
    return [part.strip() for part in text.split(";") if part.strip()]


@dataclass(frozen=True)
class Ran:
    """The database that the commands made, and what each printed to stdout."""

    database: Database
    printed: dict[str, str]
    folder: Path


@pytest.fixture(scope="module")
def ran(
    new_database: object, _template: Database, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ran]:
    """What the README names lies in a folder, and every command has run there."""
    import contextlib
    import io

    from PIL import Image

    folder = tmp_path_factory.mktemp("readme")
    write_dataset(
        folder / "leather", num_train=16, num_test_normal=4, num_per_defect=4, seed=3, size=SIZE
    )
    for kind, count in KEPT.items():
        for path in sorted((folder / "leather/test" / kind).iterdir())[count:]:
            path.unlink()
            (folder / "leather/ground_truth" / kind / f"{path.stem}_mask.png").unlink()
    (folder / "new-photos").mkdir()
    Image.fromarray(defective_part(815, "scratch", SIZE)[0]).save(folder / "new-photos/0815.png")
    Image.fromarray(normal_part(816, SIZE)[0]).save(folder / "new-photos/0816.png")
    database = new_database(_template)  # type: ignore[operator]
    printed: dict[str, str] = {}
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    patch.setenv("PGDEFECT_DATABASE_URL", database.url)
    try:
        for arguments in commands():
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = run(arguments)
            assert code == 0, f"pgdefect {shlex.join(arguments)}: {err.getvalue()}"
            printed[arguments[0]] = out.getvalue()
        yield Ran(database, printed, folder)
    finally:
        patch.undo()


def table(text: str) -> list[str]:
    """The rows under a table's rule."""
    lines = text.splitlines()
    [rule] = [n for n, line in enumerate(lines) if re.fullmatch(r"-+( +-+)*", line)]
    return lines[rule + 1 :]


def test_the_readme_has_a_quick_start() -> None:
    assert [words[0] for words in commands()][:4] == ["ingest", "train", "inspect", "search"]
    assert len(statements()) >= 4


def test_the_search_lists_every_other_defect(ran: Ran) -> None:
    """Ten were asked for, and eight others are stored."""
    printed = ran.printed["search"]
    assert printed.startswith("ANOMALOUS: ")
    rows = table(printed)
    assert len(rows) == sum(KEPT.values())
    assert [row.split()[0] for row in rows] == [str(n) for n in range(1, 9)]
    assert all("anomalous" in row and "/leather/test/" in row for row in rows)
    assert (ran.folder / "sheet.png").stat().st_size > 1000
    assert len(list((ran.folder / "maps").glob("*.png"))) == 2


def test_sql_lists_the_same(ran: Ran) -> None:
    with psycopg.connect(ran.database.url) as connection:
        notices: list[str] = []
        connection.add_notice_handler(lambda notice: notices.append(str(notice.message_primary)))
        paths = connection.execute(
            "SELECT path FROM defect.similar_images('0815.png', k => 10)"
        ).fetchall()
    rows = table(ran.printed["search"])
    assert sorted(Path(path).name for (path,) in paths) == sorted(
        Path(row.split()[-1]).name for row in rows
    )
    assert notices == []


@pytest.mark.parametrize("statement", statements(), ids=lambda text: text.split("\n")[0][:60])
def test_the_statements_answer(ran: Ran, statement: str) -> None:
    with psycopg.connect(ran.database.url) as connection:
        rows = connection.execute(statement.encode()).fetchall()
        connection.rollback()
    assert rows


def test_a_search_right_after_training_finds_defects_and_tells_of_what_is_missing(
    ran: Ran, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A photograph that was never inspected; then eight more images stored after training."""
    monkeypatch.setenv("PGDEFECT_DATABASE_URL", ran.database.url)
    shutil.copytree(ran.folder / "leather", tmp_path / "later")
    query = str(ran.folder / "new-photos/0816.png")
    assert run(["search", query, "--by", "picture", "--category", "leather"]) == 0
    before = capfd.readouterr()
    assert len(table(before.out)) == 10
    assert "embedding" not in before.err
    more = tmp_path / "more/test/good"
    more.mkdir(parents=True)
    from PIL import Image

    for n in range(3):
        Image.fromarray(normal_part(900 + n, SIZE)[0]).save(more / f"late{n}.png")
    assert run(["ingest", str(tmp_path / "more"), "--category", "leather"]) == 0
    capfd.readouterr()
    assert run(["search", query, "--by", "picture", "--category", "leather"]) == 0
    told = capfd.readouterr()
    assert "3 of " in told.err
    assert "make them with: pgdefect embed leather" in told.err
    with psycopg.connect(ran.database.url) as connection:
        notices: list[str] = []
        connection.add_notice_handler(
            lambda notice: notices.append(f"{notice.message_primary} {notice.message_hint}")
        )
        connection.execute("SELECT * FROM defect.similar_images('0816.png', by => 'picture')")
    [notice] = notices
    assert notice.startswith("3 of ")
    assert notice.endswith("Make them with: pgdefect embed leather")
    assert run(["embed", "leather"]) == 0
    capfd.readouterr()
    assert run(["search", query, "--by", "picture", "--category", "leather"]) == 0
    assert "embedding" not in capfd.readouterr().err


@pytest.mark.parametrize("kind", ["black", "white", "noise", "other product"])
def test_what_is_unlike_anything_known_is_not_guessed_at(
    kind: str,
    ran: Ran,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import numpy as np
    from PIL import Image

    monkeypatch.setenv("PGDEFECT_DATABASE_URL", ran.database.url)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    pixels = {
        "black": np.zeros(SIZE),
        "white": np.full(SIZE, 255),
        "noise": np.random.default_rng(0).uniform(0, 255, SIZE),
        "other product": 60 + 120 * ((x // 16 + y // 16) % 2),
    }[kind]
    photograph = tmp_path / "frame.png"
    Image.fromarray(pixels.astype(np.uint8)).save(photograph)
    assert run(["search", str(photograph), "--category", "leather"]) == 0
    told = capfd.readouterr().out.splitlines()
    assert told[0].startswith("ANOMALOUS")
    assert told[1].startswith("unlike any known defect: "), told[1]
    assert not any("probably" in line for line in told)
    arguments = ["inspect", str(photograph), "--category", "leather", "--no-store", "--json"]
    assert run(arguments) == 0
    [inspection] = json.loads(capfd.readouterr().out)["inspections"]
    assert inspection["probable_defect_type"] is None
    assert inspection["vote"]["unlike"] is True
    assert inspection["vote"]["distance"] > inspection["vote"]["limit"]


def test_the_python_block_runs(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ran.folder)
    monkeypatch.setenv("PGDEFECT_DATABASE_URL", ran.database.url)
    printed: list[tuple[object, ...]] = []
    for block in blocks("python"):
        exec(block, {"print": lambda *words: printed.append(words)})
    assert [words[0] for words in printed] == ["anomalous"]
