"""From next-token logits and uniform numbers to tokens and the log-probabilities they were drawn with."""

from __future__ import annotations

import torch
from torch import Tensor


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
