"""Runs a judge in a process of its own, under a limit of time and of memory, and restarts it when it is lost.

Equality of formulas can take for ever or fill the memory, on text that the policy chose. A separate process
is the only limit that holds: alarms reach neither other threads nor a loop inside C code.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Sequence
from typing import IO, Any, Final

from cvxrl.errors import UserError

# Loading the libraries, not grading; a slow disk must not look like a slow formula.
_START_S: Final = 120.0
# Imported, not run as `__main__`: the judges must raise the very NotGradable that the worker catches.
_START: Final = "from cvxrl.tasks.worker import main; main()"


class Verdict(dict[str, Any]):
    """What the worker says about a job: `score`, or `error`."""

    @property
    def score(self) -> float | None:
        """The judge's number, if it gave one."""
        return self.get("score")

    @property
    def error(self) -> str | None:
        """Why there is no score: `timeout`, `memory`, `crash`, or what the judge itself reports."""
        return self.get("error")


class Guard:
    """One worker process, started at the first job and kept until closed."""

    def __init__(self, judge: str, options: dict[str, Any], timeout_s: float, memory_mb: int) -> None:
        """Remember what to start.

        Args:
            judge: `module:function`; called in the worker with `options`, returns a function from job to
            score.
            options: JSON-serialisable settings of the judge.
            timeout_s: seconds that one job may take, measured here.
            memory_mb: MiB that the worker may take beyond its libraries.
        """
        self._settings = {"judge": judge, "options": options, "timeout_s": timeout_s, "memory_mb": memory_mb}
        self._timeout_s = timeout_s
        self._worker: _Worker | None = None

    def run(self, jobs: Sequence[dict[str, Any]]) -> list[Verdict]:
        """Judge the jobs in order; equal jobs are judged once."""
        known: dict[str, Verdict] = {}
        lines = [json.dumps(job) for job in jobs]
        for line in lines:
            if line not in known:
                known[line] = self._judge(line)
        return [known[line] for line in lines]

    def close(self) -> None:
        """End the worker; the next job would start another."""
        if self._worker is not None:
            self._worker.stop()
            self._worker = None

    def _judge(self, line: str) -> Verdict:
        if self._worker is None:
            self._worker = _Worker(self._settings)
        answer = self._worker.ask(line, self._timeout_s)
        if answer.error in ("timeout", "crash", "memory"):
            self.close()
        return answer


class _Worker:
    """The process, its pipes, and a thread that reads its verdicts so that waiting can be given a limit."""

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

    def ask(self, line: str, timeout_s: float) -> Verdict:
        """Send one line and wait at most `timeout_s` seconds for its verdict."""
        assert self._process.stdin is not None
        deadline = time.monotonic() + timeout_s
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            reply = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            return Verdict(error="timeout")
        except OSError:
            return Verdict(error="crash")
        return Verdict(error="crash") if reply is None else Verdict(json.loads(reply))

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
