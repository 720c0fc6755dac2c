"""What a comparison reads of a run, whoever wrote it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cvxrl.runs.columns import Records
from cvxrl.runs.record import Status

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Series:
    """Finite values of one metric.

    Attributes:
        step_T: steps at which it was measured, increasing.
        value_T: its values.
    """

    step_T: Array
    value_T: Array


class Run(Protocol):
    """One method trained with one seed. All that `cvxrl compare` knows of a run comes from here.

    Metrics have the names of docs/run_directory.md where they mean the same: `eval/accuracy`, `reward/mean`,
    `grad/norm`, `policy/kl`, `policy/entropy`, `tokens/total`, `time/total_s`. A metric that is missing leaves its
    columns empty; only the compared one is needed.
    """

    @property
    def path(self) -> Path:
        """Where it was read, as messages and files name it."""
        ...

    @property
    def method(self) -> str:
        """Name of what was trained; runs of one name are seeds of one method."""
        ...

    @property
    def seed(self) -> int:
        """Training seed; runs of equal seeds are paired."""
        ...

    @property
    def status(self) -> Status:
        """How it stands; finished, diverged and failed runs have a score."""
        ...

    @property
    def steps(self) -> int:
        """Steps that it was to take."""
        ...

    @property
    def last_step(self) -> int:
        """Step up to which there are metrics."""
        ...

    @property
    def diverged_at(self) -> int | None:
        """Step at which it diverged; None unless that is its status."""
        ...

    @property
    def recipe(self) -> Mapping[str, Any] | None:
        """Every setting, as nested mappings; None where they are not known, so that they cannot be compared."""
        ...

    @property
    def task(self) -> str | None:
        """Digest of the training data; None where it is not known."""
        ...

    @property
    def origin(self) -> Mapping[str, str]:
        """Code, versions and machine; a difference between runs is worth a warning, what is missing is none."""
        ...

    @property
    def doubts(self) -> Sequence[str]:
        """What makes its numbers questionable, each a clause that fits behind `PATH: `."""
        ...

    @property
    def metrics(self) -> Collection[str]:
        """Names of what was measured."""
        ...

    def series(self, key: str) -> Series:
        """One metric; empty where it was never measured."""
        ...


@dataclass(frozen=True)
class LoggedRun:
    """A `Run` whose metrics are records in memory, which is what most logs can be read into.

    Attributes:
        records: one mapping per logged step, from names to numbers, with its `step`; steps increase. Long logs are
            held as `Records`, which takes a tenth of the memory.
        path, method, seed, status, steps, diverged_at, recipe, task, origin, doubts: see `Run`.
    """

    path: Path
    method: str
    seed: int
    steps: int
    records: Sequence[Mapping[str, float | None]]
    status: Status = "finished"
    diverged_at: int | None = None
    recipe: Mapping[str, Any] | None = None
    task: str | None = None
    origin: Mapping[str, str] = field(default_factory=dict)
    doubts: Sequence[str] = ()

    @property
    def last_step(self) -> int:
        """Step of the last record; 0 without any."""
        return int(self._columns.columns["step"].value_K[-1]) if self.records else 0

    @property
    def metrics(self) -> set[str]:
        """Names in any record."""
        return self._columns.columns.keys() - {"step"}

    def series(self, key: str) -> Series:
        """One metric; empty where it was never measured."""
        column = self._columns.columns.get(key)
        if column is None:
            return Series(np.zeros(0), np.zeros(0))
        step_T = self._columns.columns["step"].value_K[column.rows_K].astype(float)
        value_T = column.value_K.astype(float)
        kept_T = np.isfinite(value_T)
        return Series(step_T[kept_T], value_T[kept_T])

    @cached_property
    def _columns(self) -> Records:
        return Records.of(self.records)


def setting(recipe: Mapping[str, Any] | None, key: str) -> Any:
    """Value of a dotted key of a recipe, which may be another program's; None where it lacks it or is not known."""
    value: Any = recipe
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


class GivenUp:
    """A run that did not end and never will, as one that failed; everything else is the run's own."""

    status: Status = "failed"

    def __init__(self, run: Run) -> None:
        """Stand for ``run``."""
        self._run = run

    def __getattr__(self, name: str) -> Any:
        """What the run says."""
        return getattr(self._run, name)


def is_scored(run: Run) -> bool:
    """Whether the run came to an end that counts: it finished, diverged, or failed for good."""
    return run.status == "finished" or broke_off(run)


def broke_off(run: Run) -> bool:
    """Whether the run ended before its last step and will not go on, so that it scores as what broke."""
    return run.status in ("diverged", "failed")
