"""How training what is missing is shown: bars on a terminal, a line per run in a pipe."""

from __future__ import annotations

from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from cvxrl.compare.plan import Job


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
