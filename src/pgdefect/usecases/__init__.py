"""The use cases: ingest, train, inspect, search, evaluate, doctor, the demo.

Each is a function that takes a database, settings and options and returns a dataclass. It prints
nothing and names no option of the command line. The CLI and the Python API call these.
"""
