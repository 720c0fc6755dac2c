"""Noise on training rewards: what it does to each, how often, to whom, and what it leaves alone."""

from __future__ import annotations

from typing import Any

import pytest
from helpers import tiny

from cvxrl.engine.trainer import Trainer
from cvxrl.errors import UserError
from cvxrl.recipe.reward import CoinNoise, ExactReward, FlipNoise, NoiseSpec
from cvxrl.recipe.schema import Recipe
from cvxrl.rollout.noise import noisy_rewards
from cvxrl.rollout.randomness import StreamKey
from cvxrl.tasks import Grade

FLIP, COIN = "task.reward.noise={kind: flip, probability: 0.25}", "task.reward.noise=coin"
SIGNED = {"correct": 3.0, "incorrect": -2.0}
MANY = 4000


def rewards(noise: NoiseSpec, right: list[bool]) -> list[float]:
    spec = ExactReward(**SIGNED, noise=noise)  # type: ignore[arg-type]
    grades = [Grade(SIGNED["correct" if each else "incorrect"], each, "7") for each in right]
    return noisy_rewards(grades, spec, [StreamKey(0, "reward-noise", (1, i, 0)) for i in range(len(right))])


def test_a_flip_exchanges_both_ways_and_a_coin_does_not_look() -> None:
    assert rewards(FlipNoise(probability=0.0), [True, False]) == [3.0, -2.0]
    assert rewards(FlipNoise(probability=1.0), [True, False]) == [-2.0, 3.0]
    assert rewards(CoinNoise(probability=1.0), [True, False]) == [3.0, 3.0]
    assert rewards(CoinNoise(probability=0.0), [True, False]) == [-2.0, -2.0]
    assert rewards(CoinNoise(), [True] * 99) == rewards(CoinNoise(), [False] * 99)


def test_the_shares_are_the_probabilities() -> None:
    """Within five standard errors of a binomial share."""
    for right in (True, False):
        own = SIGNED["correct" if right else "incorrect"]
        share = sum(r != own for r in rewards(FlipNoise(probability=0.2), [right] * MANY)) / MANY
        assert abs(share - 0.2) < 5 * (0.2 * 0.8 / MANY) ** 0.5
        share = sum(r == 3.0 for r in rewards(CoinNoise(probability=0.7), [right] * MANY)) / MANY
        assert abs(share - 0.7) < 5 * (0.7 * 0.3 / MANY) ** 0.5


def collected(*changes: str, step: int = 1) -> Any:
    return Trainer.build(
        tiny("math_grpo", "eval.every=0", "rollout.prompts=8", "rollout.max_new_tokens=16", *changes)
    ).collector.collect(step)


def test_the_log_keeps_the_grade_and_training_sees_the_noise() -> None:
    clean, noisy = collected(), collected(FLIP)
    assert noisy.sequences.responses == clean.sequences.responses
    same = ("reward/correct", "response/length", "rollout/groups")
    assert all(noisy.metrics[key] == clean.metrics[key] for key in same)
    changed = (noisy.rewards_PG != clean.rewards_PG).float()
    assert 0 < float(changed.mean()) == noisy.metrics["reward/changed"] < 0.5
    assert noisy.metrics["reward/mean"] == pytest.approx(float(noisy.rewards_PG.mean()))
    assert "reward/changed" not in clean.metrics and clean.metrics["reward/mean"] == clean.metrics["reward/correct"]
    whole = [bool(advantages.any()) for advantages in noisy.sequences.group_advantages]
    assert whole == [len(set(row.tolist())) > 1 for row in noisy.rewards_PG for _ in row], "from the noisy rewards"


def test_every_step_draws_anew_and_how_work_is_split_changes_none() -> None:
    first, second = collected(COIN).rewards_PG, collected(COIN, step=2).rewards_PG
    assert first.tolist() != second.tolist()
    assert first.tolist() == collected(COIN, "rollout.batch=3").rewards_PG.tolist()
    assert first.tolist() != collected(COIN, "seed=1").rewards_PG.tolist()
    # One sample more or one prompt less moves no other's draw.
    assert first.tolist() == collected(COIN, "rollout.samples=5").rewards_PG[:, :4].tolist()
    assert first[:7].tolist() == collected(COIN, "rollout.prompts=7").rewards_PG.tolist()


def test_dynamic_sampling_looks_for_contrast_in_what_is_trained_on() -> None:
    never = "task.reward.noise={kind: coin, probability: 0}"
    assert collected(never, "rollout.rounds=3").metrics["rollout/groups"] == 24
    assert collected(COIN, "rollout.rounds=3").metrics["rollout/groups"] < 24


def test_evaluations_do_not_know_it() -> None:
    found = []
    for changes in ((), ("task.reward.noise={kind: flip, probability: 1}",)):
        held_out = Trainer.build(tiny("math_grpo", *changes)).held_out
        assert held_out is not None
        record = held_out.evaluate(0).record
        found.append((record.task.digest, record.questions, held_out.evaluate(0).metrics()))
    assert found[0] == found[1] and found[0][-1]["eval/accuracy"] > 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("task.reward={kind: callable, function: 'a:b', noise: coin}",), "no `correct` and `incorrect`"),
        (("objective=sft", COIN), "learns from demonstrations"),
        (("advantage={kind: dense-logprob, verifier: x}", COIN), "learns from a verifier"),
        (("task.reward.noise={kind: flip, probability: 1.5}",), "probability"),
    ],
)
def test_noise_that_nothing_could_see_is_refused(changes: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError, match=said) as refused:
        tiny("math_lco_kld", *changes)
    assert "reward.noise" in str(refused.value)


@pytest.mark.parametrize("kind", ["math-verify", "exact"])
def test_every_reward_with_two_values_takes_it_and_the_plan_says_so(kind: str) -> None:
    recipe: Recipe = tiny("math_grpo", f"task.reward={{kind: {kind}, noise: {{kind: flip, probability: 0.1}}}}")
    assert recipe.task.reward.noise == FlipNoise(probability=0.1)
    assert any("probability 0.1" in note for note in recipe.notes)
