"""Rectangles in images."""

from __future__ import annotations

Box = tuple[int, int, int, int]
"""x, y, width, height in pixels, from the top left corner."""
