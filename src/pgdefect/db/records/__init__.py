"""Rows in and out of the tables, a module a kind: images, detectors, banks, inspections, reviews.

Uses `db.search`, `db.schema` and what lies below them. Each function is one transaction or part
of the caller's.
"""
