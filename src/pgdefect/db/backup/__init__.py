"""Backup and restore: pg_dump archives of pgdefect's schemas, and finding the client programs.

Uses `db.schema` and what lies below it.
"""
