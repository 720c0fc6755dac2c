"""The output layer read off a model: whatever it is, its logits are the model's, or it is refused with the reason."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import new_model
from torch import Tensor, nn

from cvxrl.errors import UserError
from cvxrl.objectives.batch import TokenBatch
from cvxrl.objectives.linear import Frozen, HiddenBatch, LinearHead, LowRank, head_of, linear_objective
from cvxrl.objectives.registry import compute
from cvxrl.policy.rows import whole_rows
from cvxrl.recipe.objective import GrpoSpec, LcoKldSpec, LcoMseSpec

SIZES: dict[str, Any] = {
    "vocab_size": 23,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
PROMPTS, RESPONSES = [[3, 4], [5]], [[6, 7, 8], [9, 10]]


def llama(**changes: Any) -> Any:
    return new_model("Llama", **{**SIZES, **changes})


FAMILIES: dict[str, Callable[[], Any]] = {
    "untied": lambda: llama(tie_word_embeddings=False),
    "tied": lambda: llama(tie_word_embeddings=True),
    "soft cap": lambda: new_model("Gemma2", **SIZES, final_logit_softcapping=5.0),
    "factor": lambda: new_model("Cohere", **SIZES, logit_scale=0.25),
    "divisor": lambda: new_model("Granite", **SIZES, logits_scaling=4.0),
    "bias": lambda: new_model("Phi", **SIZES),
    "layer norm": lambda: new_model("GPT2", vocab_size=23, n_embd=8, n_layer=1, n_head=2, n_positions=32),
}


def double(build: Callable[[], Any]) -> Any:
    torch.manual_seed(0)
    model = build().double().eval()
    # Biases start at zero, where forgetting one would not show.
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    return model


def full_logits(model: Any, temperature: float = 1.0) -> Tensor:
    """The model's own logits that predict the response tokens."""
    rows = [model(input_ids=torch.tensor([[*p, *r[:-1]]])).logits[0, len(p) - 1 :] for p, r in _pairs()]
    return torch.cat(rows) / temperature


def _pairs() -> Any:
    return zip(PROMPTS, RESPONSES, strict=True)


def actions() -> Tensor:
    return torch.tensor([token for row in RESPONSES for token in row])


@pytest.mark.parametrize("family", list(FAMILIES))
def test_head_gives_the_models_logits(family: str) -> None:
    model = double(FAMILIES[family])
    head = head_of(model, temperature=0.7)
    hidden_NH = whole_rows(model, PROMPTS, RESPONSES)
    torch.testing.assert_close(head.logits(hidden_NH), full_logits(model, 0.7), rtol=1e-9, atol=1e-12)
    assert head.weight_VH is model.get_output_embeddings().weight
    assert (head.weight_VH is model.get_input_embeddings().weight) == (family not in ("untied", "bias", "divisor"))
    assert (head.softcap, head.bias_V is None) == (5.0 if family == "soft cap" else None, family != "bias")
    assert head.scale == (0.25 if family in ("factor", "divisor") else 1.0)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_gradients_of_all_parameters_are_those_of_full_logits(family: str) -> None:
    model, spec = double(FAMILIES[family]), GrpoSpec()
    advantages_N = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    old_N = torch.full((5,), -3.0, dtype=torch.float64)
    weights_N = torch.full((5,), 0.2, dtype=torch.float64)
    tokens = TokenBatch(full_logits(model), actions_N=actions(), advantages_N=advantages_N, old_logprobs_N=old_N)
    want = torch.autograd.grad((weights_N * compute(tokens, spec).loss_N).sum(), list(model.parameters()))
    hidden_NH = whole_rows(model, PROMPTS, RESPONSES)
    batch = HiddenBatch(hidden_NH, head_of(model), actions_N=actions(), advantages_N=advantages_N, old_logprobs_N=old_N)
    got = torch.autograd.grad(linear_objective(batch, spec, weights_N, chunk_tokens=2).loss, list(model.parameters()))
    for a, b in zip(got, want, strict=True):
        # Some families normalise in fp32 whatever the model's type is, and padding moves their last digits.
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("kind", [LcoKldSpec, LcoMseSpec])
def test_frozen_targets_from_stored_hidden_states_or_a_frozen_policy(kind: Any) -> None:
    """After an update, the rollout's stored hidden states and matrix say what a copy of the policy says."""
    model, spec = double(FAMILIES["tied"]), kind(beta=0.5)
    with torch.no_grad():
        stored = Frozen(whole_rows(model, PROMPTS, RESPONSES), head_of(model).frozen())
        old_NV = full_logits(model)
    copied = copy.deepcopy(model).requires_grad_(False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    other = Frozen(whole_rows(copied, PROMPTS, RESPONSES), head_of(copied))
    advantages_N = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    expected_N = compute(
        TokenBatch(full_logits(model), actions_N=actions(), advantages_N=advantages_N, old_logits_NV=old_NV), spec
    ).loss_N
    assert float(expected_N.detach().abs().min()) > 1e-6
    for frozen in (stored, other):
        batch = HiddenBatch(
            whole_rows(model, PROMPTS, RESPONSES),
            head_of(model),
            actions_N=actions(),
            advantages_N=advantages_N,
            frozen=frozen,
        )
        found = linear_objective(batch, spec, torch.ones(5), chunk_tokens=2)
        torch.testing.assert_close(found.loss_N, expected_N, rtol=1e-9, atol=1e-12)


def test_frozen_head_shares_what_does_not_train() -> None:
    head = LinearHead(torch.ones(3, 2), torch.ones(3, requires_grad=True))
    frozen = head.frozen()
    assert frozen.weight_VH is head.weight_VH and frozen.bias_V is not head.bias_V


def doubled() -> Any:
    """Does something to its logits that no field of its config names."""
    from transformers import LlamaConfig, LlamaForCausalLM

    class Doubled(LlamaForCausalLM):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            found = super().forward(*args, **kwargs)
            found.logits = 2.0 * found.logits
            return found

    return Doubled(LlamaConfig(**SIZES))


class Normed(nn.Linear):
    """An output layer that reads something else than the last hidden states."""

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(torch.nn.functional.normalize(hidden, dim=-1))


def squeezed() -> Any:
    """Transforms the hidden states before its output layer."""
    model = llama()
    model.lm_head.register_forward_pre_hook(lambda _, arguments: (arguments[0].tanh(),))
    return model


def with_layer(layer: nn.Module | None) -> Any:
    model = llama()
    model.get_output_embeddings = lambda: layer  # type: ignore[method-assign]
    if layer is not None:
        model.lm_head = layer
    return model


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "none": (lambda: with_layer(None), "no output embeddings"),
    "not linear": (lambda: with_layer(nn.Sequential(nn.Linear(8, 23))), "`Sequential`, not a linear layer"),
    "after the layer": (doubled, "its logits are not"),
    "in the layer": (lambda: with_layer(Normed(8, 23, bias=False)), "its logits are not"),
    "before the layer": (squeezed, "does not read the last hidden states"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_other_heads_are_refused_with_the_reason(case: str) -> None:
    build, reason = REFUSED[case]
    torch.manual_seed(0)
    with pytest.raises(UserError) as refused:
        head_of(build())
    assert reason in str(refused.value) and "full logits" in str(refused.value)


def test_probing_leaves_the_model_as_it_was() -> None:
    model = llama().train()
    model.model.eval()
    before = {name: module.training for name, module in model.named_modules()}
    head_of(model)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert not model.lm_head._forward_pre_hooks


def test_a_half_precision_model_is_accepted() -> None:
    assert head_of(llama().bfloat16()).weight_VH.dtype == torch.bfloat16


def test_wrong_shapes_and_constants_are_refused() -> None:
    weight_VH = torch.ones(3, 2)
    for given, message in (
        ({"weight_VH": torch.ones(3)}, "two dimensions"),
        ({"bias_V": torch.ones(2)}, "bias_V"),
        ({"low_rank": (LowRank(torch.ones(1, 2), torch.ones(2, 1)),)}, "low-rank"),
        ({"temperature": 0.0}, "positive"),
        ({"softcap": -1.0}, "positive"),
    ):
        with pytest.raises(ValueError, match=message):
            LinearHead(**{"weight_VH": weight_VH, **given})  # type: ignore[arg-type]


needs_peft = pytest.mark.skipif(
    importlib.util.find_spec("peft") is None,
    reason='LoRA on the output layer is tested with `pip install "cvxrl[lora]"`',
)


def adapted(**options: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    model = double(FAMILIES["untied"])
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj", "lm_head"], init_lora_weights=False, **options)
    return get_peft_model(model, config).double().eval()


@needs_peft
def test_lora_on_the_head_gives_the_models_logits_and_gradients() -> None:
    model = adapted()
    trained = [p for p in model.parameters() if p.requires_grad]
    inner = model.get_base_model()
    head = head_of(model)
    assert len(head.low_rank) == 1 and head.low_rank[0].scaling == 1.5
    spec, advantages_N = LcoKldSpec(), torch.ones(5, dtype=torch.float64)
    logits_NV = full_logits(model)
    tokens = TokenBatch(logits_NV, actions_N=actions(), advantages_N=advantages_N, old_logits_NV=logits_NV.detach())
    want = torch.autograd.grad(compute(tokens, spec).loss_N.sum(), trained)
    batch = HiddenBatch(
        whole_rows(inner, PROMPTS, RESPONSES), head, actions_N=actions(), advantages_N=advantages_N, on_policy=True
    )
    got = torch.autograd.grad(linear_objective(batch, spec, torch.ones(5), chunk_tokens=2).loss, trained)
    assert len(got) == 4
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@needs_peft
def test_adapters_that_are_off_or_merged_are_not_counted_twice() -> None:
    model = adapted()
    with model.disable_adapter():
        assert not head_of(model).low_rank
    model.merge_adapter()
    assert not head_of(model).low_rank


@needs_peft
def test_other_adapters_are_refused() -> None:
    with pytest.raises(UserError, match="DoRA"):
        head_of(adapted(use_dora=True))


@needs_peft
def test_a_saved_copy_of_the_head_is_what_trains() -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    model = get_peft_model(double(FAMILIES["untied"]), config)
    assert head_of(model).weight_VH.requires_grad
