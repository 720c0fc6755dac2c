"""Functions of a user that meet hostile replies badly."""

from __future__ import annotations

from typing import Any


def careless(completion: str, **_: Any) -> float:
    """Hangs, eats memory or dies, as the reply asks; else the share of digits."""
    while "hang" in completion:
        pass
    if "memory" in completion:
        return float(len("x" * 2**36))
    if "die" in completion:
        import os

        os._exit(3)
    return sum(c.isdigit() for c in completion) / max(1, len(completion))
