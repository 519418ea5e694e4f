"""Import memory banks of other programs; export images, vectors and detectors.

Uses `usecases.train` for options, and `usecases.common`.
"""
