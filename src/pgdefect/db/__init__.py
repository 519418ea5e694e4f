"""Postgres: the embedded server, the schema, and every query. No image is decoded here.

From the bottom up: `server`, `connection`, `access`, `schema`, `search`, `records`, then `doctor`
and `backup`. Each imports only rooms before it; only use cases and the command line import these.
"""
