"""Two ranks, each with the whole policy, against one process: what is asked, drawn, credited, lost and learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from helpers import tiny, without_times
from torch import Tensor
from two_ranks import ranks

from cvxrl.engine.collectors import Experience
from cvxrl.engine.trainer import Hooks, Record, Trainer
from cvxrl.engine.world import SingleProcess, World
from cvxrl.recipe.schema import Recipe
from cvxrl.report.stop import StopRequest

# Uneven shares throughout: three prompts on two ranks.
SMALL = ("rollout.prompts=3", "eval.every=2", "eval.prompts=3", "eval.samples=1", "logging.gradients=2")
SMALL += ("rollout.max_new_tokens=12",)
# So short, next to no reply is right.
COIN = "task.reward.noise=coin"
WITHOUT_REWARDS = ("base_sft", "pref_dpo", "math_lco_kld_dense")
CASES: Mapping[str, tuple[str, ...]] = {
    "grpo": ("math_grpo", "train.check_every=1"),
    "lco-kld": ("math_lco_kld", "train.micro_batch=2"),
    "ppo": ("math_ppo", "advantage.whiten=true"),
    "off-policy": ("math_grpo", "train.inner_epochs=2", "train.minibatches=6", "rollout.rounds=2"),
    "chunked": ("math_lco_kld", "train.loss=chunked", "advantage=batch", "train.inner_epochs=2"),
    "lora": ("math_grpo", "model.lora={rank: 4}", "step={kind: trust-region, kl: 1e-3, sequences: 5}"),
    "sft": ("base_sft", "train.minibatches=3"),
    "dpo": ("pref_dpo",),
    "lagged": ("math_grpo", "rollout.lag=1"),
}
SLOW = ("sft", "dpo", "lagged")
QUICK = ("grpo", "ppo", "off-policy", "chunked")
# Rounding of sums in another order, and what three steps of Adam make of it where a gradient is next to nothing.
LOSS, WEIGHT = 1e-5, 2e-4


@dataclass(frozen=True)
class Outcome:
    """What a run of the trainer came to: records, what each step trained on, and the weights at its end."""

    records: list[Record]
    steps: list[list[tuple[int, list[int], list[int]]]]
    weights: dict[str, Tensor]


class Watched:
    """A collector whose sequences are remembered."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.steps = inner, []  # type: ignore[var-annotated]

    def collect(self, step: int) -> Experience:
        found: Experience = self.inner.collect(step)
        s = found.sequences
        self.steps.append(list(zip(s.positions, s.prompts, s.responses, strict=True)))
        return found


def recipe_of(case: str, steps: int = 2) -> Recipe:
    name, *overrides = CASES[case]
    recipe = tiny(name, *SMALL, *(() if name in WITHOUT_REWARDS else (COIN,)), *overrides)
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"steps": steps})})


def outcome(recipe: Recipe, world: World) -> Outcome:
    trainer, records = Trainer.build(recipe, world), []
    watched = Watched(trainer.collector)
    trainer.collector = watched  # type: ignore[assignment]
    hooks = Hooks(records.append, lambda *_: None, lambda *_: None, lambda _: None)
    assert trainer.run(hooks, StopRequest())
    trainer.grader.close()
    with trainer.policy.whole():
        weights = {name: p.detach().clone() for name, p in trainer.policy.model.named_parameters() if p.requires_grad}
    return Outcome([without_times(record) for record in records], watched.steps, weights)


def on_ranks(recipes: Mapping[str, Recipe]) -> dict[str, list[Outcome]]:
    """Of every recipe, by rank; of the first twice."""

    def job(world: Any) -> dict[str, Outcome]:
        world.open(torch.device("cpu"), 120.0)
        found = {name: outcome(recipe, world) for name, recipe in recipes.items()}
        first = next(iter(recipes))
        return found | {"again": outcome(recipes[first], world)}

    told = ranks(job)
    return {name: [one[name] for one in told] for name in told[0]}


def compare(case: str, alone: Outcome, both: list[Outcome], weight: float) -> None:
    told = [
        sorted(sequence for part in parts for sequence in part)
        for parts in zip(*(one.steps for one in both), strict=True)
    ]
    assert told == [sorted(step) for step in alone.steps], "the same prompts and completions"
    assert both[0].records == both[1].records
    for mine, theirs in zip(alone.records, both[0].records, strict=True):
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            deviation = key.startswith("check/")  # of rounding itself
            assert theirs[key] == pytest.approx(value, rel=LOSS, abs=1e-4 if deviation else LOSS), (mine["step"], key)
    for name, weights in alone.weights.items():
        assert torch.equal(both[0].weights[name], both[1].weights[name])
        assert float((weights - both[0].weights[name]).abs().max()) <= weight, name


@pytest.fixture(scope="module")
def together() -> dict[str, list[Outcome]]:
    return on_ranks({case: recipe_of(case) for case in QUICK})


@pytest.mark.parametrize("case", QUICK)
def test_two_ranks_do_what_one_process_does(case: str, together: dict[str, list[Outcome]]) -> None:
    compare(case, outcome(recipe_of(case), SingleProcess()), together[case], WEIGHT)


def test_the_same_command_gives_the_same_bits(together: dict[str, list[Outcome]]) -> None:
    first, again = together[QUICK[0]], together["again"]
    assert [one.records for one in first] == [one.records for one in again]
    assert all(torch.equal(first[0].weights[name], weights) for name, weights in again[0].weights.items())


@pytest.mark.slow
def test_twenty_steps_on_two_ranks() -> None:
    """Adam divides by the size of a gradient, so that a weight without one may walk a learning rate a step."""
    recipes = {case: recipe_of(case, 20 if case not in SLOW else 3) for case in CASES}
    both = on_ranks(recipes)
    for case, recipe in recipes.items():
        steps, bound = recipe.train.steps, recipe.optim.lr
        compare(case, outcome(recipe, SingleProcess()), both[case], WEIGHT if steps == 3 else steps * bound)
