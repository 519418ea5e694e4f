"""The PatchCore detector: coreset, embedding transform, scoring, files of other programs.

Uses `vision.images` and `vision.networks`.
"""
