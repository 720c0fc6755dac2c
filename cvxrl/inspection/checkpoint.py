"""A checkpoint ready to be measured: policy, frozen rollouts, and a loss per objective."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cvxrl.engine.build import build_assigner, build_critic, build_reference
from cvxrl.engine.credit import Critic, with_group_advantages
from cvxrl.engine.divergence import DivergedError, require_finite_parameters
from cvxrl.engine.loss import Loss, with_old_logits
from cvxrl.engine.optimizer import build_optimizer
from cvxrl.engine.sequences import Sequences
from cvxrl.engine.state import read_trainer_state
from cvxrl.engine.update import Updater
from cvxrl.engine.world import SingleProcess
from cvxrl.errors import Problem, UserError
from cvxrl.inspection.foreign.state import credit_notes, gradients_of, likeness_notes, read_optimizer
from cvxrl.inspection.foreign.tokens import retokenised
from cvxrl.inspection.objectives import NamedObjective
from cvxrl.inspection.plan import InspectionPlan
from cvxrl.inspection.rollouts import FrozenRollouts
from cvxrl.inspection.sampling import next_rollouts
from cvxrl.inspection.saved import load_saved, why_not
from cvxrl.inspection.schedule import schedule_notes
from cvxrl.inspection.sources import Checkpoint
from cvxrl.policy.identity import hash_weights
from cvxrl.policy.load import load_policy, pick_device
from cvxrl.policy.model import Policy
from cvxrl.recipe.schema import Recipe
from cvxrl.tasks import Grader, Task


@dataclass(frozen=True)
class MeasuredObjective:
    """One objective on the frozen rollouts.

    Attributes:
        named: its name and recipe.
        loss: evaluates it.
        sequences: the frozen rollouts with its advantages.
        saved: optimizer state to step from, where the checkpoint has one of this objective's.
        refused: why a state that the checkpoint has is not stepped from, a sentence.
    """

    named: NamedObjective
    loss: Loss
    sequences: Sequences
    saved: dict[str, Any] | None
    refused: str | None = None

    @property
    def label(self) -> str:
        """What tables call it."""
        return self.named.label

    @property
    def recipe(self) -> Recipe:
        """The run's recipe with this objective."""
        return self.named.recipe

    @property
    def everything(self) -> list[int]:
        """Indices of all sequences."""
        return list(range(len(self.sequences)))

    @cached_property
    def on_policy(self) -> Sequences:
        """The rollouts, weighed, while the policy is the one that sampled: its logits come with each pass."""
        return self.loss.weigh(self.loss.remember(self.sequences, off_policy=False))

    def first(self, sequences: Sequences) -> Sequences:
        """The rollouts as training takes its first step on them; ``sequences`` are the remembered ones.

        Where a rollout pays for one step, the pass that is trained on tells the probabilities of the policy that
        sampled. With dropout that is another pass than one that looks; without, they are the same numbers.
        """
        train, model = self.recipe.train, self.recipe.model
        drops = model.dropout or (model.lora is not None and model.lora.dropout > 0)
        return self.on_policy if drops and train.inner_epochs * train.minibatches == 1 else sequences

    def passes(self, sequences: Sequences) -> Iterator[Sequences]:
        """Parts of the sequences for one forward pass each."""
        return sequences.split(self.loss.reader.limit, self.recipe.objective.coupling)

    @property
    def optimizer_state(self) -> str:
        """Where the optimizer starts from: `saved` state, or `fresh`."""
        return "fresh" if self.saved is None or self.recipe.train.reset_optimizer else "saved"

    def updater(self) -> Updater:
        """Takes steps on the loss with an optimizer of its own: in the saved state, or as new."""
        optimizer = build_optimizer(self.loss.trained, self.recipe.optim)
        if self.saved is not None:
            load_saved(optimizer, self.saved)
        if self.recipe.train.reset_optimizer:
            optimizer.state.clear()
        return Updater(self.loss, optimizer)

    def under(self, recipe: Recipe) -> MeasuredObjective:
        """The same objective where another recipe says how steps are taken."""
        return replace(self, named=replace(self.named, recipe=recipe), loss=replace(self.loss, recipe=recipe))


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A policy with what it is measured on.

    Attributes:
        source: which checkpoint.
        policy: in evaluation mode.
        rollouts: what it said.
        file: where that is kept.
        objectives: the objectives, the run's own first.
        weights_hash: digest of the policy.
        notes: what is known of it, and what is not.
        unnamed: the run's own objective where it is not among them, but its steps are asked for.
    """

    source: Checkpoint
    policy: Policy
    rollouts: FrozenRollouts
    file: Path
    objectives: list[MeasuredObjective]
    weights_hash: str
    notes: list[str] = field(default_factory=list)
    unnamed: MeasuredObjective | None = None

    @property
    def own(self) -> MeasuredObjective:
        """The run's own objective, measured or not; the first, where the run's needs what the checkpoint has not."""
        return self.objectives[0] if self.unnamed is None else self.unnamed

    @property
    def trainable(self) -> dict[str, Tensor]:
        """Parameters that training moves, by name."""
        return {name: p for name, p in self.policy.model.named_parameters() if p.requires_grad}

    @cached_property
    def old_logits(self) -> list[Tensor]:
        """What the policy that sampled says of the rollouts; asked for the first time while it is still there."""
        own = self.objectives[0]
        return own.loss.reader.logits(own.sequences)

    def remembered(self, objective: MeasuredObjective) -> Sequences:
        """An objective's rollouts with what the policy that sampled said, to look at after the policy has moved."""
        return with_old_logits(objective.on_policy, self.old_logits)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Put every trainable tensor back when the block ends, whatever steps were taken in it."""
        # Whichever objectives have a critic, they share it.
        critics = {id(o.loss.critic): o.loss.critic for o in (self.own, *self.objectives) if o.loss.critic}
        tensors = [*self.trainable.values(), *(p for critic in critics.values() for p in critic.parameters())]
        kept = [p.detach().clone() for p in tensors]
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, before in zip(tensors, kept, strict=True):
                    parameter.copy_(before)
                    parameter.grad = None


def load_checkpoint(
    plan: InspectionPlan,
    source: Checkpoint,
    task: Task | None,
    grader: Grader | None,
    note: Callable[[str], None] = lambda _: None,
) -> LoadedCheckpoint:
    """Load a checkpoint, sample or read its rollouts, and give every objective its advantages.

    Args:
        plan: what is asked.
        source: which checkpoint.
        task: gives the prompts; not needed for completions that another trainer stored, nor is
        grader: judges the completions.
        note: told how long sampling is going to take.

    Raises:
        UserError: the weights are not finite, a part cannot be loaded, or the rollouts' file is damaged.
    """
    recipe = plan.recipe
    device = pick_device(plan.options.device)
    policy = load_policy(source.model, device, recipe.seed)
    adapter = source.adapter or source.state
    if adapter is not None and recipe.model.lora is not None:
        policy.load_trained(adapter)
    _require_finite(policy, source)
    policy.model.eval()
    critic = _critic(plan, policy)
    state = None if source.state is None else read_trainer_state(source.state, device)
    if critic is not None and state is not None:
        _load_critic(critic, state, source)
    notes = list(source.notes)
    if source.stored is not None:
        digest, folder = hash_weights(policy.model), plan.folder / source.name
        rollouts, file, said = retokenised(policy, digest, source.stored, source.foreign, folder)
        notes += said
    else:
        assert task is not None and grader is not None
        rollouts, file, digest = next_rollouts(plan, source, policy, task, grader, note)
    named = plan.stepping
    if source.foreign is not None:
        left = read_optimizer(source.foreign, policy, critic, plan.recipe, own_rate=plan.own_rate)
        state, named = left.state, [left.at_its_rate(one) for one in named]
        notes += left.notes
    notes += schedule_notes(named[0].recipe, source.step or 0)
    measured = [_measured(one, plan.recipe, policy, critic, rollouts, state) for one in named]
    notes += [one.refused for one in measured if one.refused is not None]
    notes += credit_notes(plan.recipe, rollouts)
    objectives, unnamed = measured[: len(plan.objectives)], measured[len(plan.objectives) :]
    loaded = LoadedCheckpoint(
        source, policy, rollouts, file, objectives, digest, notes, unnamed[0] if unnamed else None
    )
    if source.foreign is not None and left.moments is not None:
        loaded.own.loss.backward(loaded.own.on_policy)
        notes += likeness_notes(left.moments, gradients_of(list(policy.model.named_parameters())))
    return loaded


def _require_finite(policy: Policy, source: Checkpoint) -> None:
    try:
        require_finite_parameters(policy.model)
    except DivergedError as error:
        what = f"the policy's weights are not finite: {error}"
        remedy = "look at an earlier step with --step" if source.step else "give another checkpoint"
        raise UserError(Problem(what, "PATH", str(source.model.path), remedy)) from None


def _load_critic(critic: Critic, state: dict[str, Any], source: Checkpoint) -> None:
    if not state["critic"]:
        what = "the run trained no critic, whose values the recipe's advantages are made of"
        remedy = "name a recipe without one, e.g. math_grpo"
        raise UserError(Problem(what, "--recipe", str(source.state), remedy))
    critic.load_state_dict(state["critic"])


def _critic(plan: InspectionPlan, policy: Policy) -> Critic | None:
    """The value head, if any objective's advantages come from one."""
    for named in plan.stepping:
        if named.needs_values:
            return build_critic(named.recipe, policy)
    return None


def _measured(
    named: NamedObjective,
    run: Recipe,
    policy: Policy,
    critic: Critic | None,
    rollouts: FrozenRollouts,
    state: dict[str, Any] | None,
) -> MeasuredObjective:
    recipe = named.recipe
    head = critic if named.needs_values else None
    loss = Loss(recipe, policy, head, build_reference(recipe, policy))
    if rollouts.advantages is not None and recipe.advantage == run.advantage:
        sequences = with_group_advantages(rollouts.sequences, torch.tensor(rollouts.advantages))
    else:
        assigner = build_assigner(recipe, policy, head, SingleProcess())
        sequences = assigner.assign(rollouts.sequences, rollouts.rewards_PG)
    saved = state["optimizer"] if named.own and state is not None else None
    why = None if saved is None else why_not(saved, loss.trained, recipe.optim)
    if why is None:
        return MeasuredObjective(named, loss, sequences, saved)
    refused = f"the optimizer state of the checkpoint {why}, so that the step is that of a fresh optimizer"
    return MeasuredObjective(named, loss, sequences, None, None if recipe.train.reset_optimizer else refused)
