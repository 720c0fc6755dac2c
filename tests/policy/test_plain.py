"""The forward pass written out for plain decoders gives what the model's own gives: values, gradients and samples."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from helpers import new_model, quick_if
from torch import Tensor, nn

from cvxrl.errors import UserError
from cvxrl.policy import forward
from cvxrl.policy.forward import packed_rows
from cvxrl.policy.model import Policy
from cvxrl.policy.plain import gated, is_plain, pad_rows, rms_norm, rotate, unpad_rows
from cvxrl.policy.rows import whole_rows
from cvxrl.policy.ways import hidden_states
from cvxrl.rollout import plain_decoder, static_decoder
from cvxrl.rollout.choice import decoder_for
from cvxrl.rollout.decoder import TransformersDecoder
from cvxrl.rollout.generator import Episode, Sampling
from cvxrl.rollout.local_generator import LocalGenerator
from cvxrl.rollout.plain_decoder import PlainDecoder
from cvxrl.rollout.randomness import completion_keys
from cvxrl.rollout.static_decoder import StaticDecoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROMPTS = [[3, 4, 5, 6], [7, 8], [3, 4, 5, 6], [7, 8], [3, 4, 5, 6], [9]]
RESPONSES = [[1, 2], [5, 6, 7, 8, 9], [4], [4, 4, 4], [1, 2, 3], [2]]
FAMILIES = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}
SIZES = {"vocab_size": 12, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 8}


def small(family: str = "qwen3", **changes: Any) -> PreTrainedModel:
    """A random model with grouped-query attention, every parameter off its initial value."""
    torch.manual_seed(0)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
    model = new_model(FAMILIES[family], **{**SIZES, **heads, **changes})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def policy(model: PreTrainedModel) -> Policy:
    return Policy(model, SimpleNamespace(pad_token_id=0, eos_token_id=1))  # type: ignore[arg-type]


def run(way: Any, model: PreTrainedModel, rows: tuple[Any, Any] = (PROMPTS, RESPONSES)) -> dict[str, Tensor]:
    model.zero_grad()
    out = way(model, *rows)
    (out * torch.arange(out.numel(), dtype=out.dtype).view_as(out).cos()).sum().backward()
    gradients = {name: p.grad for name, p in model.base_model.named_parameters() if p.grad is not None}
    return {"out": out.detach(), **gradients}


def furthest(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys()
    return max(float((found[k] - expected[k]).norm() / expected[k].norm()) for k in expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}, {"num_key_value_heads": 4}])
def test_packed_rows_change_neither_values_nor_gradients(family: str, changes: dict[str, Any]) -> None:
    model = small(family, **changes)
    assert is_plain(model)
    # Float64 but for the norms' inside, where the model itself computes in fp32.
    assert furthest(run(packed_rows, model.double()), run(whole_rows, model)) < 2e-6


@pytest.mark.parametrize("parameters", [torch.float32, torch.bfloat16])
def test_packed_rows_in_bf16_are_as_near_to_fp32_as_the_models_own(parameters: torch.dtype) -> None:
    exact = run(whole_rows, small())
    found = []
    for way in (packed_rows, whole_rows):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=parameters is torch.float32):
            got = run(way, small().to(parameters))
        found.append(furthest({k: v.float() for k, v in got.items()}, exact))
    assert 1e-4 < found[0] < 1.5 * found[1]


def test_bf16_parameters_sample_through_either_engine() -> None:
    model, prompts = small().bfloat16().eval(), [[3, 4, 5], [7]]
    fast, plain = (sampled(model, prompts, engine) for engine in ("auto", "transformers"))
    first = torch.tensor([[e.logprobs[0] for e in side if e.logprobs is not None] for side in (fast, plain)])
    torch.testing.assert_close(first[0], first[1], rtol=0, atol=0.1)


def test_responses_of_one_token_need_prompts_alone() -> None:
    model, rows = small(), ([[3, 4], [3, 4], [5]], [[1], [2], [3]])
    assert furthest(run(packed_rows, model, rows), run(whole_rows, model, rows)) < 2e-5


def test_without_its_mask_attention_would_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    whole = run(whole_rows, model)
    masked = forward._mask
    monkeypatch.setattr(forward, "_mask", lambda *a: masked(*a).clamp(min=0.0))
    assert furthest(run(packed_rows, model), whole) > 0.01


def test_pointwise_gradients() -> None:
    torch.manual_seed(0)
    x, y = (torch.randn(5, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weight = torch.randn(4, dtype=torch.float64, requires_grad=True)
    cos, sin = torch.randn(2, 5, 1, 2, dtype=torch.float64)
    index, place = torch.tensor([0, 0, 1, 2, 0, 3, 4]), torch.tensor([1, 2, 3, 5, 6])
    check = torch.autograd.gradcheck
    for order in (check, torch.autograd.gradgradcheck):
        assert order(lambda a, w: rms_norm(a, w, 1e-6), (x, weight))
        assert order(lambda a: rotate(a, cos, sin), (x,))
        assert order(gated, (x, y))
        assert order(lambda a: rms_norm(a, weight.detach(), 1e-6), (x,))
    # What padding holds must not matter, so it is multiplied by nothing.
    kept = torch.zeros(7, 1, 1, dtype=torch.float64).index_fill_(0, place, 1.0)
    assert check(lambda a: kept * pad_rows(a, index, place), (x,))
    assert check(lambda a: unpad_rows(a, torch.tensor([4, 0, 2])), (x,))


def sampled(model: PreTrainedModel, prompts: list[list[int]], engine: Any, longest: int = 40) -> list[Episode]:
    keys = completion_keys(3, "sampling", prompts=range(len(prompts)), samples=8)
    return LocalGenerator(policy(model), engine).generate(prompts, keys, Sampling(longest, 1.0))


SHAPES = [[[3, 4, 5], [7], [2] * 5], [[3, 4], [5, 6]], [[3]]]
# Each family with one of them.
TAKEN = list(zip(FAMILIES, SHAPES, strict=True))


@pytest.mark.parametrize(("family", "prompts"), quick_if(lambda *case: case in TAKEN, product(FAMILIES, SHAPES)))
def test_both_engines_sample_the_same(family: str, prompts: list[list[int]]) -> None:
    model = small(family).eval()
    assert type(decoder_for(policy(model), "auto")) is PlainDecoder
    fast, plain = (sampled(model, prompts, engine) for engine in ("auto", "transformers"))
    assert len({len(e.response_ids) for e in fast}) > 2
    for a, b in zip(fast, plain, strict=True):
        assert (a.response_ids, a.truncated) == (b.response_ids, b.truncated)
        torch.testing.assert_close(a.logprobs, b.logprobs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("family", "prompts"), quick_if(lambda *case: case in TAKEN, product(FAMILIES, SHAPES)))
def test_operations_of_fixed_shape_sample_the_same(
    family: str, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows leave, and the cache grows, on the way."""
    model = small(family).eval()
    assert type(decoder_for(policy(model), "static")) is StaticDecoder
    plain = sampled(model, prompts, "auto")
    for block in (64, 3):
        monkeypatch.setattr(static_decoder, "_BLOCK", block)
        for a, b in zip(sampled(model, prompts, "static"), plain, strict=True):
            assert (a.response_ids, a.truncated) == (b.response_ids, b.truncated)
            torch.testing.assert_close(a.logprobs, b.logprobs, rtol=0, atol=1e-5)


def test_shapes_stay_and_a_token_may_be_computed_twice() -> None:
    """What a CUDA graph needs: the same buffers at every token, and a warm-up that leaves no trace."""
    decoder = StaticDecoder(policy(small().eval()))
    with torch.no_grad():
        decoder.start([[3, 4, 5], [7]], [2, 2])
        tokens = torch.tensor([2, 3, 4, 5])
        decoder.step(tokens)
        buffers = [decoder.bias_BT, decoder.lengths_B, decoder._tokens_B, decoder._place_1]
        buffers += [x for layer in decoder.layers for x in (layer.keys, layer.values)]
        before = [x.data_ptr() for x in buffers if x is not None]
        logits = decoder.step(tokens)
        # The same place once more: what `step` advances, `_one` does not.
        decoder.lengths_B -= 1
        assert torch.equal(decoder._one(), logits)
        decoder.lengths_B += 1
        decoder.step(tokens)
        now = [decoder.bias_BT, decoder.lengths_B, decoder._tokens_B, decoder._place_1]
        now += [x for layer in decoder.layers for x in (layer.keys, layer.values)]
    assert before == [x.data_ptr() for x in now if x is not None]


def test_a_model_that_is_not_plain_has_no_static_engine() -> None:
    model = small()
    hooked(model)
    with pytest.raises(UserError, match="Qwen3ForCausalLM is none") as caught:
        decoder_for(policy(model), "static")
    assert caught.value.problems[0].key == "rollout.engine"


def test_a_cache_that_grows_keeps_what_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = small().eval(), [[3, 4, 5], [7]]
    once = sampled(model, prompts, "auto")
    monkeypatch.setattr(plain_decoder, "_BLOCK", 3)
    assert [e.response_ids for e in sampled(model, prompts, "auto")] == [e.response_ids for e in once]


def test_a_decoder_that_turned_by_wrong_angles_would_not_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = small().eval(), [[3, 4, 5], [7]]
    right = sampled(model, prompts, "auto")
    turn = plain_decoder.turn
    monkeypatch.setattr(plain_decoder, "turn", lambda x, cos, sin: turn(x, cos, -sin))
    assert type(decoder_for(policy(model), "auto")) is TransformersDecoder
    assert [e.response_ids for e in sampled(model, prompts, "auto")] == [e.response_ids for e in right]
    with pytest.raises(UserError, match="none"):
        decoder_for(policy(model), "static")


def taken(model: PreTrainedModel, *rows: Any) -> Tensor:
    return hidden_states(model, *rows, policy(model).ways)


def hooked(model: PreTrainedModel) -> None:
    model.model.layers[0].mlp.register_forward_hook(lambda *_: None)


def replaced(model: PreTrainedModel) -> None:
    model.model.norm = type("Norm", (nn.LayerNorm,), {})(16)


def eager(model: PreTrainedModel) -> None:
    model.set_attn_implementation("eager")


@pytest.mark.parametrize("change", [hooked, replaced, eager])
def test_whatever_differs_runs_through_its_own_forward_pass(change: Any) -> None:
    model = small()
    change(model)
    assert not is_plain(model)
    assert type(decoder_for(policy(model), "auto")) is TransformersDecoder
    assert furthest(run(taken, model), run(whole_rows, model)) < 2e-5


def test_sliding_windows_and_stretched_positions_are_not_plain() -> None:
    assert not is_plain(small("qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=0))
    stretched = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    assert not is_plain(small("llama", rope_parameters=stretched))
    assert is_plain(small("llama", rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}))


@pytest.mark.parametrize("rows", [16, 40])
def test_matrices_in_either_layout_sample_the_same(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large matrices are read as they are, small ones in the usual order; here all are taken for large."""
    model, prompts = small("llama").eval(), [[3, 4, 5]] * (rows // 8)
    usual = sampled(model, prompts, "auto", longest=6)
    monkeypatch.setattr(plain_decoder, "_LARGE", 0)
    decoder = PlainDecoder(policy(model))
    with torch.no_grad():
        decoder.start([[3, 4, 5]], [rows])
        assert decoder.step(torch.full((rows,), 2)).stride() == (1, rows)
    for a, b in zip(sampled(model, prompts, "auto", longest=6), usual, strict=True):
        assert a.response_ids == b.response_ids
        torch.testing.assert_close(a.logprobs, b.logprobs, rtol=0, atol=1e-6)
