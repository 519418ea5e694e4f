"""What a run's files are like, for the lines that say so once for all of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from pgdefect.vision.images.gray_scale import GrayScale, described, differs, widened
from pgdefect.vision.images.image import ImageFile

__all__ = ["FilesSeen"]

ODD_SHARE, ODD_FACTOR = 0.05, 3.5
"""Files that make up no more than this share of a kind, and need a scale that many times as long
as all others, are named: they darken all others."""


@dataclass
class FilesSeen:
    """scale: the category's, or None where these files are the first, and make it; copies: whether
    files of one content are told of.
    """

    scale: GrayScale | None
    copies: bool = True
    widest: GrayScale = field(default_factory=dict)
    _total: int = 0
    _paths: dict[str, str] = field(default_factory=dict)
    _first: dict[str, str] = field(default_factory=dict)
    _counts: Counter[str] = field(default_factory=Counter)
    _needs: dict[str, Counter[float]] = field(default_factory=dict)
    _brightest: dict[tuple[str, float], str] = field(default_factory=dict)

    def add(self, path: str, file: ImageFile) -> None:
        """Note one file that was read."""
        samples = file.samples
        self._total += 1
        if self.copies and self._paths.setdefault(file.sha256, path) != path:
            self._note("copies", path)
        if samples.alpha_ignored:
            self._note("alpha", path)
        if samples.pages > 1:
            self._note("pages", path)
        if samples.one_level:
            self._note("one_level", path)
        if differs(self.scale, samples):
            self._note(f"kind {samples.kind}", path)
        if self.scale is None:
            self.widest = widened(self.widest, samples)
            white = widened({}, samples)[samples.kind] or 0.0
            self._needs.setdefault(samples.kind, Counter())[white] += 1
            self._brightest.setdefault((samples.kind, white), path)

    def _note(self, what: str, path: str) -> None:
        self._counts[what] += 1
        self._first.setdefault(what, path)

    def problems(self) -> list[str]:
        """One line for each kind of thing that a reader should know."""
        lines = []
        for what, says in (
            ("alpha", "an alpha channel that is zero throughout; their colors are read as stored"),
            ("pages", "more than one page or frame; the first is read"),
            ("one_level", "one gray level throughout: nothing can be seen in them"),
        ):
            # Where all are so, training says what it means; a few are frames that went wrong.
            usual = what == "one_level" and 2 * self._counts[what] >= self._total
            if what in self._counts and not usual:
                lines.append(self._line(what, says))
        for what in sorted(self._counts):
            if what.startswith("kind "):
                depth = described({what.removeprefix("kind "): None})
                lines.append(
                    self._line(what, f"{depth} values")
                    + f"; the images of this category are {described(self.scale or {})}: check "
                    "that the same part is as bright in both"
                )
        if len(self.widest) > 1:
            lines.append(
                f"the files are of several depths: {described(self.widest)}; check that the same "
                "part is as bright in all"
            )
        if "copies" in self._counts:
            count, first = self._counts["copies"], self._first["copies"]
            lines.append(
                f"{count} of the files have the content of another one, {first!r} first: copies "
                "and links count as photographs of one part"
            )
        return [*lines, *self._odd()]

    def _line(self, what: str, has: str) -> str:
        count, first = self._counts[what], self._first[what]
        return (
            f"{first!r} has {has}" if count == 1 else f"{count} files, {first!r} first, have {has}"
        )

    def _odd(self) -> list[str]:
        lines = []
        for kind, needs in self._needs.items():
            longest = max(needs)
            others = [white for white in needs if ODD_FACTOR * white <= longest]
            few = needs[longest] <= max(1, ODD_SHARE * sum(needs.values()))
            if others and few and len(needs) == len(others) + 1:
                lines.append(
                    f"white is {longest:g} because of {needs[longest]} of "
                    f"{sum(needs.values())} files, {self._brightest[kind, longest]!r} first; the "
                    f"others end at {max(others):g} and are read that much darker"
                )
        return lines
