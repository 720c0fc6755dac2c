"""Tokens with hidden states and the output layer, which objectives take where no [N, V] logits are to exist."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace

import torch
from torch import Tensor

from cvxrl.objectives.batch import DenseAdvantages, TokenBatch, Tokens
from cvxrl.objectives.linear.head import LinearHead
from cvxrl.objectives.linear.sweep import Frozen
from cvxrl.objectives.statistics import action_log_probs

_ALL = slice(None)


@dataclass(frozen=True)
class HiddenBatch(Tokens):
    """Tokens with the policy's hidden states and output layer, from which logits are formed chunk by chunk.

    Attributes:
        hidden_NH: hidden states that predict the sampled tokens, with gradient.
        head: output layer that makes the logits.
        frozen: the policy that sampled, where its logits are needed: LCO with target `frozen`, off-policy.
        on_policy: the current policy is the one that sampled: its own logits, detached, are the old ones.
        old_log_odds_N: log-odds of the sampled token under the policy that sampled, for `lco-mse` and `lco-lch` with
            the linear tilt; computed by projecting where None.
    """

    hidden_NH: Tensor
    head: LinearHead
    _: KW_ONLY
    frozen: Frozen | None = None
    on_policy: bool = False
    old_log_odds_N: Tensor | None = None

    def __post_init__(self) -> None:
        """Refuse shapes that would broadcast into a wrong number, or read the wrong rows."""
        super().__post_init__()
        self._expect_rows(self.hidden_NH.shape[0])
        self._expect("old_log_odds_N", tuple(self.actions_N.shape))

    def require_frozen(self) -> Frozen:
        """Return the frozen policy, or say that it is missing."""
        if self.frozen is None:
            raise ValueError("this objective needs the old logits: give `frozen`, or say that the batch is `on_policy`")
        return self.frozen

    def with_logits(self, logits_CV: Tensor, old_CV: Tensor | None, rows: slice = _ALL) -> TokenBatch:
        """The tokens of ``rows`` with these logits; sequences only with all rows."""
        tokens = self.rows(rows)
        if self.on_policy and tokens.old_logprobs_N is None:
            old_logprobs_C = action_log_probs(logits_CV.detach(), tokens.actions_N)
            tokens = replace(tokens, old_logprobs_N=old_logprobs_C)
        return TokenBatch(logits_CV, old_logits_NV=old_CV, **vars(tokens))

    def with_log_odds(self, log_odds_C: Tensor, rows: slice = _ALL) -> TokenBatch:
        """The tokens of ``rows`` under the two-token policy "the sampled token, or another", without candidates.

        Whatever depends on the logits only through log pi(a) has the same value there, and so has the KL to a target
        that keeps the others' proportions, if the current policy is the one that is tilted.
        """
        # A shift of both columns that leaves the gradient to the smaller probability, which has its digits.
        above_C = log_odds_C > 0
        columns_C2 = torch.stack(
            [torch.where(above_C, 0.0, log_odds_C), torch.where(above_C, -log_odds_C, 0.0)], dim=-1
        )
        return self.with_columns(columns_C2, columns_C2.detach(), rows)

    def with_columns(self, logits_CK: Tensor, old_CK: Tensor | None, rows: slice = _ALL) -> TokenBatch:
        """As `with_logits`, over a made-up vocabulary of K tokens whose first is the sampled one, or the candidates."""
        dense = self.dense
        if dense is not None:
            ids_NK = torch.arange(logits_CK.shape[1], device=logits_CK.device).expand(self.actions_N.shape[0], -1)
            dense = DenseAdvantages(ids_NK, dense.values_NK)
        renumbered = replace(self, actions_N=torch.zeros_like(self.actions_N), dense=dense)
        return renumbered.with_logits(logits_CK, old_CK, rows)
