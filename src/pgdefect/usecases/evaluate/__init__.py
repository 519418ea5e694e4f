"""Evaluate a detector on labelled test images: figures, intervals, leaks, retrieval, reports.

Uses `usecases.inspect` and below.
"""
