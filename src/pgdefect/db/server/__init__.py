"""The embedded Postgres: its cluster, its process, its settings, and who owns it.

Knows nothing of pgdefect's schema and uses `core` only.
"""
