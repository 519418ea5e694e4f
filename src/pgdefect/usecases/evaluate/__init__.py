"""Evaluate a detector on labeled test images: figures, intervals, leaks, retrieval, reports.

Uses `usecases.inspect` and below.
"""
