"""Rollouts of earlier policies: whose they are, what is remembered of whom, and that nothing else changes."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SilentSink, tiny
from thread_world import Meeting, ThreadWorld
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from cvxrl.engine.lag import LaggedCollector
from cvxrl.engine.plan import describe
from cvxrl.engine.self_check import SelfCheckError
from cvxrl.engine.session import run_training
from cvxrl.engine.trainer import Trainer
from cvxrl.errors import UserError
from cvxrl.recipe.schema import Recipe
from cvxrl.runs.directory import RunDir
from cvxrl.runs.jsonl import read_records

FAST = ("eval.every=0", "rollout.prompts=2", "rollout.samples=3", "rollout.max_new_tokens=6", "optim.lr=3e-3")
FAST += ("task.reward.noise=coin",)  # so short, no reply is right


def lagged(name: str, lag: int, *changes: str) -> Trainer:
    return Trainer.build(tiny(name, *FAST, f"rollout.lag={lag}", *changes))


def steps(trainer: Trainer, count: int) -> list[dict[str, float]]:
    return [trainer._step(step) for step in range(1, count + 1)]


def weights(trainer: Trainer) -> Tensor:
    return parameters_to_vector(trainer.policy.model.parameters()).detach().clone()


def test_each_step_trains_on_the_rollout_of_the_policy_so_many_steps_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    lag = 2
    trainer, used = lagged("math_grpo", lag), []
    update = type(trainer.updater).update

    def watch(self: Any, sequences: Any, step: int, tell: Any = None) -> dict[str, float]:
        used.append((set(sequences.versions), sequences.ids))
        return update(self, sequences, step, tell)

    monkeypatch.setattr(type(trainer.updater), "update", watch)
    records = steps(trainer, 5)
    assert [versions for versions, _ in used] == [{max(0, step - 1 - lag)} for step in range(1, 6)]
    assert [record["rollout/lag"] for record in records] == [min(lag, step - 1) for step in range(1, 6)]
    plain = Trainer.build(tiny("math_grpo", *FAST))
    assert [ids for _, ids in used] == [plain.collector.collect(step).sequences.ids for step in range(1, 6)]
    assert abs(records[0]["rollout/kl"]) < 1e-6 < records[1]["rollout/kl"]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("math_lco_kld", ("train.loss=chunked", "train.inner_epochs=2")),
        pytest.param("math_ppo", ("regularizer.kl_coefficient=0.1",), marks=pytest.mark.slow),
    ],
)
def test_it_is_what_collecting_early_by_hand_gives(name: str, changes: tuple[str, ...]) -> None:
    """Bit for bit: two rollouts of the untrained policy, remembered at once, then one of the policy after step 1."""
    trainer, hand = lagged(name, 1, *changes), Trainer.build(tiny(name, *FAST, *changes))
    steps(trainer, 3)

    def collected(step: int) -> Any:
        return hand.updater.loss.remember(hand.collector.collect(step).sequences, off_policy=True)

    first, second = collected(1), collected(2)
    hand.updater.update(first, 1)
    third = collected(3)
    hand.updater.update(second, 2)
    assert not torch.equal(weights(hand), weights(trainer))
    hand.updater.update(third, 3)
    assert torch.equal(weights(hand), weights(trainer))


def test_what_is_remembered_is_of_the_policy_that_sampled() -> None:
    trainer = lagged("math_lco_kld", 2)
    steps(trainer, 2)
    late = trainer.collector.collect(3).sequences
    reader = trainer.updater.loss.reader
    assert late.old_logprobs is not None and late.sampled_logprobs is not None
    then = torch.cat(late.old_logprobs), torch.cat(late.sampled_logprobs)
    torch.testing.assert_close(*then, atol=1e-4, rtol=0)
    assert float((torch.cat(reader.log_probs(late)) - then[1]).abs().max()) > 0.01, "the policy has moved"


def test_what_waits_is_taken_back_by_any_number_of_processes() -> None:
    trainer = lagged("math_grpo", 1)
    trainer.collector.collect(1)
    assert isinstance(trainer.collector, LaggedCollector)
    whole, loss, meeting = trainer.collector.state(), trainer.collector.loss, Meeting(2)
    parts = []
    for rank in range(2):
        mine = replace(trainer.collector, loss=replace(loss, world=ThreadWorld(rank, meeting)), waiting=deque())
        mine.restore(whole)
        parts += replace(mine, loss=loss).state()
    positions = [one["waiting"][0]["sequences"]["positions"] for one in parts]
    assert positions == [[0, 1, 2], [3, 4, 5]]
    for state in (parts, whole):
        trainer.collector.restore(state)
        assert trainer.collector.newest == 2 and len(trainer.collector.waiting) == 1
        same(trainer.collector.state(), whole)


def same(mine: Any, theirs: Any) -> None:
    if isinstance(mine, Tensor):
        assert torch.equal(mine, theirs)
    elif isinstance(mine, dict):
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            same(value, theirs[key])
    elif isinstance(mine, list):
        assert len(mine) == len(theirs)
        for one, other in zip(mine, theirs, strict=True):
            same(one, other)
    else:
        assert mine == theirs


def test_a_sampler_is_checked_when_it_samples() -> None:
    """Not when its rollouts are used, where the policy has moved; and a wrong one is found, whatever the lag."""
    trainer = lagged("math_grpo", 1, "train.check_every=1")
    records = steps(trainer, 3)
    assert all(record["check/ratio_deviation"] < 1e-3 for record in records)
    assert records[2]["rollout/kl"] > 1e-5
    broken = lagged("math_grpo", 1, "train.check_every=1")
    collect = broken.collector.inner.collect  # type: ignore[attr-defined]

    def wrong(step: int) -> Any:
        experience = collect(step)
        if step == 3:
            for said in experience.sequences.sampled_logprobs:
                said.add_(0.5)
        return experience

    broken.collector.inner = type("", (), {"collect": staticmethod(wrong)})()  # type: ignore[attr-defined]
    broken._step(1)
    with pytest.raises(SelfCheckError):
        broken._step(2)


# In the quick set, reliability/test_resume.py stops runs with a lag.
@pytest.mark.slow
def test_a_run_that_is_gone_on_with_is_the_longer_run(tmp_path: Path) -> None:
    def trained(recipe: Recipe, out: Path, entry: Any) -> list[dict[str, float]]:
        run_dir = RunDir.of(out, recipe)
        assert run_training(recipe, run_dir, SilentSink(), entry).status == "finished"
        return [{k: v for k, v in r.items() if not k.startswith("time/")} for r in read_records(run_dir.metrics)]

    short, long = (
        tiny("math_lco_kld", *FAST, "rollout.lag=2", "checkpoint.final=true", f"train.steps={n}") for n in (2, 4)
    )
    trained(short, tmp_path / "a", "new")
    assert trained(long, tmp_path / "a", "resume") == trained(long, tmp_path / "b", "new")


def test_the_plan_counts_what_waits() -> None:
    def peak(*changes: str) -> int:
        found = describe(tiny("math_lco_kld", "rollout.max_new_tokens=400", *changes)).memory_bytes
        assert found is not None
        return found

    tokens, vocab, hidden = 16 * 400, 15, 128
    once, reused = peak("train.minibatches=2"), peak("train.minibatches=2", "rollout.lag=3")
    kept = (reused - once) / 3
    assert kept == pytest.approx(tokens * (4 * vocab + 64), rel=0.5)
    chunked = peak("train.loss=chunked", "rollout.lag=3") - peak("train.loss=chunked", "rollout.lag=2")
    assert chunked == pytest.approx(4 * tokens * hidden, rel=0.5)


def test_responses_that_are_given_are_of_no_policy() -> None:
    with pytest.raises(UserError, match=r"rollout\.lag.*learns from demonstrations"):
        tiny("base_sft", "rollout.lag=1")
