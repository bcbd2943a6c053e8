"""The specification's own functions, run fast: all tasks at once, and traced only once."""

import ctypes
from contextlib import suppress

from refmeta.fast.recorded import recorded
from refmeta.fast.stacked import stacked

__all__ = ["keep_freed_memory", "recorded", "stacked"]


def keep_freed_memory() -> None:
    """Let glibc keep freed memory until the process ends; without glibc do nothing.

    By default it returns large temporaries to the system, and their pages fault in again at every operation. The
    commands of refmeta call this first. Your program can call it too, or start with
    MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=2147483647 in its environment.
    """
    with suppress(AttributeError, OSError, TypeError):  # musl and macOS have no mallopt, Windows no CDLL(None)
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 2**30)  # M_MMAP_THRESHOLD
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
