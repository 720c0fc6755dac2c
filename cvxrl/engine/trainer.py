"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from cvxrl.engine.build import (
    build_collector,
    build_critic,
    build_generator,
    build_held_out,
    build_reference,
    check_functions,
    check_placement,
    place,
    require_sampling,
)
from cvxrl.engine.collectors import Collector
from cvxrl.engine.credit import Critic
from cvxrl.engine.divergence import blame, require_finite_parameters
from cvxrl.engine.lag import LaggedCollector, Waiting
from cvxrl.engine.loss import Loss
from cvxrl.engine.mismatch import against_sampler
from cvxrl.engine.optimizer import build_optimizer
from cvxrl.engine.process import keep_freed_memory, settle_algorithms
from cvxrl.engine.readers import policy_shift
from cvxrl.engine.replicas import require_same
from cvxrl.engine.second import Second
from cvxrl.engine.self_check import self_check
from cvxrl.engine.sequences import Sequences
from cvxrl.engine.state import Position
from cvxrl.engine.update import Updater
from cvxrl.engine.world import SingleProcess, World
from cvxrl.errors import Mistakes, UserError
from cvxrl.evaluation.held_out import Evaluation, HeldOut
from cvxrl.policy.load import load_policy, pick_device
from cvxrl.policy.model import Policy
from cvxrl.recipe.mismatch import StopMismatch
from cvxrl.recipe.schema import Recipe
from cvxrl.report.stop import StopRequest
from cvxrl.rollout.choice import choose
from cvxrl.rollout.generator import Generator, SamplerLost
from cvxrl.rollout.local_generator import LocalGenerator
from cvxrl.tasks import Grader, Task, check_golds, graded_examples, load_grader, load_task

Record = dict[str, float]


@dataclass(frozen=True)
class Hooks:
    """What the loop tells the outside world; it writes and prints nothing itself."""

    record: Callable[[Record], None]
    evaluation: Callable[[int, Evaluation], None]
    checkpoint: Callable[[Position, Waiting | None], None]
    update: Callable[[Record], None] = lambda _: None
    rollouts: Callable[[int, Sequence[dict[str, Any]]], None] = lambda *_: None


@dataclass
class Trainer:
    """A policy, its task and its optimizer, ready to run.

    `build` does everything that a user's mistake can break, so that nothing is written before the input is known good.
    """

    recipe: Recipe
    policy: Policy
    generator: Generator
    task: Task
    grader: Grader
    collector: Collector
    updater: Updater
    held_out: HeldOut | None
    position: Position
    second: Second | None = None  # what samples, where that goes on beside the updates
    unfinished: Record | None = None

    @classmethod
    def build(cls, recipe: Recipe, world: World | None = None) -> Trainer:
        """Load task, grader and policy, and try the first prompts.

        Args:
            recipe: what to train.
            world: the processes that share its steps; this one alone by default.

        Raises:
            UserError: anything the recipe names cannot be had, or the prompts do not fit the policy.
        """
        world, mistakes = world or SingleProcess(), Mistakes()
        mistakes.attempt(check_placement, recipe, world)
        mistakes.attempt(check_functions, recipe)
        device = mistakes.attempt(pick_device, recipe.train.device)
        task = mistakes.attempt(load_task, recipe.task, recipe.seed)
        grader = mistakes.attempt(load_grader, recipe.task)
        policy = mistakes.attempt(load_policy, recipe.model, device or torch.device("cpu"), recipe.seed)
        if device is None or task is None or grader is None or policy is None or mistakes.problems:
            raise UserError(*mistakes.problems)
        if recipe.data == "rollouts" or recipe.eval.every:
            check_golds(recipe.task, grader, graded_examples(task, trained_on=recipe.data == "rollouts"))
        settle_algorithms(device, recipe.train.deterministic)
        keep_freed_memory()
        if recipe.train.gradient_checkpointing:
            # Not re-entrant: the other kind needs inputs that require gradients, which token ids do not.
            policy.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        critic = build_critic(recipe, policy)
        # A second copy is whole in every process.
        second = Second.of(policy, critic) if recipe.rollout.ahead else None
        policy = place(policy, recipe, world)
        second = None if second is None else replace(second, trained=policy)
        optimizer = build_optimizer([policy.model, *([critic] if critic else [])], recipe.optim)
        with policy.whole():
            generator = mistakes.attempt(build_generator, recipe, policy, world) or LocalGenerator(policy)
            sampler, judge = (policy, critic) if second is None else (second.policy, second.critic)
            aside = world if second is None else world.beside()
            collector = build_collector(recipe, sampler, generator, task, grader, judge, aside)
            mistakes.attempt(collector.check)
            held_out = mistakes.attempt(build_held_out, recipe, policy, generator, task, grader, world)
            mistakes.attempt(require_sampling, generator)
            if mistakes.problems:
                raise UserError(*mistakes.problems)
            loss = Loss(recipe, policy, critic, build_reference(recipe, sampler), world)
            _ = loss.reader  # an output layer that cannot be read as the recipe says is a user's mistake too
        if recipe.rollout.lag:
            early = replace(loss, policy=sampler, critic=judge, world=aside)
            collector = LaggedCollector(collector, early, loss, recipe)
        updater = Updater(loss, optimizer)
        return cls(recipe, policy, generator, task, grader, collector, updater, held_out, Position(), second)

    @property
    def world(self) -> World:
        """The processes that share a step."""
        return self.updater.loss.world

    @property
    def passes(self) -> dict[str, str]:
        """How logits are computed, in words: in the update, and while sampling."""
        words = {"update": self.policy.ways.describe()}
        if isinstance(self.generator, LocalGenerator):
            words["sampling"] = choose(self.policy, self.generator.engine).name
        elif (described := getattr(self.generator, "described", None)) is not None:
            words["sampling"] = described
        return words

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Optimizer of the policy and of the critic."""
        return self.updater.optimizer

    @property
    def critic(self) -> Critic | None:
        """Value head, if the advantages need one."""
        return self.updater.loss.critic

    def run(self, hooks: Hooks, stop: StopRequest) -> bool:
        """Train from the current position to the last step.

        Args:
            hooks: receives a record per step, evaluations, and checkpoint moments.
            stop: asked after every step.

        Returns:
            True when all steps are done, False when stopped on request (a checkpoint has been taken, if there was a
            step).

        Raises:
            DivergedError: a loss, gradient or parameter is not finite.
            UserError: sampler, trainer and the model's own forward pass disagree (`engine.self_check`); or the sampler
                is lost (`SamplerLost`): a checkpoint has been taken, if the last step is whole and all processes know.
        """
        try:
            return self._run(hooks, stop)
        except SamplerLost as lost:
            # The record of the last whole step is written.
            if self.position.step and lost.leaves_whole(self.world.size):
                hooks.checkpoint(self.position, self._waiting())
            raise

    def _run(self, hooks: Hooks, stop: StopRequest) -> bool:
        self._check_parameters()
        self._check_replicas("before the first step" if self.position.step == 0 else "before going on")
        if self.position.step == 0 and self.recipe.eval.every:
            stop.doing = "the evaluation before step 1"
            hooks.record({"step": 0, **self._evaluate(0, hooks)})
            if self._stops(stop):
                return False
        unfinished = self.world.gather(self.unfinished)[0]
        if unfinished is not None:
            stop.doing = f"the evaluation after step {self.position.step}"
            hooks.record(self._measured(unfinished, hooks))
        for step in range(self.position.step + 1, self.recipe.train.steps + 1):
            stop.doing = f"step {step}"
            record = self._step(step, hooks)
            if self._due(self.recipe.eval.every, step):
                record = self._measured(record, hooks)
            hooks.record(record)
            if self._stops(stop) and step < self.recipe.train.steps:
                self._checkpoint(hooks)
                return False
            if self._saves(step):
                self._checkpoint(hooks)
        return True

    def _step(self, step: int, hooks: Hooks | None = None) -> Record:
        """Collect, check, update, measure: one outer step; perhaps with a later rollout made beside it."""
        start, loss = time.perf_counter(), self.updater.loss
        synced = self.generator.sync(self.policy if self.second is None else self.second.refresh(), step - 1)
        lagged = self.collector if isinstance(self.collector, LaggedCollector) else None
        with nullcontext() if lagged is None else lagged.collecting(step):
            with self.policy.whole():
                experience = self.collector.collect(step)
                if hooks is not None and experience.shown:
                    hooks.rollouts(step, experience.shown)
                collected = time.perf_counter()
                sequences, checked = self._check(experience.sequences, step)
            record = {"step": step, **synced, **experience.metrics, **checked}
            tell = hooks.update if hooks is not None and self.recipe.logging.updates else None
            record |= self._learn(sequences, step, tell)
            updated = time.perf_counter()
            with self.policy.whole():
                record |= policy_shift(loss.reader, sequences, self.recipe.logging.kl_sequences, self.world)
            measured = time.perf_counter()
        seconds, tokens = time.perf_counter() - start, experience.sampled_tokens
        self.position = Position(step, self.position.tokens + tokens, self.position.seconds + seconds)
        return record | {
            "tokens/total": self.position.tokens,
            "time/step_s": seconds,
            "time/collect_s": seconds - (measured - collected),  # what was waited for
            "time/update_s": updated - collected,
            "time/tokens_per_s": tokens / seconds,
            "time/total_s": self.position.seconds,
        }

    def _check(self, sequences: Sequences, step: int) -> tuple[Sequences, Record]:
        """The sequences, perhaps with weights for a sampler that is not the policy, and how far it is from it."""
        with blame(sequences):
            record = self_check(self.updater.loss.reader, self.recipe, sequences, step, self.world)
        # Rollouts of earlier policies have been compared when they were sampled.
        if sequences.moved or isinstance(self.recipe.rollout.mismatch, StopMismatch):
            return sequences, record
        sequences, apart = against_sampler(self.updater.loss, sequences)
        return sequences, record | apart

    def _learn(self, sequences: Sequences, step: int, tell: Callable[[Record], None] | None) -> Record:
        with blame(sequences):
            record = self.updater.update(sequences, step, tell)
            # Before anything is recorded or saved, so that a checkpoint is always a good one.
            self._check_parameters()
        return record

    def _check_parameters(self) -> None:
        for module in filter(None, (self.policy.model, self.critic)):
            require_finite_parameters(module, self.world)

    def _check_replicas(self, when: str) -> None:
        if self.world.size > 1:
            modules = [self.policy.model, *([self.critic] if self.critic else [])]
            require_same(self.world, [p for module in modules for p in module.parameters()], when)

    def _checkpoint(self, hooks: Hooks) -> None:
        self._check_replicas(f"after step {self.position.step}")
        hooks.checkpoint(self.position, self._waiting())

    def _evaluate(self, step: int, hooks: Hooks) -> Record:
        assert self.held_out is not None, "evaluations were not asked for"
        start = time.perf_counter()
        with self.policy.whole():
            synced = self.generator.sync(self.policy, step)
            result = self.held_out.evaluate(step)
        hooks.evaluation(step, result)
        return {**synced, **result.metrics(), "time/eval_s": time.perf_counter() - start}

    def _measured(self, record: Record, hooks: Hooks) -> Record:
        """A step's record with its evaluation; without it where the sampler is lost, and `--resume` asks again."""
        try:
            return record | self._evaluate(int(record["step"]), hooks)
        except SamplerLost:
            hooks.record(record)
            raise

    def _stops(self, stop: StopRequest) -> bool:
        """Whether any of the processes was asked to stop."""
        return any(self.world.gather(stop.requested))

    def _waiting(self) -> Waiting | None:
        """Rollouts that later steps train on, of all processes; asked for by all of them."""
        return self.collector.state() if isinstance(self.collector, LaggedCollector) else None

    def _saves(self, step: int) -> bool:
        spec = self.recipe.checkpoint
        return (bool(spec.every) and step % spec.every == 0) or (spec.final and step == self.recipe.train.steps)

    def _due(self, every: int, step: int) -> bool:
        return bool(every) and (step % every == 0 or step == self.recipe.train.steps)
