"""Settings of the whole process: the same bits twice, and freed memory kept."""

from __future__ import annotations

import ctypes
import os

import torch

# cuBLAS repeats itself only with a workspace of fixed size; it reads this at its first use.
_CUBLAS, _WORKSPACE = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
# Parameters of mallopt(3), and the largest threshold that glibc accepts.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 32 * 2**20
_NEVER = 2**31 - 1


def settle_algorithms(device: torch.device, deterministic: bool) -> None:
    """Ask for deterministic algorithms on CUDA, or allow any; an operation that has none warns and runs as it can."""
    if device.type != "cuda":
        return
    if deterministic:
        os.environ.setdefault(_CUBLAS, _WORKSPACE)
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.backends.cudnn.benchmark = not deterministic


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
