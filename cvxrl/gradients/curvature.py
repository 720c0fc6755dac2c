"""Hessian of a loss over a model's parameters, by products with vectors alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from cvxrl.gradients.lanczos import lanczos

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
        values.append(float((signs_D * hessian.times(signs_D)).sum(dtype=torch.float64)))
        if progress is not None:
            progress(sample + 1, samples)
    found = torch.tensor(values, dtype=torch.float64)
    return Trace(float(found.mean()), float(found.std()) / math.sqrt(samples), samples)
