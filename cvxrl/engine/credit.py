"""From the rewards of a step to the advantage of every token."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from cvxrl.advantages import candidates, compute_advantages, generalized_advantages, standardise
from cvxrl.engine.readers import Reader
from cvxrl.engine.sequences import Sequences, flat
from cvxrl.engine.world import SingleProcess, World, from_main
from cvxrl.objectives.batch import DenseAdvantages
from cvxrl.recipe.advantage import AdvantageSpec, DenseAdvantage, GaeAdvantage


class CreditAssigner(Protocol):
    """Turns rewards into advantages."""

    def assign(self, sequences: Sequences, rewards_PG: Tensor) -> Sequences:
        """The same sequences with advantages; row p of ``rewards_PG`` belongs to the samples of the p-th prompt."""
        ...


class Critic(nn.Module):
    """The value head: a linear map from the policy's last hidden states to the reward expected from there on.

    Its loss reaches the policy's trunk too. At its start, zero, every token's advantage is what Monte Carlo gives
    without a baseline.
    """

    def __init__(self, hidden_size: int) -> None:
        """Start at zero."""
        super().__init__()
        self.value = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)

    def forward(self, hidden_NH: Tensor) -> Tensor:
        """Values in fp32, [N]."""
        values: Tensor = self.value(hidden_NH.float()).squeeze(-1)
        return values

    def read(self, reader: Reader, sequences: Sequences) -> list[Tensor]:
        """Value before each response token, [T] per sequence."""
        return reader.each(sequences, lambda part: self(reader.hidden(part)))


@dataclass(frozen=True)
class SequenceCredit:
    """One advantage per response, the same on all its tokens."""

    spec: AdvantageSpec
    world: World = field(default_factory=SingleProcess)

    def assign(self, sequences: Sequences, rewards_PG: Tensor) -> Sequences:
        """See `CreditAssigner`. Computed once, of the rewards of all processes, which an estimator may compare."""
        parts = self.world.gather(rewards_PG)
        whole_PG = compute_advantages(torch.cat(parts), self.spec) if self.world.is_main else rewards_PG
        mine = torch.split(from_main(self.world, whole_PG), [len(part) for part in parts])[self.world.rank]
        return with_group_advantages(sequences, mine)


def with_group_advantages(sequences: Sequences, advantages_PG: Tensor) -> Sequences:
    """One advantage per response on all its tokens, and those of its whole prompt beside it."""
    size = advantages_PG.shape[1]
    values = advantages_PG.flatten()
    return replace(
        sequences,
        advantages=[values[i].expand(len(r)) for i, r in enumerate(sequences.responses)],
        group_advantages=[advantages_PG[i // size] for i in range(len(sequences))],
    )


@dataclass(frozen=True)
class ValueCredit:
    """Generalised advantage estimation with a critic."""

    spec: GaeAdvantage
    critic: Critic
    reader: Reader
    world: World = field(default_factory=SingleProcess)

    @torch.no_grad()
    def assign(self, sequences: Sequences, rewards_PG: Tensor) -> Sequences:
        """See `CreditAssigner`. Returns are taken from the advantages before whitening."""
        values = [v.cpu() for v in self.critic.read(self.reader, sequences)]
        advantages = [
            generalized_advantages(float(reward), values_T, self.spec.gamma, self.spec.lam)
            for reward, values_T in zip(rewards_PG.flatten(), values, strict=True)
        ]
        returns = [a + v for a, v in zip(advantages, values, strict=True)]
        if self.spec.whiten:
            every = torch.cat(self.world.gather(torch.cat(advantages)))
            scale = every.std() if every.numel() > 1 else every.new_ones(())
            advantages = [(a - every.mean()) / (scale + self.spec.eps) for a in advantages]
        return replace(sequences, advantages=advantages, values=values, returns=returns)


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
    def assign(self, sequences: Sequences, rewards_PG: Tensor) -> Sequences:
        """See `CreditAssigner`."""
        scored: dict[int, DenseAdvantages] = {}
        readers = [self.reader, self.verifier, *([self.reference] if self.reference else [])]
        with ExitStack() as whole:
            for reader in readers:
                whole.enter_context(reader.policy.whole())
            for part in sequences.split(self.reader.limit):
                scored |= zip(part.positions, self._score(part), strict=True)
        dense = [scored[i] for i in sequences.positions]
        sampled = [
            torch.where(d.ids_NK == torch.tensor(r).unsqueeze(-1), d.values_NK, 0.0).sum(dim=-1)
            for d, r in zip(dense, sequences.responses, strict=True)
        ]
        return replace(sequences, advantages=sampled, dense=dense)

    def _score(self, sequences: Sequences) -> list[DenseAdvantages]:
        """Candidates of one micro-batch and their standardised scores, sequence by sequence."""
        logits_NV = self.reader.outputs(sequences).logits_NV
        ids_NK = candidates(logits_NV, flat(sequences.responses, logits_NV.device), self.spec.k)
        scores_NK = self._log_probs(self.verifier, sequences, ids_NK)
        if self.reference is not None:
            scores_NK = scores_NK - self._log_probs(self.reference, sequences, ids_NK)
        values_NK = standardise(scores_NK, self.spec.center, self.spec.eps)
        ids, values = (torch.split(tensor.cpu(), sequences.lengths) for tensor in (ids_NK, values_NK))
        return [DenseAdvantages(*pair) for pair in zip(ids, values, strict=True)]

    @staticmethod
    def _log_probs(reader: Reader, sequences: Sequences, ids_NK: Tensor) -> Tensor:
        return torch.log_softmax(reader.outputs(sequences).logits_NV, dim=-1).gather(-1, ids_NK)
