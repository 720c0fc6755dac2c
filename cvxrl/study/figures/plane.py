"""Final accuracy against final entropy, a mark a run: what was learned, and what was only made surer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cvxrl.comparison.run import Run
from cvxrl.comparison.summary import GroupSummary
from cvxrl.report.figure import BLACK, legend, method_style, new_figure
from cvxrl.study.collected import Collected
from cvxrl.study.figures.panels import regimes_of, split, style_of
from cvxrl.study.plan import Study
from cvxrl.study.verdict import Judged

_HEIGHT = 2.5  # inches a panel


def accuracy_entropy(study: Study, collected: Collected, judged: Judged) -> Figure | None:
    """A panel per regime; None where no run logged its entropy."""
    groups = judged.sweep.summaries if judged.sweep else []
    known = [s for s in groups if any(row.stability.entropy_end is not None for row in s.rows)]
    panels = regimes_of(study, list(dict.fromkeys(s.method for s in known)))
    if not panels:
        return None
    figure, grid = new_figure(len(panels), 1, 0.8 + _HEIGHT * len(panels))
    for (axis,), (regime, labels) in zip(grid, panels.items(), strict=True):
        for label in labels:
            _marks(axis, study, [s for s in known if s.method == label], chosen=_chosen(collected, label))
        runs = [run for cell, found in collected.confirmed if cell.regime == regime for run in found]
        _base(axis, runs)
        axis.set_xlabel("entropy at the end [nats]", fontsize="small")
        axis.set_ylabel("final accuracy", fontsize="small")
        axis.set_ylim(-0.03, 1.03)
        axis.set_title(regime, loc="left", fontsize="medium")
    legend(figure, [axis for (axis,) in grid])
    return figure


def _chosen(collected: Collected, label: str) -> float:
    """Chosen value of a label."""
    return next(cell.value for cell, _ in collected.confirmed if cell.label == label and cell.multiple == 1)


def _marks(axis: Axes, study: Study, groups: Sequence[GroupSummary], *, chosen: float) -> None:
    """Filled at the chosen value, open above it; a run that failed is crossed out."""
    method = split(groups[0].method)[0]
    colour, _, marker = method_style(style_of(study, method))
    for s in groups:
        filled = bool(np.isclose(float(s.value), chosen, rtol=1e-4))
        for row in s.rows:
            if row.stability.entropy_end is None or row.score.score is None:
                continue
            place = (row.stability.entropy_end, row.score.score)
            axis.plot(*place, marker, color=colour, markerfacecolor=colour if filled else "white", markersize=4.5)
            if row.outcome.failed:
                axis.plot(*place, "x", color=BLACK, markersize=3.5, markeredgewidth=0.8)
    axis.plot([], [], marker, color=colour, label=method)


def _base(axis: Axes, runs: Sequence[Run]) -> None:
    """The policy that training started from: the first evaluation, and the entropy of the first step's samples."""
    accuracy = [run.series("eval/accuracy").value_T[:1] for run in runs]
    entropy = [run.series("policy/entropy").value_T[:1] for run in runs]
    if not any(len(one) for one in entropy):
        return
    place = (float(np.concatenate(entropy).mean()), float(np.concatenate(accuracy).mean()))
    axis.plot(*place, "*", color=BLACK, markersize=11, linestyle="", label="base policy")
