"""Read results with pandas, through nothing but a connection URL.

    pip install 'pgdefect[interop]'
    python docs/read_with_pandas.py "$(pgdefect db url)"

Any reader of the database can do so: the tables come from the views of the schema `defect`,
which psql shows with `\\dv+ defect.*`.
"""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import psycopg
from sqlalchemy import create_engine

url = sys.argv[1]  # postgresql://user@host/database, with any of libpq's options

# psycopg reads the URL itself, so that sockets, TLS and services in it work.
engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(url))

# Rows: every image with what the newest inspection said of it.
images = pd.read_sql("SELECT * FROM defect.images", engine, index_col="image_id")
judged = images.dropna(subset=["verdict"])
print("Images:", len(images), "inspected:", len(judged))

print("\nShare rejected, by category and known defect type:")
rejected = judged.assign(
    known=judged["known_defect_type"].fillna(judged["known_label"]),
    rejected=judged["verdict"] == "anomalous",
)
by_type = rejected.groupby(["category", "known"], dropna=False)["rejected"]
print(by_type.agg(["size", "mean"]).round(3).to_string())

print("\nNormalized score, by known label (0.5 is the threshold):")
print(judged.groupby("known_label")["normalized_score"].describe().round(3).to_string())

# Parameters are passed, never pasted into the statement.
worst = pd.read_sql(
    "SELECT path, normalized_score, worst_box FROM defect.inspections"
    " WHERE category = %(category)s ORDER BY normalized_score DESC LIMIT 3",
    engine,
    params={"category": judged["category"].iloc[0]},
)
print("\nThe three worst:")
print(worst.to_string(index=False))

# An anomaly map is an array of patch scores, row by row.
maps = pd.read_sql("SELECT image_id, threshold, anomaly_map FROM pgdefect.inspection", engine)
shares = [
    (np.array(patch_scores) > threshold).mean()
    for patch_scores, threshold in zip(maps["anomaly_map"], maps["threshold"], strict=True)
]
print(f"\nPatches above the threshold: {np.mean(shares):.1%} of those of all inspections")

# Vectors: cast to real[] they come as lists; here a matrix with one row an image.
vectors = pd.read_sql(
    "SELECT image_id, embedding::real[] AS embedding FROM pgdefect.image_embedding"
    " WHERE extractor_id = (SELECT max(extractor_id) FROM pgdefect.image_embedding)",
    engine,
    index_col="image_id",
)
matrix = np.stack(vectors["embedding"].to_list())
print(f"\nImage embeddings: {matrix.shape[0]} of {matrix.shape[1]} dimensions")
similarity = matrix @ matrix.T  # unit vectors: 1 minus the cosine distance
np.fill_diagonal(similarity, -1.0)
first, second = np.unravel_index(similarity.argmax(), similarity.shape)
alike = images["path"].reindex(vectors.index[[first, second]])
print("The two images most alike:", *alike)
engine.dispose()
