"""Postgres: the embedded server, the schema, and every query. No image is decoded here."""
