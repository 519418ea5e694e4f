"""Find the stored images most like an image, a crop, or several examples.

Uses `usecases.inspect`.
"""
