"""What the figures of a study share: a panel per regime, a style per method, and the axis of a positive setting."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from cvxrl.study.plan import Study

_APART = 1.25  # ratio of neighbouring values from which on each gets a tick of its own
_MOST_TICKS = 7


def split(label: str) -> tuple[str, str]:
    """Method and regime of a label, whatever stands behind them."""
    method, regime, *_ = label.split("[")[0].split("@")
    return method, regime


def style_of(study: Study, method: str) -> int:
    """Number of a method's colour and marker, the same in all figures."""
    return list(study.methods).index(method)


def regimes_of(study: Study, labels: Sequence[str]) -> dict[str, list[str]]:
    """Labels by regime, regimes and methods in the plan's order."""
    found = {regime: [label for label in labels if split(label)[1] == regime] for regime in study.regimes}
    return {
        regime: sorted(members, key=lambda label: style_of(study, split(label)[0]))
        for regime, members in found.items()
        if members
    }


def value_axis(axis: Axes, values: Sequence[float], words: str = "{:g}") -> None:
    """A logarithmic axis with a tick at every value that was tried, where they are few and apart."""
    axis.set_xscale("log")
    ordered = sorted(set(values))
    if len(ordered) <= _MOST_TICKS and all(b / a > _APART for a, b in pairwise(ordered)):
        axis.set_xticks(ordered, [words.format(value) for value in ordered])
        axis.xaxis.set_minor_locator(NullLocator())
