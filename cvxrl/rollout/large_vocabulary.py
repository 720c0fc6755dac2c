"""Distributions over a large vocabulary in few passes over the logits: draws by blocks, nuclei without a full sort.

A row's number falls into a block of tokens, found by the blocks' sums; only that one is looked at token by token: one
pass in single precision instead of several in double, and no copy of the logits.

B rows, V tokens of the vocabulary, N blocks
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# Vocabularies up to this are small: summed token by token and sorted, where there is little to save.
SMALL = 2048
# Tokens of a block: few enough for a sum in fp32 to keep its digits.
_BLOCK = 128
# Logits looked at together on a CPU: as many as its cache holds, with what is made of them.
_CELLS = 1 << 17
# Most probable tokens that a nucleus is looked for in, before all are sorted.
_TOP = 1024


def by_blocks(logits: Tensor, uniform_B1: Tensor) -> tuple[Tensor, Tensor]:
    """Invert each row's distribution function at its number: first among the blocks, then inside the one it falls into.

    Args:
        logits: [B, V], contiguous or not; left as they are.
        uniform_B1: numbers in [0, 1), float64.

    Returns:
        Token ids and their log-probabilities in float64, [B, 1] each.
    """
    last = logits.shape[-1] - 1
    peak = logits.amax(dim=-1, keepdim=True)
    masses_BN = _block_masses(logits, peak)
    sums = masses_BN.double().cumsum(dim=-1)
    point = uniform_B1 * sums[:, -1:]
    block = torch.searchsorted(sums, point, right=True).clamp(max=sums.shape[-1] - 1)
    before = F.pad(sums, (1, 0)).gather(-1, block)
    tokens = block * _BLOCK + torch.arange(_BLOCK, device=logits.device)
    inside = (logits.gather(-1, tokens.clamp(max=last)) - peak).double().exp().masked_fill(tokens > last, 0.0)
    within = inside.cumsum(dim=-1)
    # The same share of the block, whose sums in fp32 and in float64 need not agree in the last digits.
    share = (point - before) / masses_BN.gather(-1, block)
    place = torch.searchsorted(within, share * within[:, -1:], right=True).clamp(max=_BLOCK - 1)
    chosen = tokens.gather(-1, place).clamp(max=last)
    return chosen, (logits.gather(-1, chosen) - peak).double() - sums[:, -1:].log()


def most_probable(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's most probable token, the first of several, and its log-probability in float64, [B, 1] each."""
    peak, chosen = logits.max(dim=-1, keepdim=True)
    return chosen, -_block_masses(logits, peak).double().sum(dim=-1, keepdim=True).log()


def _block_masses(logits: Tensor, peak: Tensor) -> Tensor:
    """Sums of exp(logits - peak) over each block of tokens, the last of which may be short, [B, N]."""
    cells = _CELLS if logits.device.type == "cpu" else logits.numel()
    width = max(1, cells // len(logits) // _BLOCK) * _BLOCK
    masses = []
    for part in torch.split(logits, width, dim=-1):
        weights = (part - peak).exp_()
        whole = weights.shape[-1] // _BLOCK * _BLOCK
        blocks: Tensor = weights[:, :whole].unflatten(-1, (-1, _BLOCK))  # type: ignore[no-untyped-call]
        masses.append(blocks.sum(dim=-1))
        if whole < weights.shape[-1]:
            masses.append(weights[:, whole:].sum(dim=-1, keepdim=True))
    return torch.cat(masses, dim=-1)


def nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Set to -inf every token outside the smallest most-probable set of mass >= ``top_p``; [B, V]."""
    all_probs = torch.softmax(logits, dim=-1)
    if logits.shape[-1] <= max(SMALL, _TOP):
        return _sorted_nucleus(logits, all_probs, top_p)
    probs, order = all_probs.topk(_TOP, dim=-1)
    outside = _outside(probs, top_p)
    found = _without(logits, order, outside)
    # Where the last of them is outside, whatever is less probable is too; the other rows are looked at whole.
    flat = (~outside[:, -1]).nonzero().squeeze(-1)
    if len(flat):
        found[flat] = _sorted_nucleus(logits[flat], all_probs[flat], top_p)
    return found


def _sorted_nucleus(logits: Tensor, all_probs: Tensor, top_p: float) -> Tensor:
    probs, order = all_probs.sort(dim=-1, descending=True)
    return _without(logits, order, _outside(probs, top_p))


def _outside(falling: Tensor, top_p: float) -> Tensor:
    """Which of the most probable tokens are outside: the more probable ones already hold the mass; never the first."""
    return (falling.cumsum(dim=-1) - falling) >= top_p


def _without(logits: Tensor, order: Tensor, outside: Tensor) -> Tensor:
    """Logits of the tokens ``order`` that are not outside; -inf for all others."""
    gone = torch.ones(logits.shape, dtype=torch.bool, device=logits.device).scatter_(-1, order, outside)
    return logits.masked_fill(gone, -torch.inf)
