"""Short ways to the logits are taken where they agree with the model's own forward pass, and only there."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import SilentSink, new_model, quick_if, tiny
from tiny_models import families, save_family, tiny_family

from cvxrl.engine.session import run_training
from cvxrl.engine.trainer import Trainer
from cvxrl.errors import UserError
from cvxrl.policy.agreement import difference
from cvxrl.policy.load import load_policy
from cvxrl.policy.model import Policy
from cvxrl.recipe.model import ModelSpec
from cvxrl.rollout.choice import choose, decoder_for
from cvxrl.rollout.generator import Sampling
from cvxrl.rollout.local_generator import LocalGenerator
from cvxrl.rollout.plain_decoder import PlainDecoder
from cvxrl.rollout.randomness import completion_keys
from cvxrl.runs.directory import RunDir
from tests.families.page import ask
from tests.families.verdicts import PROMPTS, QUESTIONS, RESPONSES, gradient, own_log_probs, sampling

SIZES: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
HEADS: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0, 5.0, 6.0, 7.0],
    "original_max_position_embeddings": 32,
}
MORE = {"original_max_position_embeddings": 32, "pad_token_id": 0}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 32}


def policy(model: Any) -> Policy:
    return Policy(model.eval(), SimpleNamespace(pad_token_id=0, eos_token_id=1, all_special_ids=[0, 1]))  # type: ignore[arg-type]


def moved(model: Any) -> Any:
    """Every parameter off its initial value."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    return model


def llama(**changes: Any) -> Any:
    torch.manual_seed(0)
    return moved(new_model("Llama", **{**SIZES, **HEADS, **changes}))


# What the model's own forward pass does to its logits, or what its tokens see, beyond what short ways would compute.
AWKWARD = [
    ("gemma2", {}),
    ("gemma4_unified_text", {"final_logit_softcapping": 3.0}),
    ("falcon_h1", {"lm_head_multiplier": 0.3, "mamba_chunk_size": 16}),
    ("mamba", {}),
    ("rwkv", {}),
    ("roberta", {"is_decoder": True}),
]


# Bent logits, a state instead of a cache, and no way of its own at all.
QUICK = ("gemma2", "mamba", "roberta")


@pytest.mark.parametrize(
    ("kind", "settings"), quick_if(lambda kind, _: kind in QUICK, AWKWARD), ids=[kind for kind, _ in AWKWARD]
)
def test_awkward_families_sample_and_learn_as_their_own_forward_pass(kind: str, settings: dict[str, Any]) -> None:
    model = tiny_family(kind, **settings)
    for question in (sampling, gradient):
        assert question(policy(model)) in ("works", "slow path")


def test_a_model_that_bends_its_logits_is_read_through_its_own_forward_pass() -> None:
    """No configuration says so, and on small logits the bend would hide in rounding."""
    from transformers import LlamaForCausalLM

    class Bent(LlamaForCausalLM):
        def forward(self, *arguments: Any, **named: Any) -> Any:
            outputs = super().forward(*arguments, **named)
            outputs.logits = 20 * torch.tanh(outputs.logits / 20)
            return outputs

    model = Bent(llama().config)
    bent = policy(model)
    assert not bent.ways.head and not bent.ways.packed and bent.ways.describe().startswith("slow path")
    moved(model)
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
        theirs = own_log_probs(bent, PROMPTS, RESPONSES)
        mine = torch.log_softmax(bent.response_outputs(PROMPTS, RESPONSES).logits_NV, -1)
        flat = torch.tensor([i for r in RESPONSES for i in r])
        torch.testing.assert_close(mine.gather(1, flat.unsqueeze(1)).squeeze(1), theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3"])
def test_plain_decoders_go_the_shortest_way(family: str) -> None:
    plain = policy(moved(new_model(family, **SIZES, **HEADS, head_dim=8)))
    plain.checked.cover(3, 100)
    assert plain.ways.packed and plain.ways.head
    assert type(decoder_for(plain, "auto")) is PlainDecoder


def test_gpt2_runs_prompts_once_and_decodes_from_a_cache() -> None:
    model = policy(moved(new_model("GPT2", vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=128)))
    assert model.ways.shared and model.ways.head
    assert not choose(model, "auto").name.startswith("slow path")


@pytest.mark.parametrize("change", ["hidden_act", "residual"])
def test_the_modules_of_a_plain_decoder_are_not_enough(change: str) -> None:
    """Another activation, and a factor that no module shows."""
    if change == "hidden_act":
        model = llama(hidden_act="gelu")
    else:
        sizes = {**SIZES, **HEADS, "residual_multiplier": 0.5, "pad_token_id": 0}
        model = moved(new_model("Granite", **sizes))
    assert not policy(model).ways.packed and policy(model).ways.padded


def test_a_window_shows_at_the_lengths_of_the_run() -> None:
    windowed = policy(moved(new_model("Mistral", **SIZES, **HEADS, sliding_window=24)))
    assert windowed.ways.packed
    windowed.checked.cover(4, 60)
    assert not windowed.ways.packed and windowed.ways.padded
    assert sampling(windowed) == "works"


@pytest.mark.parametrize("family", quick_if("phi3".__eq__, ["phi3", "llama"]))
def test_positions_that_are_scaled_from_some_length_on_are_refused_across_it(family: str) -> None:
    def fresh() -> Policy:
        if family == "llama":
            return policy(llama(rope_parameters=DYNAMIC, max_position_embeddings=32))
        return policy(moved(new_model("Phi3", **SIZES, **HEADS, rope_parameters=LONGROPE, **MORE)))

    below, across, above = fresh(), fresh(), fresh()
    below.checked.cover(4, 31)
    if family == "phi3":  # there positions above the switch are all scaled alike
        above.checked.cover(40, 60)
    with pytest.raises(UserError, match="more than 32 tokens") as caught:
        across.checked.cover(4, 60)
    assert caught.value.problems[0].key == "rollout.max_new_tokens"
    with pytest.raises(UserError, match="more than 32 tokens"):
        keys = completion_keys(0, "sampling", prompts=range(1), samples=1)
        LocalGenerator(fresh()).generate([[3, 4, 5]], keys, Sampling(50, 1.0))
    with pytest.raises(UserError, match="more than 32 tokens"):
        fresh().response_outputs([[3, 4, 5], [6, 7]], [[3] * 5, [4] * 40])


def test_tokens_that_see_later_ones_are_refused() -> None:
    with pytest.raises(UserError, match="changes with the tokens after it"):
        _ = policy(tiny_family("roberta")).checked


@pytest.mark.parametrize("kind", quick_if("mamba".__eq__, ["mamba", "rwkv"]))
def test_families_without_keys_and_values_train_through_their_own_way(kind: str, tmp_path: Path) -> None:
    path = save_family(kind, tmp_path / "model")
    recipe = tiny("math_grpo", f"model.path={path}", "train.steps=1", "eval.every=0", "rollout.max_new_tokens=6")
    run_dir = RunDir.of(tmp_path, recipe)
    assert run_training(recipe, run_dir, SilentSink(), "new").status == "finished"
    assert run_dir.read_record().passes["sampling"].startswith("slow path")


def test_the_lengths_of_a_run_are_looked_at_before_anything_is_written(tmp_path: Path) -> None:
    switch = {"rope_parameters": LONGROPE, "original_max_position_embeddings": 16}
    path = save_family("phi3", tmp_path / "model", **switch)
    with pytest.raises(UserError, match="sequences of more than 16 tokens"):
        Trainer.build(tiny("math_grpo", f"model.path={path}", "rollout.max_new_tokens=24"))
    dpo = tiny("pref_dpo", f"model.path={path}", "eval.every=0")
    with pytest.raises(UserError, match="sequences of more than 16 tokens"):
        Trainer.build(dpo)


def test_differences_are_relative_and_leave_out_what_softmax_does() -> None:
    theirs = torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, -float("inf")]])
    assert difference(theirs + 5.0, theirs) < 1e-12
    assert difference(torch.tensor([[1.0, 2.0, 6.3]]), theirs[:1]) == pytest.approx(0.2 / 3.0)
    assert difference(theirs[:1], theirs) == float("inf")
    assert difference(theirs * float("nan"), theirs) == float("inf")


def test_an_adapter_that_the_model_would_pass_by_is_refused(tmp_path: Path) -> None:
    """State-space layers that read a matrix and do not call the layer: the adapter was merged but never used."""
    path = save_family("jamba", tmp_path / "model")

    def load(*targets: str) -> Policy:
        spec = {"path": str(path), "lora": {"rank": 2, "targets": targets}}
        return load_policy(ModelSpec.model_validate(spec), torch.device("cpu"))

    with pytest.raises(UserError, match="reads the matrix of `dt_proj`") as caught:
        load("dt_proj", "in_proj")
    assert caught.value.problems[0].key == "model.lora.targets"
    assert load("in_proj").trained


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_family_is_silently_wrong() -> None:
    """What docs/models.md shows, asked again."""
    found, unbuilt, wrong = ask(sorted(families()))
    assert not wrong, wrong
    assert len(found) > 140 and len(unbuilt) < 50
    for question in QUESTIONS:
        assert sum(said[question].kind != "refused" for said in found.values()) > 100, question
