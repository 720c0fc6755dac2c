"""Memory that a step frees is kept for the next one, which asks for the same again."""

from __future__ import annotations

import ctypes

# Parameters of mallopt(3), and the largest threshold that glibc accepts.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 32 * 2**20
_NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Ask glibc not to give tensors' memory back between steps; elsewhere, nothing.

    Every page that comes back from the system is a page fault and is filled with zeros: half of a step's faults, about
    5% of its time on a small policy (docs/performance.md). The peak stays the same.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library, or another system
        return
    mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
    mallopt(_TRIM_THRESHOLD, _NEVER)
