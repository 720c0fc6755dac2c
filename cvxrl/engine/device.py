"""What memory there is for a run, asked of the system and of the driver (no torch here)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

from cvxrl.errors import Problem, UserError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?(?:e\d+)?)\s*([kmgt]i?)?b?(?:/s)?\s*", re.IGNORECASE)


def physical_memory() -> int | None:
    """Bytes of memory that this machine has, or None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def device_memory(device: str) -> int | None:
    """Bytes of the smallest GPU of this machine, or of the machine where it computes itself; None if not known.

    Args:
        device: `train.device`. With `cuda` and no GPU here, the run is planned for another machine.
    """
    gpu = None if device == "cpu" else _smallest_gpu()
    return gpu if gpu is not None or device == "cuda" else physical_memory()


def _smallest_gpu() -> int | None:
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    try:
        asked = [command, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True)
        return min(int(line) for line in done.stdout.split()) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def parsed_size(text: str, option: str) -> float:
    """A number with a unit: `80GiB`, `400T`, `2.3e12`.

    Raises:
        UserError: it is none, or not above 0.
    """
    match = _SIZE.fullmatch(text)
    value = float(match[1]) * _UNITS[(match[2] or "").lower()] if match else 0.0
    if value <= 0:
        raise UserError(
            Problem(f"`{text}` is no size", option, remedy="write a number with a unit: 80GiB, 400T, 2.3e12")
        )
    return value
