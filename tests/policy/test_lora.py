"""Adapters: the policy starts bit for bit as it was, only the adapter moves, and every file of the run can be read."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT, SMALL_POLICY, SilentSink, quick_if, tiny
from torch import Tensor

from cvxrl.cli import main
from cvxrl.engine.plan import describe
from cvxrl.engine.sequences import Sequences
from cvxrl.engine.session import run_training
from cvxrl.engine.trainer import Trainer
from cvxrl.errors import UserError
from cvxrl.objectives.linear import head_of
from cvxrl.policy.load import load_policy
from cvxrl.policy.model import Policy
from cvxrl.recipe.model import ModelSpec
from cvxrl.rollout.generator import Sampling
from cvxrl.rollout.local_generator import LocalGenerator
from cvxrl.rollout.randomness import completion_keys
from cvxrl.runs.directory import RunDir

BASE = str(SMALL_POLICY)
CPU = torch.device("cpu")
PROMPTS, RESPONSES = [[5, 6, 7], [8, 9]], [[10, 11, 12, 1], [13, 1]]
EVERYWHERE = ["q_proj", "down_proj", "embed_tokens", "lm_head"]


def base(**lora: Any) -> Policy:
    """The small policy, with an adapter if any of its settings is given."""
    return load_policy(ModelSpec.model_validate({"path": BASE, "lora": lora or None}), CPU, seed=3)


def moved(policy: Policy) -> Policy:
    """Give the adapter something to say, as training would."""
    generator = torch.Generator().manual_seed(0)
    for parameter in policy.trained:
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return policy


def logits(policy: Policy) -> Tensor:
    return policy.response_outputs(PROMPTS, RESPONSES).logits_NV.detach()


@pytest.mark.parametrize(
    "lora",
    quick_if(
        lambda lora: lora["rank"] == 2,
        [
            {"rank": 4, "dropout": 0.1},
            {"rank": 4, "init": "gaussian", "scaling": "sqrt-rank", "targets": ["q_proj", "v_proj"]},
            {"rank": 2, "targets": EVERYWHERE, "dropout": 0.1},
            {"rank": 2, "dtype": "bfloat16"},
        ],
    ),
)
def test_a_fresh_adapter_changes_no_bit(lora: dict[str, Any]) -> None:
    plain, fresh = base(), base(**lora)
    # Not for the values' sake: torch takes another path through a product with a matrix that wants a gradient.
    plain.model.requires_grad_(False)
    assert logits(fresh).view(torch.uint8).equal(logits(plain).view(torch.uint8))
    keys = completion_keys(1, "sampling", prompts=range(len(PROMPTS)), samples=3)
    samples = [LocalGenerator(p).generate(PROMPTS, keys, Sampling(12, 1.0)) for p in (plain, fresh)]
    for a, b in zip(*samples, strict=True):
        assert a.response_ids == b.response_ids and a.logprobs.equal(b.logprobs)
    assert not logits(moved(fresh)).equal(logits(plain))


def test_only_the_adapter_is_trained_and_the_seed_makes_it() -> None:
    trainer = Trainer.build(tiny("math_lora"))
    before = {name: p.detach().clone() for name, p in trainer.policy.model.named_parameters()}
    in_optimizer = sum(p.numel() for group in trainer.optimizer.param_groups for p in group["params"])
    trainer.updater.update(trainer.collector.collect(1).sequences, 1)
    changed = {name for name, p in trainer.policy.model.named_parameters() if not p.equal(before[name])}
    assert changed and all(".lora_" in name for name in changed)
    assert in_optimizer == sum(p.numel() for p in trainer.policy.trained) == describe(trainer.recipe).trainable
    one, same, other = (Trainer.build(tiny("math_lora", f"seed={s}")).policy.trained for s in (0, 0, 1))
    assert all(a.equal(b) for a, b in zip(one, same, strict=True))
    assert not all(a.equal(b) for a, b in zip(one, other, strict=True))


def test_dropout_works_in_the_training_pass_alone() -> None:
    trainer = Trainer.build(tiny("math_lora", "model.lora.dropout=0.5", "train.minibatches=2"))
    moved(trainer.policy)
    sequences = trainer.collector.collect(1).sequences
    record = trainer.updater.update(sequences, 1)
    assert not trainer.policy.model.training
    again = [trainer.updater.loss.reader.log_probs(sequences) for _ in range(2)]
    assert all(a.equal(b) for a, b in zip(*again, strict=True))
    twin = Trainer.build(tiny("math_lora", "model.lora.dropout=0.0", "train.minibatches=2"))
    moved(twin.policy)
    assert record["loss"] != twin.updater.update(sequences, 1)["loss"]


@pytest.mark.parametrize(
    ("targets", "dtype"),
    quick_if(
        lambda targets, dtype: (targets == EVERYWHERE) == (dtype == "float32"),
        [(targets, dtype) for targets in ("all-linear", EVERYWHERE) for dtype in ("float32", "bfloat16")],
    ),
)
def test_merged_policy_is_the_adapted_one(targets: Any, dtype: str, tmp_path: Path) -> None:
    """Also where only one of two tied matrices is adapted, so that they are tied no more."""
    from transformers import AutoModelForCausalLM

    spec = ModelSpec.model_validate({"path": BASE, "dtype": dtype, "lora": {"rank": 4, "targets": targets}})
    policy = moved(load_policy(spec, CPU))
    policy.save(tmp_path / "whole")
    policy.save_adapter(tmp_path / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype=dtype)
    assert {p.dtype for p in merged.parameters()} == {merged.dtype} and str(merged.dtype).endswith(dtype)
    tolerance = 1e-4 if dtype == "float32" else 0.2
    torch.testing.assert_close(
        logits(Policy(merged, policy.tokenizer)).float(), logits(policy).float(), rtol=tolerance, atol=tolerance
    )
    on_load = load_policy(ModelSpec(path=BASE, dtype=dtype, adapter=str(tmp_path / "adapter")), CPU)  # type: ignore[arg-type]
    for name, tensor in merged.state_dict().items():
        assert tensor.equal(on_load.model.state_dict()[name]), name


def test_the_adapter_loads_with_peft_and_comes_back_bit_for_bit(tmp_path: Path) -> None:
    from peft import PeftModel

    policy = moved(base(rank=4, dropout=0.1))
    policy.save_adapter(tmp_path)
    theirs = PeftModel.from_pretrained(base().model, str(tmp_path))
    ids = torch.tensor([[5, 6, 7, 10, 11]])
    torch.testing.assert_close(theirs(input_ids=ids).logits, policy.model(input_ids=ids).logits, rtol=0, atol=0)
    fresh = base(rank=4, dropout=0.1)
    fresh.load_trained(tmp_path)
    assert all(a.equal(b) for a, b in zip(policy.trained, fresh.trained, strict=True))


def test_the_reference_is_the_policy_without_its_adapter() -> None:
    recipe = tiny("math_lora", "regularizer.kl_coefficient=0.1")
    trainer = Trainer.build(recipe)
    reference = trainer.updater.loss.reference
    assert reference is not None and reference.policy.model is trainer.policy.model
    moved(trainer.policy)
    plain = Trainer.build(tiny("math_lco_kld", "regularizer.kl_coefficient=0.1")).updater.loss.reference
    assert plain is not None
    sequences = Sequences.of(PROMPTS, RESPONSES, 1)
    found, expected = (r.log_probs(sequences) for r in (reference, plain))
    assert all(a.equal(b) for a, b in zip(found, expected, strict=True))
    assert all(p.requires_grad for p in trainer.policy.trained) and len(trainer.policy.trained) == 2 * 7 * 2


def test_losses_in_chunks_know_an_adapter_on_the_output_layer() -> None:
    policy = moved(base(rank=2, targets=EVERYWHERE))
    head = head_of(policy.model)
    assert len(head.low_rank) == 1
    outputs = policy.response_outputs(PROMPTS, RESPONSES)
    torch.testing.assert_close(head.logits(outputs.hidden_NH), outputs.logits_NV, rtol=1e-5, atol=1e-5)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["cvxrl", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_a_run_can_be_evaluated_from_each_of_its_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny("math_lora", "checkpoint.every=2", "optim.lr=0.01")
    run_dir = RunDir.of(tmp_path, recipe)
    assert run_training(recipe, run_dir, SilentSink(), "new").status == "finished"
    checkpoint = run_dir.checkpoints / "step-000002"
    whole = (run_dir.policy / "model.safetensors").stat().st_size
    assert sum(p.stat().st_size for p in checkpoint.iterdir()) < whole
    alone = tmp_path / "alone"
    run_dir.adapter.rename(alone)
    seen = set()
    for i, path in enumerate([run_dir.path, run_dir.policy, checkpoint, alone]):
        arguments = ["--task", "arithmetic", "--questions", "2", "--samples", "1", "--device", "cpu", "--json"]
        assert call(monkeypatch, "eval", "--ckpt", str(path), *arguments, "--out", str(tmp_path / str(i))) == 0
        seen.add(json.loads(capsys.readouterr().out)["checkpoint"]["sha256"])
    assert len(seen) == 1


def refusal(**values: Any) -> str:
    with pytest.raises(UserError) as error:
        load_policy(ModelSpec.model_validate({"path": BASE, **values}), CPU)
    assert all(p.remedy and p.key.startswith("model.") for p in error.value.problems)
    return str(error.value)


def test_what_cannot_be_adapted_is_refused(tmp_path: Path) -> None:
    said = refusal(lora={"targets": ["q_proj", "w_q"]})
    assert "no layer `w_q`" in said and "q_proj" in said
    assert "no layer `norm`" in refusal(lora={"targets": ["norm"]})
    assert "holds no adapter" in refusal(adapter=str(tmp_path))
    moved(base(rank=4)).save_adapter(tmp_path)
    config = tmp_path / "adapter_config.json"
    good = json.loads(config.read_text())
    for change, words in (
        ({"r": 8}, "does not fit"),
        ({"target_modules": ["q_proj"]}, "does not fit"),
        ({"use_dora": True}, "more than low-rank matrices"),
        ({"peft_type": "WHAT"}, "cannot be read"),
    ):
        config.write_text(json.dumps(good | change))
        assert words in refusal(adapter=str(tmp_path)), change


def test_without_peft_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    assert call(monkeypatch, "train", str(ROOT / "recipes" / "math_lora.yaml"), "--out", str(tmp_path)) == 2
    said = capsys.readouterr().err
    assert "model.lora" in said and 'pip install "cvxrl[lora]"' in said and "Traceback" not in said
    assert not list(tmp_path.iterdir())


def test_the_plan_counts_what_is_trained() -> None:
    whole, adapted = (describe(tiny(name)) for name in ("math_lco_kld", "math_lora"))
    assert whole.trainable == whole.parameters == adapted.parameters
    assert adapted.memory_bytes and whole.memory_bytes and adapted.memory_bytes < whole.memory_bytes
    few = tiny("math_lora", "model.lora.targets=[q_proj, lm_head]")
    assert describe(few).trainable == sum(p.numel() for p in Trainer.build(few).policy.trained)
    assert math.isclose(describe(few).memory_bytes or 0, adapted.memory_bytes, rel_tol=0.5)
