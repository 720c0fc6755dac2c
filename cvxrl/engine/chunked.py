"""The loss of a micro-batch from hidden states, a few tokens at a time: no [N, V] tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cvxrl.engine.assemble import Memory, hidden_batch
from cvxrl.engine.experience import Experience
from cvxrl.engine.readers import Reader
from cvxrl.objectives.linear import HiddenBatch, linear_objective, linear_statistics
from cvxrl.objectives.regularizer import penalties
from cvxrl.recipe.regularizer import RegularizerSpec
from cvxrl.recipe.schema import Recipe


def chunked_loss(
    recipe: Recipe, reader: Reader, experience: Experience, micro: Sequence[int], memory: Memory, weight_N: Tensor
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Weighted sum of the token losses of ``micro``, the hidden states it came from, and per-token diagnostics.

    Args:
        recipe: names objective and regulariser.
        reader: the policy; has an output layer to take the logits from.
        experience: the step's data.
        micro: indices of the sequences.
        memory: what was said before the update.
        weight_N: weight of each token.
    """
    assert reader.head is not None
    hidden_NH = reader.hidden([experience.prompts[i] for i in micro], [experience.responses[i] for i in micro])
    batch = hidden_batch(hidden_NH, reader.head, experience, micro, memory)
    found = linear_objective(batch, recipe.objective, weight_N, chunk_tokens=reader.chunk_tokens)
    extra_N, metrics = _penalties(batch, recipe.regularizer, reader.chunk_tokens)
    entropy_N = found.entropy_N
    if entropy_N is None:  # the loss needed no projection; the log does
        with torch.no_grad():
            entropy_N = _statistics(batch, reader.chunk_tokens)[1]
    loss = found.loss + (weight_N * extra_N).sum()
    return loss, hidden_NH, {"policy/entropy": entropy_N, **found.metrics, **metrics}


def _penalties(batch: HiddenBatch, spec: RegularizerSpec, chunk_tokens: int | None) -> tuple[Tensor, dict[str, Tensor]]:
    logprobs_N = entropy_N = None
    if spec.kl_coefficient or spec.entropy_coefficient:
        logprobs_N, entropy_N = _statistics(batch, chunk_tokens)
    return penalties(batch.actions_N, logprobs_N, entropy_N, batch.reference_logprobs_N, spec)


def _statistics(batch: HiddenBatch, chunk_tokens: int | None) -> tuple[Tensor, Tensor]:
    """Log-probability of the sampled token and entropy, with gradient."""
    found = linear_statistics(batch.hidden_NH, batch.head, batch.actions_N, chunk_tokens=chunk_tokens)
    return found.logprobs_N, found.entropy_N
