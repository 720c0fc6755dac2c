"""Importance weights: worked by hand, and the expectation that they are there for."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from cvxrl.objectives.correction import importance_weights
from cvxrl.recipe.mismatch import CorrectMismatch

# Two responses: ratios 4 and 1/2 of one's tokens, 1 and 3 of the other's.
RATIOS = torch.tensor([4.0, 0.5, 1.0, 3.0], dtype=torch.float64)
SEQUENCES = torch.tensor([0, 0, 1, 1])


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [2.0, 0.5, 1.0, 2.0]),
        ({"cap": None}, [4.0, 0.5, 1.0, 3.0]),
        ({"cap": 3.5}, [3.5, 0.5, 1.0, 3.0]),
        ({"level": "sequence", "cap": 2.5}, [2.0, 2.0, 2.5, 2.5]),
        ({"outside": "drop", "floor": 0.8, "cap": 3.5}, [0.0, 0.0, 1.0, 3.0]),
        ({"level": "sequence", "outside": "drop", "cap": 2.5}, [2.0, 2.0, 0.0, 0.0]),
    ],
)
def test_weights_worked_by_hand(fields: dict[str, Any], expected: list[float]) -> None:
    _, weights = importance_weights(RATIOS.log(), SEQUENCES, CorrectMismatch(**fields))
    assert weights.tolist() == pytest.approx(expected, abs=1e-12)


def test_a_token_that_the_sampler_held_impossible_weighs_the_cap() -> None:
    for log_ratio in (math.inf, 1e6):
        ratio, weight = importance_weights(torch.tensor([log_ratio]), torch.zeros(1).long(), CorrectMismatch())
        assert weight.item() == 2.0 and math.isfinite(ratio.item())


def expected_gradient(level: str | None, cap: float | None) -> tuple[Tensor, Tensor]:
    """REINFORCE over all responses of two tokens: by a wrong sampler with weights, and by the policy itself.

    The second token depends on the first one; rewards are of the pair.
    """
    generator = torch.Generator().manual_seed(0)
    size, kwargs = 3, {"generator": generator, "dtype": torch.float64}
    first, then = torch.randn(size, **kwargs), torch.randn(size, size, **kwargs)  # type: ignore[call-overload]
    other_first, other_then = (x + 0.5 * torch.randn(x.shape, **kwargs) for x in (first, then))  # type: ignore[call-overload]
    rewards = torch.randn(size, size, **kwargs)  # type: ignore[call-overload]
    leaves = [first.requires_grad_(), then.requires_grad_()]

    def said(a: int, b: int, one: Tensor, two: Tensor) -> Tensor:
        return torch.stack([one.log_softmax(-1)[a], two.log_softmax(-1)[a, b]])

    losses = {}
    for name in ("wrong", "right"):
        total = torch.zeros((), dtype=torch.float64)
        for a, b in itertools.product(range(size), repeat=2):
            now, theirs = said(a, b, first, then), said(a, b, other_first, other_then)
            weights = torch.ones(2, dtype=torch.float64)
            if name == "wrong" and level is not None:
                spec = CorrectMismatch(level=level, cap=cap)  # type: ignore[arg-type]
                _, weights = importance_weights(now.detach() - theirs, torch.zeros(2).long(), spec)
            drawn = (theirs if name == "wrong" else now.detach()).sum().exp()
            total = total - drawn * rewards[a, b] * (weights * now).sum()
        grads = torch.autograd.grad(total, leaves)
        losses[name] = torch.cat([grad.flatten() for grad in grads])
    return losses["wrong"], losses["right"]


def test_weights_of_responses_give_the_policy_s_own_gradient() -> None:
    """Without a cap, in expectation, whatever the sampler; not without weights, with a cap, or token by token."""
    wrong, right = expected_gradient("sequence", None)
    torch.testing.assert_close(wrong, right, atol=1e-12, rtol=0)
    apart = {
        how: float((wrong - right).norm() / right.norm())
        for how, (wrong, right) in {
            "none": expected_gradient(None, None),
            "token": expected_gradient("token", None),
            "capped": expected_gradient("sequence", 1.2),
        }.items()
    }
    assert all(value > 1e-3 for value in apart.values()), apart
    assert apart["token"] < apart["none"]


@pytest.mark.parametrize(
    "fields", [{"floor": 0.5}, {"floor": 3.0, "outside": "drop"}, {"cap": None, "outside": "drop"}]
)
def test_bounds_that_would_do_nothing_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CorrectMismatch(**fields)
