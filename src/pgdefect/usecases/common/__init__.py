"""What several use cases share: progress, the log, files given and stored, embedding images.

Uses `vision` and `db`; imports no use case.
"""
