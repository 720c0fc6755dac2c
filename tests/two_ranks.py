"""Processes that make one world: children forked from this one, which has imported all libraries already."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

# Seconds after which a rank that hangs is ended.
_LONGEST = 900


def ranks(job: Callable[[Any], Any], size: int = 2) -> list[Any]:
    """What a function of the world returns in each of its processes.

    Raises:
        AssertionError: with the tracebacks of those that failed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with TemporaryDirectory() as folder:
        files = [Path(folder) / str(rank) for rank in range(size)]
        children = [_fork(job, rank, size, port, file) for rank, file in enumerate(files)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        told = [pickle.loads(file.read_bytes()) if file.is_file() else ("", f"ended with {code}")
                for file, code in zip(files, codes, strict=True)]  # fmt: skip
    failures = [error for _, error in told if error is not None]
    assert not failures, "\n".join(failures)
    return [value for value, _ in told]


def _fork(job: Callable[[Any], Any], rank: int, size: int, port: int, file: Path) -> int:
    child = os.fork()
    if child:
        return child
    try:
        signal.alarm(_LONGEST)
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), **address}
        file.write_bytes(pickle.dumps(_told(job)))
    finally:
        os._exit(0)


def _told(job: Callable[[Any], Any]) -> tuple[Any, str | None]:
    from cvxrl.engine.torch_world import join

    try:
        with join() as world:
            return job(world), None
    except BaseException:
        return None, traceback.format_exc()
