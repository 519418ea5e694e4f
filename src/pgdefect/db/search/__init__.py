"""Nearest neighbors by SQL: patches, images, defects, regions; and what recall the indexes have.

Uses `db.schema` and what lies below it; one Python function a SQL function.
"""
