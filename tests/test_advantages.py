"""Advantages and reductions, by hand."""

from __future__ import annotations

import pytest
import torch

from cvxrl.advantages import candidates, compute_advantages, generalized_advantages, standardise
from cvxrl.objectives.reduce import Reduction, sequence_weights
from cvxrl.recipe.advantage import (
    AdvantageSpec,
    BatchAdvantage,
    GaeAdvantage,
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


def test_batch_standardises_over_the_whole_step() -> None:
    """Mean 1/2; six deviations of 1/2 over n - 1 = 5: standard deviation sqrt(0.3)."""
    rewards = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]], dtype=torch.float64)
    expected = (rewards - 0.5) / (0.3**0.5 + 0.01)
    torch.testing.assert_close(compute_advantages(rewards, BatchAdvantage(eps=0.01)), expected, rtol=1e-12, atol=0)


def test_epsilon_stands_beside_the_group_s_standard_deviation() -> None:
    found = compute_advantages(REWARDS[1:2], GroupAdvantage(eps=0.25))
    torch.testing.assert_close(found, (REWARDS[1:2] - 0.25) / 0.75, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("gamma", "lam", "expected"),
    [
        # delta = (0.5 * 2 - 1, 0.5 * 4 - 2, 3 - 4) = (0, 0, -1); each step back is worth gamma * lam = 1/4.
        (0.5, 0.5, [-1 / 16, -1 / 4, -1.0]),
        # One step: the deltas themselves.
        (0.5, 0.0, [0.0, 0.0, -1.0]),
        # Monte Carlo: the discounted reward minus the value.
        (1.0, 1.0, [2.0, 1.0, -1.0]),
    ],
)
def test_generalised_advantages_by_hand(gamma: float, lam: float, expected: list[float]) -> None:
    values_T = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    assert generalized_advantages(3.0, values_T, gamma, lam).tolist() == pytest.approx(expected)


def test_candidates_are_the_top_k_with_the_sampled_token() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0, 0.0]]).expand(3, 4)
    assert candidates(logits, torch.tensor([0, 1, 3]), 2).tolist() == [[0, 2], [0, 1], [0, 3]]
    assert candidates(logits, torch.tensor([0, 1, 3]), 9).tolist() == [[0, 2, 1, 3]] * 3


def test_scores_over_their_standard_deviation() -> None:
    scores = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)  # standard deviation 1
    assert standardise(scores, center=True, eps=0.0).tolist() == [[-1.0, 0.0, 1.0]]
    assert standardise(scores, center=False, eps=1.0).tolist() == [[0.5, 1.0, 1.5]]


def test_an_estimator_of_tokens_cannot_work_from_rewards_alone() -> None:
    with pytest.raises(TypeError, match="per token"):
        compute_advantages(REWARDS, GaeAdvantage())


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
