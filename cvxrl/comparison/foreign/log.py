"""A log of another program, and the `Run` that it makes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from cvxrl.comparison.foreign.label import Label, Stated, find_label
from cvxrl.comparison.foreign.names import Alias, match_names
from cvxrl.comparison.run import LoggedRun
from cvxrl.errors import Problem, UserError

# A step and what was logged at it. A value that is no number is left out; a row of nothing else says that the run came
# as far as its step.
Row = tuple[float, Mapping[str, Any]]
_WATCHED = ("loss", "grad/norm")
_NO_ERROR = "its log has no error of an evaluation, so its intervals rest on the spread of the seeds alone"
_NO_END = "its log does not record whether it diverged; one that broke shows in its scores, or by ending early"


@dataclass(frozen=True)
class Log:
    """What is in a log, in its own words.

    Attributes:
        path: where it is, as messages name it.
        name: what it is called.
        program: which program wrote it.
        rows: in the order of writing.
        aliases: other names that the program has for metrics of ours.
        seed: as its configuration says; None where it does not.
        steps: how many it was to take; None where nothing says so.
        reached: how many it took, as its program counts them; None where only the rows say so.
        settings: of its configuration, what can change a result; None where it is not known.
        doubts: see `Run.doubts`.
    """

    path: Path
    name: str
    program: str
    rows: Sequence[Row]
    aliases: Sequence[Alias] = ()
    seed: int | None = None
    steps: int | None = None
    reached: int | None = None
    settings: Mapping[str, Any] | None = None
    doubts: Sequence[str] = field(default_factory=list)


@dataclass(frozen=True)
class ForeignRun(LoggedRun):
    """A run of another program.

    Attributes:
        program: which.
        settings: see `Log.settings`; of runs of one method they are held against each other, and against nothing else.
        ends_itself: whether the log says how many steps there were to be, so that it says whether it ended.
        names: what the log calls its metrics.
        reached: step that the run came to; programs that log every so many steps do not log their last one.
    """

    program: str = ""
    settings: Mapping[str, Any] | None = None
    ends_itself: bool = False
    names: frozenset[str] = frozenset()
    reached: int = 0

    @property
    def last_step(self) -> int:
        """Step that it came to, with metrics or without."""
        return max(super().last_step, self.reached)


def to_run(log: Log, stated: Stated) -> ForeignRun:
    """The log as a run.

    Raises:
        UserError: it is empty, contradicts itself, or does not say which method and seed it is; all of it at once.
    """
    table = Table(log.path)
    for step, values in log.rows:
        table.add(step, values)
    label, problems = stated.labels.get(log.path.absolute()), table.problems()
    try:
        label = label or find_label(log.path, log.name, log.seed)
    except UserError as error:
        problems += error.problems
    if problems:
        raise UserError(*problems)
    assert isinstance(label, Label)
    named = match_names(table.names, log.aliases, stated.aliases)
    records = list(_with_total_time(table.records(named.ours)))
    last = max(int(table.reached), log.reached or 0)
    steps = last if log.steps is None else log.steps
    unknown = [_NO_END] if "eval/stderr" in named.ours.values() else [_NO_ERROR, _NO_END]
    return ForeignRun(
        path=log.path,
        method=label.method,
        seed=label.seed,
        steps=max(steps, last),
        records=records,
        status="finished" if last >= steps else "interrupted",
        doubts=(*log.doubts, *table.doubts(named.ours), *named.doubts, *unknown),
        program=log.program,
        settings=log.settings,
        ends_itself=log.steps is not None,
        names=frozenset(table.names),
        reached=last,
    )


class Table:
    """Values by step and name, put together from rows that may come in any order and be taken up again.

    A program that is resumed writes the steps after its checkpoint once more: the later values count, and what was
    written beyond the point of resumption before is gone, as it was for the program.
    """

    def __init__(self, path: Path) -> None:
        """Nothing is known yet."""
        self.path = path
        self._values: dict[float, dict[str, float]] = {}
        self._empty: set[float] = set()  # steps of rows without a number
        self._conflicts: list[str] = []
        self._resumed: list[float] = []

    @property
    def names(self) -> set[str]:
        """All names that have a value."""
        return {name for values in self._values.values() for name in values}

    @property
    def reached(self) -> float:
        """Largest step of any row; 0 without any."""
        return max([0.0, *self._values, *self._empty])

    def add(self, step: float, values: Mapping[str, Any]) -> None:
        """Take one row.

        Raises:
            UserError: its step is not finite.
        """
        if not math.isfinite(step):
            refuse(self.path, f"has a row at step {step:g}")
        numbers = {name: number for name, value in values.items() if (number := as_number(value)) is not None}
        known = self._values.get(step, {})
        unlike = [n for n, v in numbers.items() if n in known and known[n] != v and not _both_nan(known[n], v)]
        repeated = any(name in known for name in numbers)
        if repeated and step < max(self._values):
            self._resumed.append(step)
            self._values = {s: v for s, v in self._values.items() if s < step}
            self._empty = {s for s in self._empty if s < step}
        elif unlike:
            first = unlike[0]
            self._conflicts.append(
                f"step {step:g} has two values of `{first}`: {known[first]:g} and {numbers[first]:g}"
            )
            return
        if numbers:
            self._values.setdefault(step, {}).update(numbers)
        else:
            self._empty.add(step)

    def problems(self) -> list[Problem]:
        """Why it is no log of one run."""
        if not self._values:
            return [Problem("holds no step with a number", file=str(self.path), remedy="leave it out")]
        if not self._conflicts:
            return []
        more = f" (and {len(self._conflicts) - 1} more)" if len(self._conflicts) > 1 else ""
        what = f"{self._conflicts[0]}{more}; is it the log of two runs?"
        return [Problem(what, file=str(self.path), remedy="split it, one file per run")]

    def doubts(self, ours: Mapping[str, str]) -> list[str]:
        """What makes its numbers questionable."""
        found = [
            f"was resumed at step {step:g}: what it had logged from there on before is left out"
            for step in self._resumed
        ]
        for name in self.names:
            bad = [step for step, values in sorted(self._values.items()) if not math.isfinite(values.get(name, 0.0))]
            if bad and ours.get(name, name) in _WATCHED:
                where = f"`{name}` is not finite in {len(bad)} steps, first in step {bad[0]:g}"
                found.append(f"{where}; whether the run diverged is not recorded, so it scores what it logged")
        return found

    def records(self, ours: Mapping[str, str]) -> list[dict[str, float | None]]:
        """One record per step under our names; a value that is not finite is None."""
        return [
            {"step": step, **{ours.get(n, n): v if math.isfinite(v) else None for n, v in self._values[step].items()}}
            for step in sorted(self._values)
        ]


def as_number(value: Any) -> float | None:
    """A number of any kind, numbers that are not finite written as text included; None for anything else."""
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, str) and value.strip().lower().lstrip("+-") in ("nan", "inf", "infinity"):
        return float(value)
    return None


def refuse(path: Path, what: str, remedy: str = "leave it out, or restore the file") -> NoReturn:
    """Say that a log cannot be read.

    Raises:
        UserError: always.
    """
    raise UserError(Problem(what, file=str(path), remedy=remedy))


def _both_nan(a: float, b: float) -> bool:
    return math.isnan(a) and math.isnan(b)


def _with_total_time(records: Iterable[dict[str, float | None]]) -> Iterable[dict[str, float | None]]:
    """Seconds so far, where every step from 1 on says how long it took and no total is logged."""
    records = list(records)
    steps = [r for r in records if r["step"]]
    known = all(r.get("time/step_s") is not None and r["step"] == n for n, r in enumerate(steps, start=1))
    if not known or any("time/total_s" in record for record in records):
        return records
    total = 0.0
    for record in steps:
        total += record["time/step_s"] or 0.0
        record["time/total_s"] = total
    return records
