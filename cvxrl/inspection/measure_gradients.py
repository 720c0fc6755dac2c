"""Derivatives of an objective in the parameters: gradients by minibatch, sign and probability, and the Hessian."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from cvxrl.engine.sequences import Sequences
from cvxrl.gradients.curvature import HessianProduct, double_differentiable, extreme_eigenvalues, hutchinson_trace
from cvxrl.gradients.gram import (
    Gram,
    SignSplit,
    cosines,
    has_gradient,
    mean_pairwise_cosine,
    noise_scale,
    sign_split,
)
from cvxrl.gradients.parameters import Norms, norms
from cvxrl.inspection.checkpoint import LoadedCheckpoint, MeasuredObjective
from cvxrl.inspection.metrics import CurvatureMetrics, GradientMetrics, NoiseScaleInterval, ProbabilityBand
from cvxrl.objectives.batch import TokenBatch
from cvxrl.objectives.statistics import action_log_probs
from cvxrl.rollout.randomness import generator_for

Named = dict[str, Tensor]
# Chooses the tokens of a batch, bool [N].
Choice = Callable[[TokenBatch], Tensor]
BANDS = 10
LEVEL = 0.95  # coverage of the noise scale's interval


def measure_gradients(
    loaded: LoadedCheckpoint,
    objective: MeasuredObjective,
    count: int,
    keep: torch.dtype | None,
    tick: Callable[[int], None],
) -> tuple[GradientMetrics, Named]:
    """One pass over the rollouts in ``count`` minibatches of whole prompts; also returns the whole gradient.

    Args:
        loaded: the checkpoint.
        objective: the objective.
        count: number of minibatches; divides the prompts.
        keep: data type in which the minibatches' gradients are kept; bfloat16 halves the memory of large models.
        tick: told how many sequences were done.
    """
    positive, negative, total = (_zeros(loaded.trainable) for _ in range(3))
    parts = Gram(keep)
    size = len(objective.everything) // count
    for start in range(0, len(objective.everything), size):
        indices = objective.everything[start : start + size]
        above, below, here = split_gradient(loaded, objective, indices, (_positive, _negative, _neutral))
        for name, gradient in here.items():
            positive[name] += above[name]
            negative[name] += below[name]
            # In place: a large model leaves no room for one more copy of its gradient.
            total[name] += gradient.add_(above.pop(name)).add_(below.pop(name))
            gradient *= count  # so that the mean of the minibatches is the whole gradient
        parts.add(here)
        tick(size)
    both = Gram()
    both.add(positive)
    both.add(negative)
    return _summary(objective, norms(total), sign_split(both.matrix()), parts.matrix(), count), total


def _summary(
    objective: MeasuredObjective, sizes: Norms, signs: SignSplit, matrix_KK: Tensor, count: int
) -> GradientMetrics:
    prompts = len(objective.everything) // objective.recipe.group_size
    noise = noise_scale(matrix_KK, prompts / count, level=LEVEL) if sizes.total > 0 else None
    return GradientMetrics(
        norm=sizes.total,
        qkv=finite_or_none(sizes.attention_mean),
        by_module=dict(sizes.by_module),
        by_layer={str(layer): norm for layer, norm in sizes.by_layer.items()},
        positive=signs.positive,
        negative=signs.negative,
        sign_cosine=finite_or_none(signs.cosine),
        negative_share=finite_or_none(signs.negative_mass),
        minibatch_cosine=mean_pairwise_cosine(matrix_KK),
        minibatches=count,
        minibatches_with_gradient=int(has_gradient(matrix_KK).sum()),
        snr=finite_or_none(noise.snr * count) if noise else None,
        noise_scale=NoiseScaleInterval(
            value=finite_or_none(noise.value) if noise else None,
            low=noise.low if noise else None,
            high=finite_or_none(noise.high) if noise else None,
        ),
        prompts=prompts,
        bands=[],
        band_completions=0,
    )


def measure_bands(
    loaded: LoadedCheckpoint,
    objective: MeasuredObjective,
    indices: Sequence[int],
    at_once: int,
    tick: Callable[[int], None],
) -> list[ProbabilityBand]:
    """Norm of the gradient that the tokens of each tenth of probability make, on the sequences ``indices``.

    Args:
        loaded: the checkpoint.
        objective: the objective.
        indices: whole groups.
        at_once: tenths, and with them gradients held, per pass.
        tick: told how many sequences were done, per tenth.
    """
    counts: list[list[int]] = [[] for _ in range(BANDS)]
    sizes: list[float] = []
    for start in range(0, BANDS, at_once):
        tenths = range(start, min(start + at_once, BANDS))
        choices = [_probability_band(tenth, counts[tenth]) for tenth in tenths]
        sizes += [norms(gradient).total for gradient in split_gradient(loaded, objective, indices, choices)]
        tick(len(indices) * len(tenths))
    tokens, whole = sum(map(sum, counts)), sum(sizes)
    return [
        ProbabilityBand(
            low=tenth / BANDS,
            high=(tenth + 1) / BANDS,
            tokens=sum(counts[tenth]) / tokens,
            norm=sizes[tenth],
            share=sizes[tenth] / whole if whole else None,
        )
        for tenth in range(BANDS)
    ]


def measure_curvature(
    loaded: LoadedCheckpoint,
    objective: MeasuredObjective,
    indices: Sequence[int],
    lanczos: int,
    probes: int,
    tick: Callable[[int], None],
) -> CurvatureMetrics:
    """Extreme eigenvalues and trace of the Hessian at the policy that sampled, on the sequences ``indices``."""
    seed = objective.recipe.seed

    def loss(micro: Sequences) -> Tensor:
        share_N, _ = weighted_losses(objective, micro)
        return share_N.sum()

    micros = list(objective.passes(objective.loss.weigh(objective.on_policy.select(indices))))
    hessian = HessianProduct([partial(loss, micro) for micro in micros], list(loaded.trainable.values()))
    with double_differentiable(loaded.policy.model):
        ends = extreme_eigenvalues(
            hessian, generator_for(seed, "lanczos"), steps=lanczos, progress=lambda *_: tick(len(indices))
        )
        trace = hutchinson_trace(
            hessian, generator_for(seed, "trace"), samples=probes, progress=lambda *_: tick(len(indices))
        )
    return CurvatureMetrics(
        largest=ends.largest,
        largest_error=ends.largest_error,
        smallest=ends.smallest,
        smallest_error=ends.smallest_error,
        trace=trace.value,
        trace_error=trace.standard_error,
        products=ends.products + trace.products,
        completions=len(indices),
    )


def measure_cosines(totals: Gram, labels: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """Cosine of the gradients of each pair of objectives; None beside a zero gradient."""
    if len(labels) < 2:
        return {}
    values = cosines(totals.matrix()).tolist()
    return {a: {b: finite_or_none(values[i][j]) for j, b in enumerate(labels)} for i, a in enumerate(labels)}


def weighted_losses(objective: MeasuredObjective, micro: Sequences) -> tuple[Tensor, TokenBatch]:
    """What each token of weighed sequences adds to the loss of their optimizer step, [N], with gradient."""
    loss_N, batch, _ = objective.loss.losses(micro)
    return micro.per_token(loss_N.device) * loss_N, batch


def split_gradient(
    loaded: LoadedCheckpoint, objective: MeasuredObjective, indices: Sequence[int], choices: Sequence[Choice]
) -> list[Named]:
    """For every choice, the gradient of what its tokens contribute to the loss of a step over all sequences.

    Tokens outside of ``indices`` count nothing. What has no gradient by definition is exactly zero here, as in
    training: computed, it would be rounding, with a direction of its own.
    """
    parameters = list(loaded.trainable.values())
    totals = [_zeros(loaded.trainable) for _ in choices]
    moving, still = objective.loss.split(objective.on_policy.select(indices))
    with torch.no_grad():
        for micro in objective.passes(still):
            for choice in choices:
                choice(objective.loss.batch(micro)[0])
    for micro in objective.passes(moving):
        share_N, batch = weighted_losses(objective, micro)
        for total, choice in zip(totals, choices, strict=True):
            chosen_N = choice(batch)
            if not bool(chosen_N.any()):
                continue
            # The graph serves every choice; it goes when the micro-batch does.
            found = torch.autograd.grad(share_N[chosen_N].sum(), parameters, retain_graph=True, allow_unused=True)
            for into, gradient in zip(total.values(), found, strict=True):
                if gradient is not None:
                    into += gradient
    return totals


def _probability_band(index: int, seen: list[int]) -> Choice:
    """Tokens whose sampled probability lies in the ``index``-th tenth (1 belongs to the last); notes how many."""

    def choice(batch: TokenBatch) -> Tensor:
        band_N = (action_log_probs(batch.logits_NV.detach(), batch.actions_N).exp() * BANDS).long()
        chosen_N = band_N.clamp(max=BANDS - 1) == index
        seen.append(int(chosen_N.sum()))
        return chosen_N

    return choice


def _positive(batch: TokenBatch) -> Tensor:
    return batch.require("advantages_N") > 0


def _negative(batch: TokenBatch) -> Tensor:
    return batch.require("advantages_N") < 0


def _neutral(batch: TokenBatch) -> Tensor:
    return batch.require("advantages_N") == 0


def _zeros(parameters: Named) -> Named:
    return {name: torch.zeros_like(p) for name, p in parameters.items()}


def finite_or_none(value: float) -> float | None:
    """The value, or None where the data does not give one."""
    return value if math.isfinite(value) else None
