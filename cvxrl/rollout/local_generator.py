"""Completions decoded on this machine: shared prefill, key/value cache, finished rows leave the batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from cvxrl.policy.model import Policy
from cvxrl.recipe.engine import LocalEngine
from cvxrl.rollout.choice import decoder_for
from cvxrl.rollout.decoder import Decoder
from cvxrl.rollout.generator import Episode, Sampling
from cvxrl.rollout.large_vocabulary import SMALL, by_blocks, most_probable, nucleus
from cvxrl.rollout.prompts import read_lengths
from cvxrl.rollout.randomness import StreamKey


def draw(logits: Tensor, uniform: Tensor, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """Draw one token per row by inverting the distribution function.

    Args:
        logits: fp32 logits [B, V], contiguous or not; left as they are.
        uniform: numbers in [0, 1), float64 [B].
        temperature: 0 takes the most probable token (log-probability reported at temperature 1).
        top_p: smallest set of most probable tokens with at least this mass is kept and renormalised.

    Returns:
        Token ids [B] and their log-probabilities [B] under the distribution drawn from.
    """
    is_large = logits.shape[-1] > SMALL
    if temperature == 0:
        chosen, exact = most_probable(logits) if is_large else _most_probable(logits)
    else:
        scaled = logits if temperature == 1 else logits / temperature
        if top_p < 1:
            scaled = nucleus(scaled, top_p)
        chosen, exact = (by_blocks if is_large else _by_tokens)(scaled, uniform.unsqueeze(-1))
    return chosen.squeeze(-1), exact.to(logits.dtype).squeeze(-1)


def _most_probable(logits: Tensor) -> tuple[Tensor, Tensor]:
    chosen = logits.argmax(dim=-1, keepdim=True)
    return chosen, torch.log_softmax(logits, dim=-1).gather(-1, chosen)


def _by_tokens(logits: Tensor, uniform_B1: Tensor) -> tuple[Tensor, Tensor]:
    """As `by_blocks`, by the sums over all tokens before each."""
    log_probs = torch.log_softmax(logits, dim=-1)
    # float64 sums: in fp32 improbable tokens would never be reached.
    cumulative = log_probs.double().exp().cumsum(dim=-1)
    point = uniform_B1 * cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, point, right=True).clamp(max=logits.shape[-1] - 1)
    # ... and the same sum takes out of the log-probability what fp32 lost of its normaliser.
    return chosen, log_probs.gather(-1, chosen).double() - cumulative[:, -1:].log()


# Dropping rows copies the cache, so it waits until at most this share of the rows is still unfinished.
_COMPACT_BELOW = 0.75


@dataclass
class LocalGenerator:
    """Samples from a policy in this process; see `cvxrl.rollout.generator.Generator`.

    Attributes:
        policy: put into evaluation mode while it samples.
        engine: what computes the logits; equal up to rounding.
        rows: completions decoded at a time; None means all. A memory setting: it changes no draw.
        version: what episodes are marked with.
    """

    policy: Policy
    engine: LocalEngine = "auto"
    rows: int | None = None
    version: int = 0

    def sync(self, policy: Policy, version: int) -> dict[str, float]:
        """Weights of this process are at hand as they are; only the version is news."""
        self.policy, self.version = policy, version
        return {}

    def generate(
        self, prompts: Sequence[list[int]], keys: Sequence[Sequence[StreamKey]], sampling: Sampling
    ) -> list[Episode]:
        """See `cvxrl.rollout.generator.Generator`."""
        each = [(p, key) for p, streams in enumerate(keys) for key in streams]
        rows = self.rows or len(each)
        if prompts:
            self.policy.checked.cover(*read_lengths(prompts, sampling.max_new_tokens))
        episodes: list[Episode] = []
        with evaluating(self.policy):
            for start in range(0, len(each), rows):
                batch = each[start : start + rows]
                counts = [(p, len(list(same))) for p, same in groupby(p for p, _ in batch)]
                numbers = torch.stack([key.uniform(sampling.max_new_tokens) for _, key in batch], dim=1)
                decoder = decoder_for(self.policy, self.engine)
                logits = decoder.start([prompts[p] for p, _ in counts], [count for _, count in counts])
                sampled = _decode(self.policy, decoder, logits, numbers, sampling)
                episodes += [
                    Episode(prompts[p], tokens, logprobs, truncated, self.version)
                    for (p, _), (tokens, logprobs, truncated) in zip(batch, sampled, strict=True)
                ]
        return episodes


@contextmanager
def evaluating(policy: Policy) -> Iterator[None]:
    """Evaluation mode and no gradients; the mode found is put back."""
    was_training = policy.model.training
    policy.model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        policy.model.train(was_training)


def _decode(
    policy: Policy, decoder: Decoder, logits: Tensor, numbers_TB: Tensor, sampling: Sampling
) -> list[tuple[list[int], Tensor, bool]]:
    """Draw token by token until every row has ended.

    Args:
        policy: names the tokens that end a completion.
        decoder: has read the prompts.
        logits: of every row's first token, [B, V].
        numbers_TB: uniform numbers, one per token position and row.
        sampling: how tokens are drawn.

    Returns:
        Token ids, log-probabilities, and whether the length limit was reached, row by row.
    """
    device, (longest, num_rows) = policy.device, numbers_TB.shape
    numbers_TB = numbers_TB.to(device)
    end_ids = torch.tensor(sorted({*policy.end_ids, *sampling.stop_ids}), device=device)
    tokens = torch.full((longest, num_rows), policy.pad_id, dtype=torch.long, device=device)
    logprobs = torch.zeros((longest, num_rows), device=device)
    counts = torch.full((num_rows,), longest, dtype=torch.long, device=device)
    rows = torch.arange(num_rows, device=device)  # batch row -> completion
    unfinished = torch.ones_like(rows, dtype=torch.bool)
    for t in range(longest):
        chosen, chosen_logprobs = draw(logits.float(), numbers_TB[t][rows], sampling.temperature, sampling.top_p)
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
    tokens_BT, logprobs_BT, cut = tokens.t().cpu(), logprobs.t().cpu(), truncated.tolist()
    return [
        (tokens_BT[i, :count].tolist(), logprobs_BT[i, :count].clone(), cut[i])
        for i, count in enumerate(counts.tolist())
    ]
