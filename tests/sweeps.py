"""Runs of methods at several values of recipe keys, in memory, so that a test can have hundreds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cvxrl.comparison.run import LoggedRun
from cvxrl.runs.record import Status

# Names what a failing and a good seed's accuracy does; the good one's end is its score.
_FALLS = (0.5, 0.7, 0.8, 0.8, 0.6, 0.2, 0.1, 0.1)


def run_at(
    method: str, settings: Mapping[str, Any], seed: int, score: float | None, status: Status = "finished"
) -> LoggedRun:
    """A run that rises from 0.5 to a score, or falls to 0.1 where there is none; keys are dotted."""
    recipe: dict[str, Any] = {
        "objective": {"kind": method},
        "optim": {"lr": 1e-3, "warmup_steps": 0},
        "train": {"inner_epochs": 1, "minibatches": 1},
    }
    for key, value in settings.items():
        section, name = key.split(".")
        recipe[section][name] = value
    curve = _FALLS if score is None else (0.5, 0.55, 0.6, 0.65, 0.7, score, score, score)
    records = [{"step": step, "eval/accuracy": value, "eval/stderr": 0.02} for step, value in enumerate(curve)]
    name = "-".join([method, *(f"{k}={v}" for k, v in settings.items()), str(seed)])
    return LoggedRun(
        Path(name), method, seed, steps=len(curve) - 1, records=records, status=status, recipe=recipe, task="task"
    )


def sweep(method: str, outcomes: Mapping[float, Sequence[float | None]], key: str = "optim.lr") -> list[LoggedRun]:
    """Runs of seeds 0, 1, ... at each value: their scores, None where a seed fails."""
    return [
        run_at(method, {key: value}, seed, score)
        for value, scores in outcomes.items()
        for seed, score in enumerate(scores)
    ]
