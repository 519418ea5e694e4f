"""Drawing: anomaly maps, contact sheets, miss sheets, plots. Arrays and labels in, images out.

Uses `core` only; use cases call it.
"""
