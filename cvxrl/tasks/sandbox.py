"""Grading in a process of its own, under a limit of time and of memory; a process that is lost is replaced.

Equality of formulas can take for ever or fill the memory, on text that the policy chose. A separate process is the
only limit that holds: alarms reach neither other threads nor a loop inside C code.

`Sandbox` is the run's side, `cvxrl.tasks.worker` the process, which ends when its input does, so it cannot outlive the
run. Its hash seed is pinned: what iterates over sets makes the same there in every run.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Final

from cvxrl.errors import Problem, UserError

# Loading the libraries, not grading; a slow disk must not look like a slow formula.
_START_S: Final = 120.0
# Between two looks whether the thread that waits is to end.
_GLANCE_S: Final = 0.1
# Imported, not run as `__main__`: the judges must raise the very NotGradable that the process catches.
_START: Final = "from cvxrl.tasks.worker import main; main()"
_LOST: Final = ("timeout", "crash", "memory")
_KEPT: Final = 2000  # characters of what a process wrote that an error message repeats


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


# Told the error of a job, or None, and how many equal jobs it stands for.
Saw = Callable[[str | None, int], None]


class WorkerOutput:
    """What processes print: the end of it in memory and, once it has a file, all of it there."""

    def __init__(self) -> None:
        """Nothing has been written yet."""
        self._end = bytearray()
        self._waiting: bytearray | None = bytearray()
        self._file: Path | None = None
        self._lock = threading.Lock()

    def keep_in(self, file: Path) -> None:
        """Append what is written from now on, and what was written before, to `file`, which appears with the first."""
        with self._lock:
            self._file, waiting, self._waiting = file, self._waiting, None
            if waiting:
                self._append(bytes(waiting))

    def write(self, data: bytes) -> None:
        """Take what a process wrote."""
        with self._lock:
            self._end = (self._end + data)[-_KEPT:]
            if self._waiting is not None:
                self._waiting = (self._waiting + data)[-(1 << 20) :]
            else:
                self._append(data)

    def end(self) -> str:
        """The last of it."""
        with self._lock:
            return self._end.decode(errors="replace").strip()

    def _append(self, data: bytes) -> None:
        assert self._file is not None
        with contextlib.suppress(OSError), self._file.open("ab") as file:  # a full disk is the run's to notice
            file.write(data)


class Sandbox:
    """One process, started at the first job or on demand, and kept until closed."""

    def __init__(
        self, judge: str, options: dict[str, Any], timeout_s: float, memory_mb: int, key: str = "task.reward"
    ) -> None:
        """Remember what to start.

        Args:
            judge: `module:function`; called in the process with `options`, returns a `Judge`.
            options: JSON-serialisable settings of the judge.
            timeout_s: seconds that one job may take, measured here.
            memory_mb: MiB that the process may take beyond its libraries.
            key: recipe key that is to blame if the process does not start.
        """
        self._settings = {"judge": judge, "options": options, "timeout_s": timeout_s, "memory_mb": memory_mb}
        self._timeout_s = timeout_s
        self._key = key
        self._worker: _Worker | None = None
        self.output = WorkerOutput()

    def start(self) -> None:
        """Start the process now, so that what it cannot load is known.

        Raises:
            UserError: it refuses its settings, or ends or hangs before it is ready.
        """
        if self._worker is None:
            self._worker = _Worker(self._settings, self.output, self._key)

    def run(self, jobs: Sequence[dict[str, Any]], saw: Saw | None = None) -> list[JobResult]:
        """Judge the jobs in order; equal jobs are judged once.

        Args:
            jobs: JSON-serialisable.
            saw: told each error as it comes; may raise.

        Raises:
            UserError: the process does not start.
        """
        known: dict[str, JobResult] = {}
        lines = [json.dumps(job) for job in jobs]
        for line, times in Counter(lines).items():
            known[line] = self._judge(line)
            if saw is not None:
                saw(known[line].error, times)
        return [known[line] for line in lines]

    def close(self) -> None:
        """End the process; the next job would start another."""
        if self._worker is not None:
            self._worker.stop()
            self._worker = None

    def _judge(self, line: str) -> JobResult:
        self.start()
        assert self._worker is not None
        try:
            answer = self._worker.ask(line, self._timeout_s)
        except BaseException:
            self.close()  # the reply that nobody waited for would be taken for that to the next job
            raise
        if answer.error in _LOST:
            self.close()
        return answer


class _Worker:
    """The process, its pipes, and threads that read them so that waiting can be given a limit."""

    def __init__(self, settings: dict[str, Any], output: WorkerOutput, key: str) -> None:
        """Start the process and wait until its libraries are loaded."""
        path = os.pathsep.join(p for p in sys.path if p)
        self._process: subprocess.Popen[bytes] = subprocess.Popen(
            [sys.executable, "-P", "-c", _START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "0", "PYTHONUNBUFFERED": "1"},
        )
        self._lines: queue.Queue[bytes | None] = queue.Queue()
        # The threads must not hold this object, or a forgotten grader would keep its process for ever.
        threading.Thread(target=_read, args=(self._process.stdout, self._lines), daemon=True).start()
        reader = threading.Thread(target=_pass_on, args=(self._process.stderr, output), daemon=True)
        reader.start()
        self.stop = weakref.finalize(self, _end, self._process)
        answer = self.ask(json.dumps(settings), _START_S)
        if "ready" in answer:
            return
        self.stop()
        reader.join(1.0)
        if "refused" in answer:
            raise UserError(*(Problem(**problem) for problem in answer["refused"]))
        raise UserError(_not_started(settings, answer.error, output.end(), key))

    def ask(self, line: str, timeout_s: float) -> JobResult:
        """Send one line and wait at most `timeout_s` seconds for its result."""
        assert self._process.stdin is not None
        deadline = time.monotonic() + timeout_s
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
            reply = self._reply(deadline)
        except queue.Empty:
            return JobResult(error="timeout")
        except OSError:
            return JobResult(error="crash")
        return JobResult(error="crash") if reply is None else JobResult(json.loads(reply))

    def _reply(self, deadline: float) -> bytes | None:
        """The next line, waited for in short pieces: what another thread raises in this one arrives between two."""
        while (left := deadline - time.monotonic()) > _GLANCE_S:
            with contextlib.suppress(queue.Empty):
                return self._lines.get(timeout=_GLANCE_S)
        return self._lines.get(timeout=max(0.0, left))


def _not_started(settings: dict[str, Any], error: str | None, said: str, key: str) -> Problem:
    """What is known of a process that ended, or hung, before it was ready."""
    name = settings["options"].get("function", settings["judge"])
    how = f"took more than {_START_S:.0f} s" if error == "timeout" else "ended the process"
    message = f"the grading process did not start: loading `{name}` {how}" + (f":\n{said}" if said else "")
    return Problem(message, key=key, remedy=f'try it alone: python -c "import {name.partition(":")[0]}"')


def _read(replies: IO[bytes], lines: queue.Queue[bytes | None]) -> None:
    """Pass every line on, then none: the process is gone."""
    with replies:
        for line in replies:
            lines.put(line)
    lines.put(None)


def _pass_on(stream: IO[bytes], output: WorkerOutput) -> None:
    """Hand over what the process prints, as it comes."""
    with stream:
        while data := os.read(stream.fileno(), 1 << 16):
            output.write(data)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and free its pipes."""
    process.kill()
    process.wait()
    if process.stdin is not None:
        with contextlib.suppress(OSError):  # unsent input of a process that is gone
            process.stdin.close()
