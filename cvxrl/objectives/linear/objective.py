"""Every objective of the registry from hidden states and the output matrix, by the cheapest exact way."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from cvxrl.objectives.batch import ObjectiveOutput
from cvxrl.objectives.linear.batch import HiddenBatch
from cvxrl.objectives.linear.fused import LinearLoss, fused_loss
from cvxrl.objectives.linear.gathered import gathered_logits
from cvxrl.objectives.linear.softmax import entropy_and_exp_, kl_, log_softmax_, others_
from cvxrl.objectives.linear.statistics import linear_statistics
from cvxrl.objectives.linear.sweep import Chunk, Frozen, Kernel
from cvxrl.objectives.registry import compute
from cvxrl.objectives.target import sampled_tilt
from cvxrl.recipe.lco import LcoKldSpec, LcoLchSpec, LcoMseSpec
from cvxrl.recipe.objective import ObjectiveSpec


def linear_objective(
    batch: HiddenBatch, spec: ObjectiveSpec, weights_N: Tensor, *, chunk_tokens: int | None = None
) -> LinearLoss:
    """Sum of weight * loss under the objective that ``spec`` names; no [N, V] tensor exists at any time.

    Equal to `objectives.registry.compute` on the full logits, gradients included. `lco-mse` and `lco-lch` read rows of
    the output matrix and project nothing (docs/linear.md).

    Args:
        batch: hidden states, output layer and what the objective needs besides.
        spec: the objective.
        weights_N: weight of each token, without gradient (`objectives.reduce`).
        chunk_tokens: tokens per chunk; None for `sweep.default_chunk`.

    Raises:
        ValueError: no token, shapes that do not fit, or something that the objective needs is missing.
    """
    if isinstance(spec, LcoMseSpec | LcoLchSpec):
        return _gathered(batch, spec, weights_N, chunk_tokens)
    if spec.coupling != "token":
        return _of_sequences(batch, spec, weights_N, chunk_tokens)
    kernel, frozen = odds_kernel(batch, spec, weights_N), None
    if isinstance(spec, LcoKldSpec):
        frozen = _base(batch, spec)
        if batch.dense is not None or spec.support.kind != "exact":
            kernel = whole_kernel(batch, spec, weights_N)
        elif frozen is not None:
            kernel = kld_kernel(batch, spec, weights_N)
    return fused_loss(batch.hidden_NH, batch.head, weights_N, kernel, frozen=frozen, chunk_tokens=chunk_tokens)


def _base(batch: HiddenBatch, spec: LcoKldSpec | LcoMseSpec | LcoLchSpec) -> Frozen | None:
    """The policy that the target is built on; None if it is the current one, detached."""
    return None if batch.on_policy or spec.target == "moving" else batch.require_frozen()


def _gathered(
    batch: HiddenBatch, spec: LcoMseSpec | LcoLchSpec, weights_N: Tensor, chunk_tokens: int | None
) -> LinearLoss:
    """Losses of z_a - z*_a from the sampled tokens' or the candidates' logits alone."""
    ids_NK = batch.actions_N.unsqueeze(-1) if batch.dense is None else batch.dense.ids_NK
    now_NK = gathered_logits(batch.hidden_NH, batch.head, ids_NK, chunk_tokens=chunk_tokens)
    frozen = _base(batch, spec)
    old_NK = now_NK.detach()
    if frozen is not None:
        with torch.no_grad():
            old_NK = gathered_logits(frozen.hidden_NH, frozen.head, ids_NK, chunk_tokens=chunk_tokens).to(now_NK.dtype)
    if spec.tilt == "linear" and batch.dense is None:
        # A second column that gives the base policy the log-odds that this tilt asks for.
        log_odds_N = batch.old_log_odds_N if frozen is not None or batch.on_policy else None
        if log_odds_N is None:
            source = frozen or Frozen(batch.hidden_NH, batch.head)
            log_odds_N = _log_odds(source, batch.actions_N, chunk_tokens)
        others_N1 = old_NK - log_odds_N.to(old_NK.dtype).unsqueeze(-1)
        now_NK, old_NK = torch.cat([now_NK, others_N1], -1), torch.cat([old_NK, others_N1], -1)
    output = compute(batch.with_columns(now_NK, old_NK), spec)
    return _reduced(output.loss_N, weights_N, dict(output.metrics))


@torch.no_grad()
def _log_odds(policy: Frozen, actions_N: Tensor, chunk_tokens: int | None) -> Tensor:
    return linear_statistics(policy.hidden_NH, policy.head, actions_N, chunk_tokens=chunk_tokens).log_odds_N


def _of_sequences(batch: HiddenBatch, spec: ObjectiveSpec, weights_N: Tensor, chunk_tokens: int | None) -> LinearLoss:
    """Losses that compare tokens of a sequence or of a group: their gradient needs a second pass over the chunks."""
    found = linear_statistics(batch.hidden_NH, batch.head, batch.actions_N, chunk_tokens=chunk_tokens)
    output = compute(batch.with_log_odds(found.log_odds_N), spec)
    return _reduced(output.loss_N, weights_N, dict(output.metrics), found.logprobs_N.detach(), found.entropy_N.detach())


def _reduced(loss_N: Tensor, weights_N: Tensor, metrics: dict[str, Tensor], *read: Tensor) -> LinearLoss:
    loss = (weights_N.to(loss_N.dtype) * loss_N).sum()
    return LinearLoss(loss, loss_N.detach(), {name: value.detach() for name, value in metrics.items()}, *read)


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
