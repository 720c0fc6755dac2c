"""Train what is missing: one process per run, a few at a time; what is interrupted can be resumed.

Progress is bars on a terminal and a line per run in a pipe.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Protocol, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from cvxrl.comparison.plan import Job
from cvxrl.errors import Problem
from cvxrl.report.stop import StopRequest
from cvxrl.runs.directory import RunDir

_POLL_S = 0.25
_ENDS = {0: "finished", 4: "diverged"}  # exit codes of `cvxrl train` that leave a result
_INTERRUPTED = 130
_SHOWN = 3  # lines of a failed run's messages that are repeated


class Watcher(Protocol):
    """Shows how training goes."""

    def started(self, job: Job, number: int, total: int) -> None:
        """A run begins."""
        ...

    def at_step(self, job: Job, step: int) -> None:
        """A run has reached a step."""
        ...

    def ended(self, job: Job, text: str) -> None:
        """A run ended; ``text`` says how."""
        ...


class Lines:
    """One line when a run starts, one when it ends."""

    def __init__(self, stream: TextIO) -> None:
        """Write to ``stream``."""
        self._stream = stream

    def started(self, job: Job, number: int, total: int) -> None:
        """Say which of how many."""
        self._say(f"[{number}/{total}] {job.name}: {'resuming' if job.resume else 'training'}")

    def at_step(self, job: Job, step: int) -> None:
        """Nothing: a log needs no steps."""

    def ended(self, job: Job, text: str) -> None:
        """Say how."""
        self._say(f"{job.name}: {text}")

    def __enter__(self) -> Self:
        """Nothing to prepare."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Nothing to undo."""

    def _say(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()


class Bars:
    """A bar over all runs, and one for each that is being trained."""

    def __init__(self, stream: TextIO, total: int) -> None:
        """Draw on ``stream``, a terminal."""
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(file=stream, highlight=False),
        )
        self._all = self._progress.add_task("steps of all runs", total=total)
        self._tasks: dict[Job, TaskID] = {}

    def started(self, job: Job, number: int, total: int) -> None:
        """Add a bar."""
        self._tasks[job] = self._progress.add_task(f"[{number}/{total}] {job.name}", total=job.steps)

    def at_step(self, job: Job, step: int) -> None:
        """Move both bars."""
        task = next(t for t in self._progress.tasks if t.id == self._tasks[job])
        self._progress.advance(self._all, max(0, step - task.completed))
        self._progress.update(self._tasks[job], completed=max(step, task.completed))

    def ended(self, job: Job, text: str) -> None:
        """Take the bar away and leave a line."""
        self.at_step(job, job.steps)
        self._progress.remove_task(self._tasks.pop(job))
        self._progress.console.print(f"{job.name}: {text}", markup=False)

    def __enter__(self) -> Self:
        """Begin drawing."""
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Stop drawing."""
        self._progress.stop()


def make_watcher(stream: TextIO, steps: int) -> Lines | Bars:
    """Bars if ``stream`` is a terminal, lines otherwise."""
    return Bars(stream, steps) if stream.isatty() else Lines(stream)


@dataclass
class _Active:
    job: Job
    process: subprocess.Popen[bytes]
    said: IO[bytes]
    began: float
    asked_to_stop: bool = False


def train_all(
    jobs: Sequence[Job],
    at_a_time: int,
    threads: int | None,
    watcher: Watcher,
    go_on: str = "the same command",
    until: float | None = None,
) -> list[Problem]:
    """Train every job; a failure stops no other.

    A run's threads do not depend on ``at_a_time``: they decide how sums are split, and with it their last bits.
    Ctrl-C, SIGTERM and a closed terminal are passed on, so that each run saves its state; then KeyboardInterrupt is
    raised.

    Args:
        jobs: runs to make.
        at_a_time: how many at once.
        threads: of each; None takes OMP_NUM_THREADS, or else one, with which as many runs as cores do best.
        watcher: told how it goes.
        go_on: the command that trains what an interruption leaves.
        until: time of `time.monotonic` after which none is started; those that have been go on to their end.

    Returns:
        One problem per run that left no result.
    """
    waiting, active, problems = list(jobs), list[_Active](), list[Problem]()

    def may_start() -> bool:
        return bool(waiting) and not stop.requested and (until is None or time.monotonic() < until)

    with StopRequest(go_on) as stop:
        try:
            while may_start() or active:
                while len(active) < at_a_time and may_start():
                    job = waiting.pop(0)
                    active.append(_start(job, threads))
                    watcher.started(job, len(jobs) - len(waiting), len(jobs))
                stop.doing = " and ".join(f"step {_step(one.job) + 1} of {one.job.name}" for one in active)
                time.sleep(_POLL_S)
                if stop.requested:
                    _ask_to_stop(active)
                problems += _close_ended(active, watcher)
        except KeyboardInterrupt:  # asked twice
            _ask_to_stop(active)
            for one in active:
                one.process.send_signal(signal.SIGTERM)  # not SIGINT, of which two may become one
            for one in active:
                one.process.wait()
    if stop.requested:
        raise KeyboardInterrupt
    return problems


def _start(job: Job, threads: int | None) -> _Active:
    command = [sys.executable, "-m", "cvxrl", "train", str(job.recipe), "--seed", str(job.seed), "--out", str(job.out)]
    command += [part for text in job.overrides for part in ("--set", text)]
    command += ["--resume"] if job.resume else ["--overwrite"] if job.overwrite else []
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    said = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the run)
    # A session of its own: a Ctrl-C on the terminal reaches the run once, through us; a second one would kill it.
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=environment, start_new_session=True
    )
    return _Active(job, process, said, time.monotonic())


def _close(one: _Active, watcher: Watcher) -> list[Problem]:
    code, seconds = one.process.returncode, time.monotonic() - one.began
    one.said.seek(0)
    lines = one.said.read().decode(errors="replace").strip().splitlines()
    one.said.close()
    if code in _ENDS:
        watcher.ended(one.job, f"{_ENDS[code]} in {seconds:.0f} s")
        return []
    if one.asked_to_stop and code == _INTERRUPTED:
        watcher.ended(one.job, f"stopped after step {_step(one.job)}")
        return []
    watcher.ended(one.job, f"failed with exit code {code}")
    told = [line for line in lines if line.startswith(("error:", "    ->"))] or lines
    log = RunDir(one.job.path).log
    remedy = f"see {log}" if log.is_file() else f"try cvxrl train {one.job.recipe} --seed {one.job.seed}"
    text = " ".join(line.strip() for line in told[-_SHOWN:])
    return [Problem(f"training failed (exit code {code}): {text}", file=str(one.job.path), remedy=remedy)]


def _ask_to_stop(active: Sequence[_Active]) -> None:
    """Let every run finish its step and save its state."""
    for one in active:
        if not one.asked_to_stop:
            one.process.send_signal(signal.SIGINT)
            one.asked_to_stop = True


def _close_ended(active: list[_Active], watcher: Watcher) -> list[Problem]:
    """Take away the runs that have ended; of the others, show how far they are."""
    problems = []
    for one in list(active):
        if one.process.poll() is None:
            watcher.at_step(one.job, _step(one.job))
        else:
            active.remove(one)
            problems += _close(one, watcher)
    return problems


def _step(job: Job) -> int:
    """Steps on disk; every step is one line."""
    try:
        return max(0, RunDir(job.path).metrics.read_bytes().count(b"\n") - 1)
    except OSError:
        return 0
