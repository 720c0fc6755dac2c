"""One process per run directory: the second is refused with the holder's name.

The lock is the operating system's (`flock`): it vanishes with the process, however that ends, so that there is no stale
lock to judge and a process number given out again cannot be mistaken for the holder. The text in the file only names
the holder.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from cvxrl.errors import Problem, UserError
from cvxrl.runs.storage import storage_errors

LOCK_FILE = ".lock"


@contextmanager
def lock(folder: Path) -> Iterator[bool]:
    """Hold ``folder`` for the length of the block; yields False where the file system knows no locks.

    Raises:
        UserError: another process holds it.
        StorageError: the lock file cannot be written.
    """
    path = folder / LOCK_FILE
    with storage_errors(path):
        stream = path.open("a+", encoding="utf-8")
    with stream:
        held = _take(stream, folder)
        with storage_errors(path):
            stream.seek(0)
            stream.truncate()
            stream.write(json.dumps(_myself()))
            stream.flush()
        try:
            yield held
        finally:
            stream.truncate(0)


def refuse_if_held(folder: Path) -> None:
    """Raise UserError if another process holds ``folder``; writes nothing."""
    try:
        stream = (folder / LOCK_FILE).open("r", encoding="utf-8")
    except OSError:
        return  # no lock file yet, or one that `lock` will complain about
    with stream:
        _take(stream, folder)


def is_held(folder: Path) -> bool:
    """Whether some process trains in ``folder`` at this moment, on a file system that knows locks."""
    try:
        refuse_if_held(folder)
    except UserError:
        return True
    return False


def _take(stream: IO[str], folder: Path) -> bool:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.seek(0)
        raise UserError(
            Problem(
                f"in use by {_holder(stream.read())}",
                file=str(folder),
                remedy="wait for it or stop it, or choose another --out or --seed",
            )
        ) from None
    except OSError:
        return False  # some network file systems have no locks
    return True


def _myself() -> dict[str, str | int]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _holder(text: str) -> str:
    """Name the holder in words; the text may be missing for the moment between its opening and its writing."""
    try:
        holder = json.loads(text)
        return f"process {holder['pid']} on {holder['host']}, since {holder['started']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
