"""Entering a directory: one process at a time, and one rule for what is there already.

The lock is the operating system's, on a file that stays (flock on Unix, LockFileEx on Windows): it vanishes with the
process, however that ends, so that there is no stale lock to judge and a process number given out again cannot be
mistaken for the holder. The text in the file only names the holder.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from cvxrl.errors import Problem, UserError
from cvxrl.runs.files import storage_errors

Entry = Literal["new", "resume", "overwrite"]
LOCK_FILE = ".lock"
# Windows keeps others from reading the locked byte, which is the first; the holder's name follows it.
_NAME_AT = 1
_WAIT = "wait for it or stop it, or choose another --out"


def entry_of(resume: bool, overwrite: bool, dashes: str = "--") -> Entry:
    """What two switches ask for.

    Args:
        resume: go on with what is there.
        overwrite: start it again.
        dashes: in front of their names where they are given.

    Raises:
        UserError: both are on.
    """
    if resume and overwrite:
        what = f"cannot be combined with {dashes}overwrite"
        raise UserError(Problem(what, f"{dashes}resume", remedy="choose one of them"))
    return "resume" if resume else "overwrite" if overwrite else "new"


@dataclass(frozen=True)
class Found:
    """What a directory holds before it is entered, in the words of the messages.

    Attributes:
        said: that there is one already, as a sentence; None if there is none.
        resumable: whether it can be gone on with.
        elsewhere: the options that lead to another directory.
    """

    said: str | None
    resumable: bool
    elsewhere: str

    def require(self, folder: Path, entry: Entry) -> None:
        """Refuse to begin what exists, and to resume what cannot be; what does not exist is begun either way.

        Raises:
            UserError: with the ways out.
        """
        if self.said is not None and entry == "new":
            remedy = f"--resume to go on, --overwrite to start again, {self.elsewhere}"
            raise UserError(Problem(self.said, file=str(folder), remedy=remedy))
        if entry == "resume" and self.said is not None and not self.resumable:
            what = f"{self.said}, but what it was asked is missing, so it cannot be gone on with"
            raise UserError(Problem(what, file=str(folder), remedy="--overwrite starts it again"))


def require_same(changes: Iterable[tuple[str, Any, Any]], file: Path, remedy: str) -> None:
    """Refuse to resume under other settings.

    Args:
        changes: (key, value then, value now) of every setting that differs.
        file: where the earlier settings are.
        remedy: what to do about it.

    Raises:
        UserError: one problem per key.
    """
    problems = [Problem(f"was {then!r}, is now {now!r}", key, str(file), remedy) for key, then, now in changes]
    if problems:
        raise UserError(*problems)


def require_writable(folder: Path) -> None:
    """Refuse a directory that cannot be made or written, without trying.

    Raises:
        UserError: naming the nearest parent that exists.
    """
    nearest = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(Problem("cannot write here", file=str(nearest), remedy="choose another --out"))


@contextmanager
def lock(folder: Path, remedy: str = _WAIT) -> Iterator[bool]:
    """Make ``folder`` and hold it for the length of the block; yields False where the file system knows no locks.

    Raises:
        UserError: another process holds it; the message names that process.
        StorageError: the folder or the lock file cannot be written.
    """
    path = folder / LOCK_FILE
    with storage_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        held = _take(descriptor, folder, remedy)
        with storage_errors(path):
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.write(descriptor, b" " * _NAME_AT + json.dumps(_myself()).encode())
        try:
            yield held
        finally:
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)  # which is what gives the lock back


def refuse_if_held(folder: Path, remedy: str = _WAIT) -> None:
    """Raise UserError if another process holds ``folder``; writes nothing."""
    try:
        descriptor = os.open(folder / LOCK_FILE, os.O_RDONLY)
    except OSError:
        return  # no lock file yet, or one that `lock` will complain about
    try:
        _take(descriptor, folder, remedy)
    finally:
        os.close(descriptor)


def is_held(folder: Path) -> bool:
    """Whether some process works in ``folder`` at this moment, on a file system that knows locks."""
    try:
        refuse_if_held(folder)
    except UserError:
        return True
    return False


def _take(descriptor: int, folder: Path, remedy: str) -> bool:
    from filelock import lock_descriptor  # takes a tenth of a second to import, and mostly there is no lock file yet

    try:
        free = lock_descriptor(descriptor, blocking=False)
    except OSError:
        return False  # some network file systems have no locks
    if not free:
        raise UserError(Problem(f"in use by {_holder(descriptor)}", file=str(folder), remedy=remedy))
    return True


def _myself() -> dict[str, str | int]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _holder(descriptor: int) -> str:
    """Name the holder in words; the text may be missing for the moment between its opening and its writing."""
    try:
        os.lseek(descriptor, _NAME_AT, os.SEEK_SET)
        text = os.read(descriptor, 4096).decode(errors="replace")
        holder = json.loads(text if text.startswith("{") else "{" + text)  # version 0.1 wrote from the first byte on
        return f"process {holder['pid']} on {holder['host']}, since {holder['started']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
