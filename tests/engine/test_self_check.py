"""Sampler, trainer and the model's own forward pass must agree on a step's tokens; a mismatch is no divergence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import SilentSink, tiny
from made_runs import make_run

from cvxrl.cli import main
from cvxrl.comparison.run import is_scored
from cvxrl.comparison.run_directory import RunDirectories
from cvxrl.engine import self_check as module
from cvxrl.engine.self_check import own_mismatch, self_check, tolerance
from cvxrl.engine.session import run_training
from cvxrl.engine.trainer import Trainer
from cvxrl.errors import UserError
from cvxrl.policy.agreement import log_prob_tolerance, rounding
from cvxrl.policy.plain import is_untouched
from cvxrl.runs.directory import RunDir
from cvxrl.runs.jsonl import read_records

QUICK = ("eval.every=0", "rollout.max_new_tokens=8")


@pytest.fixture(autouse=True)
def few_are_read_again() -> None:
    """All are, as in a run."""


def test_a_failed_check_is_no_divergence(tmp_path: Path) -> None:
    recipe = tiny("math_reinforce", "train.ratio_tolerance=1e-30", *QUICK)
    run_dir = RunDir.of(tmp_path, recipe)
    with pytest.raises(UserError) as caught:
        run_training(recipe, run_dir, SilentSink(), "new")
    (problem,) = caught.value.problems
    assert problem.key == "train.ratio_tolerance" and "set train.ratio_tolerance above" in problem.remedy
    record = run_dir.read_record()
    assert (record.status, record.divergence) == ("interrupted", None) and "ratio_tolerance" in (record.failure or "")
    # Neither a score of 0 nor a failure of the method.
    run = RunDirectories().read(run_dir.path)
    assert not is_scored(run)


def test_a_failed_check_of_version_01_is_not_scored(tmp_path: Path) -> None:
    """It was recorded as divergent, and so counted as accuracy 0."""
    path = make_run(tmp_path, status="diverged", diverged_at=1)
    values = json.loads((path / "run.json").read_text())
    values["divergence"] |= {"tensor": "on-policy ratio", "detail": "differs from 1 by 1.10e-05"}
    (path / "run.json").write_text(json.dumps(values))
    record = RunDir(path).read_record()
    assert (record.status, record.divergence) == ("interrupted", None)
    assert record.failure is not None and "1.10e-05" in record.failure


@pytest.mark.parametrize("bf16", [False, True])
def test_what_rounding_cannot_explain_fails_in_either_precision(bf16: bool) -> None:
    trainer = Trainer.build(tiny("math_grpo", *QUICK))
    sequences = trainer.collector.collect(1).sequences
    assert sequences.sampled_logprobs is not None
    reader = replace(trainer.updater.loss.reader, bf16=bf16)
    found = self_check(reader, trainer.recipe, sequences, 1)
    assert found["check/forward_deviation"] < (0.1 if bf16 else 1e-5)
    wrong = [part - 2.3 for part in sequences.sampled_logprobs]
    with pytest.raises(UserError, match="the sampler and the trainer"):
        self_check(reader, trainer.recipe, replace(sequences, sampled_logprobs=wrong), 1)


def test_it_is_looked_at_during_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recipe = tiny("math_grpo", *QUICK, "train.steps=4", "train.check_every=3")
    run_dir = RunDir.of(tmp_path, recipe)
    assert run_training(recipe, run_dir, SilentSink(), "new").status == "finished"
    checked = [r["step"] for r in read_records(run_dir.metrics) if "check/ratio_deviation" in r]
    assert checked == [1, 3]


@pytest.mark.parametrize("name", ["base_sft", "pref_dpo"])
def test_given_responses_are_compared_with_the_own_forward_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer.build(tiny(name, "eval.every=0"))
    sequences, reader = trainer.collector.collect(1).sequences, trainer.updater.loss.reader
    assert self_check(reader, trainer.recipe, sequences, 1).keys() == {"check/forward_deviation"}
    # A model whose own pass bounds its logits, which the short way would not know.
    own = module.own_outputs
    monkeypatch.setattr(module, "own_outputs", lambda *a: SimpleNamespace(logits=3 * torch.tanh(own(*a).logits / 3)))
    with pytest.raises(UserError, match="the model's own forward pass"):
        self_check(reader, trainer.recipe, sequences, 1)


def test_logits_that_grew_in_training_are_no_mistake_of_the_sampler() -> None:
    """Their rounding is larger, also where the sampled tokens themselves are likely."""
    trainer = Trainer.build(tiny("math_grpo", *QUICK))
    reader = trainer.updater.loss.reader
    sequences = trainer.collector.collect(1).sequences
    _, before = own_mismatch(reader, sequences)
    model = trainer.policy.model
    assert tolerance(reader, before, []) == pytest.approx(0.5 * before * rounding(model))
    half = rounding(model, torch.bfloat16)
    assert tolerance(replace(reader, bf16=True), before, []) == pytest.approx(0.5 * before * half)
    assert tolerance(reader, 1.0, [torch.tensor([-3.0])]) == pytest.approx(6 * rounding(model))
    with torch.no_grad():
        model.model.norm.weight *= 30
    _, after = own_mismatch(reader, sequences)
    assert after == pytest.approx(30 * before, rel=1e-3)
    sequences = trainer.collector.collect(1).sequences
    off = [part - 0.02 for part in sequences.sampled_logprobs or []]
    with pytest.raises(UserError, match="the sampler and the trainer"):
        self_check(reader, trainer.recipe, replace(sequences, sampled_logprobs=off), 1)


def test_the_limit_grows_with_size_depth_and_logits() -> None:
    """Values by hand: 2 sqrt(layers) (eps of the format + 4 eps of fp32 x sqrt(width)) x the largest -log p."""
    model = Trainer.build(tiny("smoke")).policy.model
    layers, width = model.config.num_hidden_layers, model.config.hidden_size
    fp32, bf16 = 2.0**-23, 2.0**-7
    expected = layers**0.5 * (fp32 + 4 * fp32 * width**0.5)
    assert rounding(model) == pytest.approx(expected)
    assert log_prob_tolerance(model, 7.0) == pytest.approx(14 * expected)
    assert log_prob_tolerance(model, 0.1) == pytest.approx(2 * expected)
    assert rounding(model, torch.bfloat16) == pytest.approx(layers**0.5 * (bf16 + 4 * fp32 * width**0.5))


def test_the_command_ends_as_a_users_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = [f"--set={text}" for text in ("train.steps=1", "train.ratio_tolerance=1e-30", *QUICK)]
    monkeypatch.setattr("sys.argv", ["cvxrl", "train", "smoke", *sets, "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "train.ratio_tolerance" in "".join(capsys.readouterr())


def test_looking_leaves_the_model_as_it_was() -> None:
    trainer = Trainer.build(tiny("math_grpo", *QUICK))
    sequences = trainer.collector.collect(1).sequences
    self_check(trainer.updater.loss.reader, trainer.recipe, sequences, 1)
    assert is_untouched(trainer.policy.model) and trainer.policy.ways.packed
    assert not any(module.training for module in trainer.policy.model.modules())
    assert trainer.passes["sampling"].startswith("written out")
