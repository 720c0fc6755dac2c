"""Sequences without an advantage get no backward pass, and nothing changes but the time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import pytest
import torch
from helpers import quick_if, tiny
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from cvxrl.engine.credit import with_group_advantages
from cvxrl.engine.loss import Loss
from cvxrl.engine.sequences import Sequences
from cvxrl.engine.trainer import Trainer
from cvxrl.recipe.schema import Recipe

EXACT = ["optim.max_grad_norm=null"]
RESTS = ["math_grpo", "math_gspo", "math_cispo", "math_reinforce", "math_lco_kld", "math_lco_mse", "math_lco_lch"]


def made(recipe: Recipe, idle: Sequence[int]) -> Sequences:
    """Sampled sequences with advantages of our own; those of the groups ``idle`` are zero."""
    sequences = Trainer.build(recipe).collector.collect(1).sequences
    groups = len(set(sequences.groups))
    given_PG = torch.randn(groups, len(sequences) // groups, generator=torch.Generator().manual_seed(0))
    given_PG[list(idle)] = 0.0
    return with_group_advantages(sequences, given_PG)


def stepped(recipe: Recipe, steps: Sequence[Sequences]) -> tuple[dict[str, float], Tensor, Tensor]:
    """Metrics of the last step, its gradient, and the parameters after it."""
    trainer = Trainer.build(recipe)
    seen: list[Tensor] = []

    def look(*_: object) -> None:
        grads = [p.grad for p in trainer.policy.model.parameters() if p.grad is not None]
        seen.append(parameters_to_vector(grads).clone())

    trainer.optimizer.register_step_pre_hook(look)
    for step, sequences in enumerate(steps, start=1):
        metrics = trainer.updater.update(sequences, step)
    return metrics, seen[-1], parameters_to_vector(trainer.policy.model.parameters()).detach()


def run_all(self: Loss, step: Sequences) -> tuple[Sequences, Sequences]:
    return step, step.select([])


# Of tokens, of groups and onto a target, under one of the two each.
QUICK = [
    ("math_grpo", "full-logits"),
    ("math_gspo", "chunked"),
    ("math_lco_mse", "chunked"),
]


@pytest.mark.parametrize(
    ("name", "loss"),
    quick_if(lambda *case: case in QUICK, product(RESTS, ["full-logits", "chunked"])),
)
def test_gradient_and_metrics_stay(name: str, loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny(name, *EXACT, f"train.loss={loss}", "train.inner_epochs=1", "train.minibatches=1")
    sequences = made(recipe, idle=[1])
    _, still = Trainer.build(recipe).updater.loss.split(sequences)
    assert still.positions == [i for i, group in enumerate(sequences.groups) if group == 1]
    fast = stepped(recipe, [sequences])
    monkeypatch.setattr(Loss, "split", run_all)
    slow = stepped(recipe, [sequences])
    assert float(slow[1].abs().max()) > 0
    torch.testing.assert_close(fast[1], slow[1], rtol=0, atol=1e-5 * float(slow[1].abs().max()))
    assert fast[0] == pytest.approx(slow[0], rel=1e-4, abs=1e-6)


def test_a_step_without_any_advantage_still_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Momentum and weight decay go on as they do with a gradient of zero."""
    recipe = tiny("math_grpo", "optim.weight_decay=0.1")
    steps = [made(recipe, idle=[]), made(recipe, idle=range(recipe.rollout.prompts))]
    before = stepped(recipe, steps[:1])[2]
    fast = stepped(recipe, steps)
    assert not fast[1].any() and not torch.equal(fast[2], before)
    monkeypatch.setattr(Loss, "split", run_all)
    assert torch.equal(fast[2], stepped(recipe, steps)[2])


@pytest.mark.parametrize(
    ("name", "changes"),
    quick_if(
        lambda name, changes: name in ("math_awr", "math_ppo") or changes == ["regularizer.kl_coefficient=0.1"],
        [
            ("math_awr", []),
            ("math_lco_kld", ["objective.support={kind: top-k-fill}"]),
            ("math_grpo", ["regularizer.kl_coefficient=0.1"]),
            ("math_grpo", ["regularizer.entropy_coefficient=0.1"]),
            ("math_pmd", []),
            ("math_ppo", []),
        ],
    ),
)
def test_what_is_pulled_without_an_advantage_does_not_rest(name: str, changes: list[str]) -> None:
    recipe = tiny(name, *changes)
    trainer = Trainer.build(recipe)
    sequences = trainer.collector.collect(1).sequences
    if sequences.values is None:
        sequences = made(recipe, idle=[0, 1])
    moving, still = trainer.updater.loss.split(sequences)
    assert moving.positions == list(range(len(sequences))) and not still.positions


def test_a_target_pulls_a_policy_back_that_has_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny("math_lco_kld", *EXACT, "train.inner_epochs=2", "optim.lr=1e-3")
    sequences = made(recipe, idle=[1])
    moved = stepped(recipe, [sequences])[1]
    monkeypatch.setattr(Sequences, "moved", False)
    wrong = stepped(recipe, [sequences])[1]
    assert float((wrong - moved).norm()) > 0.01 * float(moved.norm())


@pytest.mark.parametrize("idle", [[1], [0, 1]])
def test_without_their_forward_pass_training_is_the_same_and_means_are_over_the_others(
    idle: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny("math_grpo", *EXACT, "optim.weight_decay=0.1")
    sequences = made(recipe, idle)
    told, gradient, parameters = stepped(recipe, [sequences])
    passed: list[int] = []
    weighted = Loss._weighted

    def heard(self: Loss, micro: Sequences) -> object:
        passed.extend(micro.groups)
        return weighted(self, micro)

    monkeypatch.setattr(Loss, "_weighted", heard)
    quiet = recipe.model_copy(update={"logging": recipe.logging.model_copy(update={"idle_groups": False})})
    found, same_gradient, same_parameters = stepped(quiet, [sequences])
    assert set(passed) == set(sequences.groups) - set(idle)
    assert torch.equal(gradient, same_gradient) and torch.equal(parameters, same_parameters)
    assert found["loss"] == pytest.approx(told["loss"], abs=1e-9)
    assert found["grad/norm"] == told["grad/norm"]
    if len(idle) == recipe.rollout.prompts:
        assert "policy/entropy" not in found
        return
    others = sequences.select([i for i, group in enumerate(sequences.groups) if group not in idle])
    loss = Trainer.build(recipe).updater.loss
    with torch.no_grad():
        entropy = loss.losses(loss.weigh(others))[2]["policy/entropy"]
    assert found["policy/entropy"] == pytest.approx(float(entropy.mean()), rel=1e-5)
    assert found["policy/entropy"] != pytest.approx(told["policy/entropy"], rel=1e-5)
