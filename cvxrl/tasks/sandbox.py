"""Grading in a process of its own, under a limit of time and of memory; a process that is lost is replaced.

Equality of formulas can take for ever or fill the memory, on text that the policy chose. A separate process is the
only limit that holds: alarms reach neither other threads nor a loop inside C code.

`Sandbox` is the run's side. The process (`main`) reads one JSON object a line: first the judge (`module:function`) and
its settings, then jobs; it writes one result a line, and ends when its input does, so it cannot outlive the run. Where
the system has no `resource` (Windows) or no /proc (macOS), only the time limit holds.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import mmap
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, Final, TextIO

from cvxrl.errors import UserError

# Loading the libraries, not grading; a slow disk must not look like a slow formula.
_START_S: Final = 120.0
# Imported, not run as `__main__`: the judges must raise the very NotGradable that the process catches.
_START: Final = "from cvxrl.tasks.sandbox import main; main()"


# From a job to a score, or to a mapping that is passed on as the result.
Judge = Callable[[dict[str, Any]], float | Mapping[str, Any]]


class NotGradable(Exception):
    """A judge cannot grade a job; the text becomes the grade's `error`."""


class JobResult(dict[str, Any]):
    """What the process says about a job: `score`, or `error`, or whatever mapping the judge returned."""

    @property
    def score(self) -> float | None:
        """The judge's number, if it gave one."""
        return self.get("score")

    @property
    def error(self) -> str | None:
        """Why there is no score: `timeout`, `memory`, `crash`, or what the judge itself reports."""
        return self.get("error")


class Sandbox:
    """One process, started at the first job and kept until closed."""

    def __init__(self, judge: str, options: dict[str, Any], timeout_s: float, memory_mb: int) -> None:
        """Remember what to start.

        Args:
            judge: `module:function`; called in the process with `options`, returns a `Judge`.
            options: JSON-serialisable settings of the judge.
            timeout_s: seconds that one job may take, measured here.
            memory_mb: MiB that the process may take beyond its libraries.
        """
        self._settings = {"judge": judge, "options": options, "timeout_s": timeout_s, "memory_mb": memory_mb}
        self._timeout_s = timeout_s
        self._worker: _Worker | None = None

    def run(self, jobs: Sequence[dict[str, Any]]) -> list[JobResult]:
        """Judge the jobs in order; equal jobs are judged once."""
        known: dict[str, JobResult] = {}
        lines = [json.dumps(job) for job in jobs]
        for line in lines:
            if line not in known:
                known[line] = self._judge(line)
        return [known[line] for line in lines]

    def close(self) -> None:
        """End the process; the next job would start another."""
        if self._worker is not None:
            self._worker.stop()
            self._worker = None

    def _judge(self, line: str) -> JobResult:
        if self._worker is None:
            self._worker = _Worker(self._settings)
        answer = self._worker.ask(line, self._timeout_s)
        if answer.error in ("timeout", "crash", "memory"):
            self.close()
        return answer


class _Worker:
    """The process, its pipes, and a thread that reads its results so that waiting can be given a limit."""

    def __init__(self, settings: dict[str, Any]) -> None:
        """Start the process and wait until its libraries are loaded."""
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process
        self._process: subprocess.Popen[str] = subprocess.Popen(
            [sys.executable, "-P", "-c", _START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            text=True,
            encoding="utf-8",
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        # The thread must not hold this object, or a forgotten grader would keep its process for ever.
        threading.Thread(target=_read, args=(self._process.stdout, self._lines), daemon=True).start()
        self.stop = weakref.finalize(self, _end, self._process, self._log)
        answer = self.ask(json.dumps(settings), _START_S)
        if "ready" not in answer:
            said = self._said()
            self.stop()
            raise UserError(f"the grading process did not start ({answer.error}):\n{said}")

    def ask(self, line: str, timeout_s: float) -> JobResult:
        """Send one line and wait at most `timeout_s` seconds for its result."""
        assert self._process.stdin is not None
        deadline = time.monotonic() + timeout_s
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            reply = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            return JobResult(error="timeout")
        except OSError:
            return JobResult(error="crash")
        return JobResult(error="crash") if reply is None else JobResult(json.loads(reply))

    def _said(self) -> str:
        """Return the end of what the process wrote to stderr."""
        self._log.seek(0)
        return self._log.read()[-2000:].decode(errors="replace").strip()


def _read(replies: IO[str], lines: queue.Queue[str | None]) -> None:
    """Pass every line on, then none: the process is gone."""
    with replies:
        for line in replies:
            lines.put(line)
    lines.put(None)


def _end(process: subprocess.Popen[str], log: IO[bytes]) -> None:
    """Kill the process and free its pipes."""
    process.kill()
    process.wait()
    log.close()
    if process.stdin is not None:
        with contextlib.suppress(OSError):  # unsent input of a process that is gone
            process.stdin.close()


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


def _private_stdout() -> TextIO:
    """Keep the pipe for results alone; whatever a library prints goes to stderr."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return replies


def _write(replies: TextIO, message: dict[str, Any]) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()
