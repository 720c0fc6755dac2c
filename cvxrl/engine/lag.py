"""Rollouts of earlier policies: what a step trains on was sampled, checked and remembered some steps ago.

A queue between the collector and the updates. Everything that belongs to the policy that sampled is computed while that
policy is still there, when a rollout is collected: log-probabilities, advantages, a critic's values, old logits or
hidden states with the output layer of the time. With `rollout.ahead` the newest rollout is collected beside the
updates, by a copy of the policy (`engine.second`); the queue is the same, and so is every number.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch

from cvxrl.engine.collectors import Collector, Experience
from cvxrl.engine.divergence import blame
from cvxrl.engine.loss import Loss
from cvxrl.engine.mismatch import against_sampler
from cvxrl.engine.readers import policy_shift
from cvxrl.engine.self_check import self_check
from cvxrl.engine.sequences import Sequences
from cvxrl.engine.world import World, share
from cvxrl.objectives.batch import DenseAdvantages
from cvxrl.objectives.linear import LinearHead, LowRank
from cvxrl.recipe.schema import Recipe
from cvxrl.rollout.beside import beside
from cvxrl.rollout.generator import SamplerLost

# What a checkpoint holds of the queues: one mapping per process.
Waiting = list[dict[str, Any]]

# What is stored as the mapping of its fields.
_PARTS = (Sequences, DenseAdvantages, LinearHead, LowRank)


@dataclass
class LaggedCollector:
    """Collects a step's rollout `lag` steps before it is trained on; the first step collects those that come before.

    The rollout of step s is sampled by the policy after s - 1 - lag steps, or by the one that training starts from:
    with a lag of 2 the first three steps train on rollouts of the untrained policy, step 4 on one of the policy
    after step 1. Rollouts are collected ahead to the end, so that a run that is gone on with is the longer run.

    Attributes:
        inner: samples, grades and credits.
        loss: remembers, by the policy that samples.
        trained: loss of the policy that is trained.
        recipe: of the run.
        waiting: what was collected and is not trained on yet, oldest first.
        newest: step that the newest of it belongs to.
    """

    inner: Collector
    loss: Loss
    trained: Loss
    recipe: Recipe
    waiting: deque[Experience] = field(default_factory=deque)
    newest: int = 0

    def check(self) -> None:
        """See `Collector`."""
        self.inner.check()

    def collect(self, step: int) -> Experience:
        """What step ``step`` trains on, taken in turn, by an earlier policy; how far the policy has moved since.

        Raises:
            SelfCheckError: sampler and trainer disagree on a rollout that was collected now.
        """
        spec, now = self.recipe.rollout, self.trained
        self._fill(step + spec.lag - spec.ahead)
        experience = self.waiting.popleft()
        sequences = experience.sequences
        shift = policy_shift(now.reader, sequences, self.recipe.logging.kl_sequences, now.world)
        versions = sequences.versions or [step - 1]
        moved = {"rollout/lag": step - 1 - sum(versions) / len(versions)}
        if shift:
            moved["rollout/kl"] = shift["policy/kl"]
        return replace(experience, metrics=experience.metrics | moved)

    @contextmanager
    def collecting(self, step: int) -> Iterator[None]:
        """With `rollout.ahead`, step ``step`` in the block, and beside it the rollout that comes last into the queue.

        Raises:
            UserError: as `collect` does; where the block ends, so that a `SamplerLost` leaves no whole step.
        """
        spec = self.recipe.rollout
        if not spec.ahead:
            yield
            return
        newest = step + spec.lag
        self._fill(newest - 1)
        try:
            with beside(lambda: self._fill(newest), self.loss.policy.device):
                yield
        except SamplerLost as lost:
            lost.amid_step = True
            raise

    def _fill(self, last: int) -> None:
        while self.newest < last:
            self.waiting.append(self._early(self.newest + 1))
            self.newest += 1

    def _early(self, step: int) -> Experience:
        """The rollout of a later step, with all that the policy of now says of it."""
        experience = self.inner.collect(step)
        with blame(experience.sequences):
            checked = self_check(self.loss.reader, self.recipe, experience.sequences, step, self.loss.world)
        remembered = self.loss.remember(experience.sequences, off_policy=True)
        sequences, apart = against_sampler(self.loss, remembered)
        return replace(experience, sequences=sequences, metrics=experience.metrics | checked | apart, rewards_PG=None)

    def state(self) -> Waiting:
        """What a checkpoint holds of all processes' queues; called by all of them.

        They are stored, since sampling them anew would need the weights of as many earlier policies.
        """
        waiting = [_plain(experience) for experience in self.waiting]
        return self.loss.world.gather({"newest": self.newest, "waiting": waiting})

    def restore(self, state: Waiting) -> None:
        """Take back what `state` gave, to as many processes or others."""
        world, self.newest = self.loss.world, state[0]["newest"]
        if len(state) == world.size:
            self.waiting = deque(_experience(values) for values in state[world.rank]["waiting"])
            return
        rollouts = zip(*(one["waiting"] for one in state), strict=True)
        self.waiting = deque(_dealt([_experience(values) for values in parts], world) for parts in rollouts)


def _dealt(parts: Sequence[Experience], world: World) -> Experience:
    """This process's share of a rollout that others have collected, each a part of it."""
    whole = Sequences.joined([part.sequences for part in parts])
    mine = share(world, len(set(whole.groups)))
    return replace(parts[0], sequences=whole.select([i for i, group in enumerate(whole.groups) if group in mine]))


def _plain(value: Any) -> Any:
    """Mappings, lists, tensors and numbers alone, which are read back without running code."""
    if isinstance(value, (Experience, *_PARTS)):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, list | tuple):
        return [_plain(element) for element in value]
    if isinstance(value, torch.Tensor):
        return value.detach()
    return dict(value) if isinstance(value, Mapping) else value


def _experience(values: Mapping[str, Any]) -> Experience:
    parts = dict(values["sequences"])
    if parts["dense"] is not None:
        parts["dense"] = [DenseAdvantages(**dense) for dense in parts["dense"]]
    if parts["old_head"] is not None:
        parts["old_head"] = _head(parts["old_head"])
    return Experience(**{**values, "sequences": Sequences(**parts)})


def _head(values: Mapping[str, Any]) -> LinearHead:
    low_rank: Iterable[Mapping[str, Any]] = values["low_rank"]
    return LinearHead(**{**values, "low_rank": tuple(LowRank(**part) for part in low_rank)})
