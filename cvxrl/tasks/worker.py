"""The process that grades: reads jobs, runs a judge on each, writes results, and ends when its input does.

It reads one JSON object a line: first the judge (`module:function`) and its settings, then jobs; it writes one result a
line. Where the system has no `resource` (Windows) or no /proc (macOS), only the time limit holds.
"""

from __future__ import annotations

import importlib
import json
import math
import mmap
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, TextIO

from cvxrl.errors import UserError

# From a job to a score, or to a mapping that is passed on as the result.
Judge = Callable[[dict[str, Any]], float | Mapping[str, Any]]


class NotGradable(Exception):
    """A judge cannot grade a job; the text becomes the grade's `error`."""


def main() -> None:
    """Serve until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which then closes our input
    jobs, replies = _private_pipes()
    settings = json.loads(jobs.readline())
    module, _, function = settings["judge"].partition(":")
    try:
        judge: Judge = getattr(importlib.import_module(module), function)(settings["options"])
    except UserError as error:
        _write(replies, {"refused": [asdict(problem) for problem in error.problems]})
        return
    # Only now, so that the limit is on what grading takes and not on the libraries' own size.
    limit_memory(settings["memory_mb"])
    _write(replies, {"ready": True})
    for line in jobs:
        limit_cpu(settings["timeout_s"])
        _write(replies, run_job(judge, json.loads(line)))


def run_job(judge: Judge, job: dict[str, Any]) -> dict[str, Any]:
    """Run the judge on one job: `{"score": number}`, its mapping, or `{"error": reason}`; never raises."""
    try:
        value = judge(job)
        return dict(value) if isinstance(value, Mapping) else {"score": float(value)}
    except NotGradable as reason:
        return {"error": str(reason)}
    except MemoryError:
        return {"error": "memory"}
    except Exception as error:
        return {"error": type(error).__name__}


def limit_memory(megabytes: int) -> None:
    """Let this process take `megabytes` MiB more than it has now; does nothing on systems but Linux."""
    try:
        with open("/proc/self/statm") as status:
            pages = int(status.read().split()[0])
    except OSError:
        return
    _limit("RLIMIT_AS", pages * mmap.PAGESIZE + megabytes * 2**20)


def limit_cpu(seconds: float) -> None:
    """Have the system end this process after `seconds` more of computing, twice over; does nothing on Windows.

    The run ends a job that takes too long; this is for the case that the run is gone by then.
    """
    _limit("RLIMIT_CPU", math.ceil(sum(os.times()[:2]) + 2 * seconds) + 1)


def _limit(name: str, value: int) -> None:
    """Set the soft limit `name` of this process, as far as the hard one allows."""
    try:
        import resource
    except ImportError:
        return
    kind = getattr(resource, name)
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _private_pipes() -> tuple[TextIO, TextIO]:
    """Keep both pipes to the run: what a library prints goes to stderr, and one that asks for input finds none."""
    jobs = os.fdopen(os.dup(sys.stdin.fileno()), encoding="utf-8")
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, sys.stdin.fileno())
    os.close(nothing)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return jobs, replies


def _write(replies: TextIO, message: dict[str, Any]) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()
