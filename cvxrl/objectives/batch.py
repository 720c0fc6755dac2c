"""The types of an objective: it takes tokens with the policy's logits and returns one loss per token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

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


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """What a loss needs of the response tokens of some sequences besides the policy: one row each, without padding.

    Two completions of a prompt, "7+5=12" judged right and "7+5=11" judged wrong, with one token per character, give
    N = 12 rows: ``actions_N`` holds the twelve sampled ids, ``advantages_N`` is +1 on the first six rows and -1 on the
    last six, ``sequence_N`` is 0 on the first six rows and 1 on the last six, and ``group_S`` is [0, 0].

    Attributes:
        actions_N: sampled token ids (int64).
        advantages_N: advantage of the sampled token; every other token's is zero.
        old_logprobs_N: log-probability of the sampled token under the policy that sampled, without gradient.
        reference_logprobs_N: log-probability of the token under the policy that training started from.
        group_advantages_NG: advantages of all G samples of the token's prompt, its own included.
        dense: advantages of several candidate tokens, instead of the sampled token's alone.
        sequence_N: index of the token's sequence, 0 to S - 1, each present.
        group_S: index of each sequence's prompt, 0 to P - 1.
    """

    actions_N: Tensor
    advantages_N: Tensor | None = None
    old_logprobs_N: Tensor | None = None
    reference_logprobs_N: Tensor | None = None
    group_advantages_NG: Tensor | None = None
    dense: DenseAdvantages | None = None
    sequence_N: Tensor | None = None
    group_S: Tensor | None = None

    def __post_init__(self) -> None:
        """Refuse shapes that would broadcast into a wrong number."""
        if self.actions_N.ndim != 1:
            raise ValueError(f"actions_N must have one dimension, got shape {tuple(self.actions_N.shape)}")
        self._expect_rows(self.actions_N.numel())
        for name in ("advantages_N", "old_logprobs_N", "reference_logprobs_N", "sequence_N"):
            self._expect(name, tuple(self.actions_N.shape))

    def rows(self, rows: slice) -> Tokens:
        """These tokens without what a subclass adds; ``sequence_N`` and ``group_S`` are kept only with all rows."""
        dense, whole = self.dense, rows == slice(None)
        return Tokens(
            actions_N=self.actions_N[rows],
            advantages_N=_part(self.advantages_N, rows),
            old_logprobs_N=_part(self.old_logprobs_N, rows),
            reference_logprobs_N=_part(self.reference_logprobs_N, rows),
            group_advantages_NG=_part(self.group_advantages_NG, rows),
            dense=None if dense is None else DenseAdvantages(dense.ids_NK[rows], dense.values_NK[rows]),
            sequence_N=self.sequence_N if whole else None,
            group_S=self.group_S if whole else None,
        )

    def require(self, name: str) -> Tensor:
        """Return an optional tensor, or say which objective input is missing."""
        tensor: Tensor | None = getattr(self, name)
        if tensor is None:
            raise ValueError(f"this objective needs {name}, which the batch does not hold")
        return tensor

    def _expect_rows(self, count: int) -> None:
        if count == 0:
            raise ValueError("the batch has no response token: every position is masked or every response is empty")
        self._expect("actions_N", (count,))

    def _expect(self, name: str, shape: tuple[int, ...]) -> None:
        tensor: Tensor | None = getattr(self, name)
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")


@dataclass(frozen=True)
class TokenBatch(Tokens):
    """Tokens with the policy's logits: row n of ``logits_NV`` is what the policy said just before token n was sampled.

    Attributes:
        logits_NV: current logits divided by the sampling temperature; the policy is their softmax. Carries gradients.
        old_logits_NV: logits of the policy that sampled the tokens (temperature applied), without gradient.
    """

    logits_NV: Tensor
    old_logits_NV: Tensor | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Refuse shapes that would broadcast into a wrong number."""
        if self.logits_NV.ndim != 2:
            raise ValueError(f"logits_NV must have two dimensions, got shape {tuple(self.logits_NV.shape)}")
        super().__post_init__()
        self._expect_rows(self.logits_NV.shape[0])
        self._expect("old_logits_NV", tuple(self.logits_NV.shape))


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


def _part(tensor: Tensor | None, rows: slice) -> Tensor | None:
    return None if tensor is None else tensor[rows]


# By kind, the function of each objective. It takes the spec class of that kind; the tag guarantees the match, which the
# type system cannot express.
Objectives = dict[str, Callable[[TokenBatch, Any], ObjectiveOutput]]
