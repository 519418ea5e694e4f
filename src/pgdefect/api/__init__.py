"""The Python API: a project to open, and results to look at.

Stands on the use cases, beside the command line; nothing below may import it. What users import
is `pgdefect` itself, whose names are loaded from here when they are first asked for.
"""
