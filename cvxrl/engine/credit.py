"""From the rewards of a step to the advantage of every token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cvxrl.advantages import candidates, compute_advantages, generalized_advantages, standardise
from cvxrl.engine.critic import Critic
from cvxrl.engine.experience import Credit
from cvxrl.engine.micro_batches import Rows, by_length
from cvxrl.engine.readers import Reader, flat
from cvxrl.objectives.batch import DenseAdvantages
from cvxrl.recipe.advantage import AdvantageSpec, DenseAdvantage, GaeAdvantage


class CreditAssigner(Protocol):
    """Turns rewards into advantages."""

    def assign(self, prompts: Rows, responses: Rows, rewards_PG: Tensor) -> Credit:
        """Advantages of the tokens of S = P x G responses; row p of ``rewards_PG`` belongs to prompt p's samples."""
        ...


@dataclass(frozen=True)
class SequenceCredit:
    """One advantage per response, the same on all its tokens."""

    spec: AdvantageSpec

    def assign(self, prompts: Rows, responses: Rows, rewards_PG: Tensor) -> Credit:
        """See `CreditAssigner`."""
        advantages_PG = compute_advantages(rewards_PG, self.spec)
        values = advantages_PG.flatten()
        return Credit([values[i].expand(len(r)) for i, r in enumerate(responses)], group_PG=advantages_PG)


@dataclass(frozen=True)
class ValueCredit:
    """Generalised advantage estimation with a critic."""

    spec: GaeAdvantage
    critic: Critic
    reader: Reader

    @torch.no_grad()
    def assign(self, prompts: Rows, responses: Rows, rewards_PG: Tensor) -> Credit:
        """See `CreditAssigner`. Returns are taken from the advantages before whitening."""
        values = [v.cpu() for v in self.critic.read(self.reader, prompts, responses)]
        advantages = [
            generalized_advantages(float(reward), values_T, self.spec.gamma, self.spec.lam)
            for reward, values_T in zip(rewards_PG.flatten(), values, strict=True)
        ]
        returns = [a + v for a, v in zip(advantages, values, strict=True)]
        if self.spec.whiten:
            every = torch.cat(advantages)
            scale = every.std() if every.numel() > 1 else every.new_ones(())
            advantages = [(a - every.mean()) / (scale + self.spec.eps) for a in advantages]
        return Credit(advantages, values=values, returns=returns)


@dataclass(frozen=True)
class VerifierCredit:
    """Standardised scores of a verifier on the most probable tokens; rewards are logged, not learned from.

    Attributes:
        reader: the policy that sampled; its top tokens are the candidates.
        verifier: scores them by its log-probabilities.
        reference: if given, its log-probabilities are subtracted (implicit reward of a DPO policy).
    """

    spec: DenseAdvantage
    reader: Reader
    verifier: Reader
    reference: Reader | None

    @torch.no_grad()
    def assign(self, prompts: Rows, responses: Rows, rewards_PG: Tensor) -> Credit:
        """See `CreditAssigner`."""
        dense: dict[int, DenseAdvantages] = {}
        for micro in by_length(prompts, responses, range(len(responses)), self.reader.limit):
            some, theirs = [prompts[i] for i in micro], [responses[i] for i in micro]
            dense |= zip(micro, self._score(some, theirs), strict=True)
        ordered = [dense[i] for i in range(len(responses))]
        sampled = [
            torch.where(d.ids_NK == torch.tensor(r).unsqueeze(-1), d.values_NK, 0.0).sum(dim=-1)
            for d, r in zip(ordered, responses, strict=True)
        ]
        return Credit(sampled, dense=ordered)

    def _score(self, prompts: Rows, responses: Rows) -> list[DenseAdvantages]:
        """Candidates of one micro-batch and their standardised scores, sequence by sequence."""
        logits_NV = self.reader.outputs(prompts, responses).logits_NV
        ids_NK = candidates(logits_NV, flat(responses, logits_NV.device), self.spec.k)
        scores_NK = self._log_probs(self.verifier, prompts, responses, ids_NK)
        if self.reference is not None:
            scores_NK = scores_NK - self._log_probs(self.reference, prompts, responses, ids_NK)
        values_NK = standardise(scores_NK, self.spec.center, self.spec.eps)
        lengths = [len(r) for r in responses]
        ids, values = (torch.split(tensor.cpu(), lengths) for tensor in (ids_NK, values_NK))
        return [DenseAdvantages(*pair) for pair in zip(ids, values, strict=True)]

    @staticmethod
    def _log_probs(reader: Reader, prompts: Rows, responses: Rows, ids_NK: Tensor) -> Tensor:
        return torch.log_softmax(reader.outputs(prompts, responses).logits_NV, dim=-1).gather(-1, ids_NK)
