"""Sampling: shared prefill, key/value cache, finished rows leave the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from cvxrl.policy.model import Policy
from cvxrl.rollout.decoder import Engine, decoder_for
from cvxrl.rollout.episode import Episode

# Dropping rows copies the cache, so it waits until at most this share of the rows is still unfinished.
_COMPACT_BELOW = 0.75


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        max_new_tokens: longest completion.
        temperature: the logits are divided by it; 0 takes the most probable token.
        top_p: nucleus mass; the reported log-probabilities are those of the truncated, renormalised distribution.
        batch: completions decoded at a time; None means all.
        engine: what computes the logits; equal up to rounding.
    """

    max_new_tokens: int
    temperature: float
    top_p: float = 1.0
    batch: int | None = None
    engine: Engine = "auto"


def sample_episodes(
    policy: Policy, prompts: Sequence[list[int]], samples: int, sampling: Sampling, generator: torch.Generator
) -> list[Episode]:
    """Sample ``samples`` completions of every prompt; completions of a prompt are adjacent.

    Args:
        policy: put into evaluation mode for the call.
        prompts: token ids of P prompts.
        samples: completions per prompt.
        sampling: how tokens are drawn.
        generator: CPU generator; draws one number per completion and token position whether or not the completion
            has ended, so a result depends on the prompts and the generator alone.

    Returns:
        P x samples episodes.
    """
    per_chunk = len(prompts) if sampling.batch is None else max(1, sampling.batch // samples)
    episodes: list[Episode] = []
    with _evaluating(policy):
        for start in range(0, len(prompts), per_chunk):
            chunk = prompts[start : start + per_chunk]
            numbers = partial(_next_numbers, generator, len(chunk) * samples)
            episodes += _sample_chunk(policy, chunk, samples, sampling, numbers)
    return episodes


def sample_separately(
    policy: Policy, prompts: Sequence[list[int]], generators: Sequence[torch.Generator], sampling: Sampling
) -> list[Episode]:
    """Sample one batch in which every completion has a generator of its own.

    What a completion draws then depends on its own generator alone: not on what else is in the batch, and its first
    tokens not on ``max_new_tokens``.

    Args:
        policy: put into evaluation mode for the call.
        prompts: token ids of P prompts.
        generators: P x samples CPU generators, those of a prompt adjacent.
        sampling: how tokens are drawn; its ``batch`` is not looked at.

    Returns:
        As many episodes as generators, in their order.
    """
    drawn = [torch.rand(sampling.max_new_tokens, generator=g, dtype=torch.float64) for g in generators]
    numbers_TB = torch.stack(drawn, dim=1)
    with _evaluating(policy):
        return _sample_chunk(policy, prompts, len(generators) // len(prompts), sampling, numbers_TB.__getitem__)


@contextmanager
def _evaluating(policy: Policy) -> Iterator[None]:
    """Evaluation mode and no gradients; the mode found is put back."""
    was_training = policy.model.training
    policy.model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        policy.model.train(was_training)


def _next_numbers(generator: torch.Generator, rows: int, position: int) -> Tensor:
    """Uniform numbers of the next token position; positions come in order, so ``position`` itself is not needed."""
    return torch.rand(rows, generator=generator, dtype=torch.float64)


def _sample_chunk(
    policy: Policy,
    prompts: Sequence[list[int]],
    samples: int,
    sampling: Sampling,
    numbers: Callable[[int], Tensor],
) -> list[Episode]:
    """Prefill each prompt once and decode token by token.

    ``numbers`` gives the uniform numbers [P x samples] of a token position.
    """
    device, num_rows, longest = policy.device, len(prompts) * samples, sampling.max_new_tokens
    decoder = decoder_for(policy, sampling.engine)
    logits = decoder.start(prompts, samples)
    end_ids = torch.tensor(policy.end_ids, device=device)
    tokens = torch.full((longest, num_rows), policy.pad_id, dtype=torch.long, device=device)
    logprobs = torch.zeros((longest, num_rows), device=device)
    counts = torch.full((num_rows,), longest, dtype=torch.long, device=device)
    rows = torch.arange(num_rows, device=device)  # batch row -> completion
    unfinished = torch.ones_like(rows, dtype=torch.bool)
    for t in range(longest):
        uniform = numbers(t).to(device)
        chosen, chosen_logprobs = draw(logits.float(), uniform[rows], sampling.temperature, sampling.top_p)
        # Rows that have ended may still be here; what they say is cut off at their count.
        tokens[t, rows], logprobs[t, rows] = chosen, chosen_logprobs
        ending = unfinished & torch.isin(chosen, end_ids)
        counts[rows[ending]] = t + 1
        unfinished &= ~ending
        count = int(unfinished.sum())
        if count == 0 or t + 1 == longest:
            break
        if count <= _COMPACT_BELOW * len(rows):
            keep = unfinished.nonzero().squeeze(-1)
            rows, chosen, unfinished = rows[keep], chosen[keep], unfinished[keep]
            decoder.keep(keep)
        logits = decoder.step(chosen)
    truncated = torch.zeros(num_rows, dtype=torch.bool, device=device)
    truncated[rows[unfinished]] = True
    return _episodes(prompts, samples, tokens.t().cpu(), logprobs.t().cpu(), counts.tolist(), truncated.tolist())


def draw(logits: Tensor, uniform: Tensor, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """Draw one token per row by inverting the distribution function.

    Args:
        logits: fp32 logits [B, V].
        uniform: numbers in [0, 1), float64 [B].
        temperature: 0 takes the most probable token (log-probability reported at temperature 1).
        top_p: smallest set of most probable tokens with at least this mass is kept and renormalised.

    Returns:
        Token ids [B] and their log-probabilities [B] under the distribution drawn from.
    """
    if temperature == 0:
        chosen = logits.argmax(dim=-1)
        return chosen, torch.log_softmax(logits, dim=-1).gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
    scaled = logits / temperature
    if top_p < 1:
        scaled = nucleus(scaled, top_p)
    log_probs = torch.log_softmax(scaled, dim=-1)
    # float64 sums: in fp32 the tail of a large vocabulary would never be reached.
    cumulative = log_probs.double().exp().cumsum(dim=-1)
    point = (uniform * cumulative[:, -1]).unsqueeze(-1)
    chosen = torch.searchsorted(cumulative, point, right=True).clamp(max=logits.shape[-1] - 1)
    # ... and the same sum takes out of the log-probability what fp32 lost of its normaliser.
    exact = log_probs.gather(-1, chosen).double() - cumulative[:, -1:].log()
    return chosen.squeeze(-1), exact.to(logits.dtype).squeeze(-1)


def nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Set to -inf every token outside the smallest most-probable set of mass >= ``top_p``; [B, V]."""
    probs, order = torch.softmax(logits, dim=-1).sort(dim=-1, descending=True)
    # A token is outside when the more probable ones already hold the mass; the first one never is.
    outside = (probs.cumsum(dim=-1) - probs) >= top_p
    return logits.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), -torch.inf)


def _episodes(
    prompts: Sequence[list[int]], samples: int, tokens: Tensor, logprobs: Tensor, counts: list[int], cut: list[bool]
) -> list[Episode]:
    return [
        Episode(prompts[i // samples], tokens[i, :count].tolist(), logprobs[i, :count].clone(), cut[i])
        for i, count in enumerate(counts)
    ]
