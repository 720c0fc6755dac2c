"""The engine: invariances of the gradient, agreement of sampler and trainer, repeatability, resume."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from engine_steps import gradient, largest_difference
from helpers import SilentSink, quick_if, tiny, without_times
from torch import Tensor

from cvxrl.engine.divergence import DivergedError
from cvxrl.engine.loss import Loss
from cvxrl.engine.optimizer import build_optimizer
from cvxrl.engine.self_check import sampler_mismatch
from cvxrl.engine.session import run_training
from cvxrl.engine.state import load_state, save_state
from cvxrl.engine.trainer import Trainer
from cvxrl.engine.update import Updater, global_norm
from cvxrl.recipe.schema import Recipe
from cvxrl.runs.directory import RunDir
from cvxrl.runs.jsonl import read_records

ON_POLICY = ["math_lco_kld", "math_lco_mse", "math_lco_lch", "math_grpo", "math_reinforce"]
OF_SEQUENCES = ["math_gspo", "math_tpo", "math_pmd", "math_rebel", "math_gvpo", "pref_dpo", "pref_qrm"]


# The quick set has every reduction in tests/engine/test_world.py.
REDUCTIONS = ["token-mean", "sequence-mean", "constant"]


@pytest.mark.parametrize(
    ("name", "reduction"),
    [
        pytest.param(name, reduction, marks=[] if i == j == 0 else pytest.mark.slow)
        for i, name in enumerate(ON_POLICY)
        for j, reduction in enumerate(REDUCTIONS)
    ],
)
def test_micro_batch_split_leaves_the_gradient_alone(name: str, reduction: str) -> None:
    small = ("rollout.prompts=2", "rollout.max_new_tokens=12", "task.reward.noise=coin")
    how = (*small, f"reduction={reduction}", "optim.max_grad_norm=null")
    whole = tiny(name, *how)
    sequences = Trainer.build(whole).collector.collect(1).sequences
    reference = gradient(whole, sequences)
    assert max(float(g.abs().max()) for g in reference.values()) > 0
    for size in (1, 3, 5):
        split = tiny(name, *how, f"train.micro_batch={size}")
        assert largest_difference(reference, gradient(split, sequences)) < 2e-5


# A loss of pairs; tests/engine/test_memory.py has one of sequences.
TOGETHER = ("pref_dpo",)


@pytest.mark.parametrize("name", quick_if(TOGETHER.__contains__, [*OF_SEQUENCES, "math_ppo", "math_lco_kld_dense"]))
def test_micro_batches_keep_what_belongs_together(name: str) -> None:
    whole = tiny(name, "optim.max_grad_norm=null")
    sequences = Trainer.build(whole).collector.collect(1).sequences
    reference = gradient(whole, sequences)
    assert max(float(g.abs().max()) for g in reference.values()) > 0
    for size in (3, 8):
        split = tiny(name, "optim.max_grad_norm=null", f"train.micro_batch={size}")
        assert largest_difference(reference, gradient(split, sequences)) < 2e-5


def test_a_per_micro_batch_mean_would_change_the_gradient() -> None:
    """Negative control of the test above: lengths differ, so averaging per micro-batch is not the same."""
    recipe = tiny("math_reinforce", "optim.max_grad_norm=null")
    sequences = Trainer.build(recipe).collector.collect(1).sequences
    assert len(set(sequences.lengths)) > 1
    half = len(sequences) // 2
    parts = [sequences.select(range(half)), sequences.select(range(half, len(sequences)))]
    first, second = (gradient(recipe, part) for part in parts)
    mean = {k: (first[k] + second[k]) / 2 for k in first}
    assert largest_difference(gradient(recipe, sequences), mean) > 1e-3


def test_padding_cannot_reach_a_response_token() -> None:
    trainer = Trainer.build(tiny("math_grpo"))
    sequences = trainer.collector.collect(1).sequences
    together = trainer.policy.response_outputs(sequences.prompts, sequences.responses).logits_NV
    alone = torch.cat(
        [
            trainer.policy.response_outputs([p], [r]).logits_NV
            for p, r in zip(sequences.prompts, sequences.responses, strict=True)
        ]
    )
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("temperature", quick_if((0.7).__eq__, [0.7, 1.0, 1.5]))
def test_on_policy_ratio_is_one_at_every_temperature(temperature: float) -> None:
    trainer = Trainer.build(tiny("math_grpo", f"rollout.temperature={temperature}"))
    sequences = trainer.collector.collect(1).sequences
    assert 0 <= sampler_mismatch(trainer.updater.loss.reader, sequences).ratio < 1e-5


def test_ratio_check_sees_a_policy_that_moved() -> None:
    trainer = Trainer.build(tiny("math_grpo"))
    sequences = trainer.collector.collect(1).sequences
    with torch.no_grad():
        next(trainer.policy.model.parameters()).mul_(1.01)
    assert sampler_mismatch(trainer.updater.loss.reader, sequences).ratio > 1e-4


def run(recipe: Recipe, out: Path, entry: str = "new") -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    sink = SilentSink()
    run_dir = RunDir.of(out, recipe)
    result = run_training(recipe, run_dir, sink, entry)  # type: ignore[arg-type]
    assert result.status == "finished"
    from safetensors.torch import load_file

    return read_records(run_dir.metrics), load_file(run_dir.policy / "model.safetensors")


@pytest.mark.parametrize("name", quick_if("math_lco_kld".__eq__, ["base_sft", "math_lco_kld"]))
def test_two_runs_are_bit_identical(name: str, tmp_path: Path) -> None:
    recipe = tiny(name)
    first, weights = run(recipe, tmp_path / "a")
    second, same = run(recipe, tmp_path / "b")
    assert list(map(without_times, first)) == list(map(without_times, second))
    assert all(torch.equal(weights[k], same[k]) for k in weights)
    _, different = run(tiny(name, "seed=1"), tmp_path / "c")
    assert not all(torch.equal(weights[k], different[k]) for k in weights)


def test_base_recipe_starts_bit_identically() -> None:
    """Its first two steps, at full size."""
    from helpers import ROOT

    from cvxrl.recipe.load import load_recipe

    recipe = load_recipe(ROOT / "recipes" / "base_sft.yaml")
    runs = []
    for _ in range(2):
        trainer = Trainer.build(recipe)
        losses = [trainer.updater.update(trainer.collector.collect(step).sequences, step)["loss"] for step in (1, 2)]
        runs.append((losses, [p.detach().clone() for p in trainer.policy.model.parameters()]))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(a, b) for a, b in zip(runs[0][1], runs[1][1], strict=True))


def test_evaluating_changes_no_training_number(tmp_path: Path) -> None:
    often, weights = run(tiny("math_lco_kld", "eval.every=1"), tmp_path / "a")
    never, same = run(tiny("math_lco_kld", "eval.every=0"), tmp_path / "b")
    assert all(torch.equal(weights[k], same[k]) for k in weights)
    trained = [{k: v for k, v in without_times(r).items() if not k.startswith("eval/")} for r in often if r["step"]]
    assert trained == list(map(without_times, never))


# Through a real signal. In the quick set, reliability/test_resume.py stops every objective after each of its steps, and
# reliability/test_signals.py sends a signal to a process.
@pytest.mark.slow
@pytest.mark.parametrize(
    "objective",
    ["math_dapo", "math_grpo", "math_lco_mse", "math_ppo", "math_tpo", "math_lco_kld_dense", "pref_dpo"],
)
def test_interrupted_run_resumes_bit_identically(
    objective: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny(objective, "train.steps=4", "train.inner_epochs=2", "train.minibatches=2", "optim.schedule=cosine")
    expected, weights = run(recipe, tmp_path / "whole")

    class Interrupting(SilentSink):
        def step(self, record: dict[str, float]) -> None:
            if record["step"] == 2:
                os.kill(os.getpid(), signal.SIGINT)

    run_dir = RunDir.of(tmp_path / "torn", recipe)
    assert run_training(recipe, run_dir, Interrupting(), "new").status == "interrupted"
    assert json.loads(run_dir.record.read_text())["status"] == "interrupted"
    resumed, same = run(recipe, tmp_path / "torn", "resume")
    assert list(map(without_times, resumed)) == list(map(without_times, expected))
    assert all(torch.equal(weights[k], same[k]) for k in weights)


def test_state_round_trip(tmp_path: Path) -> None:
    trainer = Trainer.build(tiny("math_grpo"))
    trainer.updater.update(trainer.collector.collect(1).sequences, 1)
    save_state(tmp_path, trainer.policy, trainer.critic, trainer.optimizer, trainer.position)
    fresh = Trainer.build(tiny("math_grpo"))
    load_state(tmp_path, fresh.policy, fresh.critic, fresh.optimizer)
    for a, b in zip(trainer.policy.model.parameters(), fresh.policy.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_non_finite_loss_stops_before_the_optimizer_moves(tmp_path: Path) -> None:
    recipe = tiny("math_reinforce")
    trainer = Trainer.build(recipe)
    before = [p.detach().clone() for p in trainer.policy.model.parameters()]
    sequences = trainer.collector.collect(1).sequences
    assert sequences.advantages is not None
    bad = [torch.full_like(advantages, float("nan")) for advantages in sequences.advantages]
    broken = replace(sequences, advantages=bad, group_advantages=None)
    from cvxrl.engine.divergence import DivergedError

    with pytest.raises(DivergedError, match="loss"):
        trainer.updater.update(broken, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.policy.model.parameters(), strict=True))


def test_a_diverged_run_is_recorded(tmp_path: Path) -> None:
    recipe = tiny("math_reinforce", "guards.kl={above: 1e-12, action: stop}")
    run_dir = RunDir.of(tmp_path, recipe)
    result = run_training(recipe, run_dir, SilentSink(), "new")
    assert result.status == "diverged"
    record = json.loads(run_dir.record.read_text())
    assert record["divergence"]["step"] == 1 and record["divergence"]["tensor"] == "guards.kl"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_norm_of_a_large_tensor_loses_no_digits(dtype: torch.dtype) -> None:
    large = torch.randn(2**22 + 5, generator=torch.Generator().manual_seed(0)).mul_(1e-3).to(dtype)
    small = torch.full((3, 2), 0.5, dtype=dtype)
    exact = (float(large.double().square().sum()) + 1.5) ** 0.5
    assert float(global_norm([large, small])) == pytest.approx(exact, rel=2e-7)
    assert float(global_norm([])) == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_large_gradient_is_clipped_to_the_limit(dtype: torch.dtype) -> None:
    model = torch.nn.Linear(2**20, 4, bias=False, dtype=dtype)
    model.weight.grad = torch.randn(model.weight.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    exact = float(model.weight.grad.double().square().sum()) ** 0.5
    recipe = tiny("math_grpo", "optim={kind: sgd, lr: 1.0e-6, max_grad_norm: 2.0}")
    loss = Loss(recipe, SimpleNamespace(model=model))  # type: ignore[arg-type]
    updater = Updater(loss, build_optimizer([model], recipe.optim))
    metrics, _ = updater._clip(0)
    assert metrics["grad/norm"] == pytest.approx(exact, rel=2e-7) and metrics["grad/norm_clipped"] == 2.0
    clipped = float(model.weight.grad.double().square().sum()) ** 0.5
    assert clipped == pytest.approx(2.0, rel=2e-6 if dtype == torch.float32 else 2e-3)  # bfloat16 rounds the factor


def test_the_gradient_that_is_not_finite_is_the_one_that_is_named() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    model[1].weight.grad = torch.tensor([[1.0, torch.nan], [1.0, 1.0]])
    recipe = tiny("math_grpo")
    loss = Loss(recipe, SimpleNamespace(model=model))  # type: ignore[arg-type]
    with pytest.raises(DivergedError, match=r"gradient of 1\.weight: 1 of 4"):
        Updater(loss, build_optimizer([model], recipe.optim))._clip(0)
