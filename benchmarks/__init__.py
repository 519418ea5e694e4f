"""What `make bench` runs: one module a row of figures, each against a peer in the same run.

Every figure is a ratio of two times measured here and now; none is to be compared with one
from another machine. Where there is no peer (``load``) it says what held. Each module has
``measure(context) -> Report``.
"""
