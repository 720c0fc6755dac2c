"""Files that appear whole or not at all, and one sentence where a disk is full, read-only or broken."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
    return shutil.disk_usage(nearest).free < 2**20


def write_text(path: Path, text: str) -> None:
    r"""Write, fsync and rename; the folder is made if it is missing.

    A lone surrogate (from a data file, say) is written as a `\udXXX` escape, which JSON reads back.

    Raises:
        StorageError: the disk is full, or the file cannot be written; what was there before is untouched.
    """
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def write_bytes(path: Path, content: bytes) -> None:
    """See `write_text`."""
    temporary = path.with_name(f".{path.name}.tmp")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        sync_directory(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON document; NaN becomes null, since JSON has none."""
    write_text(path, json.dumps(finite(value), indent=2, ensure_ascii=False) + "\n")


def json_line(value: Any) -> str:
    """A JSON document for stdout, in one line of ASCII; NaN becomes null, since JSON has none."""
    return json.dumps(finite(value), allow_nan=False)


def finite(value: Any) -> Any:
    """Copy of a JSON-like value with non-finite floats replaced by None."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def write_directory(path: Path, fill: Callable[[Path], None]) -> None:
    """Let ``fill`` write into a temporary sibling, sync it, and rename it to ``path``, replacing what was there.

    Killed between the two renames, it leaves the old directory under the name `.<name>.old`; `mend` puts it back.

    Raises:
        StorageError: the disk is full, or the directory cannot be written; what was there before is untouched.
    """
    temporary, aside = path.with_name(f".{path.name}.tmp"), path.with_name(f".{path.name}.old")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            # Named here: once the half-written copy is gone, a full disk no longer looks full.
            with storage_errors(path):
                fill(temporary)
                _sync_tree(temporary)
        except Exception:
            # On a full disk the half-written copy is what fills it.
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        if path.exists():
            # A directory cannot be renamed over another; the old one steps aside first.
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            temporary.rename(path)
            sync_directory(path.parent)
            shutil.rmtree(aside)
        else:
            temporary.rename(path)
            sync_directory(path.parent)


def remove_directory(path: Path) -> None:
    """Remove a directory that readers believe to be whole: it loses its name first, then its files."""
    doomed = path.with_name(f".{path.name}.tmp")
    with storage_errors(path):
        shutil.rmtree(doomed, ignore_errors=True)
        path.rename(doomed)
        shutil.rmtree(doomed)


def mend(folder: Path) -> None:
    """Clear away what a killed process left half done in ``folder`` and below it.

    `.<name>.tmp` was never whole and goes. `.<name>.old` is what `write_directory` was about to replace: it comes back
    if its successor did not arrive, and goes otherwise.
    """
    for leftover in [*folder.rglob(".*.tmp"), *folder.rglob(".*.old")]:
        target = leftover.with_name(leftover.name[1:].rpartition(".")[0])
        with storage_errors(leftover):
            if leftover.suffix == ".old" and not target.exists():
                leftover.rename(target)
            elif leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink(missing_ok=True)


def sync_directory(path: Path) -> None:
    """Make renames in a folder survive a power cut; Windows opens no folders and needs none of it."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_tree(root: Path) -> None:
    """Force every file and every folder below ``root`` to the disk."""
    for entry in root.rglob("*"):
        if entry.is_file():
            with entry.open("rb") as stream:
                os.fsync(stream.fileno())
        elif entry.is_dir():
            sync_directory(entry)
    sync_directory(root)
