"""Share of runs that fail against a positive setting: a probit curve that rises with its logarithm.

P(fail at v) = Phi(a + b log v) with b >= 0. A handful of seeds is mostly told apart completely: none fails up to one
value, all from the next one on. The fitted curve therefore has Firth's penalty (1993, Biometrika 80:27; half the log
determinant of the information of a and b), which keeps it finite. Intervals are those of the profile likelihood without
a penalty, which holds every point between the two values for equally good; with the penalty it would hold the middle
of them for proven (83% instead of 95% with 10 seeds and steep curves), and a bootstrap would have no width at all,
since none of five failures is none in every resample. A seed that fails at one value may be likelier to fail at its
neighbours; the likelihood ratio is divided by the design effect that this has. Everything is read off one grid of
curves; there is no optimizer to fail.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import exp, inf

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr, ndtr, stdtr, stdtrit

from cvxrl.stats.bootstrap import Interval

Array = NDArray[np.float64]

_MIDDLES, _WIDTHS, _ENDS = 161, 41, 41  # grid: half-fail points among the tried values, widths, shares at an end
_STEEPEST, _FLATTEST = 40.0, 10.0  # parts of the smallest step, and multiples of the whole range, that a width takes
_LOWEST = -5.0  # probit of the smallest share at an end
_FALLING = 1.645  # standard errors of a trend downwards: 5% of the time where there is none
_SAME = 0.01  # difference of twice the log-likelihood that is none


@dataclass(frozen=True)
class FailureCurve:
    """A fitted curve and how well each other one fits.

    Attributes:
        half: value at which half the runs fail; None where that lies beyond the tried values, or failures fall.
        beyond: on which side, then; None where failures fall.
        falls: whether failures fall with the value beyond chance, so that no rising curve tells anything.
        smallest, largest: of the tried values.
        middle_T: logarithms of values between them.
        below_T: confidence that half fail below each of those, increasing.
        offset_G, slope_G: a and b of every curve of the grid.
        loss_G: twice its log-likelihood's distance from the largest.
        fitted: place in the grid of the curve with the largest penalised likelihood.
        freedom: degrees of freedom of Student's t, which stands for the normal: runs less the two parameters.
        effect: design effect: variance over seeds for that of as many independent runs, at least 1.
    """

    half: float | None
    beyond: str | None
    falls: bool
    smallest: float
    largest: float
    middle_T: Array
    below_T: Array
    offset_G: Array
    slope_G: Array
    loss_G: Array
    fitted: int
    freedom: int
    effect: float

    def half_interval(self, confidence: float) -> Interval:
        """Where half the runs fail; an end beyond the tried values is open: 0, or infinity."""
        low_T, high_T = self.half_at(np.array([(1 - confidence) / 2, (1 + confidence) / 2]))
        return Interval(exp(low_T[0]), exp(high_T[1]) if high_T[1] < inf else inf)

    def half_at(self, confidence_T: Array) -> Array:
        """Bounds of the logarithm of the value below which half fail with each confidence, shape (2, T).

        Both bounds are the same among the tried values. Above the largest, only that is known; below the smallest,
        only that. Where failures fall, nothing is known.
        """
        if self.falls:
            return np.stack([np.full_like(confidence_T, -inf), np.full_like(confidence_T, inf)])
        inside_T = np.interp(confidence_T, self.below_T, self.middle_T)
        low_T = np.where(confidence_T < self.below_T[0], -inf, inside_T)
        high_T = np.where(confidence_T > self.below_T[-1], inf, inside_T)
        return np.stack([low_T, high_T])

    def shares(self, values: Array) -> Array:
        """Fitted share that fails at each value."""
        return np.asarray(ndtr(self.offset_G[self.fitted] + self.slope_G[self.fitted] * np.log(values)))

    def band(self, values: Array, confidence: float) -> tuple[Array, Array]:
        """Pointwise interval of the share at each value: over all curves that fit nearly as well."""
        likely = self.loss_G <= self.effect * float(stdtrit(self.freedom, (1 + confidence) / 2)) ** 2
        score_GT = self.offset_G[likely, None] + self.slope_G[likely, None] * np.log(values)
        return ndtr(score_GT.min(axis=0)), ndtr(score_GT.max(axis=0))


def fit_failures(values: Sequence[float], failed: Sequence[Mapping[int, bool]]) -> FailureCurve:
    """Fit the share of runs that fail.

    Args:
        values: at least two different ones, positive and increasing.
        failed: at each, whether the run of each seed failed, at least one.

    Raises:
        ValueError: the values are no such values.
    """
    if len(values) < 2 or values[0] <= 0 or any(b <= a for a, b in pairwise(values)):
        raise ValueError(f"needs two positive, increasing values, got {values}")
    log_D = np.log(np.array(values))
    curves = _curves(tuple(log_D))
    failed_D, run_D = (np.array([of(seeds) for seeds in failed], dtype=float) for of in (_failures, len))
    likelihood_G = curves.fail_GD @ failed_D + curves.pass_GD @ (run_D - failed_D)
    loss_G = 2 * (likelihood_G.max() - likelihood_G)
    freedom = max(1, int(run_D.sum()) - 2)
    fitted = int((likelihood_G + _penalty(curves, log_D, run_D)).argmax())
    beyond, falls = curves.beyond(fitted), _falls(log_D, failed_D, run_D)
    effect = _design_effect(log_D, failed, float(curves.offset_G[fitted]), float(curves.slope_G[fitted]))
    return FailureCurve(
        half=None if beyond or falls else float(np.exp(-curves.offset_G[fitted] / curves.slope_G[fitted])),
        beyond=None if falls else beyond,
        falls=falls,
        smallest=values[0],
        largest=values[-1],
        middle_T=curves.middle_T,
        below_T=_confidence_below(curves, loss_G / effect, freedom),
        offset_G=curves.offset_G,
        slope_G=curves.slope_G,
        loss_G=loss_G,
        fitted=fitted,
        freedom=freedom,
        effect=effect,
    )


def _falls(log_D: Array, failed_D: Array, run_D: Array) -> bool:
    """Cochran and Armitage's test for a trend of shares, towards fewer failures at larger values."""
    share = failed_D.sum() / run_D.sum()
    away_D = log_D - (run_D * log_D).sum() / run_D.sum()
    error = np.sqrt(share * (1 - share) * (run_D * away_D**2).sum())
    return bool((away_D * failed_D).sum() < -_FALLING * error) if error else False


def _failures(seeds: Mapping[int, bool]) -> int:
    return sum(seeds.values())


def _design_effect(log_D: Array, failed: Sequence[Mapping[int, bool]], offset: float, slope: float) -> float:
    """How much more the half-fail point varies than if every run had a seed of its own (sandwich estimate).

    Each run pulls the half-fail point by its residual, weighted as the fit does. The pulls of one seed are added up,
    and the sum of their squares is held against that of single runs.
    """
    if not slope:
        return 1.0
    score_D = offset + slope * log_D
    density_D = np.exp(-(score_D**2) / 2) / np.sqrt(2 * np.pi)
    share_D = ndtr(score_D)
    spread_D = np.maximum(share_D * (1 - share_D), np.finfo(float).eps)
    design_D2 = np.stack([np.ones_like(log_D), log_D], axis=1)
    weight_D = density_D**2 / spread_D * np.array([len(seeds) for seeds in failed])
    information = (design_D2 * weight_D[:, None]).T @ design_D2 + np.finfo(float).eps * np.eye(2)
    pull_D = density_D / spread_D * (design_D2 @ np.linalg.solve(information, np.array([-1.0, offset / slope])))
    of_seed: dict[int, float] = {}
    alone = 0.0
    for seeds, pull in zip(failed, pull_D, strict=True):
        mean = _failures(seeds) / len(seeds)
        for seed, fails in seeds.items():
            of_seed[seed] = of_seed.get(seed, 0.0) + pull * (fails - mean)
            alone += (pull * (fails - mean)) ** 2
    return max(1.0, sum(total**2 for total in of_seed.values()) / alone) if alone else 1.0


def _confidence_below(curves: _Curves, loss_G: Array, freedom: int) -> Array:
    """Confidence that half fail below each middle: from the signed root of its profile likelihood ratio."""
    profile_T = loss_G[: _MIDDLES * _WIDTHS].reshape(_MIDDLES, _WIDTHS).min(axis=1)
    best_T = np.flatnonzero(profile_T < _SAME)
    side = {"above": _MIDDLES, "below": -1, None: 0}[curves.beyond(int(loss_G.argmin()))]
    first, last = (best_T[0], best_T[-1]) if len(best_T) else (side, side)
    place_T = np.arange(_MIDDLES)
    sign_T = np.where(place_T < first, -1.0, np.where(place_T > last, 1.0, 0.0))
    return np.maximum.accumulate(stdtr(freedom, sign_T * np.sqrt(profile_T)))


@dataclass(frozen=True)
class _Curves:
    """Rising curves, by their offset and slope, at D tried values.

    The first ones have their half-fail point among the values, one per point and width; of the others it lies above
    or below, down to flat ones, and they are told by their share at the nearer end.
    """

    middle_T: Array
    offset_G: Array
    slope_G: Array
    fail_GD: Array
    pass_GD: Array
    weight_GD: Array

    def beyond(self, place: int) -> str | None:
        """On which side of the tried values a curve of the grid has its half-fail point; None where among them."""
        inside, each_end = _MIDDLES * _WIDTHS, _ENDS * (_WIDTHS + 1)
        return None if place < inside else "above" if place < inside + each_end else "below"


@lru_cache(maxsize=8)
def _curves(log_D: tuple[float, ...]) -> _Curves:
    first, last = log_D[0], log_D[-1]
    width_T = np.geomspace(min(np.diff(log_D)) / _STEEPEST, _FLATTEST * (last - first), _WIDTHS)
    middle_T = np.linspace(first, last, _MIDDLES)
    slope_T = np.append(1 / width_T, 0.0)
    end_T = np.linspace(_LOWEST, 0, _ENDS)
    blocks = (
        (-middle_T[:, None] / width_T, np.broadcast_to(1 / width_T, (_MIDDLES, _WIDTHS))),
        (end_T[:, None] - slope_T * last, np.broadcast_to(slope_T, (_ENDS, _WIDTHS + 1))),
        (-end_T[:, None] - slope_T * first, np.broadcast_to(slope_T, (_ENDS, _WIDTHS + 1))),
    )
    offset_G, slope_G = (np.concatenate([block[i].ravel() for block in blocks]) for i in (0, 1))
    score_GD = offset_G[:, None] + slope_G[:, None] * np.array(log_D)
    fail_GD, pass_GD = log_ndtr(score_GD), log_ndtr(-score_GD)
    # Information of one run about its probit: phi^2 / (P (1 - P)).
    weight_GD = np.exp(-(score_GD**2) - np.log(2 * np.pi) - fail_GD - pass_GD)
    return _Curves(middle_T, offset_G, slope_G, fail_GD, pass_GD, weight_GD)


def _penalty(curves: _Curves, log_D: Array, run_D: Array) -> Array:
    """Half the log determinant of the information of offset and slope."""
    centred_D = log_D - log_D.mean()
    zero_G, one_G, two_G = (curves.weight_GD @ (run_D * centred_D**power) for power in (0, 1, 2))
    determinant_G = np.maximum(zero_G * two_G - one_G**2, np.finfo(float).tiny)
    return np.asarray(0.5 * np.log(determinant_G))
