"""Room for signals on processors whose registers do not fit faulthandler's stack."""

from __future__ import annotations

import ctypes
import sys

_ROOM = 256 * 1024
_DISABLED = 2


class _Stack(ctypes.Structure):
    _fields_ = (
        ("start", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("size", ctypes.c_size_t),
    )


def widen_signal_stack() -> None:
    """Give the calling thread's signals a larger stack, where they have one of their own.

    Python's faulthandler, which a training library switches on, sets up a stack of some 11 kB.
    Once a network has used AMX, the registers that a signal saves take as much, and Ctrl-C would
    end the process with a segmentation fault.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    now = _Stack()
    if libc.sigaltstack(None, ctypes.byref(now)) or now.flags & _DISABLED or now.size >= _ROOM:
        return
    # Never freed: a signal may come at any time.
    _kept.append(ctypes.create_string_buffer(_ROOM))
    wide = _Stack(ctypes.addressof(_kept[-1]), 0, _ROOM)
    libc.sigaltstack(ctypes.byref(wide), None)


_kept: list[ctypes.Array[ctypes.c_char]] = []
