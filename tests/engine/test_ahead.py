"""Rollouts made beside the updates: the numbers of a lag without it, and one end for both threads."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SilentSink, tiny, without_times
from thread_world import Meeting, ThreadWorld, together
from torch.nn.utils import parameters_to_vector

from cvxrl.engine.collectors import RolloutCollector
from cvxrl.engine.session import TrainResult, run_training
from cvxrl.engine.trainer import Trainer
from cvxrl.engine.update import Updater
from cvxrl.errors import Problem, UserError
from cvxrl.recipe.digest import digest
from cvxrl.rollout.generator import SamplerLost
from cvxrl.runs.directory import RunDir
from cvxrl.runs.jsonl import read_records

FAST = ("eval.every=0", "rollout.prompts=2", "rollout.samples=3", "rollout.max_new_tokens=6", "optim.lr=3e-3")
FAST += ("task.reward.noise=coin",)  # so short, no reply is right


def built(name: str, lag: int, ahead: bool, *changes: str) -> Trainer:
    return Trainer.build(tiny(name, *FAST, f"rollout.lag={lag}", f"rollout.ahead={str(ahead).lower()}", *changes))


def trained(trainer: Trainer, steps: int) -> Any:
    records = [without_times(trainer._step(step)) for step in range(1, steps + 1)]
    return records, parameters_to_vector(trainer.policy.model.parameters()).tolist()


@pytest.mark.parametrize(
    ("name", "lag", "changes"),
    [
        ("math_grpo", 1, ("train.minibatches=2", "rollout.rounds=2")),
        pytest.param("math_ppo", 1, ("regularizer.kl_coefficient=0.1",), marks=pytest.mark.slow),
        pytest.param("math_lco_kld", 2, ("train.loss=chunked", "train.inner_epochs=2"), marks=pytest.mark.slow),
        pytest.param("math_lco_kld_paper", 1, ("step=line-search",), marks=pytest.mark.slow),
        pytest.param(
            "math_lora", 1, ("model.lora.dropout=0.1", "regularizer.kl_coefficient=0.1"), marks=pytest.mark.slow
        ),
    ],
)
def test_it_changes_no_number(name: str, lag: int, changes: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, although every rollout is held back until the updates beside it are done."""
    plain = trained(built(name, lag, False, *changes), lag + 2)  # the last of which is of weights that have moved
    updated, update, generate = threading.Event(), Updater.update, RolloutCollector.collect

    def telling(*arguments: Any) -> Any:
        found = update(*arguments)
        updated.set()
        return found

    def late(self: Any, step: int) -> Any:
        if threading.current_thread() is not threading.main_thread():
            assert updated.wait(600), "both at once"
            updated.clear()
        return generate(self, step)

    monkeypatch.setattr(Updater, "update", telling)
    monkeypatch.setattr(RolloutCollector, "collect", late)
    assert trained(built(name, lag, True, *changes), lag + 2) == plain


@pytest.mark.slow
def test_ranks_keep_what_two_threads_say_apart() -> None:
    """Two ranks, each of which gathers metrics of rollouts in one thread and of updates in the other."""

    def ranks(ahead: bool) -> Any:
        meeting = Meeting(2)
        recipe = tiny("math_grpo", *FAST, "rollout.lag=1", f"rollout.ahead={str(ahead).lower()}", "rollout.rounds=2")
        trainers = [Trainer.build(recipe, ThreadWorld(rank, meeting)) for rank in range(2)]
        return together([lambda t=t: trained(t, 3) for t in trainers])  # type: ignore[misc]

    found = ranks(True)
    assert None not in found and found == ranks(False)


def test_frozen_weights_exist_once() -> None:
    second = built("math_lora", 1, True).second
    assert second is not None
    for (name, mine), theirs in zip(
        second.policy.model.named_parameters(), second.trained.model.parameters(), strict=True
    ):
        assert (mine.data_ptr() == theirs.data_ptr()) != theirs.requires_grad, name


def run(out: Path, *changes: str, entry: Any = "new") -> tuple[TrainResult, list[dict[str, float]]]:
    recipe = tiny("math_ppo", *FAST, "eval.every=1", "checkpoint.final=true", *changes)
    run_dir = RunDir.of(out, recipe)
    result = run_training(recipe, run_dir, SilentSink(), entry)
    return result, [without_times(record) for record in read_records(run_dir.metrics)]


def test_a_run_goes_on_with_it_or_without_it(tmp_path: Path) -> None:
    """The evaluation after a step is of that step's weights, and what waits in a checkpoint is the same."""
    lag, with_it = ("rollout.lag=2", "train.steps=4"), "rollout.ahead=true"
    _, whole = run(tmp_path / "a", *lag)
    run(tmp_path / "b", *lag, "train.steps=2", with_it)
    assert run(tmp_path / "b", *lag, "train.steps=3", entry="resume")[1] == whole[:4]
    assert run(tmp_path / "b", *lag, with_it, entry="resume")[1] == whole


def beside_each_other() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "beside"]


def endless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rollout that is made beside something never ends by itself."""
    collect = RolloutCollector.collect

    def never(self: Any, step: int) -> Any:
        while threading.current_thread() is not threading.main_thread():
            time.sleep(0.01)
        return collect(self, step)

    monkeypatch.setattr(RolloutCollector, "collect", never)


AHEAD = ("rollout.lag=1", "rollout.ahead=true")


def test_an_update_that_diverges_ends_the_rollout_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endless(monkeypatch)

    def poisoned(self: Updater, *_: Any) -> dict[str, float]:
        with torch.no_grad():
            next(self.loss.policy.model.parameters()).fill_(torch.nan)
        return {}

    monkeypatch.setattr(Updater, "update", poisoned)
    result, _ = run(tmp_path, *AHEAD)
    assert result.status == "diverged" and result.divergence is not None and result.divergence.step == 1
    assert not beside_each_other()


def test_an_interrupt_ends_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endless(monkeypatch)

    def pressed(*_: Any) -> dict[str, float]:
        raise KeyboardInterrupt

    monkeypatch.setattr(Updater, "update", pressed)
    assert run(tmp_path, *AHEAD)[0].status == "interrupted"
    assert not beside_each_other()


def test_an_error_of_the_sampler_is_the_run_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collect = RolloutCollector.collect

    def fails(self: Any, step: int) -> Any:
        if step == 3:
            raise UserError(Problem("the sampler is gone", "rollout.engine", remedy="start it again"))
        return collect(self, step)

    monkeypatch.setattr(RolloutCollector, "collect", fails)
    with pytest.raises(UserError, match="the sampler is gone"):
        run(tmp_path, *AHEAD, "checkpoint.every=1")
    (run_dir,) = tmp_path.glob("*/*")
    assert len(read_records(RunDir(run_dir).metrics)) == 2, "step 0 and step 1, which was over"
    assert not beside_each_other()


@pytest.mark.parametrize("lag", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_sampler_lost_beside_an_update_leaves_no_half_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lag: int
) -> None:
    """The policy has learned from a rollout that is gone, so the run goes on from the checkpoint before."""
    ahead = (f"rollout.lag={lag}", "rollout.ahead=true", "train.steps=4")
    _, whole = run(tmp_path / "whole", *ahead)
    collect = RolloutCollector.collect

    def fails(self: Any, step: int) -> Any:
        if step == lag + 3:
            raise SamplerLost(Problem("the sampler is gone", "rollout.engine", remedy="start it again"))
        return collect(self, step)

    with monkeypatch.context() as broken:
        broken.setattr(RolloutCollector, "collect", fails)
        for folder, changes in (("none", ()), ("every", ("checkpoint.every=1",))):
            with pytest.raises(SamplerLost):
                run(tmp_path / folder, *ahead, *changes)
    assert [path.name for path in tmp_path.glob("*/*/*/checkpoints/step-000002")] == ["step-000002"]
    assert not list(tmp_path.glob("*/*/*/checkpoints/step-000003")) and not list(
        tmp_path.glob("none/*/*/checkpoints/*")
    )
    assert run(tmp_path / "every", *ahead, "checkpoint.every=1", entry="resume")[1] == whole
    with pytest.raises(UserError, match="nothing to go on from"):
        run(tmp_path / "none", *ahead, entry="resume")


def test_it_needs_a_lag_and_is_no_other_experiment() -> None:
    with pytest.raises(UserError, match=r"(?s)rollout\.ahead.*set rollout\.lag to 1"):
        tiny("math_grpo", "rollout.ahead=true")
    with pytest.raises(UserError, match=r"rollout\.ahead.*learns from demonstrations"):
        tiny("base_sft", "rollout.ahead=true")
    with pytest.raises(UserError, match=r"(?s)rollout\.ahead.*second thread.*set rollout\.ahead to false"):
        tiny(
            "math_grpo",
            "rollout.lag=1",
            "rollout.ahead=true",
            "task.reward={kind: callable, function: a:b, isolated: false}",
        )
    one, other = (tiny("math_grpo", "rollout.lag=1", f"rollout.ahead={value}") for value in ("true", "false"))
    assert digest(one) == digest(other)
