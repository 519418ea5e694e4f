"""Images to arrays: data sets, preprocessing, networks, scores. No database.

From the bottom up: `images`, `networks`, then `patchcore`, `efficient_ad` and `defects` side by
side. Only use cases import these.
"""
