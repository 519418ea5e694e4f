"""Tables that say something of images: manifests and ``parts.csv``, in any usual dialect."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import NamedTuple, NoReturn

from pgdefect.core.errors import DatasetError

__all__ = ["COLUMNS", "MAX_TABLE_BYTES", "Row", "read_table"]

COLUMNS = ("path", "split", "label", "defect_type", "part", "mask", "taken_at")
"""Columns of a known meaning, however their names are written."""

MAX_TABLE_BYTES = 256 << 20
"""Larger manifests are refused before they are read: a million rows have a tenth of it."""


class Row(NamedTuple):
    """A line of a table, its cells by column."""

    file: Path
    line: int
    cells: dict[str, str]

    def fail(self, what: str) -> NoReturn:
        """Raises DatasetError, naming file and line."""
        raise DatasetError(f"{str(self.file)!r} line {self.line}: {what}")


def read_table(file: Path, needed: tuple[str, ...]) -> Iterator[Row]:
    """Rows that are not blank, with stripped cells by column; unnamed columns are left out.

    Raises:
        DatasetError: where the file is no table in UTF-8, or lacks a column that is needed.
    """
    if not os.path.isfile(file):
        raise DatasetError(f"{str(file)!r} is not a file that exists. Name a CSV file")
    line = 1
    try:
        if (size := file.stat().st_size) > MAX_TABLE_BYTES:
            raise DatasetError(
                f"{str(file)!r} has {size} bytes, more than the {MAX_TABLE_BYTES} read as a table. "
                "Split it"
            )
        text = file.read_text(encoding="utf-8-sig")
        if said := _SEPARATOR_LINE.match(text):  # Excel's own
            text = text[said.end() :]
        delimiter = said[1] if said else max(",;\t|", key=text.partition("\n")[0].count)
        reader = csv.reader(
            StringIO(text), delimiter=delimiter, strict=True, skipinitialspace=delimiter != "\t"
        )
        names = _with_aliases([_column_name(name) for name in next(reader, [])])
        if any("\0" in name for name in names):
            Row(file, 1, {}).fail("a NUL character. Export the file as UTF-8 text")
        missing = [name for name in needed if name not in names]
        doubled = {name for name in names if name and names.count(name) > 1}
        if missing or doubled:
            linked = _is_linked(file)
            twice = "a column" if linked else f"column {min(doubled, default='')!r}"
            fault = f"no column {missing[0]!r}" if missing else f"{twice} twice"
            found = "" if linked else f"Found: {names}; "
            Row(file, 1, {}).fail(f"{fault}. {found}needed: {', '.join(needed)}")
        line = reader.line_num + 1
        for values in reader:
            cells = dict(zip(names, (value.strip() for value in values), strict=False))
            row = Row(file, line, {name: cell for name, cell in cells.items() if name})
            line = reader.line_num + 1
            if len(values) > len(names):
                row.fail(f"{len(values)} cells under {len(names)} columns. Quote the text")
            if any("\0" in cell for cell in values):
                row.fail("a NUL character. Export the file as UTF-8 text")
            if any(cells.values()):
                yield row
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        byte = "a byte" if _is_linked(file) else f"byte 0x{error.object[error.start]:02x}"
        raise DatasetError(
            f"{str(file)!r} line {line}: {byte} is not UTF-8. Export the file as UTF-8"
        ) from error
    except (OSError, csv.Error) as error:
        raise DatasetError(f"{str(file)!r} line {line}: {error}. Check the file") from error


_SEPARATOR_LINE = re.compile(r"sep=([,;\t|])\r?\n", re.IGNORECASE)
_ALIASES = {
    "path": (
        "image",
        "image_path",
        "file",
        "filename",
        "file_name",
        "file_path",
        "filepath",
        "img",
        "img_path",
    ),
    "mask": ("mask_path", "mask_file", "ground_truth"),
    "part": ("group",),
}
"""Other names that these columns have, where there is none of their own."""


def _is_linked(file: Path) -> bool:
    """Whether links lead to it: what it holds is then not told, as it may be somebody else's."""
    return os.path.realpath(file) != os.path.abspath(file)


def _column_name(header: str) -> str:
    name = header.strip()
    known = re.sub(r"[\s-]+", "_", name.lower())
    return known if known in COLUMNS else name


def _with_aliases(names: list[str]) -> list[str]:
    """The names, with those that stand for a known column replaced by it."""
    found = list(names)
    for column, others in _ALIASES.items():
        if column in names:
            continue
        alias = next((name for other in others for name in names if name.lower() == other), None)
        if alias is not None and names.count(alias) == 1:
            found[names.index(alias)] = column
    return found
