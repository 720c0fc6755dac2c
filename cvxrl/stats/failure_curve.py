"""Share of runs that fail against a positive setting: a probit curve that rises with its logarithm.

P(fail at v) = Phi(a + b log v) with b >= 0. A handful of seeds is mostly told apart completely: none fails up to one
value, all from the next one on. The fitted curve therefore has Firth's penalty (1993, Biometrika 80:27; half the log
determinant of the information of a and b), which keeps it finite. Intervals are those of the profile likelihood without
a penalty, which holds every point between the two values for equally good; with the penalty it would hold the middle
of them for proven (83% instead of 95% with 10 seeds and steep curves), and a bootstrap would have no width at all,
since none of five failures is none in every resample. Everything is read off one grid of curves; there is no
optimizer to fail.
"""

from __future__ import annotations

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
_SAME = 0.01  # difference of twice the log-likelihood that is none


@dataclass(frozen=True)
class FailureCurve:
    """A fitted curve and how well each other one fits.

    Attributes:
        half: value at which half the runs fail; None where that lies beyond the tried values.
        beyond: on which side, then.
        smallest, largest: of the tried values.
        middle_T: logarithms of values between them.
        below_T: confidence that half fail below each of those, increasing.
        offset_G, slope_G: a and b of every curve of the grid.
        loss_G: twice its log-likelihood's distance from the largest.
        fitted: place in the grid of the curve with the largest penalised likelihood.
        freedom: degrees of freedom of Student's t, which stands for the normal: runs less the two parameters.
    """

    half: float | None
    beyond: str | None
    smallest: float
    largest: float
    middle_T: Array
    below_T: Array
    offset_G: Array
    slope_G: Array
    loss_G: Array
    fitted: int
    freedom: int

    def half_interval(self, confidence: float) -> Interval:
        """Where half the runs fail; an end beyond the tried values is open: 0, or infinity."""
        low_T, high_T = self.half_at(np.array([(1 - confidence) / 2, (1 + confidence) / 2]))
        return Interval(exp(low_T[0]), exp(high_T[1]) if high_T[1] < inf else inf)

    def half_at(self, confidence_T: Array) -> Array:
        """Bounds of the logarithm of the value below which half fail with each confidence, shape (2, T).

        Both bounds are the same among the tried values. Above the largest, only that is known; below the smallest,
        only that.
        """
        inside_T = np.interp(confidence_T, self.below_T, self.middle_T)
        low_T = np.where(confidence_T < self.below_T[0], -inf, inside_T)
        high_T = np.where(confidence_T > self.below_T[-1], inf, inside_T)
        return np.stack([low_T, high_T])

    def shares(self, values: Array) -> Array:
        """Fitted share that fails at each value."""
        return np.asarray(ndtr(self.offset_G[self.fitted] + self.slope_G[self.fitted] * np.log(values)))

    def band(self, values: Array, confidence: float) -> tuple[Array, Array]:
        """Pointwise interval of the share at each value: over all curves that fit nearly as well."""
        likely = self.loss_G <= float(stdtrit(self.freedom, (1 + confidence) / 2)) ** 2
        score_GT = self.offset_G[likely, None] + self.slope_G[likely, None] * np.log(values)
        return ndtr(score_GT.min(axis=0)), ndtr(score_GT.max(axis=0))


def fit_failures(values: list[float], failures: list[int], runs: list[int]) -> FailureCurve:
    """Fit the share of failures among independent runs.

    Args:
        values: at least two different ones, positive and increasing.
        failures: failed runs at each.
        runs: all runs at each, at least one.

    Raises:
        ValueError: the values are no such values.
    """
    if len(values) < 2 or values[0] <= 0 or any(b <= a for a, b in pairwise(values)):
        raise ValueError(f"needs two positive, increasing values, got {values}")
    log_D = np.log(np.array(values))
    curves = _curves(tuple(log_D))
    failed_D, run_D = np.array(failures, dtype=float), np.array(runs, dtype=float)
    likelihood_G = curves.fail_GD @ failed_D + curves.pass_GD @ (run_D - failed_D)
    loss_G = 2 * (likelihood_G.max() - likelihood_G)
    freedom = max(1, int(run_D.sum()) - 2)
    fitted = int((likelihood_G + _penalty(curves, log_D, run_D)).argmax())
    beyond = curves.beyond(fitted)
    return FailureCurve(
        half=None if beyond else float(np.exp(-curves.offset_G[fitted] / curves.slope_G[fitted])),
        beyond=beyond,
        smallest=values[0],
        largest=values[-1],
        middle_T=curves.middle_T,
        below_T=_confidence_below(curves, loss_G, freedom),
        offset_G=curves.offset_G,
        slope_G=curves.slope_G,
        loss_G=loss_G,
        fitted=fitted,
        freedom=freedom,
    )


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
