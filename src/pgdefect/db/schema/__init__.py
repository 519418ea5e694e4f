"""The tables (`models`), migrations and SQL files, partitions and indexes: what the schema is.

Uses `db.access` and `db.connection`. No rows of users are read or written here.
"""
