"""Defects: where they are, their embeddings and deep features, and simulated ones.

Uses `vision.images` and `vision.networks`.
"""
