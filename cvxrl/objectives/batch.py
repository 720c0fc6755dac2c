"""What every objective receives and returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class DenseAdvantages:
    """Advantages of several candidate tokens per position.

    Attributes:
        ids_NK: candidate token ids (int64), different within a row.
        values_NK: their advantages.
    """

    ids_NK: Tensor
    values_NK: Tensor


@dataclass(frozen=True)
class TokenBatch:
    """The response tokens of some sequences, one row each, without padding.

    Two completions of a prompt, "7+5=12" judged right and "7+5=11" judged wrong, with one token per character, give
    N = 12 rows: ``actions_N`` holds the twelve sampled ids, ``advantages_N`` is +1 on the first six rows and -1 on the
    last six, row n of ``logits_NV`` is what the policy said just before token n was sampled, ``sequence_N`` is 0 on the
    first six rows and 1 on the last six, and ``group_S`` is [0, 0].

    Attributes:
        logits_NV: current logits divided by the sampling temperature; the policy is their softmax. Carries gradients.
        actions_N: sampled token ids (int64).
        advantages_N: advantage of the sampled token; every other token's is zero.
        old_logits_NV: logits of the policy that sampled the tokens (temperature applied), without gradient.
        old_logprobs_N: log-probability of the sampled token under that policy, without gradient.
        reference_logprobs_N: log-probability of the token under the policy that training started from.
        group_advantages_NG: advantages of all G samples of the token's prompt, its own included.
        dense: advantages of several candidate tokens, instead of the sampled token's alone.
        sequence_N: index of the token's sequence, 0 to S - 1, each present.
        group_S: index of each sequence's prompt, 0 to P - 1.
    """

    logits_NV: Tensor
    actions_N: Tensor
    advantages_N: Tensor | None = None
    old_logits_NV: Tensor | None = None
    old_logprobs_N: Tensor | None = None
    reference_logprobs_N: Tensor | None = None
    group_advantages_NG: Tensor | None = None
    dense: DenseAdvantages | None = None
    sequence_N: Tensor | None = None
    group_S: Tensor | None = None

    def __post_init__(self) -> None:
        """Refuse shapes that would broadcast into a wrong number."""
        if self.logits_NV.ndim != 2:
            raise ValueError(f"logits_NV must have two dimensions, got shape {tuple(self.logits_NV.shape)}")
        num_tokens, vocab = self.logits_NV.shape
        if num_tokens == 0:
            raise ValueError("the batch has no response token: every position is masked or every response is empty")
        expected = {
            "actions_N": (num_tokens,),
            "advantages_N": (num_tokens,),
            "old_logits_NV": (num_tokens, vocab),
            "old_logprobs_N": (num_tokens,),
            "reference_logprobs_N": (num_tokens,),
            "sequence_N": (num_tokens,),
        }
        for name, shape in expected.items():
            tensor: Tensor | None = getattr(self, name)
            if tensor is not None and tuple(tensor.shape) != shape:
                raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")

    def require(self, name: str) -> Tensor:
        """Return an optional tensor, or say which objective input is missing."""
        tensor: Tensor | None = getattr(self, name)
        if tensor is None:
            raise ValueError(f"this objective needs {name}, which the batch does not hold")
        return tensor


@dataclass(frozen=True)
class ObjectiveOutput:
    """Per-token losses, not yet reduced.

    An objective that is defined per sequence repeats its value on each of the sequence's tokens, so that reduction
    `sequence-mean` is the mean over sequences.

    Attributes:
        loss_N: one loss per token, with gradient.
        metrics: per-token diagnostics of shape [N], without gradient; the engine averages them over the step's tokens.
    """

    loss_N: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
