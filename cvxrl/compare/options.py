"""What a comparison can be asked: every number that its results depend on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

FEW_SEEDS = 5  # below this many, a warning is printed (Henderson et al. 2018 and others advise at least 5)


@dataclass(frozen=True)
class Options:
    """Settings of a comparison.

    Attributes:
        metric: key of metrics.jsonl whose final value is the score of a run.
        window: how many of its last values are averaged; None means 1 for `eval/...` and 10 for others.
        baseline: label or method that the others are held against; None means the first.
        vary: recipe key in which runs of one method may differ, or None.
        threshold: score to reach, in steps and tokens; None means 90% of the best that any run reached.
        collapse: a finished run has collapsed if its score is below this share of the best it reached.
        spike: a gradient-norm spike is a norm above this many times the running median.
        diverged_as: score of a diverged run: a number, its last value, or left out.
        confidence: of intervals; one minus it is the level of the verdicts.
        power: chance of finding the observed difference for which the needed seeds are computed.
        resamples: bootstrap draws, and relabelings where they cannot be enumerated.
        statistics_seed: seed of the bootstrap.
        allow_diff: compare although methods differ in more than the declared factor.
        seeds: keep only these training seeds; None keeps all.
    """

    metric: str = "eval/accuracy"
    window: int | None = None
    baseline: str | None = None
    vary: str | None = None
    threshold: float | None = None
    collapse: float = 0.5
    spike: float = 5.0
    diverged_as: float | Literal["last", "omit"] = 0.0
    confidence: float = 0.95
    power: float = 0.8
    resamples: int = 10_000
    statistics_seed: int = 0
    allow_diff: bool = False
    seeds: tuple[int, ...] | None = None

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger metric is known to be better; if not, verdicts say higher and lower."""
        return is_quality(self.metric)

    @property
    def bounds(self) -> tuple[float, float]:
        """Range that the metric cannot leave, and so no interval of its averages."""
        return (0.0, 1.0) if self.metric in ("eval/accuracy", "reward/correct") else (-math.inf, math.inf)


def is_quality(metric: str) -> bool:
    """Whether a metric measures how good a policy is, larger being better."""
    return metric == "eval/accuracy" or metric in ("reward/mean", "reward/correct")
