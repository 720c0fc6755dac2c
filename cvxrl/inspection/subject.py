"""A checkpoint ready to be measured: policy, frozen rollouts, and one updater per objective."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cvxrl.engine.build import build_assigner, build_collector, build_critic, build_generator, build_reference
from cvxrl.engine.credit import Critic
from cvxrl.engine.divergence import DivergedError, require_finite_parameters
from cvxrl.engine.loss import Loss, with_old_logits
from cvxrl.engine.optimizer import build_optimizer
from cvxrl.engine.records import identify
from cvxrl.engine.sequences import Sequences
from cvxrl.engine.state import read_trainer_state
from cvxrl.engine.update import Updater
from cvxrl.errors import Problem, UserError
from cvxrl.inspection.objectives import Contestant
from cvxrl.inspection.plan import Plan
from cvxrl.inspection.rollouts import FrozenRollouts, freeze, read_rollouts, rollout_file, rollout_key
from cvxrl.inspection.source import Snapshot
from cvxrl.policy.load import load_policy, pick_device
from cvxrl.policy.model import Policy
from cvxrl.recipe.schema import Recipe
from cvxrl.tasks import Grader, Task


@dataclass(frozen=True)
class Entrant:
    """One objective on the frozen rollouts.

    Attributes:
        contestant: its name and recipe.
        updater: computes its losses and takes its steps.
        sequences: the frozen rollouts with its advantages.
        saved: optimizer state to step from, where the checkpoint has that of this objective.
    """

    contestant: Contestant
    updater: Updater
    sequences: Sequences
    saved: dict[str, Any] | None

    @property
    def label(self) -> str:
        """What tables call it."""
        return self.contestant.label

    @property
    def everything(self) -> list[int]:
        """Indices of all sequences."""
        return list(range(len(self.sequences)))

    @property
    def loss(self) -> Loss:
        """Computes its losses."""
        return self.updater.loss

    @cached_property
    def on_policy(self) -> Sequences:
        """The rollouts, weighed, while the policy is the one that sampled: its logits come with each pass."""
        return self.loss.weigh(self.loss.remember(self.sequences, off_policy=False))

    def passes(self, sequences: Sequences) -> Iterator[Sequences]:
        """Parts of the sequences for one forward pass each."""
        return sequences.split(self.loss.reader.limit, self.contestant.recipe.objective.coupling)

    def fresh(self) -> Entrant:
        """The same with an optimizer of its own: in the saved state, or as new."""
        modules = [self.loss.policy.model, *([self.loss.critic] if self.loss.critic else [])]
        optimizer = build_optimizer(modules, self.contestant.recipe.optim)
        if self.saved is not None:
            optimizer.load_state_dict(copy.deepcopy(self.saved))
        return replace(self, updater=replace(self.updater, optimizer=optimizer))


@dataclass(frozen=True)
class Subject:
    """A snapshot of a run.

    Attributes:
        snapshot: which one.
        policy: in evaluation mode.
        rollouts: what it said.
        file: where that is kept.
        entrants: the objectives, the run's own first.
        weights_hash: digest of the policy.
    """

    snapshot: Snapshot
    policy: Policy
    rollouts: FrozenRollouts
    file: Path
    entrants: list[Entrant]
    weights_hash: str

    @property
    def trainable(self) -> dict[str, Tensor]:
        """Parameters that training moves, by name."""
        return {name: p for name, p in self.policy.model.named_parameters() if p.requires_grad}

    @cached_property
    def old_logits(self) -> list[Tensor]:
        """What the policy that sampled says of the rollouts; asked for the first time while it is still there."""
        own = self.entrants[0]
        return own.loss.reader.logits(own.sequences)

    def remembered(self, entrant: Entrant) -> Sequences:
        """An objective's rollouts with what the policy that sampled said, to look at after the policy has moved."""
        return with_old_logits(entrant.on_policy, self.old_logits)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Put every trainable tensor back when the block ends, whatever steps were taken in it."""
        critic = self.entrants[0].loss.critic
        tensors = [*self.trainable.values(), *(critic.parameters() if critic else ())]
        kept = [p.detach().clone() for p in tensors]
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, before in zip(tensors, kept, strict=True):
                    parameter.copy_(before)
                    parameter.grad = None


def load_subject(plan: Plan, snapshot: Snapshot, task: Task, grader: Grader) -> Subject:
    """Load a snapshot, sample or read its rollouts, and give every objective its advantages.

    Raises:
        UserError: the weights are not finite, a part cannot be loaded, or the rollouts' file is damaged.
    """
    recipe = plan.recipe
    device = pick_device(plan.options.device)
    policy = load_policy(snapshot.model, device, recipe.seed)
    if snapshot.state is not None and recipe.model.lora is not None:
        policy.load_trained(snapshot.state)
    _require_finite(policy, snapshot)
    policy.model.eval()
    critic = _critic(plan, policy)
    state = None if snapshot.state is None else read_trainer_state(snapshot.state, device)
    if critic is not None and state is not None:
        critic.load_state_dict(state["critic"])
    rollouts, file, digest = _rollouts(plan, snapshot, recipe, policy, task, grader)
    entrants = [_entrant(c, recipe, policy, critic, rollouts, state) for c in plan.contestants]
    return Subject(snapshot, policy, rollouts, file, entrants, digest)


def _require_finite(policy: Policy, snapshot: Snapshot) -> None:
    try:
        require_finite_parameters(policy.model)
    except DivergedError as error:
        what = f"the policy's weights are not finite: {error}"
        remedy = "look at an earlier step with --step" if snapshot.step else "give another checkpoint"
        raise UserError(Problem(what, "PATH", str(snapshot.model.path), remedy)) from None


def _critic(plan: Plan, policy: Policy) -> Critic | None:
    """The value head, if any objective's advantages come from one."""
    for contestant in plan.contestants:
        if contestant.needs_values:
            return build_critic(contestant.recipe, policy)
    return None


def _rollouts(
    plan: Plan, snapshot: Snapshot, recipe: Recipe, policy: Policy, task: Task, grader: Grader
) -> tuple[FrozenRollouts, Path, str]:
    """Those of the training step that would come next, from their file if it is there."""
    step = (snapshot.step or 0) + 1
    identity = identify(policy, task)
    key = rollout_key(recipe, step, identity.model, identity.tokenizer, identity.task)
    file = rollout_file(plan.folder / snapshot.name, key)
    if file.is_file() and not plan.options.fresh:
        return read_rollouts(file), file, identity.model
    # Rewards do not depend on advantages, so those of the plainest estimator do here.
    plain = recipe.model_copy(update={"advantage": plan.plain_advantage})
    collector = build_collector(plain, policy, build_generator(plain, policy), task, grader, None)
    collector.check()
    return freeze(collector, step, key, file), file, identity.model


def _entrant(
    contestant: Contestant,
    recipe: Recipe,
    policy: Policy,
    critic: Critic | None,
    rollouts: FrozenRollouts,
    state: dict[str, Any] | None,
) -> Entrant:
    own = contestant.recipe
    head = critic if contestant.needs_values else None
    optimizer = build_optimizer([policy.model, *([head] if head else [])], own.optim)
    updater = Updater(Loss(own, policy, head, build_reference(own, policy)), optimizer)
    sequences = build_assigner(own, policy, head).assign(rollouts.sequences, rollouts.rewards_PG)
    saved = state["optimizer"] if contestant.own and state is not None else None
    return Entrant(contestant, updater, sequences, saved)
