"""SQL and the command line agree: whose images are listed, and what an image may be called."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from rows import add_embeddings, add_extractor, add_images, memory_bank, store, unit_vectors

from pgdefect.core.errors import Conflict
from pgdefect.db.connection.engine import Database
from pgdefect.db.doctor import contents
from pgdefect.db.search.queries import find_image
from pgdefect.db.search.search import SearchFilter, missing_embeddings, nearest

DIM = 16
Rows = list[tuple[Any, ...]]


class Products:
    """Two products, `base` and `cover`, of six images of the same names each."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.extractor = add_extractor(database, DIM)
        self.base = add_images(database, "base", 6)
        self.cover = add_images(database, "cover", 6, sha256=lambda n: f"{100 + n:064x}")
        self.vectors = unit_vectors(5, 12, DIM)
        add_embeddings(database, self.extractor, [*self.base, *self.cover], self.vectors)
        self.notices: list[str] = []

    def rows(self, query: str, *parameters: Any) -> Rows:
        with psycopg.connect(self.database.url) as connection:
            connection.add_notice_handler(
                lambda notice: self.notices.append(
                    f"{notice.message_primary}. {notice.message_hint}"
                )
            )
            return connection.execute(query.encode(), parameters).fetchall()


@pytest.fixture
def products(database: Database) -> Products:
    return Products(database)


def test_images_of_the_same_product_are_listed(products: Products) -> None:
    listed = products.rows(
        f"SELECT image_id, category FROM defect.similar_images({products.base[0]}, k => 20)"
    )
    assert {category for _, category in listed} == {"base"}
    assert sorted(image for image, _ in listed) == products.base[1:]
    where = SearchFilter(category="base", except_images=(products.base[0],))
    found = nearest(
        products.database, "picture", products.extractor, products.vectors[0], 20, where
    )
    assert [image for image, _ in listed] == [n.image.id for n in found]


def test_another_product_or_all_are_listed_where_asked_for(products: Products) -> None:
    call = f"SELECT category FROM defect.similar_images({products.base[0]}, k => 20, "
    assert {c for (c,) in products.rows(call + "category => 'cover')")} == {"cover"}
    everything = [c for (c,) in products.rows(call + "all_categories => true)")]
    assert sorted(everything) == ["base"] * 5 + ["cover"] * 6


@pytest.mark.parametrize("name", ["{}", "'{}'", "{}::bigint", "{}::text", "{}::smallint"])
def test_an_id_is_a_number_or_text(products: Products, name: str) -> None:
    image = name.format(products.base[2])
    listed = products.rows(f"SELECT rank FROM defect.similar_images({image}, k => 3)")
    assert listed == [(1,), (2,), (3,)]
    assert products.rows(f"SELECT defect.find_image({image})") == [(products.base[2],)]
    [(review,)] = products.rows(f"SELECT defect.review({image}, 'anomalous', note => 'x')")
    assert review


def test_every_function_that_takes_an_image_takes_an_id(products: Products) -> None:
    taken = products.rows(
        "SELECT proname, array_agg(type ORDER BY type) FROM ("
        "SELECT proname, proargtypes[0]::regtype::text AS type FROM pg_proc "
        "WHERE pronamespace = 'defect'::regnamespace AND proargnames[1] = 'image') p "
        "GROUP BY proname ORDER BY proname"
    )
    assert [name for name, _ in taken] == ["find_image", "inspect", "review", "similar_images"]
    assert {tuple(types) for _, types in taken} == {("bigint", "text")}


def test_a_category_tells_equal_names_apart(products: Products) -> None:
    with pytest.raises(psycopg.errors.Error, match=r"2 images are called '00003\.png'") as caught:
        products.rows("SELECT * FROM defect.similar_images('00003.png')")
    assert caught.value.sqlstate == "PD409"
    assert "category" in str(caught.value.diag.message_hint)
    listed = products.rows(
        "SELECT image_id, category FROM defect.similar_images('00003.png', k => 20, "
        "category => 'base', also_like => '{00004.png}')"
    )
    assert {category for _, category in listed} == {"base"}
    assert not {products.base[3], products.base[4]} & {image for image, _ in listed}
    for category, image in (("base", products.base[3]), ("cover", products.cover[3])):
        assert find_image(products.database, "00003.png", category).id == image
        assert products.rows("SELECT defect.find_image('00003.png', %s)", category) == [(image,)]
    [(review,)] = products.rows(
        "SELECT defect.review('00003.png', label => 'normal', category => 'cover')"
    )
    assert products.rows(f"SELECT image_id FROM defect.reviews WHERE review_id = {review}") == [
        (products.cover[3],)
    ]


def test_a_category_that_has_no_image_of_the_name_does_not_decide(products: Products) -> None:
    add_images(products.database, "third", 1, path="other.png")
    with pytest.raises(Conflict):
        find_image(products.database, "00003.png", "third")
    assert find_image(products.database, "other.png", "base").category == "third"


def test_images_that_cannot_be_found_are_told_of(products: Products) -> None:
    products.rows(f"SELECT * FROM defect.similar_images({products.base[0]})")
    assert products.notices == []
    added = add_images(
        products.database,
        "base",
        3,
        path=lambda n: f"new{n}.png",
        sha256=lambda n: f"{n + 500:064x}",
    )
    products.rows(f"SELECT * FROM defect.similar_images({products.base[0]})")
    assert products.notices == [
        "3 of 9 images of base have no image embedding and cannot be found. "
        "Make them with: pgdefect embed base"
    ]
    missing = missing_embeddings(products.database, "picture", products.extractor, "base")
    assert (missing.missing, missing.looked_at, missing.categories) == (3, 9, ("base",))
    other = missing_embeddings(products.database, "picture", products.extractor, "cover")
    assert (other.missing, other.categories) == (0, ())
    with psycopg.connect(products.database.url) as connection:
        connection.execute(
            "UPDATE pgdefect.image SET label = 'anomalous' WHERE id = ANY (%s)", [added[:2]]
        )
    defects = missing_embeddings(products.database, "defect", products.extractor, "base")
    assert (defects.missing, defects.looked_at) == (2, 2)


def test_names_of_categories_are_quoted_for_a_shell(products: Products) -> None:
    add_images(products.database, "it's one", 1, path="one.png")
    image = add_images(products.database, "it's one", 1, path="two.png", sha256="9" * 64)
    add_embeddings(products.database, products.extractor, image, unit_vectors(9, 1, DIM))
    products.rows(f"SELECT * FROM defect.similar_images({image[0]})")
    [notice] = products.notices
    assert notice.endswith("""pgdefect embed 'it'"'"'s one'""")


def test_doctor_tells_of_images_that_cannot_be_found(products: Products) -> None:
    bank = memory_bank(unit_vectors(6, 24, DIM), products.base)
    store(products.database, "base", products.extractor, bank)
    with products.database.connect() as connection:
        assert list(contents.check_missing_embeddings(connection)) == []
    add_images(products.database, "base", 1, path="new.png", sha256="7" * 64)
    with products.database.connect() as connection:
        [finding] = contents.check_missing_embeddings(connection)
    assert finding.message == ("1 of 7 images have no image embedding; searches do not find them")
    assert finding.remedy == "project.embed('base')"
