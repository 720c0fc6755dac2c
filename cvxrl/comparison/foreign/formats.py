"""The formats of other programs as sources of runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cvxrl.comparison.foreign import events, json_lines, tables, trackio, trl
from cvxrl.comparison.foreign.label import Stated
from cvxrl.comparison.foreign.log import ForeignRun, Log, to_run
from cvxrl.comparison.run import Run


def _alone(path: Path) -> list[Path]:
    return [path]


@dataclass(frozen=True)
class ForeignLogs:
    """Source of the runs that one program logs.

    Attributes:
        owns: see `Source.owns`.
        log: reads one.
        inside: the runs that a file holds, each as `FILE#NAME`; the file itself where it is one.
    """

    owns: Callable[[Path], bool]
    log: Callable[[Path], Log]
    inside: Callable[[Path], list[Path]] = _alone

    def read(self, path: Path, stated: Stated | None = None) -> ForeignRun:
        """Read a run, with what the user says of it."""
        return to_run(self.log(path), stated or Stated())


FOREIGN: Sequence[ForeignLogs] = (
    ForeignLogs(trl.owns, trl.read),
    ForeignLogs(json_lines.owns, json_lines.read),
    ForeignLogs(events.owns, events.read),
    ForeignLogs(trackio.owns, trackio.read, trackio.inside),
    ForeignLogs(tables.owns, tables.read, tables.inside),
)


def hold_together(runs: Iterable[Run]) -> list[Run]:
    """The runs, those of foreign logs judged beside the others of their method.

    A log that does not say how many steps there were to be looks as if it had ended wherever it stops. One that stops
    before another of its method is taken for one that has not ended: dropping the runs that broke would leave the
    good ones, and its last value is no final score.
    """
    runs = list(runs)
    longest: dict[str, Run] = {}
    for run in runs:
        known = longest.setdefault(run.method, run)
        longest[run.method] = run if run.last_step > known.last_step else known
    return [_beside(run, longest[run.method]) for run in runs]


def _beside(run: Run, longest: Run) -> Run:
    if not isinstance(run, ForeignRun) or run.ends_itself or run.last_step >= longest.last_step:
        return run
    ends = f"ends at step {run.last_step}, {longest.path} at {longest.last_step}"
    said = f"{ends}; how many it was to take is not logged"
    return replace(run, status="interrupted", steps=longest.last_step, doubts=(said, *run.doubts))
