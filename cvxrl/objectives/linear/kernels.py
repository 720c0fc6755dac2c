"""What is made of a chunk of logits: losses, and their gradients in the logits, in the chunk's own memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from cvxrl.objectives.batch import ObjectiveOutput
from cvxrl.objectives.linear.softmax import entropy_and_exp_, kl_, log_softmax_, others_
from cvxrl.objectives.linear.sweep import Chunk, Kernel

# From log-probabilities of the sampled tokens of a chunk to their losses; the slice says which tokens they are.
PerAction = Callable[[Tensor, slice], ObjectiveOutput]
# The same from logits [C, V], and from the frozen policy's logits if there is one.
PerChunk = Callable[[Tensor, Tensor | None, slice], ObjectiveOutput]
# Tilt of the sampled tokens of a chunk from the log-odds of their probability, [C].
Tilt = Callable[[Tensor, slice], Tensor]

# Where p_a is 1 to the last digit its log-odds are infinite; the target then is p_a itself, whatever the tilt.
_CERTAIN = 1e4


def action_kernel(actions_N: Tensor, per_action: PerAction, weights_N: Tensor) -> Kernel:
    """Losses that depend on the logits only through log pi(a): all policy gradients with token-level terms."""

    def kernel(chunk: Chunk, gradient: bool) -> tuple[dict[str, Tensor], Tensor | None]:
        actions_C = actions_N[chunk.rows]
        others = others_(chunk.logits_CV, actions_C)
        logprobs_C = others.logprobs_C
        with torch.enable_grad():
            leaf_C = logprobs_C.detach().requires_grad_(gradient)
            output = per_action(leaf_C, chunk.rows)
            slopes_C = _gradient(output.loss_N, weights_N[chunk.rows], leaf_C) if gradient else None
        values = _values(output, logprobs_C, others.entropy_C)
        return values, None if slopes_C is None else others.policy_gradient_(slopes_C, actions_C)

    return kernel


def on_policy_kld_kernel(actions_N: Tensor, tilt: Tilt, weights_N: Tensor) -> Kernel:
    """KL(pi* || pi) where the policy still is the one that sampled (docs/method.md, 2).

    With l = logit(p_a), t the tilt and D = log((1 - q) / (1 - p_a)) the gradient is (1 - e^D) (pi - e_a), and the value
    is the binary KL(q || p_a). No target over the vocabulary is formed.
    """

    def kernel(chunk: Chunk, gradient: bool) -> tuple[dict[str, Tensor], Tensor | None]:
        actions_C = actions_N[chunk.rows]
        others = others_(chunk.logits_CV, actions_C)
        odds_C = others.log_odds_C.clamp(max=_CERTAIN)
        tilt_C = tilt(odds_C, chunk.rows)
        moved_C = odds_C + tilt_C
        rest_C = logsigmoid(-moved_C) - logsigmoid(-odds_C)
        sampled_C = logsigmoid(moved_C) - logsigmoid(odds_C)
        loss_C = torch.sigmoid(moved_C) * sampled_C + torch.sigmoid(-moved_C) * rest_C
        output = ObjectiveOutput(loss_C, {"lco/tilt_abs": tilt_C.abs()})
        values = _values(output, others.logprobs_C, others.entropy_C)
        if not gradient:
            return values, None
        return values, others.policy_gradient_(weights_N[chunk.rows] * torch.expm1(rest_C), actions_C)

    return kernel


def kld_kernel(actions_N: Tensor, tilt_N: Tensor, weights_N: Tensor) -> Kernel:
    """KL(pi* || pi) with pi* ~ pi_old exp(tilt e_a) over the whole vocabulary; the sweep brings pi_old's logits."""

    def kernel(chunk: Chunk, gradient: bool) -> tuple[dict[str, Tensor], Tensor | None]:
        assert chunk.old_logits_CV is not None, "the general KLD needs a frozen policy"
        index_C1 = actions_N[chunk.rows].unsqueeze(-1)
        tilt_C = tilt_N[chunk.rows].to(chunk.logits_CV.dtype)
        target_CV = log_softmax_(chunk.old_logits_CV.scatter_add_(-1, index_C1, tilt_C.unsqueeze(-1)))
        log_probs_CV = log_softmax_(chunk.logits_CV)
        logprobs_C = log_probs_CV.gather(-1, index_C1).squeeze(-1)
        loss_C = kl_(target_CV, log_probs_CV)
        entropy_C = entropy_and_exp_(log_probs_CV)
        values = _values(ObjectiveOutput(loss_C, {"lco/tilt_abs": tilt_C.abs()}), logprobs_C, entropy_C)
        if not gradient:
            return values, None
        return values, log_probs_CV.sub_(target_CV).mul_(weights_N[chunk.rows].unsqueeze(-1))

    return kernel


def any_kernel(actions_N: Tensor, per_chunk: PerChunk, weights_N: Tensor) -> Kernel:
    """Any per-token loss of the logits, its gradient found by autograd on the chunk alone."""

    def kernel(chunk: Chunk, gradient: bool) -> tuple[dict[str, Tensor], Tensor | None]:
        with torch.enable_grad():
            leaf_CV = chunk.logits_CV.detach().requires_grad_(gradient)
            output = per_chunk(leaf_CV, chunk.old_logits_CV, chunk.rows)
            grad_CV = _gradient(output.loss_N, weights_N[chunk.rows], leaf_CV) if gradient else None
        # The buffer is about to be overwritten, and what the objective reports may be a view of it.
        metrics = {name: value.detach().clone() for name, value in output.metrics.items()}
        others = others_(chunk.logits_CV, actions_N[chunk.rows])
        values = _values(ObjectiveOutput(output.loss_N.detach().clone(), metrics), others.logprobs_C, others.entropy_C)
        return values, grad_CV

    return kernel


def _gradient(loss_C: Tensor, weights_C: Tensor, leaf: Tensor) -> Tensor:
    """Gradient of the weighted sum of losses; zero where they do not depend on ``leaf``."""
    if not loss_C.requires_grad:
        return torch.zeros_like(leaf)
    (grad,) = torch.autograd.grad((weights_C * loss_C).sum(), leaf, allow_unused=True)
    return torch.zeros_like(leaf) if grad is None else grad


def _values(output: ObjectiveOutput, logprobs_C: Tensor, entropy_C: Tensor) -> dict[str, Tensor]:
    metrics = {name: value.detach() for name, value in output.metrics.items()}
    return {"loss": output.loss_N.detach(), "logprob": logprobs_C, "entropy": entropy_C, **metrics}
