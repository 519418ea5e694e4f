"""What every other package may use: types, metrics, errors, settings, thresholds, boxes, threads.

Imports nothing of pgdefect but itself, and no library heavier than NumPy and pydantic.
"""
