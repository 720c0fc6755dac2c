"""Lines to a terminal, a file or a pipe whose reader may have left; every command writes so: it imports little."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TextIO


def write_out(text: str, stream: TextIO) -> None:
    """Write at once; when the reader has left (`... | head`), this and all that follows goes nowhere.

    Files, warnings and the exit code still count, so it is no error.
    """
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        _let_go(stream.fileno())


def _let_go(broken: int) -> None:
    """Send a descriptor nowhere, and with it the standard one that leads to the same pipe (`2>&1 | head`)."""
    others = [number for number in (1, 2) if number != broken and _is_same(number, broken)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (broken, *others):
        os.dup2(nowhere, number)
    os.close(nowhere)


def _is_same(one: int, other: int) -> bool:
    with suppress(OSError):  # one of them is closed
        return os.path.sameopenfile(one, other)
    return False
