"""How far two ways of computing the same logits may be apart: what rounding explains, by number format and size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Measured over random decoders of 2 to 24 layers and widths of 32 to 512, weights of ordinary and of five times the
# ordinary size (docs/models.md): the largest relative difference of logits was 2.6 roundings, as `rounding` counts.
_LOGITS = 4.0
# Of log-probabilities, in roundings times the largest -log p: 0.3, and 1 in a state-space family.
_LOG_PROBS = 2.0
# Likewise times the largest logit, of trained policies: 0.12 in fp32 and in bf16.
_LARGE_LOGITS = 0.5
# A recurrence over the tokens sums more than a product does.
_SUMS = 4.0


@dataclass(frozen=True)
class Mismatch:
    """How far two sides are apart on the same tokens.

    Attributes:
        ratio: largest |ratio - 1| of their probabilities.
        log_ratio: largest absolute difference of their log-probabilities.
    """

    ratio: float
    log_ratio: float

    @classmethod
    def of(cls, mine: list[Tensor], theirs: list[Tensor]) -> Mismatch:
        """From the log-probabilities of both sides, [T] per sequence; no sequence is no difference."""
        if not mine:
            return cls(0.0, 0.0)
        difference = torch.cat(mine).cpu() - torch.cat(theirs).cpu()
        return cls(float(torch.expm1(difference).abs().max()), float(difference.abs().max()))

    def or_worse(self, other: Mismatch) -> Mismatch:
        """The larger of each."""
        return Mismatch(_larger(self.ratio, other.ratio), _larger(self.log_ratio, other.log_ratio))


def _larger(a: float, b: float) -> float:
    return math.nan if math.isnan(a) or math.isnan(b) else max(a, b)


def rounding(model: PreTrainedModel, dtype: torch.dtype | None = None) -> float:
    """Relative error that rounding leaves in the logits, as a random walk through the layers.

    sqrt(layers) x (eps of the numbers that layers pass on + 4 x eps of fp32 x sqrt(width)): products and recurrences
    are summed in fp32.

    Args:
        model: its size counts.
        dtype: format of the activations, if it is not that of the parameters.
    """
    config = model.config.get_text_config(decoder=True)
    layers = max(1, int(getattr(config, "num_hidden_layers", 0) or 1))
    width = max(1, int(getattr(config, "hidden_size", 0) or 1))
    passed_on = torch.finfo(dtype or next(p.dtype for p in model.parameters() if p.is_floating_point())).eps
    return math.sqrt(layers) * (passed_on + _SUMS * torch.finfo(torch.float32).eps * math.sqrt(width))


def logit_tolerance(model: PreTrainedModel) -> float:
    """Largest relative difference of logits that is taken for rounding."""
    return _LOGITS * rounding(model)


def log_prob_tolerance(
    model: PreTrainedModel, unlikely: float, size: float = 0.0, dtype: torch.dtype | None = None
) -> float:
    """Largest difference of log-probabilities that is taken for rounding: those of large logits carry larger errors.

    A policy whose logits have grown large in training carries these also where all its samples are likely.

    Args:
        model: its size counts.
        unlikely: largest -log p of the tokens that are compared.
        size: largest distance of a logit from the mean of its row (`logit_size`), where logits are at hand.
        dtype: format of the activations, if it is not that of the parameters.
    """
    return rounding(model, dtype) * max(_LOG_PROBS, _LOG_PROBS * unlikely, _LARGE_LOGITS * size)


def logit_size(logits: Tensor) -> float:
    """Largest distance of a logit [N, V] from the mean of its row; tokens that a family hides do not count."""
    return float(_centred(logits).abs().max()) if logits.numel() else 0.0


def difference(mine: Tensor, theirs: Tensor) -> float:
    """Largest difference of logits [N, V] relative to the largest of ``theirs``; a constant per row does not count.

    Infinite where the shapes differ or a number is not finite.
    """
    if mine.shape != theirs.shape:
        return math.inf
    a, b = (_centred(x) for x in (mine, theirs))
    found = float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) if b.numel() else 0.0
    return found if math.isfinite(found) else math.inf


def _centred(logits: Tensor) -> Tensor:
    # Families hide tokens (padding of the vocabulary) at -inf or the lowest number: those must be the same, and that is
    # all that can be compared.
    x = logits.detach().double().clamp(min=-1e4)
    seen = ~(x <= -1e4)  # nan is seen
    mean = (x * seen).sum(-1, keepdim=True) / seen.sum(-1, keepdim=True).clamp(min=1)
    return torch.where(seen, x - mean, torch.zeros_like(x))
