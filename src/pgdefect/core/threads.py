"""How many threads to use, and how they share the cores with NumPy's BLAS."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

__all__ = ["num_cpus", "one_blas_thread_each"]


def num_cpus() -> int:
    """Processors this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        return os.cpu_count() or 1


@contextmanager
def one_blas_thread_each() -> Iterator[int]:
    """For the block, BLAS uses one thread a call; yields how many callers to run at once.

    Several threads with a product each beat one product shared by several: the work
    around it runs in parallel too, and no core waits for one that is busy elsewhere
    (five times faster beside another busy process).
    """
    with _libraries().limit(limits=1, user_api="blas"):
        yield num_cpus()


@cache
def _libraries() -> ThreadpoolController:
    """NumPy's BLAS and what else is loaded: found once, for looking takes 2 ms of each image."""
    import numpy  # noqa: F401
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
