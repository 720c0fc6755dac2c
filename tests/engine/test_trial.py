"""Steps of a real policy under a step control, held against losses, gradients and KLs that are computed apart."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from helpers import SilentSink, tiny, without_times
from torch import Tensor

from cvxrl.engine.credit import with_group_advantages
from cvxrl.engine.displacement import Displacement
from cvxrl.engine.sequences import Sequences
from cvxrl.engine.session import run_training
from cvxrl.engine.trainer import Trainer
from cvxrl.engine.trial import last_share
from cvxrl.recipe.schema import Recipe
from cvxrl.runs.directory import RunDir

SMALL = ("rollout.prompts=2", "rollout.max_new_tokens=12", "eval.every=0")
SEARCH = "step.kind=line-search"
REGION = "step.kind=trust-region"
FAR = "optim.lr=1e-2"  # a whole step raises the loss


@cache
def sampled(name: str, *overrides: str) -> Sequences:
    """A step's sequences, with advantages of our own where a response has one; those of the last group are zero."""
    recipe = tiny(name, *SMALL, *overrides)
    sequences = Trainer.build(recipe).collector.collect(1).sequences
    generator = torch.Generator().manual_seed(0)
    if sequences.values is not None:
        given = [torch.randn(length, generator=generator) for length in sequences.lengths]
        return replace(sequences, advantages=given, returns=given)
    if sequences.group_advantages is None:
        return sequences
    given_PG = torch.randn(recipe.rollout.prompts, recipe.rollout.samples, generator=generator)
    given_PG[-1] = 0.0
    return with_group_advantages(sequences, given_PG)


def trainables(trainer: Trainer) -> list[Tensor]:
    modules = [trainer.policy.model, *([trainer.critic] if trainer.critic else [])]
    return [p for module in modules for p in module.parameters() if p.requires_grad]


def weights(trainer: Trainer) -> list[Tensor]:
    return [p.detach().clone() for p in trainables(trainer)]


def put(trainer: Trainer, values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(trainables(trainer), values, strict=True):
            parameter.copy_(value)


@dataclass(frozen=True)
class Stepped:
    """One update: what was logged, and the parameters before and after it."""

    trainer: Trainer
    metrics: dict[str, float]
    before: list[Tensor]
    after: list[Tensor]


def stepped(recipe: Recipe, sequences: Sequences, steps: int = 1) -> Stepped:
    trainer = Trainer.build(recipe)
    before = weights(trainer)
    for step in range(1, steps + 1):
        metrics = trainer.updater.update(sequences, step)
    return Stepped(trainer, metrics, before, weights(trainer))


ARMIJO: list[tuple[str, tuple[str, ...]]] = [
    ("math_lco_kld", ("optim.weight_decay=0.01", "optim.max_grad_norm=0.01")),
    ("math_lco_kld", ("train.loss=chunked", "train.micro_batch=3")),
    ("math_lco_lch", ("optim={kind: sgd, lr: 30.0, momentum: 0.9, nesterov: true, max_grad_norm: null}",)),
    ("math_dro", ("optim={kind: adafactor, lr: 0.1}", "regularizer.kl_coefficient=0.1")),
    ("math_lco_kld", ("model.lora={rank: 2}", "optim.lr=0.1")),
    ("math_tpo", ("reduction=sequence-mean",)),
    ("pref_dpo", ("optim.lr=0.03",)),
]
QUICK = 2


@pytest.mark.parametrize(
    ("name", "overrides"),
    [*ARMIJO[:QUICK], *(pytest.param(*case, marks=pytest.mark.slow) for case in ARMIJO[QUICK:])],
)
def test_the_accepted_share_decreases_the_loss_enough_and_the_next_larger_does_not(
    name: str, overrides: tuple[str, ...]
) -> None:
    sequences = sampled(name)
    found = stepped(tiny(name, *SMALL, FAR, SEARCH, *overrides), sequences)
    share = found.metrics["step/share"]
    assert share == 0.5 ** (found.metrics["step/evaluations"] - 1) < 1
    trainer = Trainer.build(tiny(name, *SMALL, FAR, *overrides))
    loss = trainer.updater.loss
    step = loss.weigh(loss.remember(sequences, off_policy=True))
    loss.backward(step)
    raw = [p.grad.double().flatten() for p in trainables(trainer) if p.grad is not None]  # nothing has clipped it
    trainer.updater.update(sequences, 1)
    d = [b - a for a, b in zip(found.before, weights(trainer), strict=True)]
    for a, b, way in zip(found.before, found.after, d, strict=True):
        torch.testing.assert_close(b, a + share * way, rtol=0, atol=1e-7)
    slope = sum(float(g @ way.double().flatten()) for g, way in zip(raw, d, strict=True))
    put(trainer, found.before)
    start = loss.evaluate(step)["loss"]
    assert found.metrics["step/loss_before"] == pytest.approx(start, rel=1e-4, abs=1e-6)

    def excess(a: float) -> float:
        put(trainer, [x + a * way for x, way in zip(found.before, d, strict=True)])
        return loss.evaluate(step)["loss"] - start - 0.1 * a * slope

    assert excess(share) <= 1e-6 < excess(2 * share)
    put(trainer, found.after)
    assert found.metrics["step/loss_after"] == pytest.approx(loss.evaluate(step)["loss"], rel=1e-4, abs=1e-6)


WHOLE = "step={kind: line-search, tolerance: 1.0e+6, allow_unbounded: true}"
EVERYWHERE = "step={kind: trust-region, kl: 1.0e+6}"
TWICE = ("train.minibatches=2", "train.inner_epochs=2")


@pytest.mark.parametrize(
    ("name", "control", "changes"),
    [
        ("math_lco_kld", WHOLE, ()),
        ("math_lco_kld", EVERYWHERE, TWICE),
        ("math_ppo", EVERYWHERE, ()),
        ("math_ppo", WHOLE, (*TWICE, "optim={kind: sgd, lr: 0.1}")),  # momentum would lead uphill at times
    ],
)
def test_a_search_that_takes_every_step_whole_is_no_search(name: str, control: str, changes: tuple[str, ...]) -> None:
    fixed = stepped(tiny(name, *SMALL, *changes), sampled(name), steps=2)
    found = stepped(tiny(name, *SMALL, *changes, control), sampled(name), steps=2)
    assert found.metrics["step/share"] == 1.0 and found.metrics["step/evaluations"] == 1.0
    assert all(map(torch.equal, fixed.after, found.after))
    assert {key: found.metrics[key] for key in fixed.metrics} == fixed.metrics


@pytest.mark.parametrize(("name", "changes"), [("math_grpo", ()), ("math_lco_kld", ("train.loss=chunked", *TWICE))])
def test_a_step_stays_in_its_region(name: str, changes: tuple[str, ...]) -> None:
    recipe, sequences = tiny(name, *SMALL, FAR, REGION, *changes), sampled(name)
    trainer = Trainer.build(recipe)
    updater, reader = trainer.updater, replace(trainer.updater.loss.reader, head=None)
    remembered = updater.loss.remember(sequences, off_policy=bool(changes))
    said = [torch.cat(reader.logits(sequences)).double().log_softmax(-1)]
    for index in range(3):
        metrics = updater.step(remembered, index)
        said.append(torch.cat(reader.logits(sequences)).double().log_softmax(-1))
        before, after = said[-2:]
        kl = float((before.exp() * (before - after)).sum(-1).mean())
        assert 0 < kl <= 1.001e-3 and metrics["step/kl"] == pytest.approx(kl, rel=1e-3)
        assert index or metrics["step/evaluations"] > 1


@pytest.mark.parametrize("how", [(), ("optim={kind: sgd, lr: 1.0e+3, momentum: 0.9}",)])
def test_a_refused_step_leaves_the_parameters_bit_for_bit(how: tuple[str, ...]) -> None:
    never = "step={kind: line-search, max_evaluations: 2}"
    found = stepped(tiny("math_lco_kld", *SMALL, "optim.lr=3.0", *how, never), sampled("math_lco_kld"))
    assert found.metrics["step/refused"] == 1.0 and found.metrics["step/share"] == 0.0
    assert all(map(torch.equal, found.before, found.after))
    assert found.trainer.optimizer.state and found.metrics["step/loss_after"] == found.metrics["step/loss_before"]
    assert last_share(found.trainer.optimizer) == 0.25


@pytest.mark.parametrize("control", [SEARCH, REGION])
def test_how_a_step_is_split_changes_no_accepted_share(control: str) -> None:
    found = [
        stepped(tiny("math_lco_kld", *SMALL, FAR, control, *how), sampled("math_lco_kld"), steps=2)
        for how in ((), ("train.micro_batch=1",), ("train.micro_batch=3",), ("train.loss=chunked",))
    ]
    for one in found[1:]:
        for key in ("step/share", "step/evaluations", "step/refused"):
            assert one.metrics[key] == found[0].metrics[key] != 1.0 or key != "step/share"
    assert len({last_share(one.trainer.optimizer) for one in found}) == 1


FOUR = ("train.inner_epochs=4", "train.minibatches=4", "train.reset_optimizer=true")


@pytest.mark.parametrize("how", [(), pytest.param(FOUR, marks=pytest.mark.slow)])
def test_a_searched_run_resumes_bit_for_bit(how: tuple[str, ...], tmp_path: Path) -> None:
    recipe = tiny("math_lco_kld", *SMALL, FAR, SEARCH, *how, "train.steps=4", "checkpoint.every=2", "checkpoint.keep=9")
    straight, again = RunDir.of(tmp_path / "a", recipe), RunDir.of(tmp_path / "b", recipe)
    run_training(recipe, straight, SilentSink(), "new")
    shutil.copytree(straight.path, again.path)
    shutil.rmtree(again.checkpoints / "step-000004")
    shutil.rmtree(again.policy)
    again.record.write_text(again.read_record().model_copy(update={"status": "interrupted"}).model_dump_json())
    run_training(recipe, again, SilentSink(), "resume")
    one, two = ([json.loads(line) for line in d.metrics.read_text().splitlines()] for d in (straight, again))
    assert [without_times(record) for record in one] == [without_times(record) for record in two]
    assert all(0 <= record["step/share"] < 1 for record in one)
    weights = [(d.policy / "model.safetensors").read_bytes() for d in (straight, again)]
    assert weights[0] == weights[1]


def test_shares_are_taken_exactly_and_rounded_once() -> None:
    start, end = torch.tensor([1.0, 2.0, 1e-3]), torch.tensor([1.5, -2.0, 1e-3 + 1e-9])
    for dtype in (torch.float32, torch.bfloat16):
        parameter = start.to(dtype).clone()
        way = Displacement([(parameter, parameter)])
        parameter.copy_(end)
        kept = parameter.clone()
        assert way.slope([torch.tensor([2.0, 1.0, 0.0])]) == pytest.approx(1.0 - 4.0)
        for share in (0.25, 2.0, 1.0, 0.0, 1.0):
            way.move(share)
            exact = start.to(dtype).double() + share * (kept.double() - start.to(dtype).double())
            assert torch.equal(parameter, exact.to(dtype)) or torch.allclose(parameter.double(), exact, rtol=2e-7)
        assert torch.equal(parameter, kept)


def test_fp32_copies_are_what_is_searched() -> None:
    copy, half = torch.zeros(4), torch.zeros(4, dtype=torch.bfloat16)
    way = Displacement([(copy, half)])
    copy.copy_(torch.tensor([1.0, 1.001, -3.0, 1e-4]))
    half.copy_(copy)
    way.move(0.5)
    assert torch.equal(copy, torch.tensor([0.5, 0.5005, -1.5, 5e-5])) and torch.equal(half, copy.bfloat16())
    way.move(0.0)
    assert not copy.any() and not half.any()
