"""Step control beside everything else: resumed runs, half precision, dropout, overflow, several processes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import SHIPPED_POLICY, SilentSink, quick_if, tiny, without_times
from thread_world import Meeting, ThreadWorld, together
from trials import ALLOWED, FAR, REGION, SEARCH, SMALL, put, sampled, stepped, weights

from cvxrl.engine.divergence import DivergedError
from cvxrl.engine.session import run_training
from cvxrl.engine.step_control import Accepted
from cvxrl.engine.trainer import Trainer
from cvxrl.runs.directory import RunDir

FOUR = ("train.inner_epochs=4", "train.minibatches=4", "train.reset_optimizer=true")
SELDOM = ("step={kind: line-search, every: 3}", "train.minibatches=2")


@pytest.mark.parametrize("how", [SELDOM, *(pytest.param(how, marks=pytest.mark.slow) for how in ((), FOUR))])
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


@pytest.mark.parametrize("control", quick_if("line-search".__eq__, ["line-search", "trust-region"]))
def test_between_searches_the_accepted_share_is_taken_untried(control: str) -> None:
    """Four optimizer steps of which the first and the last are searched; each is held against a whole step's end."""
    step = f"step={{kind: {control}, every: 3, growth: 1.0}}"
    recipe = tiny("math_lco_kld", *SMALL, FAR, step, "train.inner_epochs=4", "optim={kind: sgd, lr: 3.0}")
    trainer, told, sequences = Trainer.build(recipe), [], sampled("math_lco_kld")
    trainer.updater.update(sequences, 1, told.append)
    assert [one["step/evaluations"] > 0 for one in told] == [True, False, False, True]
    shares = [one["step/share"] for one in told]
    assert 0 < shares[0] < 1 and shares[:3] == [shares[0]] * 3
    assert ["step/kl" in one or "step/loss_after" in one for one in told] == [True, False, False, True]
    # SGD at a share of its step is SGD at that share of its learning rate.
    rate = recipe.optim.lr * shares[0]
    fixed = Trainer.build(tiny("math_lco_kld", *SMALL, "train.inner_epochs=3", f"optim={{kind: sgd, lr: {rate!r}}}"))
    fixed.updater.update(sequences, 1)
    three = Trainer.build(recipe.model_copy(update={"train": recipe.train.model_copy(update={"inner_epochs": 3})}))
    three.updater.update(sequences, 1)
    for mine, theirs in zip(weights(three), weights(fixed), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)


def test_after_a_refused_step_the_next_is_searched() -> None:
    step = "step={kind: line-search, every: 5, max_evaluations: 1}"
    recipe = tiny("math_lco_kld", *SMALL, "optim.lr=1.0", step, "train.inner_epochs=3")
    told: list[dict[str, float]] = []
    Trainer.build(recipe).updater.update(sampled("math_lco_kld"), 1, told.append)
    assert [(one["step/refused"], one["step/evaluations"]) for one in told] == [(1.0, 1.0)] * 3


@pytest.mark.slow
@pytest.mark.parametrize("masters", ["true", "false"])
def test_half_precision_parameters_are_searched(masters: str) -> None:
    recipe = tiny("math_lco_kld", *SMALL, FAR, SEARCH, "model.dtype=bfloat16", f"optim.master_weights={masters}")
    found = stepped(recipe, sampled("math_lco_kld"))
    assert 0 < found.metrics["step/share"] < 1
    assert found.metrics["step/loss_after"] <= found.metrics["step/loss_before"] + 2e-4  # what bf16 can tell apart
    copies = found.trainer.optimizer.state_dict().get("masters", [])
    assert len(copies) == (len(found.after) if masters == "true" else 0)
    assert all(torch.equal(copy.bfloat16(), p) for copy, p in zip(copies, found.after, strict=False))
    assert any(not torch.equal(a, b) for a, b in zip(found.before, found.after, strict=True))


def test_dropout_is_the_same_in_every_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    def look(at: Callable[[float], float], before: float, *_: object) -> Accepted:
        seen.extend([at(0.0), at(1.0), at(0.0), before])
        return Accepted(0.0, 3, None, None)

    monkeypatch.setattr("cvxrl.engine.trial.search", look)
    lora = "model.lora={rank: 4, dropout: 0.5}"
    recipe = tiny("math_lco_kld", *SMALL, FAR, SEARCH, lora, "train.micro_batch=3")
    trainer = Trainer.build(recipe)
    # An adapter begins at zero, where dropping its inputs does nothing.
    generator = torch.Generator().manual_seed(0)
    put(trainer, [p + 0.1 * torch.randn(p.shape, generator=generator) for p in weights(trainer)])
    trainer.updater.update(sampled("math_lco_kld"), 1)
    at_start, at_end, again, before = seen
    assert at_start == again == before != at_end
    monkeypatch.setattr(torch, "manual_seed", lambda _: None)
    seen.clear()
    trainer.updater.update(sampled("math_lco_kld"), 1)
    assert seen[0] != seen[2]


@pytest.mark.parametrize("control", quick_if(REGION.__eq__, [SEARCH, REGION]))
def test_a_share_at_which_nothing_is_finite_is_no_divergence(control: str) -> None:
    huge = "optim={kind: sgd, lr: 1.0e+36}"
    sequences = sampled("math_lco_kld")
    found = stepped(tiny("math_lco_kld", *SMALL, control, huge), sequences)
    assert found.metrics["step/refused"] == 1.0 and found.metrics["step/evaluations"] == 12
    assert all(map(torch.equal, found.before, found.after))
    with pytest.raises(DivergedError):
        stepped(tiny("math_lco_kld", *SMALL, huge), sequences, steps=2)


def test_a_loss_that_is_not_finite_before_the_step_still_is_a_divergence() -> None:
    trainer = Trainer.build(tiny("math_lco_kld", *SMALL, SEARCH))
    with torch.no_grad():
        next(trainer.policy.model.parameters())[:] = torch.nan
    with pytest.raises(DivergedError, match="loss"):
        trainer.updater.update(sampled("math_lco_kld"), 1)


def test_a_surrogate_without_a_minimum_stops_nowhere() -> None:
    """Negative control, on one rollout used again and again at a learning rate far too large.

    LCO's search comes back to the policy that sampled where nothing was to be learned; the clipped surrogate does not
    see that it has left.
    """
    kl, sequences = {}, sampled("math_lco_kld", SHIPPED_POLICY)
    still = sequences.select([i for i, a in enumerate(sequences.group_advantages or []) if not a.any()])
    for name, control in (("math_lco_kld", SEARCH), ("math_grpo", ALLOWED)):
        updater = Trainer.build(tiny(name, *SMALL, SHIPPED_POLICY, "optim.lr=0.1", control)).updater
        remembered, reader = updater.loss.remember(sequences, off_policy=True), updater.loss.reader
        before = torch.cat(reader.logits(still)).log_softmax(-1)
        for index in range(5):
            updater.step(remembered, index)
        after = torch.cat(reader.logits(still)).log_softmax(-1)
        kl[name] = float((before.exp() * (before - after)).sum(-1).mean())
    assert kl["math_grpo"] > 20 * kl["math_lco_kld"]


def test_ranks_accept_one_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has its part of the step; the gradient is the sum of theirs."""
    # Adam steps by the sign of the first gradient that it sees, which rounding can turn.
    recipe = tiny("math_lco_kld", *SMALL, SEARCH, "optim={kind: sgd, lr: 100.0, max_grad_norm: null}")
    sequences = sampled("math_lco_kld")
    whole = stepped(recipe, sequences)
    meeting = Meeting(2)
    worlds = [ThreadWorld(rank, meeting) for rank in range(2)]
    trainers = [Trainer.build(recipe) for _ in worlds]
    parts = [sequences.select(range(6)), sequences.select(range(6, len(sequences)))]

    def on(rank: int) -> dict[str, float]:
        updater = replace(trainers[rank].updater, loss=replace(trainers[rank].updater.loss, world=worlds[rank]))
        return updater.step(updater.loss.remember(parts[rank], off_policy=False), 0)

    monkeypatch.setattr(torch, "manual_seed", lambda _: None)  # threads share one generator; there is no dropout here
    found = together([lambda rank=rank: on(rank) for rank in range(2)])  # type: ignore[misc]
    for key in ("step/share", "step/evaluations"):
        assert found[0][key] == found[1][key] == whole.metrics[key]
    assert found[0]["step/loss_after"] == found[1]["step/loss_after"]
    assert found[0]["step/loss_after"] == pytest.approx(whole.metrics["step/loss_after"], rel=1e-4)
