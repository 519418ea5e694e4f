"""Rows of results: a sequence that becomes a pandas DataFrame, and a table in a notebook."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from pgdefect.core.errors import MissingExtra

if TYPE_CHECKING:
    import pandas

Row = TypeVar("Row")
MOST_SHOWN = 50
"""Rows that a notebook shows of a table."""


def columns_of(row: Any) -> Mapping[str, Any]:
    """A dataclass's fields by name, whatever is nested left as it is."""
    return {f.name: getattr(row, f.name) for f in dataclasses.fields(row)}


@dataclass(frozen=True, repr=False, eq=False)
class Table(Sequence[Row], Generic[Row]):
    """Rows, one dataclass each, in order.

    Index and iterate it as a tuple; `to_pandas` makes a DataFrame of it.
    """

    rows: tuple[Row, ...]
    columns: Callable[[Row], Mapping[str, Any]] = field(default=columns_of, repr=False)

    def to_pandas(self) -> pandas.DataFrame:
        """A DataFrame, one row each.

        Raises:
            MissingExtra: pandas is not installed.
        """
        return frame([self.columns(row) for row in self.rows])

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Table[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Table[Row]:
        if isinstance(index, slice):
            return dataclasses.replace(self, rows=self.rows[index])
        return self.rows[index]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self):,} rows)"

    def _repr_html_(self) -> str:
        return html_table([self.columns(row) for row in self.rows])


def frame(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> Any:
    """A pandas DataFrame of rows by column name. Raises MissingExtra without pandas."""
    try:
        import pandas
    except ModuleNotFoundError as error:
        raise MissingExtra("a DataFrame", "pandas", "interop") from error
    return pandas.DataFrame(list(rows), columns=None if columns is None else list(columns))


def html_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """An HTML table; every value is escaped, the rest of a long one is counted."""
    if not rows:
        return "<p>no rows</p>"
    head = "".join(f"<th>{escape(name)}</th>" for name in rows[0])
    body = "".join(_html_row(row.values()) for row in rows[:MOST_SHOWN])
    more = len(rows) - MOST_SHOWN
    rest = f"<p>and {more:,} more rows</p>" if more > 0 else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{rest}"


def _html_row(values: Iterable[Any]) -> str:
    return "<tr>" + "".join(f"<td>{escape(_shown(value))}</td>" for value in values) + "</tr>"


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
