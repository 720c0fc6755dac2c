"""The loss of an optimizer step can be asked for at any weights, without an optimizer; sequences are cut anywhere."""

from __future__ import annotations

from dataclasses import fields
from itertools import product

import pytest
import torch
from helpers import quick_if, tiny
from torch import Tensor

from cvxrl.engine.loss import Loss
from cvxrl.engine.micro_batches import Limit
from cvxrl.engine.sequences import Sequences, token_batch
from cvxrl.engine.trainer import Trainer
from cvxrl.recipe.schema import Recipe


def remembered(recipe: Recipe) -> tuple[Loss, Sequences]:
    """A loss, and a step's sequences with all that later weights are compared with."""
    trainer = Trainer.build(recipe)
    loss = trainer.updater.loss
    return loss, loss.weigh(loss.remember(trainer.collector.collect(1).sequences, off_policy=True))


def weights(loss: Loss) -> list[Tensor]:
    return [p.detach().clone() for p in loss.policy.trained]


def move(loss: Loss, directions: list[Tensor], length: float) -> None:
    with torch.no_grad():
        for parameter, direction in zip(loss.policy.trained, directions, strict=True):
            parameter.add_(direction, alpha=length)


NAMES, LOSSES = ["math_lco_kld", "math_grpo", "math_tpo", "math_ppo"], ["train.loss=full-logits", "train.loss=chunked"]


@pytest.mark.parametrize(
    ("name", "how"), quick_if(lambda name, how: LOSSES[NAMES.index(name) % 2] == how, product(NAMES, LOSSES))
)
def test_evaluating_says_what_a_backward_pass_would_and_leaves_nothing(name: str, how: str) -> None:
    loss, step = remembered(tiny(name, how))
    before = weights(loss)
    first, again = loss.evaluate(step), loss.evaluate(step)
    assert first == again and all(p.grad is None for p in loss.policy.trained)
    assert first == pytest.approx(loss.backward(step), rel=1e-5, abs=1e-7)
    assert any(p.grad is not None and p.grad.any() for p in loss.policy.trained)
    assert all(map(torch.equal, before, weights(loss)))


def test_a_line_search_needs_no_optimizer() -> None:
    """Along the negative gradient LCO's loss falls at first, by its slope, and rises far beyond the minimum."""
    loss, step = remembered(tiny("math_lco_kld", "objective.negative_beta_scale=1"))
    start = loss.evaluate(step)["loss"]
    loss.backward(step)
    gradients = [p.grad.clone() for p in loss.policy.trained if p.grad is not None]
    slope = sum(float(g.double().square().sum()) for g in gradients)
    origin = weights(loss)
    found = {}
    for length in (1e-4, 1e-3, 30.0):
        move(loss, gradients, -length)
        found[length] = loss.evaluate(step)["loss"] - start
        with torch.no_grad():
            for parameter, kept in zip(loss.policy.trained, origin, strict=True):
                parameter.copy_(kept)
    assert found[1e-4] / 1e-4 == pytest.approx(-slope, rel=0.05)
    assert found[1e-3] < found[1e-4] < 0 < found[30.0]
    assert loss.evaluate(step)["loss"] == start


@pytest.mark.parametrize(
    ("name", "size"),
    quick_if(lambda *case: case == ("math_grpo", 1), product(NAMES[:2], [1, 7, 16])),
)
def test_how_a_step_is_split_changes_no_loss(name: str, size: int) -> None:
    whole, step = remembered(tiny(name))
    split, same = remembered(tiny(name, f"train.micro_batch={size}"))
    for loss in (whole, split):
        move(loss, [torch.ones_like(p) for p in loss.policy.trained], 1e-3)
    assert split.evaluate(same) == pytest.approx(whole.evaluate(step), rel=1e-5, abs=1e-7)


def test_every_list_is_cut_alike() -> None:
    loss, step = remembered(tiny("math_ppo", "regularizer.kl_coefficient=0.1"))
    chosen = [5, 2, 14]
    part = step.select(chosen)
    for field in fields(Sequences):
        before, after = getattr(step, field.name), getattr(part, field.name)
        if isinstance(before, list):
            assert len(before) == len(step) and all(after[k] is before[i] for k, i in enumerate(chosen)), field.name
        else:
            assert after is before
    assert part.positions == chosen and part.groups == [1, 0, 3] and part.select([2]).positions == [14]
    batch = token_batch(loss.batch(part)[0].logits_NV, part)
    assert batch.group_S is not None and batch.group_S.tolist() == [0, 1, 2]


def test_parts_are_everything_once_and_groups_stay_whole() -> None:
    _, step = remembered(tiny("math_tpo"))
    for limit in (Limit(), Limit(sequences=3), Limit(tokens=200)):
        alone = [i for part in step.split(limit) for i in part.positions]
        assert sorted(alone) == step.positions
        for part in step.split(limit, "group"):
            assert all(part.groups.count(group) == 4 for group in part.groups)
    assert not list(step.select([]).split(Limit())) and not list(step.select([]).split(Limit(), "group"))
    assert step.units("group") == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]
    assert step.units("sequence") == [[i] for i in range(16)]
