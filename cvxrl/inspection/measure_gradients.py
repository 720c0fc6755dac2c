"""Gradients of an objective in the parameters: by minibatch, by the advantage's sign, by the token's probability."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cvxrl.engine.assemble import Memory
from cvxrl.gradients.gram import Gram, SignSplit, cosines, mean_pairwise_cosine, noise_scale, sign_split
from cvxrl.gradients.parameters import Norms, norms
from cvxrl.inspection.record import Band, GradientNumbers, Interval
from cvxrl.inspection.subject import Entrant, Subject
from cvxrl.objectives.batch import TokenBatch
from cvxrl.objectives.statistics import action_log_probs

Named = dict[str, Tensor]
# Chooses the tokens of a batch, bool [N].
Choice = Callable[[TokenBatch], Tensor]
BANDS = 10
LEVEL = 0.95  # coverage of the noise scale's interval


def measure_gradients(
    subject: Subject, entrant: Entrant, count: int, keep: torch.dtype | None, tick: Callable[[int], None]
) -> tuple[GradientNumbers, Named]:
    """One pass over the rollouts in ``count`` minibatches of whole prompts; also returns the whole gradient.

    Args:
        subject: the checkpoint.
        entrant: the objective.
        count: number of minibatches; divides the prompts.
        keep: data type in which the minibatches' gradients are kept; bfloat16 halves the memory of large models.
        tick: told how many sequences were done.
    """
    positive, negative, total = (_zeros(subject.trainable) for _ in range(3))
    parts = Gram(keep)
    size = len(entrant.everything) // count
    for start in range(0, len(entrant.everything), size):
        indices = entrant.everything[start : start + size]
        above, below, here = split_gradient(subject, entrant, indices, (_positive, _negative, _neutral))
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
    return _numbers(entrant, norms(total), sign_split(both.matrix()), parts.matrix(), count), total


def _numbers(entrant: Entrant, sizes: Norms, signs: SignSplit, matrix_KK: Tensor, count: int) -> GradientNumbers:
    prompts = len(entrant.everything) // entrant.experience.group_size
    moving = bool((matrix_KK.diagonal() > 0).all())
    noise = noise_scale(matrix_KK, prompts / count, level=LEVEL) if sizes.total > 0 else None
    return GradientNumbers(
        norm=sizes.total,
        qkv=finite_or_none(sizes.attention_mean),
        by_module=dict(sizes.by_module),
        by_layer={str(layer): norm for layer, norm in sizes.by_layer.items()},
        positive=signs.positive,
        negative=signs.negative,
        sign_cosine=finite_or_none(signs.cosine),
        negative_share=finite_or_none(signs.negative_mass),
        minibatch_cosine=mean_pairwise_cosine(matrix_KK) if moving else None,
        snr=finite_or_none(noise.snr * count) if noise else None,
        noise_scale=Interval(
            value=finite_or_none(noise.value) if noise else None,
            low=noise.low if noise else None,
            high=finite_or_none(noise.high) if noise else None,
        ),
        prompts=prompts,
        bands=[],
        band_completions=0,
    )


def measure_bands(
    subject: Subject, entrant: Entrant, indices: Sequence[int], at_once: int, tick: Callable[[int], None]
) -> list[Band]:
    """Norm of the gradient that the tokens of each tenth of probability make, on the sequences ``indices``.

    Args:
        subject: the checkpoint.
        entrant: the objective.
        indices: whole groups.
        at_once: tenths, and with them gradients held, per pass.
        tick: told how many sequences were done, per tenth.
    """
    counts: list[list[int]] = [[] for _ in range(BANDS)]
    sizes: list[float] = []
    for start in range(0, BANDS, at_once):
        tenths = range(start, min(start + at_once, BANDS))
        choices = [_probability_band(tenth, counts[tenth]) for tenth in tenths]
        sizes += [norms(gradient).total for gradient in split_gradient(subject, entrant, indices, choices)]
        tick(len(indices) * len(tenths))
    tokens, whole = sum(map(sum, counts)), sum(sizes)
    return [
        Band(
            low=tenth / BANDS,
            high=(tenth + 1) / BANDS,
            tokens=sum(counts[tenth]) / tokens,
            norm=sizes[tenth],
            share=sizes[tenth] / whole if whole else 0.0,
        )
        for tenth in range(BANDS)
    ]


def measure_cosines(totals: Gram, labels: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """Cosine of the gradients of each pair of objectives; None beside a zero gradient."""
    if len(labels) < 2:
        return {}
    values = cosines(totals.matrix()).tolist()
    return {a: {b: finite_or_none(values[i][j]) for j, b in enumerate(labels)} for i, a in enumerate(labels)}


def weighted_losses(
    entrant: Entrant, memory: Memory, micro: Sequence[int], step: Sequence[int]
) -> tuple[Tensor, TokenBatch]:
    """What each token of ``micro`` adds to the loss of an optimizer step over ``step``, [N], with gradient."""
    updater = entrant.updater
    weight_of = updater.weights(entrant.experience, step)
    loss_N, batch, _ = updater.losses(entrant.experience, micro, memory)
    assert batch.sequence_N is not None
    weight_S = torch.tensor([weight_of[i] for i in micro], device=loss_N.device)
    return weight_S[batch.sequence_N] * loss_N, batch


def split_gradient(
    subject: Subject, entrant: Entrant, indices: Sequence[int], choices: Sequence[Choice]
) -> list[Named]:
    """For every choice, the gradient of what its tokens contribute to the loss of a step over all sequences.

    Tokens outside of ``indices`` count nothing.
    """
    parameters = list(subject.trainable.values())
    totals = [_zeros(subject.trainable) for _ in choices]
    for micro in entrant.updater.micro_batches(entrant.experience, indices):
        share_N, batch = weighted_losses(entrant, entrant.on_policy, micro, entrant.everything)
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
