"""Patterns over the paths of photographs, such as `{line}/{serial}_{taken:%Y%m%dT%H%M%S}.png`."""

from __future__ import annotations

import re
from datetime import datetime

from pgdefect.core.errors import DatasetError, UsageError
from pgdefect.core.wording import option

__all__ = ["PathPattern"]

_FIELD = re.compile(r"\{([^{}]*)\}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DIGITS = {
    **{"%Y": r"\d{4}", "%y": r"\d\d", "%m": r"\d{1,2}", "%d": r"\d{1,2}", "%j": r"\d{1,3}"},
    **{"%H": r"\d{1,2}", "%I": r"\d{1,2}", "%M": r"\d{1,2}", "%S": r"\d{1,2}", "%f": r"\d{1,6}"},
    **{"%p": r"[AaPp][Mm]", "%b": r"[^\W\d_]+", "%B": r"[^\W\d_]+", "%z": r"(?:Z|[+-]\d\d:?\d\d)"},
    **{"%%": "%"},
}
_FIXED = {"%m": r"\d\d", "%d": r"\d\d", "%H": r"\d\d", "%M": r"\d\d", "%S": r"\d\d", "%j": r"\d{3}"}


class PathPattern:
    """What the end of a photograph's path says of it.

    A field `{name}` stands for one or more characters but no `/`, as few as fit; `{part}` is the
    physical part, `{taken:FORMAT}` the time in the directives of `strptime`, and a name that
    begins with `_` is left out; all others are attributes. Everything else is meant as written.

    Raises UsageError for a pattern that is none.
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.time_format: str | None = None
        names: list[str] = []
        expression, end = "", 0
        for field in _FIELD.finditer(pattern):
            expression += self._literal(pattern[end : field.start()])
            end = field.end()
            name, colon, time_format = field[1].partition(":")
            if not _NAME.fullmatch(name):
                self._fail(f"{field[0]} is no field; a name has letters, digits and _")
            if name in names and not name.startswith("_"):
                self._fail(f"{{{name}}} stands in it twice")
            if colon and name != "taken":
                self._fail(f"only {{taken:…}} has a format, not {field[0]}")
            names.append(name)
            if name == "taken":
                if not time_format:
                    self._fail("{taken} needs a format, such as {taken:%Y%m%dT%H%M%S}")
                self.time_format = time_format
                expression += f"(?P<taken>{self._time(time_format)})"
            elif name.startswith("_"):
                expression += "[^/]+?"
            else:
                expression += f"(?P<{name}>[^/]+?)"
        expression += self._literal(pattern[end:])
        if not names:
            self._fail("it has no field such as {line}")
        start = "" if pattern.startswith("/") else "(?:^|/)"
        self._expression = re.compile(f"{start}{expression}$")

    def read(self, path: str) -> tuple[dict[str, str], datetime | None]:
        """Fields by name but for the time, and the time, naive unless the format has an offset.

        Raises DatasetError, naming the file, where the pattern does not fit it.
        """
        found = self._expression.search(path)
        if found is None:
            raise DatasetError(
                f"{path!r} does not fit the pattern {self.pattern!r}; correct the pattern, or "
                "name other files"
            )
        fields = found.groupdict()
        taken = fields.pop("taken", None)
        if taken is None or self.time_format is None:
            return fields, None
        try:
            return fields, datetime.strptime(taken, self.time_format)
        except ValueError as error:
            raise DatasetError(
                f"{path!r}: {taken!r} is no time of the format {self.time_format!r}: {error}"
            ) from error

    def _time(self, time_format: str) -> str:
        result = ""
        for token in re.findall(r"%.?|[^%]+", time_format):
            if not token.startswith("%"):
                result += self._literal(token)
            elif token not in _DIGITS:
                self._fail(f"{token} is no directive that can be read; known: {' '.join(_DIGITS)}")
            else:
                result += _FIXED.get(token, _DIGITS[token])
        return result

    def _literal(self, text: str) -> str:
        if "{" in text or "}" in text:
            self._fail("a brace is not closed, or not opened")
        return re.escape(text)

    def _fail(self, why: str) -> None:
        raise UsageError(f"{option('path_pattern')} {self.pattern!r} cannot be used: {why}")
