"""The commands that faults are injected into, and the databases they begin with."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from pgdefect.db.schema.schema import upgrade
from soak.lane import Lane, Place
from soak.state import State, differences
from tests.synthetic import normal_part, write_dataset

SIZE = (128, 128)
"""Of the pictures, height and width: a grid of 16 × 16 patches."""
TRAIN = ("train", "parts", "--image-size", "128")


@dataclass(frozen=True)
class Data:
    """Folders of pictures: many to ingest, a category to learn, a day of production."""

    many: Path
    parts: Path
    line: Path


@dataclass(frozen=True)
class Case:
    """A command, the template it begins with, and what of it depends on the place.

    heavy: it trains. leaves: the template that is made of what it leaves.
    """

    name: str
    template: str
    arguments: Callable[[Data, Place], list[str]]
    heavy: bool = False
    leaves: str = ""


CASES = (
    Case("ingest", "empty", lambda data, place: ["ingest", str(data.many), "--category", "many"]),
    Case("first training", "ingested", lambda data, place: list(TRAIN), heavy=True, leaves="known"),
    Case("training", "known", lambda data, place: list(TRAIN), heavy=True),
    Case(
        "large bank",
        "known",
        lambda data, place: [*TRAIN, "--coreset-ratio", "1"],
        heavy=True,
    ),
    Case(
        "export",
        "trained",
        lambda data, place: ["export", "parts", str(place.folder / "out/tables"), "--force"],
    ),
    Case(
        "inspect",
        "trained",
        lambda data, place: [
            *("inspect", str(data.line), "--category", "parts", "--keep-patches"),
            *("--event-key", "soak"),
        ],
    ),
)


def make_data(folder: Path, *, many: int = 400, train: int = 24, line: int = 32) -> Data:
    """Draw pictures of parts; `many` and `line` count those that differ little."""
    parts = write_dataset(
        folder / "parts",
        num_train=train,
        num_test_normal=4,
        num_per_defect=4,
        seed=1,
        size=SIZE,
    )
    drawn = [normal_part(seed, SIZE)[0] for seed in range(4)]
    stained = [
        np.asarray(Image.open(path)) for path in sorted((parts / "test/stain").glob("*.png"))
    ]
    for name, pictures, number in (
        ("many/train/good", drawn, many),
        ("line", [*drawn, *stained], line),
    ):
        (folder / name).mkdir(parents=True)
        for n in range(number):
            moved = np.roll(pictures[n % len(pictures)], n, axis=1)
            Image.fromarray(moved).save(folder / name / f"{n:04}.png")
    for path in (folder, *folder.rglob("*")):
        os.chmod(path, 0o755 if path.is_dir() else 0o644)
    return Data(folder / "many", parts, folder / "line")


@dataclass
class Reference:
    """What an undisturbed run of a case leaves, and how long it takes."""

    state: State
    seconds: float
    unstable: list[str] = field(default_factory=list)
    """How a second undisturbed run differed: what must be empty for a comparison to mean much."""


def make_templates(lane: Lane, data: Data, cases: Iterable[Case]) -> dict[str, Reference]:
    """Make the databases that the cases begin with, and run each case undisturbed, twice."""
    with lane.admin("pgdefect") as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS amcheck")
    empty = lane.template("empty", "pgdefect")
    upgrade(empty)
    empty.dispose()
    found: dict[str, Reference] = {}
    for case in cases:
        _make_template(lane, data, case.template)
        states, seconds = [], []
        for _ in range(2):
            with lane.place(case.template) as place:
                seconds.append(lane.run(place, case.arguments(data, place)).seconds)
                states.append(lane.state(place))
                if case.leaves:
                    _keep(lane, place, case.leaves)
        found[case.name] = Reference(states[0], min(seconds), differences(*states))
    return found


def _make_template(lane: Lane, data: Data, name: str) -> None:
    steps: dict[str, tuple[str, list[list[str]]]] = {
        "ingested": ("empty", [["ingest", str(data.parts), "--category", "parts"]]),
        # The extractor and its space are there from now on.
        "known": ("ingested", [list(TRAIN)]),
        "trained": ("known", [["inspect", "--category", "parts", "--split", "test"]]),
    }
    if _exists(lane, name):
        return
    origin, commands = steps[name]
    _make_template(lane, data, origin)
    with lane.place(origin) as place:
        for command in commands:
            lane.run(place, command)
        _keep(lane, place, name)


def _keep(lane: Lane, place: Place, name: str) -> None:
    """Make a template of what a place holds, if there is none of that name."""
    lane.settle(place)
    place.database.dispose()
    if not _exists(lane, name):
        lane.template(name, place.name)


def _exists(lane: Lane, name: str) -> bool:
    with lane.admin() as connection:
        query = "SELECT 1 FROM pg_database WHERE datname = %s"
        return connection.execute(query, [name]).fetchone() is not None
