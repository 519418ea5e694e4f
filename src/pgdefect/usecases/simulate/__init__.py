"""Draw defects on normal images, and measure which of them a detector finds.

Uses `usecases.inspect`.
"""
