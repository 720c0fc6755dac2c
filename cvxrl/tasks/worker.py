"""The process that grades under limits; `guard` starts it. Jobs come and verdicts go as JSON lines.

The first line it reads names the judge (`module:function`) and its settings; the judge makes a function from
a job to a score, or to a mapping that is passed on as the verdict. Every later line is one job. It ends when its
input does, so it cannot outlive the run.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any, TextIO

Judge = Callable[[dict[str, Any]], float | Mapping[str, Any]]


class NotGradable(Exception):
    """The judge cannot grade this job; the text becomes the grade's `error`."""


def main() -> None:
    """Serve until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which then closes our input
    replies = _private_stdout()
    settings = json.loads(sys.stdin.readline())
    module, _, function = settings["judge"].partition(":")
    judge: Judge = getattr(importlib.import_module(module), function)(settings["options"])
    # Only now, so that the limit is on what grading takes and not on the libraries' own size.
    limit_memory(settings["memory_mb"])
    _write(replies, {"ready": True})
    for line in sys.stdin:
        limit_cpu(settings["timeout_s"])
        _write(replies, verdict(judge, json.loads(line)))


def verdict(judge: Judge, job: dict[str, Any]) -> dict[str, Any]:
    """Run the judge on one job; returns `{"score": number}`, its mapping, or `{"error": reason}`; never raises."""
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
        import resource

        with open("/proc/self/statm") as status:
            now = int(status.read().split()[0]) * resource.getpagesize()
    except (ImportError, OSError):
        return
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    wanted = now + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def limit_cpu(seconds: float) -> None:
    """Have the system end this process after `seconds` more of computing, twice over.

    The parent ends a job that takes too long; this is for the case that the parent is gone by then.
    """
    try:
        import resource
    except ImportError:
        return
    used = sum(os.times()[:2])
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    wanted = math.ceil(used + 2 * seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def _private_stdout() -> TextIO:
    """Keep the pipe for verdicts alone; whatever a library prints goes to stderr."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return replies


def _write(replies: TextIO, message: dict[str, Any]) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()
