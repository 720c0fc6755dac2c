"""A reward that a policy of random weights earns as often as not, so that every gradient says something."""

from __future__ import annotations

import zlib
from typing import Any


def by_chance(completion: str, prompt: str, **_: Any) -> bool:
    """A coin that the text tosses."""
    return bool(zlib.crc32(f"{prompt}{completion}".encode()) & 1)
