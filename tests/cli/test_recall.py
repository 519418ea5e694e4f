"""`pgdefect recall-check`: an index that finds too little is told of and mended."""

from __future__ import annotations

import psycopg

from pgdefect.db.connection.engine import Database

from .conftest import Cli

RANDOM_EMBEDDINGS = """
SELECT setseed(0.5);
DELETE FROM pgdefect.image_embedding;
WITH made AS (
    INSERT INTO pgdefect.image
        (category_id, root_id, path, sha256, num_bytes, height, width, split)
    SELECT 1, 1, n || '.png', encode(sha256(n::text::bytea), 'hex'), 1, 64, 64, 'production'
    FROM generate_series(1, 1500) n RETURNING id
)
INSERT INTO pgdefect.image_embedding (extractor_id, image_id, embedding)
SELECT 1, m.id, array_agg(random() - 0.5)::halfvec
FROM made m, pgdefect.extractor x, generate_series(1, x.embedding_dim) GROUP BY m.id;
INSERT INTO pgdefect.search_setting VALUES (1, 'picture', 10, 0.5);
"""


def test_recall_check(cli: Cli, trained: Database) -> None:
    with psycopg.connect(trained.url, autocommit=True) as connection:
        connection.execute(RANDOM_EMBEDDINGS)
        # Else autovacuum may do it between two checks, and mends the graph in doing so.
        connection.execute("VACUUM pgdefect.image_embedding")
    poor = cli(trained, "recall-check", "parts", "--json", "--sample", "40")
    assert poor.code == 1
    bank, pictures = poor.json["indexes"][:2]
    assert (bank["searched"], bank["k"], bank["ok"]) == ("bank", 1, True)
    assert (pictures["searched"], pictures["k"], pictures["ok"]) == ("picture", 10, False)
    assert pictures["recall"] < 0.99
    assert pictures["ef_search"] == 10 < pictures["ef_needed"]
    told = cli(trained, "recall-check", "parts", "--sample", "40")
    assert told.code == 1
    assert f"image_embedding_1_hnsw finds {pictures['recall']:.4f} of the nearest" in told.err
    assert "pgdefect recall-check --fix" in told.err
    fixed = cli(trained, "recall-check", "parts", "--sample", "40", "--fix")
    assert fixed.code == 0
    assert f"ef_search was 10, is {max(100, pictures['ef_needed'])}" in fixed.err
    assert cli(trained, "recall-check", "parts", "--sample", "40").code == 0
