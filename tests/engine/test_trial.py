"""Steps of a real policy under a step control, held against losses, gradients and KLs that are computed apart."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import tiny
from trials import ALLOWED, FAR, REGION, SEARCH, SMALL, put, sampled, stepped, trainables, weights

from cvxrl.engine.displacement import Displacement
from cvxrl.engine.step_control import search
from cvxrl.engine.trainer import Trainer
from cvxrl.engine.trial import last_share

ARMIJO: list[tuple[str, str, tuple[str, ...]]] = [
    ("math_lco_kld", SEARCH, ("optim.weight_decay=0.01", "optim.max_grad_norm=0.01")),
    ("math_lco_kld", SEARCH, ("train.loss=chunked", "train.micro_batch=3", "model.lora={rank: 2}", "optim.lr=0.1")),
    ("math_lco_lch", SEARCH, ("optim={kind: sgd, lr: 30.0, momentum: 0.9, nesterov: true, weight_decay: 1.0e-3}",)),
    ("math_dro", SEARCH, ("optim={kind: adafactor, lr: 0.1}", "regularizer.kl_coefficient=0.1")),
    ("math_tpo", SEARCH, ("reduction=sequence-mean",)),
    ("math_ppo", ALLOWED, ()),
    ("pref_dpo", SEARCH, ("optim.lr=0.03",)),
]
QUICK = 2


@pytest.mark.parametrize(
    ("name", "control", "overrides"),
    [*ARMIJO[:QUICK], *(pytest.param(*case, marks=pytest.mark.slow) for case in ARMIJO[QUICK:])],
)
def test_the_accepted_share_decreases_the_loss_enough_and_the_next_larger_does_not(
    name: str, control: str, overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    slopes: list[float] = []
    monkeypatch.setattr("cvxrl.engine.trial.search", lambda *a: slopes.append(a[2]) or search(*a))  # type: ignore[func-returns-value]
    sequences = sampled(name)
    found = stepped(tiny(name, *SMALL, FAR, control, *overrides), sequences)
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
        torch.testing.assert_close(b, a + share * way, rtol=0, atol=2e-7)
    slope = sum(float(g @ way.double().flatten()) for g, way in zip(raw, d, strict=True))
    assert slopes == [pytest.approx(slope, rel=1e-3)]
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
        pytest.param("math_lco_kld", WHOLE, (), marks=pytest.mark.slow),
        ("math_lco_kld", EVERYWHERE, TWICE),
        pytest.param("math_ppo", EVERYWHERE, (), marks=pytest.mark.slow),
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


@pytest.mark.parametrize("control", [SEARCH, pytest.param(REGION, marks=pytest.mark.slow)])
def test_how_a_step_is_split_changes_no_accepted_share(control: str) -> None:
    trainers = [
        Trainer.build(tiny("math_lco_kld", *SMALL, FAR, control, *how))
        for how in ((), ("train.micro_batch=1",), ("train.micro_batch=3",), ("train.loss=chunked",))
    ]
    for step in (1, 2):
        found = [trainer.updater.update(sampled("math_lco_kld"), step) for trainer in trainers]
        for key in ("step/share", "step/evaluations", "step/refused"):
            assert len({metrics[key] for metrics in found}) == 1, key
        assert 0 < found[0]["step/share"] < 1 and found[0]["step/evaluations"] > (1 if step == 1 else 0)
    assert len({last_share(trainer.optimizer) for trainer in trainers}) == 1


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
