"""What one run achieved and how quietly: score, best, time; gradient norms and their jumps, KL and entropy."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cvxrl.comparison.options import Options, is_quality
from cvxrl.comparison.outcome import final_error
from cvxrl.comparison.run import Array, Run, Series, broke_off

_EVAL_WINDOW, _TRAIN_WINDOW = 1, 10  # an evaluation has many samples, a training step few
_RUNNING = 20  # steps before a gradient norm that its running median looks at
_EARLIEST = 5  # norms there must be before one can be called a spike
_ENDS = 10  # steps averaged at the start and at the end of a run


@dataclass(frozen=True)
class RunScore:
    """Achievement of a run.

    Attributes:
        score: final value of the metric; for a diverged or failed run what the options say; None where it is left out.
        best: largest value of the quality metric.
        area: mean height of the metric's curve over all planned steps; None where the score is.
        error: standard error with which the final value was measured; 0 where it is not known.
        largest_drop: largest fall of the quality metric below an earlier value of it.
        seconds: time spent on training steps, without evaluations; None where it was not measured.
        tokens: response tokens trained on; None where they were not counted.
    """

    score: float | None
    best: float | None
    area: float | None
    error: float
    largest_drop: float | None
    seconds: float | None
    tokens: float | None


@dataclass(frozen=True)
class Stability:
    """Stability of a run; None where the metric was not recorded.

    Attributes:
        grad_p50: median of the global gradient norm before clipping, over optimizer steps.
        grad_ratio: largest norm over the median of the 20 before it; what grows steadily has one too.
        spike_share: share of norms above `spike` times that median.
        kl_p99: 99% quantile of KL(before || after a step), in nats.
        entropy_start, entropy_end: means over the first and last ten steps, in nats per token.
    """

    grad_p50: float | None
    grad_ratio: float | None
    spike_share: float | None
    kl_p99: float | None
    entropy_start: float | None
    entropy_end: float | None


def quality_key(options: Options) -> str:
    """Metric on which failures and drops are judged: the compared one if it measures quality, else the accuracy."""
    return options.metric if is_quality(options.metric) else "eval/accuracy"


def curve(run: Run, key: str, options: Options) -> Series:
    """A metric over all planned steps.

    What a diverged or failed run counts as from its end on is appended, so that it pulls averages down instead of
    disappearing from them; a run that is left out has no curve.
    """
    series = run.series(key)
    if not broke_off(run):
        return series
    after = None if options.diverged_as == "omit" else _after_the_end(series, key, options)
    if after is None:
        return Series(np.array([]), np.array([]))
    end = float(run.steps)
    start = min(end, float(run.last_step if run.diverged_at is None else run.diverged_at))
    steps = [start, end] if start < end else [end]
    return Series(np.append(series.step_T, steps), np.append(series.value_T, [after] * len(steps)))


def score_run(run: Run, options: Options) -> RunScore:
    """Score of an ended run."""
    whole, quality = curve(run, options.metric, options), run.series(quality_key(options))
    score = _final(run, whole, options)
    return RunScore(
        score=score,
        best=float(quality.value_T.max()) if len(quality.value_T) else None,
        area=_area(whole) if score is not None else None,
        error=final_error(run, options.metric),
        largest_drop=_largest_drop(quality.value_T),
        seconds=_last(run, "time/total_s"),
        tokens=_last(run, "tokens/total"),
    )


def first_reached(run: Run, metric: str, threshold: float) -> tuple[float, float | None] | None:
    """Step and tokens at the first measurement at or above a threshold; None where there is none (censored).

    The tokens are None where they were not counted.
    """
    series = run.series(metric)
    reached = np.flatnonzero(series.value_T >= threshold)
    if not len(reached):
        return None
    step = float(series.step_T[reached[0]])
    return step, _last(run, "tokens/total", at=step)


def stability_of(run: Run, spike: float) -> Stability:
    """Measure a run from its metrics."""
    norms = run.series("grad/norm").value_T
    ratio_T = ratios_to_running_median(norms)
    entropy = run.series("policy/entropy").value_T
    ends = min(_ENDS, max(1, len(entropy) // 2))
    return Stability(
        grad_p50=_quantile(norms, 0.5),
        grad_ratio=float(ratio_T.max()) if len(ratio_T) else None,
        spike_share=float((ratio_T > spike).mean()) if len(ratio_T) else None,
        kl_p99=_quantile(run.series("policy/kl").value_T, 0.99),
        entropy_start=float(entropy[:ends].mean()) if len(entropy) else None,
        entropy_end=float(entropy[-ends:].mean()) if len(entropy) else None,
    )


def ratios_to_running_median(norm_T: Array) -> Array:
    """Norms from the sixth on over the median of the (up to) 20 before each; those after a median of 0 are left out."""
    if len(norm_T) <= _EARLIEST:
        return np.array([])
    median_T = np.array(list(_first_medians(norm_T[:-1][: _RUNNING - 1].tolist())))
    if len(norm_T) > _RUNNING:
        windows = np.lib.stride_tricks.sliding_window_view(norm_T, _RUNNING)[:-1]
        upper = _RUNNING // 2
        ordered = np.partition(windows, (upper - 1, upper), axis=1)
        median_T = np.append(median_T, (ordered[:, upper - 1] + ordered[:, upper]) / 2)
    kept = median_T > 0
    return np.asarray(norm_T[_EARLIEST:][kept] / median_T[kept])


def _first_medians(norms: Sequence[float]) -> Iterator[float]:
    """Medians of the first five, of the first six, up to that of all; each norm is put where it belongs among those."""
    ordered = sorted(norms[: _EARLIEST - 1])
    for count, norm in enumerate(norms[_EARLIEST - 1 :], start=_EARLIEST):
        insort(ordered, norm)
        upper = count // 2
        yield ordered[upper] if count % 2 else (ordered[upper - 1] + ordered[upper]) / 2


def _last(run: Run, key: str, at: float = np.inf) -> float | None:
    """Newest value up to step ``at`` of a metric that grows from 0; None where it was not measured."""
    series = run.series(key)
    values = series.value_T[series.step_T <= at]
    if len(values):
        return float(values[-1])
    return None if run.last_step and not len(series.step_T) else 0.0


def _final(run: Run, whole: Series, options: Options) -> float | None:
    if not len(whole.value_T):
        return None
    if broke_off(run):
        return float(whole.value_T[-1])
    default = _EVAL_WINDOW if options.metric.startswith("eval/") else _TRAIN_WINDOW
    return float(whole.value_T[-(options.window or default) :].mean())


def _after_the_end(series: Series, key: str, options: Options) -> float | None:
    # Zero is no verdict on a metric that does not measure quality, such as an entropy; its last value stands.
    if options.diverged_as == "last" or not is_quality(key):
        return float(series.value_T[-1]) if len(series.value_T) else None
    return float(options.diverged_as)


def _area(series: Series) -> float:
    width = series.step_T[-1] - series.step_T[0]
    if not width:
        return float(series.value_T[-1])
    heights = (series.value_T[1:] + series.value_T[:-1]) / 2
    return float((heights * np.diff(series.step_T)).sum() / width)


def _largest_drop(value_T: Array) -> float | None:
    return float((np.maximum.accumulate(value_T) - value_T).max()) if len(value_T) else None


def _quantile(values: Array, share: float) -> float | None:
    return float(np.quantile(values, share)) if len(values) else None
