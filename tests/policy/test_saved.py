"""Weights on the disk are those in memory, whatever transformers calls them there: resumed, merged and read again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SilentSink, quick_if, tiny, without_times
from tiny_models import families, save_family, tiny_family
from torch import Tensor

from cvxrl.engine import bookkeeping
from cvxrl.engine.session import run_training
from cvxrl.errors import UserError
from cvxrl.policy import saved
from cvxrl.policy.adapter import adapted_layers, add_adapter, load_adapter, save_adapter, without_adapter
from cvxrl.policy.adapter_check import require_used
from cvxrl.policy.identity import hash_weights
from cvxrl.policy.load import load_policy
from cvxrl.policy.merge import merge_saved
from cvxrl.policy.saved import load_weights, save_weights
from cvxrl.recipe.model import LoraSpec, ModelSpec
from cvxrl.runs.directory import RunDir
from cvxrl.runs.jsonl import read_records

CPU = torch.device("cpu")
SMALL = ("train.steps=3", "checkpoint.every=1", "eval.every=0", "rollout.prompts=2", "rollout.max_new_tokens=8")
IDS = torch.tensor([[5, 6, 7, 9, 11, 20, 33, 8]])


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


def move(model: Any) -> Any:
    """Change what is trained, as a few steps would."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.is_floating_point():
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def check_weights(model: Any, folder: Path) -> None:
    """Saved and loaded again, into a model that has moved meanwhile and into a new one, every bit is there."""
    digest = hash_weights(model)
    save_weights(model, folder)
    fresh = type(model).from_pretrained(folder)
    assert hash_weights(fresh) == digest
    load_weights(move(model), folder)
    assert hash_weights(model) == digest


def check_adapter(kind: str, folder: Path, **lora: Any) -> None:
    """A fresh adapter changes nothing; merged in memory, in the exported policy and when loaded, it says the same."""
    made = tiny_family(kind)
    for name in ("base", "fresh", "moved", "adapter"):
        (folder / name).mkdir(parents=True)
    save_weights(made, folder / "base")
    # Both loaded: how a converted tensor lies in memory decides how products round.
    base, model = (type(made).from_pretrained(folder / "base").eval() for _ in range(2))
    digest, before = hash_weights(base), logits(base)
    spec = LoraSpec.model_validate({"rank": 4, **lora})
    add_adapter(model, spec, 0)
    require_used(model, IDS[0].tolist())  # as a policy that is loaded: what is passed by would merge to something else
    assert adapted_layers(model)
    save_weights(model, folder / "fresh")
    exported = type(model).from_pretrained(folder / "fresh").eval()
    assert hash_weights(model) == hash_weights(exported) == digest
    assert logits(model).equal(before) and logits(exported).equal(before)
    after = logits(move(model))
    assert not torch.allclose(after, before, atol=1e-3)
    save_weights(model, folder / "moved")
    save_adapter(model, folder / "adapter")
    merged = type(base).from_pretrained(folder / "base").eval()
    merge_saved(merged, str(folder / "adapter"))
    for found in (type(model).from_pretrained(folder / "moved").eval(), merged):
        torch.testing.assert_close(logits(found), after, rtol=1e-4, atol=1e-4)
    add_adapter(base, spec, 1)
    load_adapter(base, folder / "adapter")
    assert logits(base).equal(after)
    with without_adapter(base):
        assert logits(base).equal(before)


@pytest.mark.parametrize("kind", ["gpt_neox", "qwen3_moe", "mixtral", "gpt2"])
def test_saved_weights_come_back_bit_for_bit(kind: str, tmp_path: Path) -> None:
    check_weights(tiny_family(kind), tmp_path)


@pytest.mark.parametrize("kind", quick_if("mixtral".__ne__, ["qwen2_moe", "mixtral", "gpt2"]))
def test_an_adapter_of_every_linear_layer_merges_into_the_saved_policy(kind: str, tmp_path: Path) -> None:
    check_adapter(kind, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_adapters_of_all_families_merge_or_are_refused(tmp_path: Path) -> None:
    """Of every family that is tiny with the usual settings and answers eight tokens."""
    wrong, merged, refused = {}, [], {}
    for kind in families():
        model = tiny_family(kind)
        try:
            logits(model)
        except Exception:  # a family that needs more than the usual settings fails in a way of its own
            continue
        try:
            check_adapter(kind, tmp_path / kind)
            merged.append(kind)
        except UserError as error:
            refused[kind] = str(error)
        except Exception as error:
            wrong[kind] = f"{type(error).__name__}: {str(error)[:300]}"
    print(f"{len(merged)} merged; refused {refused}")
    assert not wrong, wrong
    assert len(merged) > 110 and all("model.lora.targets" in said for said in refused.values())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_weights_of_all_families_come_back(tmp_path: Path) -> None:
    """Of every family that is tiny with the usual settings and that transformers itself saves and loads exactly."""
    lost, tried = {}, 0
    for kind in families():
        model = tiny_family(kind)
        if model is None:
            continue
        tried += 1
        try:
            check_weights(model, tmp_path / kind)
        except (AssertionError, UserError) as error:
            lost[kind] = error
    assert tried > 130
    # Its padding row is zeroed whenever it is loaded; `load_state` refuses what it would resume from.
    assert set(lost) <= {"youtu"}, lost


def run(recipe: Any, run_dir: RunDir, entry: str) -> list[dict[str, float]]:
    assert run_training(recipe, run_dir, SilentSink(), entry).status == "finished"  # type: ignore[arg-type]
    return [without_times(record) for record in read_records(run_dir.metrics)]


class _Killed(Exception):
    pass


@pytest.mark.parametrize("kind", quick_if("qwen3_moe".__eq__, ["gpt_neox", "qwen3_moe"]))
def test_a_run_whose_weights_have_other_names_on_the_disk_resumes_bit_for_bit(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_family(kind, tmp_path / "base")
    recipe = tiny("smoke", f"model.path={model}", "model.scratch=null", *SMALL)
    whole, broken = RunDir.of(tmp_path / "whole", recipe), RunDir.of(tmp_path / "broken", recipe)
    expected = run(recipe, whole, "new")
    with monkeypatch.context() as patch:
        save = bookkeeping.save_checkpoint

        def save_and_die(folder: Path, step: int, fill: Any) -> None:
            save(folder, step, fill)
            raise _Killed

        patch.setattr(bookkeeping, "save_checkpoint", save_and_die)
        with pytest.raises(_Killed):
            run_training(recipe, broken, SilentSink(), "new")
    assert run(recipe, broken, "resume") == expected
    digests = {hash_weights(load_policy(ModelSpec(path=str(d.policy)), CPU).model) for d in (whole, broken)}
    assert len(digests) == 1


def test_a_checkpoint_whose_weights_do_not_come_back_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cvxrl.engine.state import Position, load_state, save_state

    policy = load_policy(ModelSpec(path=str(save_family("gpt_neox", tmp_path / "base"))), CPU)
    optimizer = torch.optim.SGD(policy.trained, lr=0.1)
    (tmp_path / "saved").mkdir()
    save_state(tmp_path / "saved", policy, None, optimizer, Position(1))
    assert load_state(tmp_path / "saved", policy, None, optimizer).step == 1
    monkeypatch.setattr("cvxrl.policy.model.load_weights", lambda model, _: move(model))
    with pytest.raises(UserError, match="GPTNeoXForCausalLM"):
        load_state(tmp_path / "saved", policy, None, optimizer)


def test_what_could_not_be_merged_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model.lora.dropout.*experts"):
        add_adapter(tiny_family("qwen3_moe"), LoraSpec(rank=2, dropout=0.1), 0)
    with pytest.raises(UserError, match=r"model.lora.targets.*`router`.*more than"):
        add_adapter(tiny_family("phimoe"), LoraSpec(rank=2, targets=("q_proj", "router")), 0)
    with pytest.raises(UserError, match=r"model.lora.targets.*no layer `up_proj`"):
        add_adapter(tiny_family("qwen3_moe"), LoraSpec(rank=2, targets=("q_proj", "up_proj")), 0)


def test_the_first_copy_of_a_model_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    monkeypatch.setattr(saved, "_require_whole", lambda _, folder: looked.append(folder.name))
    one, other = tiny_family("gpt2"), tiny_family("gpt2")
    for model, name in ((one, "a"), (one, "b"), (other, "c")):
        saved.save_weights(model, tmp_path / name)
    assert looked == ["a", "c"]
