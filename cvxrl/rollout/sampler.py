"""Sampling with the policy's own forward pass: shared prefill, key/value cache, finished rows leave the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import DynamicCache

from cvxrl.policy.model import Policy
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
    """

    max_new_tokens: int
    temperature: float
    top_p: float = 1.0
    batch: int | None = None


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
    """Prefill each prompt once, copy its cache to the group, and decode token by token.

    ``numbers`` gives the uniform numbers [P x samples] of a token position.
    """
    device, num_rows = policy.device, len(prompts) * samples
    logits, cache, mask = _prefill(policy, prompts, samples)
    lengths = torch.tensor([len(p) for p in prompts], device=device).repeat_interleave(samples)
    end_ids = torch.tensor(policy.end_ids, device=device)
    tokens = torch.full((num_rows, sampling.max_new_tokens), policy.pad_id, dtype=torch.long, device=device)
    logprobs = torch.zeros((num_rows, sampling.max_new_tokens), device=device)
    ended = torch.zeros(num_rows, dtype=torch.bool, device=device)
    rows = torch.arange(num_rows, device=device)  # batch row -> completion
    generated = torch.zeros(num_rows, dtype=torch.long, device=device)
    for t in range(sampling.max_new_tokens):
        uniform = numbers(t).to(device)
        chosen, chosen_logprobs = draw(logits.float(), uniform[rows], sampling.temperature, sampling.top_p)
        alive = ~ended[rows]
        tokens[rows[alive], t] = chosen[alive]
        logprobs[rows[alive], t] = chosen_logprobs[alive]
        generated[rows[alive]] += 1
        ended[rows] |= torch.isin(chosen, end_ids)
        unfinished = ~ended[rows]
        count = int(unfinished.sum())
        if count == 0 or t + 1 == sampling.max_new_tokens:
            break
        if count <= _COMPACT_BELOW * len(rows):
            keep = unfinished.nonzero().squeeze(-1)
            rows, chosen, mask = rows[keep], chosen[keep], mask[keep]
            cache.batch_select_indices(keep)
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        logits = _decode_one(policy, chosen, mask, (lengths[rows] + t).unsqueeze(1), cache)
    return _episodes(prompts, samples, tokens.cpu(), logprobs.cpu(), generated.tolist(), ended.tolist())


def _prefill(policy: Policy, prompts: Sequence[list[int]], samples: int) -> tuple[Tensor, DynamicCache, Tensor]:
    """Left-pad and run the prompts once; return next-token logits, cache and mask expanded to the group."""
    width = max(map(len, prompts))
    ids = torch.tensor([[policy.pad_id] * (width - len(p)) + p for p in prompts], device=policy.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=policy.device)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    cache = DynamicCache(config=policy.model.config)
    logits = policy.model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]
    cache.batch_repeat_interleave(samples)
    return logits.repeat_interleave(samples, dim=0), cache, mask.repeat_interleave(samples, dim=0)


def _decode_one(policy: Policy, chosen: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
    logits: Tensor = policy.model(
        input_ids=chosen.unsqueeze(1),
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
    ).logits[:, -1]
    return logits


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
    prompts: Sequence[list[int]], samples: int, tokens: Tensor, logprobs: Tensor, counts: list[int], ended: list[bool]
) -> list[Episode]:
    return [
        Episode(prompts[i // samples], tokens[i, :count].tolist(), logprobs[i, :count].clone(), not ended[i])
        for i, count in enumerate(counts)
    ]
