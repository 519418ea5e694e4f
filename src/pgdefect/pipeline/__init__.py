"""The use cases: train, ingest, inspect, search, the demo."""
