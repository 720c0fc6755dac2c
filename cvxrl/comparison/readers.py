"""Many runs read in processes of their own, where their logs are so large that it pays.

Parsing a log holds Python's lock, so threads would read no faster. Each process gets every n-th run and sends them one
after the other through a pipe, which holds a part of one: it waits until a run is taken, so that few are in memory
twice, and it ends when there is nobody to take them any more. What a process that is lost did not send is read here.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final, TypeVar

from cvxrl.errors import UserError
from cvxrl.runs.directory import RunDir

_T = TypeVar("_T")
# A process takes as long to start, imports included, as it takes to read this much.
_SHARE: Final = 64 << 20
_START: Final = "from cvxrl.comparison.readers import main; main()"


def processes_for(paths: Sequence[Path]) -> int:
    """As many processes as there are cores, but none with less to read than its start costs; 1 is this one.

    Args:
        paths: run directories.
    """
    return max(1, min(_cores(), sum(map(_size, paths)) // _SHARE, len(paths)))


def read_all(read: Callable[[Path], _T], paths: Sequence[Path], processes: int) -> list[_T | UserError]:
    """What ``read`` returns for each path, or the `UserError` that it raises.

    Args:
        read: can be pickled, like what it returns.
        paths: in the order of the result.
        processes: how many read; with 1 it is this one.

    Raises:
        Exception: whatever else ``read`` raises.
    """
    if processes == 1:
        return [_outcome(read, path) for path in paths]
    with ExitStack() as stack:
        readers = [_start() for _ in range(processes)]
        for reader in readers:
            stack.callback(_end, reader)
        for place, reader in enumerate(readers):
            assert reader.stdin is not None
            with suppress(OSError):  # it is lost already
                pickle.dump((read, paths[place::processes]), reader.stdin)
                reader.stdin.close()
        return [_receive(readers[place % processes], read, path) for place, path in enumerate(paths)]


def main() -> None:
    """Read, in such a process, what its input names."""
    read, paths = pickle.load(sys.stdin.buffer)
    with suppress(BrokenPipeError):
        for path in paths:
            pickle.dump(_outcome(read, path), sys.stdout.buffer, protocol=pickle.HIGHEST_PROTOCOL)
            sys.stdout.buffer.flush()


def _outcome(read: Callable[[Path], _T], path: Path) -> _T | UserError:
    try:
        return read(path)
    except UserError as error:
        return error


def _receive(reader: subprocess.Popen[bytes], read: Callable[[Path], _T], path: Path) -> _T | UserError:
    assert reader.stdout is not None
    try:
        return pickle.load(reader.stdout)  # type: ignore[no-any-return]
    except (EOFError, pickle.UnpicklingError):
        return _outcome(read, path)


def _start() -> subprocess.Popen[bytes]:
    """A process that imports what this one does; Ctrl-C is for this one, and ends the others with it."""
    path = os.pathsep.join(p for p in sys.path if p)
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _START],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # a bug shows here, where what it kept from us is read again
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,
    )


def _end(reader: subprocess.Popen[bytes]) -> None:
    reader.kill()
    for pipe in (reader.stdin, reader.stdout):
        with suppress(OSError):
            if pipe is not None:
                pipe.close()
    reader.wait()


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _size(path: Path) -> int:
    """Bytes of a run's log."""
    try:
        return RunDir(path).metrics.stat().st_size
    except OSError:
        return 0
