"""An optimizer's step as a direction: parameters before and after it, and at any share of the way."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cvxrl.engine.world import local_part

# Numbers that are multiplied at a time, so that no second copy of a large matrix exists.
_BLOCK = 2**20


class Displacement:
    """Where a step went, in what the optimizer steps: fp32 copies of half-precision parameters, or these themselves.

    Two copies: the parameters before the step and, once another share than the whole is asked for, after it. Shares 0
    and 1 are those, bit for bit; another is before + share x (after - before), formed in fp32 and then rounded once.
    Of sharded parameters, the part of this process.
    """

    def __init__(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Remember where the step starts.

        Args:
            pairs: what the optimizer steps, each beside the parameter that it stands for (`stepped_parameters`).
        """
        self._pairs = [(stepped, local_part(parameter)) for stepped, parameter in pairs]
        self._before = [stepped.detach().clone() for stepped, _ in self._pairs]
        self._after: list[Tensor] | None = None
        self._share = 1.0

    def slope(self, gradients: Sequence[Tensor | None]) -> float:
        """<g, d> of gradients at the start and the step, while the parameters are where it ended; None is left out."""
        steps = zip(gradients, self._before, (stepped for stepped, _ in self._pairs), strict=True)
        return sum((_dot(g, before, after.detach()) for g, before, after in steps if g is not None), start=0.0)

    @torch.no_grad()
    def move(self, share: float) -> None:
        """Put the parameters at a share of the step; the first call finds them at its end."""
        if share == self._share:
            return
        if self._after is None:
            self._after = [stepped.detach().clone() for stepped, _ in self._pairs]
        for (stepped, parameter), before, after in zip(self._pairs, self._before, self._after, strict=True):
            if share in (0.0, 1.0):
                stepped.copy_(after if share else before)
            elif stepped.dtype in (torch.float32, torch.float64):
                torch.sub(after, before, out=stepped).mul_(share).add_(before)
            else:
                stepped.copy_(before.float() + share * (after.float() - before.float()))
            if parameter.data_ptr() != stepped.data_ptr():
                parameter.copy_(stepped)
        self._share = share


def _dot(gradient: Tensor, before: Tensor, after: Tensor) -> float:
    """<g, after - before>, added up in fp64 block by block."""
    parts = (torch.split(part.reshape(-1), _BLOCK) for part in (gradient.detach(), before, after))
    totals = [g.double() @ (b.double() - a.double()) for g, a, b in zip(*parts, strict=True)]
    return float(torch.stack(totals).sum())
