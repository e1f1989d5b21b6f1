"""How the C library deals with freed memory, where it is one that can be asked (glibc)."""

from __future__ import annotations

import ctypes
from contextlib import suppress

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Parameters of ``mallopt``."""
LARGEST = 32 * 2**20
"""Bytes from which an array gets pages of its own, and gives them back when it is freed."""
KEPT = 2**30
"""Bytes at the heap's end that are kept for what comes next."""


def give_back() -> None:
    """Hand freed memory back to the system.

    Weights in their old form, freed between those in the new one, leave holes that nothing fits into: glibc keeps
    them, half as much again as the weights, and looks through the heap for them in a millisecond.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def keep_freed() -> None:
    """Let the process keep what a pass frees for the next pass, which needs as much again.

    Left alone, glibc returns arrays of a few megabytes to the system at once; the next ones are then new pages, each
    of which costs a fault: tens of thousands in a pass over a whole canvas, a tenth of its time. Arrays of
    :data:`LARGEST` bytes and more are returned as before.
    """
    with suppress(AttributeError, OSError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(MMAP_THRESHOLD, LARGEST)
        library.mallopt(TRIM_THRESHOLD, KEPT)
