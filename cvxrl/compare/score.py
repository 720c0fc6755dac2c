"""What one run achieved: its score, its best, how long it took, and whether it collapsed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cvxrl.compare.options import Options, is_quality
from cvxrl.compare.run import Array, Run, Series

_EVAL_WINDOW, _TRAIN_WINDOW = 1, 10  # an evaluation has many samples, a training step few


@dataclass(frozen=True)
class RunScore:
    """Achievement of a run.

    Attributes:
        score: final value of the metric; for a diverged run what the options say; None where it is left out.
        best: largest value of the quality metric.
        area: mean height of the metric's curve over all planned steps; None where the score is.
        collapsed: the run finished, but below the given share of its best.
        collapse_step: first step after the best from which the curve stayed below that share, or the step at which
            the run diverged; None where neither happened.
        largest_drop: largest fall of the quality metric below an earlier value of it.
        seconds: time spent on training steps, without evaluations.
        tokens: response tokens trained on.
    """

    score: float | None
    best: float | None
    area: float | None
    collapsed: bool
    collapse_step: float | None
    largest_drop: float | None
    seconds: float
    tokens: float


def quality_key(options: Options) -> str:
    """Metric on which collapse and drops are judged: the compared one if it measures quality, else the accuracy."""
    return options.metric if is_quality(options.metric) else "eval/accuracy"


def curve(run: Run, key: str, options: Options) -> Series:
    """A metric over all planned steps.

    What a diverged run counts as from its divergence on is appended, so that it pulls averages down instead of
    disappearing from them; a run that is left out has no curve.
    """
    series = run.series(key)
    if run.record.status != "diverged" or not len(series.step_T):
        return series
    if options.diverged_as == "omit":
        return Series(np.array([]), np.array([]))
    after = _after_divergence(series, key, options)
    end = float(run.recipe.train.steps)
    start = min(end, float(run.record.divergence.step) if run.record.divergence else run.last("step"))
    steps = [start, end] if start < end else [end]
    return Series(np.append(series.step_T, steps), np.append(series.value_T, [after] * len(steps)))


def score_run(run: Run, options: Options) -> RunScore:
    """Score of a finished or diverged run."""
    whole, quality = curve(run, options.metric, options), run.series(quality_key(options))
    score = _final(run, whole, options)
    fell_at = _fell_at(quality, options.collapse) if run.record.status == "finished" else None
    diverged_at = float(run.record.divergence.step) if run.record.divergence else None
    return RunScore(
        score=score,
        best=float(quality.value_T.max()) if len(quality.value_T) else None,
        area=_area(whole) if score is not None else None,
        collapsed=fell_at is not None,
        collapse_step=diverged_at if run.record.status == "diverged" else fell_at,
        largest_drop=_largest_drop(quality.value_T),
        seconds=run.last("time/total_s"),
        tokens=run.last("tokens/total"),
    )


def first_reached(run: Run, metric: str, threshold: float) -> tuple[float, float] | None:
    """Step and tokens at the first measurement at or above a threshold; None where there is none (censored)."""
    series = run.series(metric)
    reached = np.flatnonzero(series.value_T >= threshold)
    if not len(reached):
        return None
    step = float(series.step_T[reached[0]])
    return step, run.last("tokens/total", at=step)


def _final(run: Run, whole: Series, options: Options) -> float | None:
    if not len(whole.value_T):
        return None
    if run.record.status == "diverged":
        return float(whole.value_T[-1])
    default = _EVAL_WINDOW if options.metric.startswith("eval/") else _TRAIN_WINDOW
    return float(whole.value_T[-(options.window or default) :].mean())


def _after_divergence(series: Series, key: str, options: Options) -> float:
    # Zero is no verdict on a metric that does not measure quality, such as an entropy; its last value stands.
    if options.diverged_as == "last" or not is_quality(key):
        return float(series.value_T[-1])
    return float(options.diverged_as)


def _area(series: Series) -> float:
    width = series.step_T[-1] - series.step_T[0]
    if not width:
        return float(series.value_T[-1])
    heights = (series.value_T[1:] + series.value_T[:-1]) / 2
    return float((heights * np.diff(series.step_T)).sum() / width)


def _fell_at(series: Series, share: float) -> float | None:
    """First step after the best from which the curve stays below ``share`` of it to the end."""
    if not len(series.value_T):
        return None
    top = int(series.value_T.argmax())
    low = series.value_T < share * series.value_T[top]
    if not low[-1]:
        return None
    last_high = int(np.flatnonzero(~low)[-1])
    return float(series.step_T[last_high + 1])


def _largest_drop(value_T: Array) -> float | None:
    return float((np.maximum.accumulate(value_T) - value_T).max()) if len(value_T) else None
