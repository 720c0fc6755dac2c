"""A prompt computed once for all its responses gives what computing every row gives, gradients included."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch
from helpers import new_model
from torch import Tensor

from cvxrl.policy.rows import can_share_prompts, shared_prompts, whole_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROMPTS = [[3, 4, 5, 6], [7, 8], [3, 4, 5, 6], [7, 8], [3, 4, 5, 6], [9]]
RESPONSES = [[1, 2], [5, 6, 7, 8, 9], [4], [4, 4, 4], [1, 2, 3], [2]]


def small(**changes: object) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": 12, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32}
    return new_model("Qwen3", **sizes, **heads, **changes).double()


def run(hidden: Callable[..., Tensor], model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    model.zero_grad()
    out = hidden(model, PROMPTS, RESPONSES)
    (out * torch.arange(out.numel(), dtype=out.dtype).view_as(out).cos()).sum().backward()
    return out.detach(), torch.cat([p.grad.flatten() for p in model.base_model.parameters() if p.grad is not None])


def plain() -> PreTrainedModel:
    """No step of it falls back to fp32, so float64 shows exactness; eval mode, for it has dropout."""
    torch.manual_seed(0)
    return new_model("GPT2", vocab_size=12, n_embd=16, n_layer=2, n_head=2, n_positions=32).double().eval()


@pytest.mark.parametrize(("build", "tolerance"), [(plain, 1e-9), (small, 1e-3)])
def test_sharing_changes_neither_values_nor_gradients(build: Callable[[], PreTrainedModel], tolerance: float) -> None:
    model = build()
    shared, whole = run(shared_prompts, model), run(whole_rows, model)
    assert shared[0].shape == (sum(map(len, RESPONSES)), 16)
    for a, b in zip(shared, whole, strict=True):
        assert (a - b).norm() <= tolerance * b.norm()


def test_a_cache_cut_from_the_graph_would_change_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    select = Tensor.index_select
    monkeypatch.setattr(Tensor, "index_select", lambda x, dim, index: select(x.detach(), dim, index))
    cut = run(shared_prompts, model)[1]
    monkeypatch.undo()
    whole = run(whole_rows, model)[1]
    assert (cut - whole).norm() > 0.01 * whole.norm()


def test_responses_of_one_token_need_no_second_pass() -> None:
    model = small()
    prompts, responses = [[3, 4], [3, 4], [5]], [[1], [2], [3]]
    shared, whole = (hidden(model, prompts, responses) for hidden in (shared_prompts, whole_rows))
    torch.testing.assert_close(shared, whole, rtol=1e-4, atol=1e-5)


def test_sharing_is_left_where_it_would_not_be_exact() -> None:
    assert can_share_prompts(small())
    assert not can_share_prompts(small(use_cache=False))
    sizes = {"vocab_size": 12, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 8}
    assert not can_share_prompts(new_model("Gemma2", **sizes, num_attention_heads=2))
    model = small()
    model.gradient_checkpointing_enable()
    assert not can_share_prompts(model)
