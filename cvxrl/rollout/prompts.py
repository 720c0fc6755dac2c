"""Examples as token ids, checked against the policy's context."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cvxrl.errors import Problem, UserError
from cvxrl.policy.model import Policy
from cvxrl.recipe.task import TaskSpec
from cvxrl.tasks import Example
from cvxrl.tasks.template import render


def encode_examples(
    task: TaskSpec, policy: Policy, examples: Sequence[Example], response_tokens: int | Sequence[int]
) -> list[list[int]]:
    """Render and encode prompts.

    Args:
        task: names the template.
        policy: its tokenizer encodes, its context limits.
        examples: one prompt each.
        response_tokens: tokens that must fit behind every prompt, or one number for each.

    Raises:
        UserError: a prompt is empty, or prompt and response would not fit the model's context.
    """
    prompts = policy.encode([render(e.prompt, task, policy.tokenizer) for e in examples])
    room = [response_tokens] * len(prompts) if isinstance(response_tokens, int) else response_tokens
    for example, ids, needed in zip(examples, prompts, room, strict=True):
        if not ids:
            raise UserError(Problem(f"the prompt of example `{example.id}` is empty", "task.source"))
        if len(ids) + needed > policy.context:
            raise UserError(
                Problem(
                    f"example `{example.id}` has {len(ids)} prompt tokens; with {needed} new tokens that "
                    f"exceeds the model's context of {policy.context}",
                    "rollout.max_new_tokens",
                    remedy="lower rollout.max_new_tokens, shorten the prompts, or take a model with a longer context",
                )
            )
    return prompts


def padded_prompts(prompts: Sequence[list[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids padded on the left and their mask, [P, T] each."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (width - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, mask


def row_prompts(counts: Sequence[int], device: torch.device) -> Tensor:
    """Index of the prompt of every row, [B]: ``counts[p]`` times p, for each p."""
    indices = torch.arange(len(counts), device=device)
    return indices.repeat_interleave(torch.tensor(counts, device=device))
