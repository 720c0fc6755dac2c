"""Several processes that share a step: the same normaliser, the same metrics, and the gradient of one process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SilentSink, quick_if, tiny
from thread_world import Meeting, ThreadWorld, together
from torch import Tensor
from two_ranks import ranks

from cvxrl.engine.loss import Loss
from cvxrl.engine.sequences import Sequences
from cvxrl.engine.session import run_training
from cvxrl.engine.trainer import Trainer
from cvxrl.engine.world import SingleProcess, World, share, sum_metrics
from cvxrl.runs.directory import RunDir

ALL = ["token-mean", "sequence-mean", "constant"]


def gradient_of(loss: Loss, sequences: Sequences) -> tuple[dict[str, float], list[Tensor]]:
    parameters = loss.policy.trained
    for parameter in parameters:
        parameter.grad = None
    metrics = loss.backward(loss.weigh(loss.remember(sequences, off_policy=False)))
    return metrics, [p.grad.clone() for p in parameters if p.grad is not None]


# Every reduction once, one of them of groups.
QUICK = (("math_grpo", "token-mean"), ("math_tpo", "sequence-mean"), ("math_grpo", "constant"))


@pytest.mark.parametrize(
    ("name", "reduction"), quick_if(lambda *case: case in QUICK, product(["math_grpo", "math_tpo"], ALL))
)
def test_shares_add_up_to_the_whole(name: str, reduction: str) -> None:
    recipe = tiny(name, f"reduction={reduction}", "train.micro_batch=4")
    trainer = Trainer.build(recipe)
    sequences = trainer.collector.collect(1).sequences
    metrics, whole = gradient_of(trainer.updater.loss, sequences)
    # Uneven shares of whole groups, and as many policies: threads share memory, processes would not.
    size, cut = 2, 3 * recipe.rollout.samples
    shares = [sequences.select(range(cut)), sequences.select(range(cut, len(sequences)))]
    assert [len(share) for share in shares] == [12, 4]
    losses = [Trainer.build(recipe).updater.loss for _ in range(size)]

    def on_ranks(worlds: Sequence[World]) -> list[tuple[dict[str, float], list[Tensor]]]:
        ranks = [replace(loss, world=world) for loss, world in zip(losses, worlds, strict=True)]
        return together([lambda r=r: gradient_of(ranks[r], shares[r]) for r in range(size)])  # type: ignore[misc]

    meeting = Meeting(size)
    found = on_ranks([ThreadWorld(rank, meeting) for rank in range(size)])
    scale = max(float(g.abs().max()) for g in whole)
    for parts in zip(whole, *(gradients for _, gradients in found), strict=True):
        torch.testing.assert_close(sum(parts[1:]), parts[0], rtol=0, atol=1e-5 * scale)
    assert found[0][0] == found[1][0] == pytest.approx(metrics, rel=1e-4, abs=1e-6)
    # Ranks that know nothing of one another normalise by their own share, which is another gradient.
    alone = on_ranks([SingleProcess(), SingleProcess()])
    wrong = [sum(parts) for parts in zip(*(gradients for _, gradients in alone), strict=True)]
    assert max(float((a - b).abs().max()) for a, b in zip(wrong, whole, strict=True)) > 0.1 * scale


def test_one_process_is_the_whole() -> None:
    world: World = SingleProcess()
    assert (world.rank, world.size, world.is_main) == (0, 1, True)
    values = {"a": 0.1 + 0.2, "b": 1e-30, "c": float("inf")}
    assert sum_metrics(world, values) == values and world.gather("x") == ["x"]


@pytest.mark.parametrize("rounds", [1, 2])
def test_ranks_sample_what_one_process_would(rounds: int) -> None:
    """Neither the number of processes nor which of them asks changes a completion, its credit, or what is logged."""
    drawn = ("task.reward.noise={kind: flip, probability: 0.5}", f"rollout.rounds={rounds}")
    recipe = tiny("math_grpo", *drawn, "rollout.samples=3", "eval.every=0")
    whole = Trainer.build(recipe).collector.collect(1)
    size = 2
    meeting = Meeting(size)
    trainers = [Trainer.build(recipe, ThreadWorld(rank, meeting)) for rank in range(size)]
    parts = together([lambda t=t: t.collector.collect(1) for t in trainers])  # type: ignore[misc]
    assert parts[0].metrics == parts[1].metrics == pytest.approx(whole.metrics, abs=1e-7)
    assert parts[0].sampled_tokens == parts[1].sampled_tokens == whole.sampled_tokens
    if rounds == 1:
        for name in ("prompts", "responses", "ids"):
            assert [x for part in parts for x in getattr(part.sequences, name)] == getattr(whole.sequences, name)
        credited = [a for part in parts for a in part.sequences.advantages]
        assert all(map(torch.equal, credited, whole.sequences.advantages or []))


@pytest.mark.parametrize(("size", "count"), [(1, 5), (2, 5), (3, 3), (4, 3)])
def test_shares_are_everything_once(size: int, count: int) -> None:
    meeting = Meeting(size)
    shares = [share(ThreadWorld(rank, meeting), count) for rank in range(size)]
    assert [i for part in shares for i in part] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    recipe = tiny("math_grpo")

    def job(world: Any) -> tuple[str, int]:
        world.open(torch.device("cpu"), 60.0)
        sink, run_dir = SilentSink(), RunDir.of(tmp_path / str(world.rank), recipe)
        return run_training(recipe, run_dir, sink, "new", world=world).status, len(sink.records)

    assert ranks(job) == [("finished", recipe.train.steps + 1), ("finished", 0)]
    assert RunDir.of(tmp_path / "0", recipe).is_finished() and not (tmp_path / "1").exists()
