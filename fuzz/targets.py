"""What is tried, and what has to hold of an input that is accepted.

An input is refused with an error of `pgdefect.core.errors`, or accepted; then the target's own
checks hold, which are assertions. Anything else is a fault.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from hypothesis import strategies as st

from fuzz import inputs
from pgdefect.db.connection.engine import Database

Try = Callable[[Any], None]
MAX_BYTES = 2000
"""What the database indexes at most."""


@dataclass(frozen=True)
class Target:
    """inputs: how many `make fuzz` tries; strategy, prepare: made when they are needed.

    prepare gives, for a folder of its own, what tries one input; with a database, for that.
    """

    name: str
    inputs: int
    strategy: Callable[[], st.SearchStrategy[Any]]
    prepare: Callable[[Path], Try]
    heavy: bool = False
    """Whether it loads torch, or another of the large libraries."""


# -- images, manifests ---------------------------------------------------------------------


def _images(folder: Path) -> Try:
    from pgdefect.vision.images.image import load_image

    def check(data: bytes) -> None:
        pixels = load_image(data)
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3
        assert pixels.shape[2] == 3
        assert pixels.size

    return check


def _manifests(folder: Path) -> Try:
    from pgdefect.vision.images.dataset import scan

    _put(folder, "a.png", "b.png", "sub/c.png")
    file = folder / "list.csv"

    def check(data: bytes) -> None:
        file.write_bytes(data)
        _check_records(scan(file))

    return check


def _parts(folder: Path) -> Try:
    from pgdefect.vision.images.dataset import scan

    _put(folder, "a.png", "b.png", "sub/c.png")
    file = folder / "parts.csv"

    def check(data: bytes) -> None:
        file.write_bytes(data)
        found = scan(folder)
        assert len(found.records) == 3
        _check_records(found)

    return check


def _put(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def _check_records(dataset: Any) -> None:
    for record in dataset.records:
        for path in filter(None, (record.path, record.mask_path)):
            inside = os.path.normpath(dataset.root / path)
            assert inside.startswith(f"{dataset.root}{os.sep}")
        for word in filter(None, (record.path, record.defect_type, record.part)):
            assert len(word.encode()) <= MAX_BYTES
        assert "\0" not in repr(record).replace("\\x00", "\0")
        json.dumps(record.attributes, allow_nan=False).encode()


# -- words ---------------------------------------------------------------------------------


def _options(folder: Path) -> Try:
    from pgdefect.cli import search
    from pgdefect.core.attributes import parse_attributes
    from pgdefect.usecases.train.choose import size_from

    def check(word: str) -> None:
        for parse in (
            search._box,
            parse_attributes,
            partial(search._time, "--since"),
            partial(size_from, "image_size"),
        ):
            _or_refused(parse, word)

    return check


def _or_refused(parse: Callable[[str], object], word: str) -> None:
    """So that the first parser's refusal does not spare the others."""
    from pgdefect.core.errors import UsageError

    try:
        parse(word)
    except UsageError as error:
        str(error).encode(errors="surrogatepass")


def _urls(folder: Path) -> Try:
    def check(parts: tuple[str, str, str]) -> None:
        password, host, rest = parts
        secret = f"hunter2{password}"
        for url in (
            f"postgresql://user:{quote(secret, safe='', errors='replace')}@h/db?{rest}",
            f"postgresql://user:{secret}@h/{rest}",
            f"postgresql://{host}/{rest}?password={quote(secret, safe='', errors='replace')}",
        ):
            _or_refused(lambda url: _no_secret(Database(url).safe_url), url)

    return check


def _no_secret(shown: str) -> None:
    assert "hunter2" not in shown


def names_in(database: Database) -> Try:
    """Names and attributes through the database and back, in a transaction that is undone."""
    from sqlalchemy import select

    from pgdefect.core.errors import InputError, UsageError
    from pgdefect.db.access.logins import check_name, login_steps
    from pgdefect.db.access.roles import scene_of
    from pgdefect.db.connection.engine import driver
    from pgdefect.db.records import catalog
    from pgdefect.db.schema.models import Category, Image
    from pgdefect.db.search.search import SearchFilter
    from pgdefect.usecases.ingest import check_category_name

    def role(connection: Any, name: str) -> None:
        try:
            check_name(name)
        except UsageError:
            return
        raw = driver(connection)
        for step in login_steps(scene_of(connection), name, "reader", 3):
            if "GRANT" not in step.statement.as_string(raw):
                raw.execute(step.statement)
        found = raw.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [name]).fetchone()
        assert found == (1,)

    def check(words: tuple[str, str, str, str, str]) -> None:
        name, path, defect_type, key, value = words
        category = check_category_name(name)
        try:
            for word in words:
                if "\0" in word or len(word.encode()) > MAX_BYTES:
                    raise InputError("as a scan would have said")
        except UnicodeEncodeError as error:  # what a scan skips, and the command line explains
            raise InputError(str(error)) from error
        new = catalog.NewImage(
            *(path, "0" * 64, 1, 1, 1, "test", "anomalous", defect_type),
            attributes={key: value},
        )
        with database.connect() as connection:
            category_id = catalog.ensure_category(connection, category)
            root_id = catalog.ensure_root(connection, path)
            [image_id] = catalog.add_images(connection, category_id, root_id, [new])
            row = connection.execute(
                select(Category.name, Image.path, Image.defect_type, Image.attributes)
                .join(Category, Category.id == Image.category_id)
                .where(Image.id == image_id)
            ).one()
            assert tuple(row) == (category, path, defect_type, {key: value})
            where = SearchFilter(
                category=category, defect_type=defect_type, part=value, attributes={key: value}
            )
            filtered = driver(connection).execute(
                "SELECT (%s::jsonb)->>'category'", [json.dumps(where.to_json())]
            )
            assert filtered.fetchone() == (category,)
            role(connection, defect_type)

    return check


names = st.tuples(*[inputs.text] * 5)


# -- files of other programs ---------------------------------------------------------------


def _bank(folder: Path) -> Try:
    from pgdefect.vision.networks.torch_file import bank_of, load_safely, named_tensor
    from pgdefect.vision.patchcore.anomalib_checkpoint import bank_of_checkpoint, is_checkpoint

    file = folder / "bank.pt"

    def check(data: bytes) -> None:
        file.write_bytes(data)
        loaded = load_safely(file)
        if is_checkpoint(loaded):
            found = bank_of_checkpoint(loaded, file)
            found.preprocessing()
            bank = found.memory_bank
        else:
            bank, _ = bank_of(named_tensor(loaded, file, None)[1], file, "it")
        _check_bank(bank, 1 << 20)

    return check


def _check_bank(bank: Any, limit: int) -> None:
    assert bank.dtype == np.float32
    assert bank.ndim == 2
    assert 0 < bank.size < limit
    assert np.isfinite(bank).all()


def _weights(suffix: str, folder: Path) -> Try:
    from pgdefect.vision.networks.torch_file import read_state_dict

    file = folder / f"weights{suffix}"

    def check(data: bytes) -> None:
        file.write_bytes(data)
        for value in read_state_dict(file).values():
            assert value.numel() < 1 << 20

    return check


def _model(changed: str, folder: Path) -> Try:
    from pgdefect.vision.patchcore.patchcore_inspection import INDEX_FILE, PARAMS_FILE, read_model

    (folder / INDEX_FILE).write_bytes(inputs.flat_index())
    (folder / PARAMS_FILE).write_bytes(inputs.settings_files()[0])
    file = folder / (PARAMS_FILE if changed == "settings" else INDEX_FILE)

    def check(data: bytes) -> None:
        file.write_bytes(data)
        _check_bank(read_model(folder).memory_bank, 1 << 10)

    return check


def _onnx(folder: Path) -> Try:
    from pgdefect.vision.networks.extractor import compile_graph

    def check(data: bytes) -> None:
        assert len(compile_graph(data, 1).outputs) >= 1

    return check


TARGETS = (
    Target("images", 40_000, lambda: inputs.mutated(inputs.images()), _images),
    Target("manifests", 20_000, lambda: inputs.tables("path"), _manifests),
    Target("parts.csv", 5_000, lambda: inputs.tables("path", "part"), _parts),
    Target("options", 10_000, lambda: inputs.text | _json_like(), _options),
    Target("URLs", 5_000, lambda: st.tuples(*[inputs.text] * 3), _urls),
    Target("torch archives", 8_000, lambda: inputs.mutated(inputs.torch_files()), _bank, True),
    Target("torch pickles", 8_000, inputs.torch_pickles, _bank, True),
    Target(
        "weights", 4_000, lambda: inputs.mutated(inputs.weights()), partial(_weights, ".pth"), True
    ),
    Target(
        "safetensors",
        4_000,
        lambda: inputs.mutated(inputs.safetensors()),
        partial(_weights, ".safetensors"),
        True,
    ),
    Target("npy, npz, parquet", 2_000, lambda: inputs.mutated(inputs.other_tables()), _bank, True),
    Target(
        "pickled settings",
        10_000,
        lambda: inputs.mutated(inputs.settings_files()),
        partial(_model, "settings"),
        True,
    ),
    Target(
        "FAISS indexes",
        5_000,
        lambda: inputs.mutated([inputs.flat_index()]),
        partial(_model, "index"),
        True,
    ),
    Target("ONNX graphs", 1_500, lambda: inputs.mutated([inputs.onnx_file()]), _onnx, True),
)
NAMES_INPUTS = 5_000
"""How many names go through a database; see `names_in`."""


def _json_like() -> st.SearchStrategy[str]:
    leaf = st.none() | st.booleans() | st.floats() | st.integers() | inputs.text
    value = st.recursive(
        leaf, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5
    )
    deep = st.integers(1, 5000).map(lambda depth: "[" * depth)
    return value.map(json.dumps) | deep


@contextmanager
def scratch_database(folder: Path) -> Iterator[Database]:
    """A server of its own with the schema, stopped at the end of the block."""
    from pgdefect.db.schema.schema import upgrade
    from pgdefect.db.server.embedded import EmbeddedServer

    server = EmbeddedServer(folder / "data")
    try:
        server.start()
        database = Database(server.url())
        upgrade(database)
        yield database
        database.dispose()
    finally:
        server.stop()
