"""How a run ended: four kinds of failure and standing still, each beyond what its evaluations' error explains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from scipy.special import ndtri

from cvxrl.comparison.options import Options
from cvxrl.comparison.run import Array, Run, Series, setting
from cvxrl.stats.proportion import smoothed_error

Failure = Literal["diverged", "failed", "fell", "harmed"]
FAILURES: Final[tuple[Failure, ...]] = ("diverged", "failed", "fell", "harmed")

# A run that stands still is taken for a failing one in at most this share of runs, whatever its number of evaluations.
_FALSE_ALARMS = 0.05
_SMOOTHED = 3  # evaluations whose median counts as the level reached
_MEDIAN_JUMP = 0.6745 * np.sqrt(2)  # of two measurements with error 1
_ENOUGH = 10  # evaluations below which each one stands for itself


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Attributes:
        failures: of these kinds, in the order of `FAILURES`: *diverged*: a number was not finite; *failed*: it broke
            off and will not go on; *fell*: its last third, or its end, lies far below the best level it had reached;
            *harmed*: an evaluation after the warm-up lies below the first one.
        step: the earliest at which one of them shows; None without any.
        unlearned: no evaluation lies above the first one. No failure: nothing broke, the task may be solved already.
    """

    failures: tuple[Failure, ...]
    step: float | None
    unlearned: bool

    @property
    def failed(self) -> bool:
        """Whether it failed in any way."""
        return bool(self.failures)


def outcome_of(run: Run, key: str, options: Options) -> Outcome:
    """Judge an ended run by its status and by the curve of a metric of quality.

    Every difference is held against the error of its two sides, at a level that all evaluations of the run share, so
    that many noisy evaluations of a policy that stays what it is do not add up to a failure.

    Args:
        run: finished, diverged or failed.
        key: metric of quality, such as the held-out accuracy.
        options: `collapse` is the share of the best level below which a run fell.
    """
    found: dict[Failure, float] = {}
    if run.status in ("diverged", "failed"):
        found[run.status] = float(run.last_step if run.diverged_at is None else run.diverged_at)
    quality = run.series(key)
    value_T = quality.value_T
    if len(value_T) < 2:
        return Outcome(tuple(found), min(found.values(), default=None), False)
    error_T = _errors(run, key, quality)
    limit = float(ndtri(1 - _FALSE_ALARMS / 2 / len(value_T)))
    fell = _fell(quality, error_T, limit, options.collapse)
    if fell is not None:
        found["fell"] = fell
    below = (value_T < value_T[0] - limit * np.hypot(error_T, error_T[0])) & (quality.step_T > _warm_up(run.recipe))
    if below.any():
        found["harmed"] = float(quality.step_T[below.argmax()])
    level_T, spread_T = _levels(value_T, error_T)
    unlearned = not (level_T[1:] > value_T[0] + limit * np.hypot(spread_T[1:], error_T[0])).any()
    return Outcome(tuple(kind for kind in FAILURES if kind in found), min(found.values(), default=None), unlearned)


def final_error(run: Run, key: str) -> float:
    """Standard error of the last measurement; 0 where it was not logged and does not follow from the recipe."""
    quality = run.series(key)
    return float(_measured_errors(run, key, quality)[-1]) if len(quality.value_T) else 0.0


def _fell(quality: Series, error_T: Array, limit: float, share: float) -> float | None:
    """Step from which the curve stays below ``share`` of its best level, if it ends there beyond doubt."""
    level_T, spread_T = _levels(quality.value_T, error_T)
    top = int(level_T.argmax())
    third = max(1, len(level_T) // 3)
    ends = (
        (float(quality.value_T[-third:].mean()), float(np.sqrt((error_T[-third:] ** 2).sum())) / third),
        (float(level_T[-1]), float(spread_T[-1])),
    )
    best = float(level_T[top])
    floor = best * (share if best > 0 else 2 - share)  # as far below a best that is negative
    far = any(end < floor and level_T[top] - end > limit * float(np.hypot(spread_T[top], error)) for end, error in ends)
    if not far:
        return None
    high = np.flatnonzero(quality.value_T >= floor)
    return float(quality.step_T[min(int(high[-1]) + 1, len(level_T) - 1)])


def _levels(value_T: Array, error_T: Array) -> tuple[Array, Array]:
    """Running medians and their errors; of few evaluations, the evaluations themselves."""
    if len(value_T) < _ENOUGH:
        return value_T, error_T
    half = _SMOOTHED // 2
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(value_T, half, mode="reflect"), _SMOOTHED)
    return np.median(windows, axis=1), error_T  # that of one evaluation, which bounds that of a median


def _errors(run: Run, key: str, quality: Series) -> Array:
    """Standard error of every measurement; where it is not known, the typical jump between neighbours stands for it."""
    error_T = _measured_errors(run, key, quality)
    if error_T.all():
        return error_T
    jumps = np.abs(np.diff(quality.value_T))
    return np.full(len(error_T), float(np.median(jumps)) / _MEDIAN_JUMP if len(jumps) else 0.0)


def _measured_errors(run: Run, key: str, quality: Series) -> Array:
    """As logged, but never below what the number of answers allows; 0 where neither is known."""
    if key != "eval/accuracy":
        return np.zeros(len(quality.value_T))
    logged = run.series("eval/stderr")
    error_T, asked = np.zeros(len(quality.value_T)), _answers(run.recipe)
    _, here, there = np.intersect1d(quality.step_T, logged.step_T, assume_unique=True, return_indices=True)
    error_T[here] = logged.value_T[there]
    return np.maximum(error_T, smoothed_error(np.clip(quality.value_T, 0, 1), asked) if asked else 0.0)


def _answers(recipe: Mapping[str, Any] | None) -> int:
    """Answers behind one evaluation, or 0 where the recipe does not tell."""
    prompts, samples = setting(recipe, "eval.prompts"), setting(recipe, "eval.samples")
    return int(prompts) * int(samples) if prompts and samples else 0


def _warm_up(recipe: Mapping[str, Any] | None) -> float:
    """Last rollout that the learning rate's warm-up reaches; 0 where the recipe does not tell."""
    updates = (setting(recipe, "train.inner_epochs") or 1) * (setting(recipe, "train.minibatches") or 1)
    return float(-(-(setting(recipe, "optim.warmup_steps") or 0) // updates))
