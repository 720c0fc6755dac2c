"""Small batches for the tests of gradients, and what brute-force autograd says about them."""

from __future__ import annotations

from dataclasses import replace

import torch
from linear_cases import LENGTHS, NUM_TOKENS
from torch import Tensor

from cvxrl.gradients.loss import token_weights, weighted_loss
from cvxrl.objectives.batch import DenseAdvantages, TokenBatch
from cvxrl.recipe.objective import ObjectiveSpec, RegularizerSpec


def made_batch(
    seed: int, *, spread: float = 2.0, drift: float = 1.0, vocab: int = 5, dense: bool = False
) -> TokenBatch:
    """Two prompts with two responses each; rollout logits of size ``spread``, current ones ``drift`` away."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    sequence_N = torch.arange(len(LENGTHS)).repeat_interleave(torch.tensor(LENGTHS))
    old_NV = spread * normal(NUM_TOKENS, vocab)
    actions_N = torch.randint(vocab, (NUM_TOKENS,), generator=generator)
    old_logprobs_N = torch.log_softmax(old_NV, -1)[torch.arange(NUM_TOKENS), actions_N]
    advantages_S = normal(len(LENGTHS))
    ids_NK = torch.stack([torch.randperm(vocab, generator=generator)[:3] for _ in range(NUM_TOKENS)])
    return TokenBatch(
        logits_NV=old_NV + drift * normal(NUM_TOKENS, vocab),
        actions_N=actions_N,
        advantages_N=advantages_S[sequence_N],
        old_logits_NV=old_NV,
        old_logprobs_N=old_logprobs_N,
        reference_logprobs_N=old_logprobs_N - 0.1,
        group_advantages_NG=advantages_S.view(2, 2).repeat_interleave(2, dim=0)[sequence_N],
        dense=DenseAdvantages(ids_NK, normal(NUM_TOKENS, 3)) if dense else None,
        sequence_N=sequence_N,
        group_S=torch.tensor([0, 0, 1, 1]),
    )


def brute_force(
    batch: TokenBatch, spec: ObjectiveSpec, regularizer: RegularizerSpec | None = None
) -> tuple[Tensor, Tensor]:
    """Gradient [N, V] and diagonal Hessian blocks [N, V, V] per unit of weight, from the whole Hessian."""
    weights_N = token_weights(batch, spec)
    loss = weighted_loss(spec, regularizer)

    def value(logits_NV: Tensor) -> Tensor:
        return loss(replace(batch, logits_NV=logits_NV), weights_N)

    gradient_NV = torch.autograd.functional.jacobian(value, batch.logits_NV)
    hessian = torch.autograd.functional.hessian(value, batch.logits_NV)
    blocks_NVV = torch.stack([hessian[n, :, n, :] for n in range(NUM_TOKENS)])
    return gradient_NV / weights_N.unsqueeze(-1), blocks_NVV / weights_N.view(-1, 1, 1)
