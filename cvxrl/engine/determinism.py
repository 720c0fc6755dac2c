"""The same bits twice: free on the CPU; on CUDA, algorithms that sum in a fixed order must be asked for."""

from __future__ import annotations

import os

import torch

# cuBLAS repeats itself only with a workspace of fixed size; it reads this at its first use.
_CUBLAS, _WORKSPACE = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"


def settle_algorithms(device: torch.device, deterministic: bool) -> None:
    """Ask for deterministic algorithms on CUDA, or allow any; an operation that has none warns and runs as it can."""
    if device.type != "cuda":
        return
    if deterministic:
        os.environ.setdefault(_CUBLAS, _WORKSPACE)
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.backends.cudnn.benchmark = not deterministic
