"""Judge images by the active detector, store what was found, and make the embeddings of defects.

Uses `usecases.common`; `search`, `evaluate`, `simulate` and the demo build on it.
"""
