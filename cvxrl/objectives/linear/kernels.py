"""What is made of a chunk of logits: losses, and their gradients in the logits, in the chunk's own memory."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from cvxrl.objectives.batch import ObjectiveOutput
from cvxrl.objectives.linear.batch import HiddenBatch
from cvxrl.objectives.linear.softmax import entropy_and_exp_, kl_, log_softmax_, others_
from cvxrl.objectives.linear.sweep import Chunk, Kernel
from cvxrl.objectives.registry import compute
from cvxrl.objectives.target import sampled_tilt
from cvxrl.recipe.lco import LcoKldSpec
from cvxrl.recipe.objective import ObjectiveSpec


def odds_kernel(batch: HiddenBatch, spec: ObjectiveSpec, weights_N: Tensor) -> Kernel:
    """Losses that see the logits only through the log-odds of the sampled token: one [C, V] buffer.

    All policy gradients with per-token terms, and LCO-KLD on-policy in closed form: KL(pi* || pi) is then the binary
    KL(q || p_a) (docs/method.md, 1).
    """

    def kernel(chunk: Chunk, gradient: bool) -> tuple[dict[str, Tensor], Tensor | None]:
        actions_C = batch.actions_N[chunk.rows]
        others = others_(chunk.logits_CV, actions_C)
        with torch.enable_grad():
            leaf_C = others.log_odds_C.clone().requires_grad_(gradient)
            output = compute(batch.with_log_odds(leaf_C, chunk.rows), spec)
            slopes_C = _gradient(output.loss_N, weights_N[chunk.rows], leaf_C) if gradient else None
        values = _values(output, logsigmoid(others.log_odds_C), others.entropy_C)
        return values, None if slopes_C is None else others.pull_back_(slopes_C, actions_C)

    return kernel


def kld_kernel(batch: HiddenBatch, spec: LcoKldSpec, weights_N: Tensor) -> Kernel:
    """KL(pi* || pi), exact over the vocabulary, for a target built on a frozen policy: two [C, V] buffers."""

    def kernel(chunk: Chunk, gradient: bool) -> tuple[dict[str, Tensor], Tensor | None]:
        old_CV, rows = chunk.old_logits_CV, chunk.rows
        tokens = batch.with_logits(chunk.logits_CV, old_CV, rows)
        advantages_C, actions_C = tokens.require("advantages_N"), tokens.actions_N
        assert old_CV is not None
        tilt_C = sampled_tilt(spec, old_CV, actions_C, advantages_C, tokens.group_advantages_NG)
        index_C1 = actions_C.unsqueeze(-1)
        target_CV = log_softmax_(old_CV.scatter_add_(-1, index_C1, tilt_C.unsqueeze(-1).to(old_CV.dtype)))
        log_probs_CV = log_softmax_(chunk.logits_CV)
        logprobs_C = log_probs_CV.gather(-1, index_C1).squeeze(-1)
        loss_C = kl_(target_CV, log_probs_CV)
        output = ObjectiveOutput(loss_C, {"lco/tilt_abs": tilt_C.abs()})
        values = _values(output, logprobs_C, entropy_and_exp_(log_probs_CV))
        if not gradient:
            return values, None
        return values, log_probs_CV.sub_(target_CV).mul_(weights_N[rows].to(loss_C.dtype).unsqueeze(-1))

    return kernel


def whole_kernel(batch: HiddenBatch, spec: ObjectiveSpec, weights_N: Tensor) -> Kernel:
    """Any objective with per-token terms, its gradient found by autograd on a chunk's full logits: several buffers."""

    def kernel(chunk: Chunk, gradient: bool) -> tuple[dict[str, Tensor], Tensor | None]:
        with torch.enable_grad():
            leaf_CV = chunk.logits_CV.detach().requires_grad_(gradient)
            old_CV = leaf_CV.detach() if chunk.old_logits_CV is None else chunk.old_logits_CV
            output = compute(batch.with_logits(leaf_CV, old_CV, chunk.rows), spec)
            grad_CV = _gradient(output.loss_N, weights_N[chunk.rows], leaf_CV) if gradient else None
        others = others_(chunk.logits_CV, batch.actions_N[chunk.rows])
        return _values(output, logsigmoid(others.log_odds_C), others.entropy_C), grad_CV

    return kernel


def _gradient(loss_C: Tensor, weights_C: Tensor, leaf: Tensor) -> Tensor:
    """Gradient of the weighted sum of losses; zero where they do not depend on ``leaf``."""
    if not loss_C.requires_grad:
        return torch.zeros_like(leaf)
    (grad,) = torch.autograd.grad((weights_C * loss_C).sum(), leaf)
    return grad


def _values(output: ObjectiveOutput, logprobs_C: Tensor, entropy_C: Tensor) -> dict[str, Tensor]:
    metrics = {name: value.detach() for name, value in output.metrics.items()}
    return {"loss": output.loss_N.detach(), "logprob": logprobs_C, "entropy": entropy_C, **metrics}
