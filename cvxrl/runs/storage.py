"""A disk that is full, read-only or broken: one sentence instead of a traceback."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cvxrl.errors import Problem, UserError

_REMEDIES = {
    errno.ENOSPC: "free some space, then go on with --resume",
    errno.EDQUOT: "free some of your quota, then go on with --resume",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f), then go on with --resume",
    errno.EROFS: "choose another --out",
    errno.ENOENT: "choose another --out",
    errno.ENOTDIR: "choose another --out",
    errno.EACCES: "choose another --out, or change the permissions",
    errno.EPERM: "choose another --out, or change the permissions",
    errno.ENAMETOOLONG: "choose a shorter name or --out",
    errno.EIO: "the disk is failing: copy the run elsewhere, then go on with --resume",
    errno.EMFILE: "raise the limit on open files (ulimit -n), then go on with --resume",
}
# Libraries written in Rust and C++ report a failed write in words of their own.
_RUST_ERROR = re.compile(r"os error (\d+)")
_TORCH_WRITE_ERROR = "PytorchStreamWriter failed"


class StorageError(UserError):
    """The run directory cannot be written (any more). What was whole before still is."""


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a failed write of ``path`` into a StorageError; anything else passes.

    Raises:
        StorageError: an OSError, or what safetensors and torch raise in its place.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        number = _error_number(error, path)
        if number is None:
            raise
        raise StorageError(
            Problem(
                f"cannot write: {os.strerror(number)}",
                file=str(path),
                remedy=_REMEDIES.get(number, "mend that, then go on with --resume"),
            )
        ) from error


def _error_number(error: BaseException, path: Path) -> int | None:
    """Operating system's number of a failed write, or None if the error is about something else."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno is not None:
            return seen.errno
        named = _RUST_ERROR.search(str(seen))
        if named:
            return int(named.group(1))
        seen = seen.__cause__ or seen.__context__
    # torch keeps the reason to itself; of the possible ones, a full disk is the one that can be looked up.
    if _TORCH_WRITE_ERROR in str(error) or "unexpected pos" in str(error):
        return errno.ENOSPC if _is_full(path) else errno.EIO
    return None


def _is_full(path: Path) -> bool:
    """Whether the file system has next to nothing left (one block, as a write that fits would have been made)."""
    nearest = next(p for p in (path, *path.parents) if p.exists())
    status = os.statvfs(nearest)
    return status.f_bavail * status.f_frsize < 2**20
