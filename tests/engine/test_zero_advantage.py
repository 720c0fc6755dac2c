"""Sequences without an advantage get no backward pass, and nothing changes but the time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from cvxrl.engine.assemble import Memory
from cvxrl.engine.zero_advantage import split_resting
from helpers import tiny
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from cvxrl.engine import update
from cvxrl.engine.experience import Credit, Experience
from cvxrl.engine.trainer import Trainer
from cvxrl.recipe.schema import Recipe

EXACT = ["optim.max_grad_norm=null"]
RESTS = ["math_grpo", "math_gspo", "math_cispo", "math_reinforce", "math_lco_kld", "math_lco_mse", "math_lco_lch"]
ON_POLICY = Memory(None, None, None)


def made(recipe: Recipe, idle: Sequence[int]) -> Experience:
    """Sampled sequences with advantages of our own; those of the groups ``idle`` are zero."""
    experience = Trainer.build(recipe).collector.collect(1)
    groups = len(experience.responses) // experience.group_size
    given_PG = torch.randn(groups, experience.group_size, generator=torch.Generator().manual_seed(0))
    given_PG[list(idle)] = 0.0
    values = given_PG.flatten()
    advantages = [values[i].expand(len(r)) for i, r in enumerate(experience.responses)]
    return replace(experience, credit=Credit(advantages, group_PG=given_PG))


def stepped(recipe: Recipe, experiences: Sequence[Experience]) -> tuple[dict[str, float], Tensor, Tensor]:
    """Metrics of the last step, its gradient, and the parameters after it."""
    trainer = Trainer.build(recipe)
    seen: list[Tensor] = []

    def look(*_: object) -> None:
        grads = [p.grad for p in trainer.policy.model.parameters() if p.grad is not None]
        seen.append(parameters_to_vector(grads).clone())

    trainer.optimizer.register_step_pre_hook(look)
    for step, experience in enumerate(experiences, start=1):
        metrics = trainer.updater.update(experience, step)
    return metrics, seen[-1], parameters_to_vector(trainer.policy.model.parameters()).detach()


def run_all(
    recipe: Recipe, experience: Experience, indices: Sequence[int], memory: Memory
) -> tuple[list[int], list[int]]:
    return list(indices), []


@pytest.mark.parametrize("loss", ["full-logits", "chunked"])
@pytest.mark.parametrize("name", RESTS)
def test_gradient_and_metrics_stay(name: str, loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny(name, *EXACT, f"train.loss={loss}", "train.inner_epochs=1", "train.minibatches=1")
    experience = made(recipe, idle=[1])
    size = experience.group_size
    _, resting = split_resting(recipe, experience, range(len(experience.responses)), ON_POLICY)
    assert resting == list(range(size, 2 * size))
    fast = stepped(recipe, [experience])
    monkeypatch.setattr(update, "split_resting", run_all)
    slow = stepped(recipe, [experience])
    assert float(slow[1].abs().max()) > 0
    torch.testing.assert_close(fast[1], slow[1], rtol=0, atol=1e-5 * float(slow[1].abs().max()))
    assert fast[0] == pytest.approx(slow[0], rel=1e-4, abs=1e-6)


def test_a_step_without_any_advantage_still_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Momentum and weight decay go on as they do with a gradient of zero."""
    recipe = tiny("math_grpo", "optim.weight_decay=0.1")
    groups = recipe.rollout.prompts
    steps = [made(recipe, idle=[]), made(recipe, idle=range(groups))]
    before = stepped(recipe, steps[:1])[2]
    fast = stepped(recipe, steps)
    assert not fast[1].any() and not torch.equal(fast[2], before)
    monkeypatch.setattr(update, "split_resting", run_all)
    assert torch.equal(fast[2], stepped(recipe, steps)[2])


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("math_awr", []),
        ("math_lco_kld", ["objective.support={kind: top-k-fill}"]),
        ("math_grpo", ["regularizer.kl_coefficient=0.1"]),
        ("math_grpo", ["regularizer.entropy_coefficient=0.1"]),
        ("math_pmd", []),
        ("math_ppo", []),
    ],
)
def test_what_is_pulled_without_an_advantage_does_not_rest(name: str, changes: list[str]) -> None:
    recipe = tiny(name, *changes)
    collected = Trainer.build(recipe).collector.collect(1)
    assert collected.credit is not None
    if collected.credit.values is None:
        collected = made(recipe, idle=[0, 1])
    indices = range(len(collected.responses))
    assert split_resting(recipe, collected, indices, ON_POLICY) == (list(indices), [])


def test_a_target_pulls_a_policy_back_that_has_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny("math_lco_kld", *EXACT, "train.inner_epochs=2", "optim.lr=1e-3")
    experience = made(recipe, idle=[1])
    moved = stepped(recipe, [experience])[1]

    def rest_anyway(*parts: object) -> tuple[list[int], list[int]]:
        return split_resting(recipe, experience, range(len(experience.responses)), ON_POLICY)

    monkeypatch.setattr(update, "split_resting", rest_anyway)
    wrong = stepped(recipe, [experience])[1]
    assert float((wrong - moved).norm()) > 0.01 * float(moved.norm())
