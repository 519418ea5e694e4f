"""Write the generated pages anew: cli.md, analysts.md, schema.md, cookbook.md, benchmarks.md, and
the notebook tour.ipynb.

``python -m docs`` makes all, ``python -m docs analysts schema`` those two, in seconds.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from contextlib import chdir
from pathlib import Path

from docs.benchmarks import benchmarks_page
from docs.cli import cli_page
from docs.cookbook import cookbook_page, recipes, run_recipe
from docs.notebook import notebook_of, run_notebook, write_notebook
from docs.reference import analysts_page, schema_page
from docs.scene import two_weeks
from docs.tour import CELLS
from pgdefect.core.config import Settings
from pgdefect.db.connection.engine import Database
from pgdefect.db.records.catalog import move_root
from pgdefect.db.schema.schema import upgrade
from pgdefect.db.server.embedded import EmbeddedServer
from tests.synthetic import Texture, write_dataset

HERE = Path(__file__).parent
PAGES = ("cli", "analysts", "schema", "cookbook", "benchmarks", "tour")
PRODUCTS: dict[str, Texture] = {"cover_plate": "brushed", "seat_cloth": "woven"}
SIZE = (192, 192)


def main(names: list[str]) -> None:
    """Write the pages named, or all. Exits with 2 for a name there is not."""
    if unknown := [name for name in names if name not in PAGES]:
        sys.exit(f"no page {unknown[0]!r}; pages: {', '.join(PAGES)}")
    wanted = names or list(PAGES)
    if "cli" in wanted:
        _write("cli", cli_page())
    if "schema" in wanted:
        _write("schema", schema_page())
    if "benchmarks" in wanted:
        _write("benchmarks", benchmarks_page())
    if not {"analysts", "cookbook", "tour"} & set(wanted):
        return
    folder = Path(tempfile.mkdtemp(prefix="pgdefect-docs-", dir="/tmp"))
    folder.chmod(0o755)
    server = EmbeddedServer(folder / "data")
    try:
        server.start()
        database = Database(server.url())
        upgrade(database)
        if "analysts" in wanted:
            with database.autocommit() as connection:
                _write("analysts", analysts_page(connection))
        if "cookbook" in wanted:
            for product, texture in PRODUCTS.items():
                _produce(database, folder / product, product, texture)
            _write("cookbook", cookbook_page((r, run_recipe(database, r)) for r in recipes()))
        if "tour" in wanted:
            _tour(server.url(), folder)
        database.dispose()
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _produce(database: Database, folder: Path, product: str, texture: Texture) -> None:
    """Learn a product, test it, and let it be made for two weeks."""
    from pgdefect.usecases.ingest import ingest
    from pgdefect.usecases.inspect.inspect import inspect
    from pgdefect.usecases.train.options import TrainOptions
    from pgdefect.usecases.train.train import train

    settings = Settings()
    write_dataset(folder / "set", num_train=40, seed=1, size=SIZE, texture=texture)
    ingest(database, folder / "set", product)
    train(database, settings, product, TrainOptions(image_size=SIZE))
    inspect(database, settings, product, split="test")
    two_weeks(
        database, settings, product, folder / "line", size=SIZE, texture=texture, parts_a_day=2
    )
    for part in ("set", "line"):
        move_root(database, str(folder / part), f"/photos/{product}/{part}")


def _tour(url: str, folder: Path) -> None:
    """Run the notebook's cells in a folder that holds the photographs, and write it."""
    write_dataset(
        folder / "parts",
        num_train=16,
        num_test_normal=4,
        num_per_defect=3,
        seed=1,
        size=(128, 128),
    )
    notebook = notebook_of(CELLS)
    before = os.environ.get("PGDEFECT_DATABASE_URL")
    os.environ["PGDEFECT_DATABASE_URL"] = url
    try:
        with chdir(folder):
            run_notebook(notebook, {})
    finally:
        if before is None:
            del os.environ["PGDEFECT_DATABASE_URL"]
        else:
            os.environ["PGDEFECT_DATABASE_URL"] = before
    write_notebook(notebook, HERE / "tour.ipynb")
    print("docs/tour.ipynb")


def _write(name: str, page: str) -> None:
    (HERE / f"{name}.md").write_text(page, encoding="utf-8")
    print(f"docs/{name}.md")


if __name__ == "__main__":
    main(sys.argv[1:])
