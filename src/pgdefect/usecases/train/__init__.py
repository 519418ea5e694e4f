"""Train a detector of either kind: options, extraction, the memory bank, resuming.

Uses `usecases.common`.
"""
