"""Advantages and reductions, by hand."""

from __future__ import annotations

import pytest
import torch

from cvxrl.advantages import compute_advantages
from cvxrl.objectives.reduce import Reduction, sequence_weights
from cvxrl.recipe.advantage import (
    AdvantageSpec,
    GroupAdvantage,
    GroupCenteredAdvantage,
    RewardAdvantage,
    RlooAdvantage,
)

REWARDS = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0], [0.1, 0.1, 0.1, 0.1]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (RewardAdvantage(), [[1, 0, 0, 1], [1, 0, 0, 0], [0.1] * 4]),
        (GroupCenteredAdvantage(), [[0.5, -0.5, -0.5, 0.5], [0.75, -0.25, -0.25, -0.25], [0.0] * 4]),
        (RlooAdvantage(), [[2 / 3, -2 / 3, -2 / 3, 2 / 3], [1, -1 / 3, -1 / 3, -1 / 3], [0.0] * 4]),
        # Standard deviations with n - 1: sqrt(1/3) and 1/2.
        (
            GroupAdvantage(eps=1e-12),
            [[0.5 * 3**0.5, -0.5 * 3**0.5, -0.5 * 3**0.5, 0.5 * 3**0.5], [1.5, -0.5, -0.5, -0.5], [0.0] * 4],
        ),
    ],
)
def test_hand_computed(spec: AdvantageSpec, expected: list[list[float]]) -> None:
    wanted = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(compute_advantages(REWARDS, spec), wanted, rtol=1e-9, atol=1e-9)


def test_a_group_that_agrees_gives_exactly_zero() -> None:
    rewards = torch.full((1, 7), 0.1)  # seven tenths do not sum to 0.7 in floating point
    for spec in (GroupAdvantage(eps=1e-12), GroupCenteredAdvantage(), RlooAdvantage()):
        assert torch.equal(compute_advantages(rewards, spec), torch.zeros(1, 7))


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [("token-mean", [1 / 6] * 3), ("sequence-mean", [1 / 3, 1 / 6, 1 / 9]), ("constant", [1 / 30] * 3)],
)
def test_weights(reduction: Reduction, expected: list[float]) -> None:
    weights = sequence_weights(torch.tensor([1, 2, 3]), reduction, max_new_tokens=10)
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("reduction", ["token-mean", "sequence-mean", "constant"])
def test_a_step_without_tokens_is_an_error(reduction: Reduction) -> None:
    with pytest.raises(ValueError, match="no response token"):
        sequence_weights(torch.tensor([0, 0]), reduction, max_new_tokens=10)
