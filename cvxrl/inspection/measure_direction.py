"""The loss along an objective's own optimizer step: how far the step fits, and what the way looks like."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from cvxrl.engine.sequences import Sequences
from cvxrl.engine.step_control import search
from cvxrl.engine.trial import loss_rounding
from cvxrl.gradients.curvature import CriticalSharpness, critical_sharpness
from cvxrl.inspection.checkpoint import LoadedCheckpoint, MeasuredObjective
from cvxrl.inspection.measure_update import losses_by_prompt, take_steps
from cvxrl.inspection.prompts import interval_of_sum
from cvxrl.inspection.schedule import next_rate
from cvxrl.inspection.step_metrics import DirectionMetrics, LineSearchMetrics, SharpnessMetrics
from cvxrl.recipe.step import FixedStep, LineSearchStep

# Of the slope, in forward passes.
BACKWARD_PASSES = 3
# Forward passes of the search for the way back to the start.
LINE_PASSES = 9
# Where the loss is looked at: doubling below a quarter, since a step may fit many times or a small part of it.
SHARES = (0.0, *(2.0**-k for k in range(8, 2, -1)), 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)

Tick = Callable[[int], None]


@dataclass(frozen=True)
class StepLine:
    """The policy anywhere on the line theta + alpha d, d the step that an objective's optimizer takes from theta.

    Attributes:
        objective: whose step and whose loss.
        sequences: the rollouts, with what the policy that sampled said.
        parameters: what the step moves: of the policy and of a critic beside it.
        start, end: their values at alpha 0 and 1.
        tick: told how many sequences were passed over.
        known: the losses by prompt at the shares that were looked at.
    """

    objective: MeasuredObjective
    sequences: Sequences
    parameters: list[Tensor]
    start: list[Tensor]
    end: list[Tensor]
    tick: Tick
    known: dict[float, Tensor] = field(default_factory=dict)

    def losses_at(self, share: float) -> Tensor:
        """What each prompt adds to the loss at theta + ``share`` d, [P], float64 on the CPU.

        Searches meet at the same shares, 0 and 1 and their halves and doubles; no share is passed over twice.
        """
        if share not in self.known:
            self.move(share)
            self.tick(len(self.sequences))
            self.known[share] = losses_by_prompt(self.objective, self.sequences)
        return self.known[share]

    def loss_at(self, share: float) -> float:
        """The loss at theta + ``share`` d."""
        return float(self.losses_at(share).sum())

    @cached_property
    def slope(self) -> float:
        """Derivative of the loss in alpha at 0: <gradient, d>."""
        self.move(0.0)
        self._clear()
        self.tick(BACKWARD_PASSES * len(self.sequences))
        self.objective.loss.backward(self.sequences)
        found = 0.0
        for parameter, start, end in zip(self.parameters, self.start, self.end, strict=True):
            if parameter.grad is not None:
                found += float((parameter.grad.double() * (end.double() - start.double())).sum())
        self._clear()
        return found

    @torch.no_grad()
    def move(self, share: float) -> None:
        """Put the policy, and a critic beside it, at theta + ``share`` d."""
        for parameter, start, end in zip(self.parameters, self.start, self.end, strict=True):
            parameter.copy_(torch.lerp(start, end, share))

    def _clear(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None


@contextmanager
def step_line(loaded: LoadedCheckpoint, objective: MeasuredObjective, tick: Tick) -> Iterator[StepLine | None]:
    """The line of the step that the objective's optimizer takes next, while the block lasts; None where it is zero.

    It is the whole step, whatever step control the recipe has.
    """
    sequences, critic = loaded.remembered(objective), objective.loss.critic
    parameters = [*loaded.trainable.values(), *(critic.parameters() if critic else ())]
    start = [p.detach().clone() for p in parameters]
    with loaded.restored():
        whole = objective.under(objective.recipe.model_copy(update={"step": FixedStep()}))
        take_steps(whole, sequences, 1, loaded.source.step or 0, lambda _: None)
        end = [p.detach().clone() for p in parameters]
        still = all(torch.equal(before, after) for before, after in zip(start, end, strict=True))
        yield None if still else StepLine(objective, sequences, parameters, start, end, tick)


def measure_sharpness(line: StepLine, step: int, passes: int) -> SharpnessMetrics:
    """How often the optimizer's step fits before the loss is back at its start.

    Args:
        line: of that step.
        step: outer steps before it.
        passes: forward passes of the search.
    """
    found = critical_sharpness(line.loss_at, evaluations=passes)
    rate = next_rate(line.objective.recipe, step)
    room = None if math.isinf(found.high) else 2.0 / found.value
    return SharpnessMetrics(
        room=room,
        searched=found.low if room is None else found.high,
        critical=None if room is None else 2.0 / (room * rate) if room > 0 else None,
        passes=found.evaluations,
        line_search=_line_search(line, found, passes),
    )


def _line_search(line: StepLine, whole: CriticalSharpness, passes: int) -> LineSearchMetrics:
    """The share that a line search accepts, and the room of it, searched for as that of the ``whole`` step was."""
    control = line.objective.recipe.step
    spec = control if isinstance(control, LineSearchStep) else LineSearchStep()
    tolerance = loss_rounding(line.objective.loss, whole.start) if spec.tolerance is None else spec.tolerance
    accepted = search(line.loss_at, whole.start, line.slope, spec, tolerance=tolerance)
    room = searched = None
    if not accepted.refused:
        again = whole
        if accepted.share != 1.0:
            again = critical_sharpness(line.loss_at, first=accepted.share, evaluations=passes)
        room = None if math.isinf(again.high) else 2.0 / again.value / accepted.share
        searched = (again.low if room is None else again.high) / accepted.share
    return LineSearchMetrics(
        share=accepted.share,
        evaluations=accepted.evaluations,
        sufficient_decrease=spec.sufficient_decrease,
        slope=line.slope,
        loss_before=whole.start,
        loss=accepted.value,
        room=room,
        searched=searched,
    )


def measure_direction(line: StepLine) -> DirectionMetrics:
    """The loss at `SHARES` of the optimizer's step, with the intervals of its changes over prompts."""
    slope = line.slope
    losses = [line.losses_at(share) for share in SHARES]
    totals = [float(losses_P.sum()) for losses_P in losses]
    return DirectionMetrics(
        slope=slope,
        shares=list(SHARES),
        losses=[total if math.isfinite(total) else None for total in totals],
        changes=[
            interval_of_sum(losses_P - losses[0]) if math.isfinite(total) else None
            for losses_P, total in zip(losses, totals, strict=True)
        ],
    )
