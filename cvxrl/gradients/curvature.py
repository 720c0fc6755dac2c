"""Curvature of a loss over a model's parameters: by Hessian-vector products, and by losses along an update."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from cvxrl.gradients.lanczos import inner, lanczos

Progress = Callable[[int, int], None]


@contextmanager
def double_differentiable(model: Any) -> Iterator[None]:
    """Let attention be differentiated twice inside the block: fused kernels have no second derivative.

    PyTorch's own attention is held to its mathematical form; a model with any other attention runs `eager` meanwhile.

    Args:
        model: a transformers model, or any module (then only PyTorch's attention is held).
    """
    before = getattr(getattr(model, "config", None), "_attn_implementation", None)
    switch = before not in (None, "eager", "sdpa")
    if switch:
        model.set_attn_implementation("eager")
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        if switch:
            model.set_attn_implementation(before)


class HessianProduct:
    """Products of the Hessian of a sum of losses with flat vectors.

    The forward pass is made anew for each product, so that one micro-batch's graph is alive at a time.
    """

    def __init__(self, losses: Sequence[Callable[[], Tensor]], parameters: Sequence[Tensor]) -> None:
        """Hessian of ``sum(loss() for loss in losses)`` in ``parameters``, in their order.

        Args:
            losses: closures, one per micro-batch, without dropout or any other randomness.
            parameters: tensors that require gradients, none twice (tied weights once).
        """
        self._losses, self._parameters = losses, list(parameters)
        self._sizes = [parameter.numel() for parameter in self._parameters]
        self.dim = sum(self._sizes)

    def times(self, vector_D: Tensor) -> Tensor:
        """Hessian times vector, [D].

        Raises:
            RuntimeError: an operation of the loss has a first derivative alone.
        """
        pieces = [
            piece.view_as(parameter)
            for piece, parameter in zip(torch.split(vector_D, self._sizes), self._parameters, strict=True)
        ]
        out_D = torch.zeros_like(vector_D)
        for loss in self._losses:
            with torch.enable_grad():
                gradients = torch.autograd.grad(
                    loss(), self._parameters, create_graph=True, allow_unused=True, materialize_grads=True
                )
                _require_second_derivatives(gradients)
                products = torch.autograd.grad(
                    gradients, self._parameters, pieces, allow_unused=True, materialize_grads=True
                )
            out_D += torch.cat([product.reshape(-1) for product in products])
        return out_D

    def random(self, generator: torch.Generator, signs: bool = False) -> Tensor:
        """A vector of independent normal numbers or signs, [D]."""
        like = self._parameters[0]
        if signs:
            drawn_D = 2.0 * torch.randint(2, (self.dim,), generator=generator).to(like.dtype) - 1.0
        else:
            drawn_D = torch.randn(self.dim, generator=generator, dtype=like.dtype)
        return drawn_D.to(like.device)


def _require_second_derivatives(gradients: Sequence[Tensor]) -> None:
    """Refuse gradients through an operation that is differentiable once.

    Autograd takes what such an operation returns for a constant: a Hessian without its share, and no complaint.
    """
    nodes = [gradient.grad_fn for gradient in gradients]
    seen: set[Any] = set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        if node.name() == "torch::autograd::Error":
            raise RuntimeError("the loss contains an operation without a second derivative")
        seen.add(node)
        nodes += [following for following, _ in node.next_functions]


@dataclass(frozen=True)
class Extremes:
    """Smallest and largest eigenvalue of a Hessian; an exact eigenvalue lies within the error of each."""

    smallest: float
    largest: float
    smallest_error: float
    largest_error: float
    products: int


def extreme_eigenvalues(
    hessian: HessianProduct, generator: torch.Generator, *, steps: int = 30, progress: Progress | None = None
) -> Extremes:
    """Extreme eigenvalues by Lanczos with full reorthogonalisation, which holds ``steps`` vectors of the model's size.

    The values approach the true ones from within: the largest from below, the smallest from above.
    """
    start_1D = hessian.random(generator).unsqueeze(0)
    found = lanczos(lambda v_1D: hessian.times(v_1D[0]).unsqueeze(0), start_1D, steps, generator, progress)
    values, errors = found.values_CM[0].tolist(), found.residuals_CM[0].tolist()
    return Extremes(values[0], values[-1], errors[0], errors[-1], len(values))


@dataclass(frozen=True)
class Trace:
    """Estimate of the trace of a Hessian and its standard error."""

    value: float
    standard_error: float
    products: int


def hutchinson_trace(
    hessian: HessianProduct, generator: torch.Generator, *, samples: int = 16, progress: Progress | None = None
) -> Trace:
    """Mean of v . H v over random signs v, unbiased (Hutchinson 1990).

    Raises:
        ValueError: fewer than two samples, which have no standard error.
    """
    if samples < 2:
        raise ValueError(f"the trace's standard error needs at least 2 samples, got {samples}")
    values = []
    for sample in range(samples):
        signs_D = hessian.random(generator, signs=True)
        values.append(float(inner(signs_D.unsqueeze(0), hessian.times(signs_D).unsqueeze(0))))
        if progress is not None:
            progress(sample + 1, samples)
    found = torch.tensor(values, dtype=torch.float64)
    return Trace(float(found.mean()), float(found.std()) / math.sqrt(samples), samples)


@dataclass(frozen=True)
class CriticalSharpness:
    """Where the loss along a direction comes back to its start.

    Attributes:
        value: 2 / critical step, in units of the direction; infinity if no step of the search lowers the loss,
            an upper bound if all do.
        low: longest step found that lowers the loss; 0 if none.
        high: shortest step above ``low`` found that does not; infinity if all do.
        start: loss at step 0.
        evaluations: forward passes made.
    """

    value: float
    low: float
    high: float
    start: float
    evaluations: int


def critical_sharpness(
    loss_at: Callable[[float], float],
    *,
    first: float = 1.0,
    evaluations: int = 14,
    progress: Callable[[int, int], None] | None = None,
) -> CriticalSharpness:
    """Doubling, then bisection of the step length on a logarithmic scale.

    The critical step is the geometric mean of the last bracket. On a quadratic along its gradient it is 2 / (curvature
    along the gradient), so that the value is that curvature. Where the loss crosses its start several times the search
    finds one of the crossings.

    Args:
        loss_at: loss after a step of this length along the actual update; 1 is the update itself. Must be
            deterministic. A loss that is not finite counts as not below.
        first: step length to begin with.
        evaluations: bound on the calls, the one at 0 included; at least 3.
        progress: called with (calls made, bound).

    Raises:
        ValueError: fewer than three evaluations, or the loss at the start is not finite.
    """
    if evaluations < 3:
        raise ValueError(f"a line search needs at least 3 evaluations, got {evaluations}")
    made = 0

    def evaluate(step: float) -> float:
        nonlocal made
        made += 1
        loss = loss_at(step)
        if progress is not None:
            progress(made, evaluations)
        return loss

    start = evaluate(0.0)
    if not math.isfinite(start):
        raise ValueError(f"the loss at the start is {start}")
    low, high, step = 0.0, math.inf, first
    while made < evaluations:
        if evaluate(step) < start:
            low = step
        else:
            high = step
        if high == math.inf:
            step = 2.0 * low
        elif low == 0.0:
            step = 0.5 * high
        else:
            step = math.sqrt(low * high)
    if low == 0.0:
        return CriticalSharpness(math.inf, low, high, start, made)
    critical = low if high == math.inf else math.sqrt(low * high)
    return CriticalSharpness(2.0 / critical, low, high, start, made)
