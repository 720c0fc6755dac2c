"""Curvature of an objective's loss in the parameters, and how far its own update may be stretched."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from cvxrl.engine.optimizer import learning_rate, optimizer_steps
from cvxrl.gradients.curvature import (
    HessianProduct,
    critical_sharpness,
    double_differentiable,
    extreme_eigenvalues,
    hutchinson_trace,
)
from cvxrl.inspection.measure_gradients import weighted_losses
from cvxrl.inspection.measure_update import next_index, reduced_loss, take_steps
from cvxrl.inspection.record import CurvatureNumbers, SharpnessNumbers
from cvxrl.inspection.subject import Entrant, Subject
from cvxrl.rollout.randomness import generator_for

LINE_PASSES = 9


def measure_curvature(
    subject: Subject,
    entrant: Entrant,
    indices: Sequence[int],
    lanczos: int,
    probes: int,
    tick: Callable[[int], None],
) -> CurvatureNumbers:
    """Extreme eigenvalues and trace of the Hessian at the policy that sampled, on the sequences ``indices``."""
    updater, seed = entrant.updater, entrant.contestant.recipe.seed

    def loss(micro: Sequence[int]) -> Tensor:
        share_N, _ = weighted_losses(entrant, entrant.on_policy, micro, indices)
        return share_N.sum()

    micros = list(updater.micro_batches(entrant.experience, indices))
    hessian = HessianProduct([partial(loss, micro) for micro in micros], list(subject.trainable.values()))
    with double_differentiable(subject.policy.model):
        ends = extreme_eigenvalues(
            hessian, generator_for(seed, "lanczos"), steps=lanczos, progress=lambda *_: tick(len(indices))
        )
        trace = hutchinson_trace(
            hessian, generator_for(seed, "trace"), samples=probes, progress=lambda *_: tick(len(indices))
        )
    return CurvatureNumbers(
        largest=ends.largest,
        largest_error=ends.largest_error,
        smallest=ends.smallest,
        smallest_error=ends.smallest_error,
        trace=trace.value,
        trace_error=trace.standard_error,
        products=ends.products + trace.products,
        completions=len(indices),
    )


def measure_sharpness(subject: Subject, entrant: Entrant, passes: int, tick: Callable[[int], None]) -> SharpnessNumbers:
    """Line search of the objective's loss along the step that its optimizer takes.

    Args:
        subject: the checkpoint.
        entrant: the objective.
        passes: forward passes of the search.
        tick: told how many sequences were passed over.
    """
    recipe = entrant.contestant.recipe
    step, memory = subject.snapshot.step or 0, subject.remembered(entrant)
    start = {name: p.detach().clone() for name, p in subject.trainable.items()}
    with subject.restored():
        take_steps(entrant, memory, 1, step, lambda _: None)
        end = {name: p.detach().clone() for name, p in subject.trainable.items()}

        def loss_at(length: float) -> float:
            with torch.no_grad():
                for name, parameter in subject.trainable.items():
                    parameter.copy_(torch.lerp(start[name], end[name], length))
            tick(len(entrant.everything))
            return reduced_loss(entrant, memory)

        found = critical_sharpness(loss_at, evaluations=passes)
    rate = learning_rate(recipe.optim, next_index(entrant, step), optimizer_steps(recipe.train))
    room = None if math.isinf(found.high) else 2.0 / found.value
    return SharpnessNumbers(
        room=room,
        searched=found.low if room is None else found.high,
        critical=None if room is None else 2.0 / (room * rate) if room > 0 else None,
        passes=found.evaluations,
    )
