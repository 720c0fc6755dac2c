"""Optimizer steps on a loss: minibatches, clipping, the learning rate's schedule."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from cvxrl.engine.divergence import blame, require_finite_gradients
from cvxrl.engine.loss import Loss
from cvxrl.engine.optimizer import learning_rate, optimizer_steps
from cvxrl.engine.sequences import Sequences
from cvxrl.engine.step_metrics import gradient_metrics, logit_metrics
from cvxrl.recipe.schema import Recipe
from cvxrl.rollout.randomness import generator_for


@contextmanager
def training_mode(model: nn.Module) -> Iterator[None]:
    """Dropout, where a model has it, works in this block alone: nothing that is only read may depend on chance."""
    model.train()
    try:
        yield
    finally:
        model.eval()


@dataclass(frozen=True)
class Updater:
    """Takes the optimizer steps that one step's sequences pay for."""

    loss: Loss
    optimizer: torch.optim.Optimizer

    @property
    def recipe(self) -> Recipe:
        """The recipe of the loss."""
        return self.loss.recipe

    def update(self, sequences: Sequences, step: int) -> dict[str, float]:
        """Inner epochs x minibatches optimizer steps; returns metrics averaged over them.

        Raises:
            DivergedError: a loss or gradient is not finite; parameters are those of the last finite step.
        """
        train = self.recipe.train
        if train.reset_optimizer:
            self.optimizer.state.clear()
        remembered = self.loss.remember(sequences, train.inner_epochs * train.minibatches > 1)
        totals: dict[str, float] = defaultdict(float)
        count = 0
        with training_mode(self.loss.policy.model):
            for epoch in range(train.inner_epochs):
                for part in self._minibatches(remembered, step, epoch):
                    index = (step - 1) * train.inner_epochs * train.minibatches + count
                    for key, value in self.step(part, index).items():
                        totals[key] += value
                    count += 1
        return {key: value / count for key, value in totals.items()}

    def step(self, sequences: Sequences, index: int) -> dict[str, float]:
        """Optimizer step ``index`` of the run, over remembered sequences.

        Raises:
            DivergedError: see `update`.
        """
        # Dropout, where a model has it, draws from the global generators; those must not carry state between steps.
        torch.manual_seed(generator_for(self.recipe.seed, "dropout", index).initial_seed())
        self.optimizer.zero_grad(set_to_none=True)
        metrics = self.loss.backward(self.loss.weigh(sequences))
        looked = self._look(sequences) if self._looks(index) else {}
        with blame(sequences):
            return {**metrics, **looked, **self._move(index)}

    def _looks(self, index: int) -> bool:
        """Whether gradients are looked at in optimizer step ``index``."""
        train, every = self.recipe.train, self.recipe.logging.gradients
        return bool(every) and (index // (train.inner_epochs * train.minibatches) + 1) % every == 0

    def _look(self, sequences: Sequences) -> dict[str, float]:
        """Diagnostics of the accumulated gradient, and of the logits of the first group."""
        metrics = gradient_metrics(self.loss.policy.model)
        # In chunks there are no logits to look at, and none of the rollout's to compare with.
        if sequences.advantages is None or self.loss.reader.head is not None:
            return metrics
        with torch.no_grad():
            batch, _ = self.loss.batch(sequences.select(range(self.recipe.group_size)))
        return metrics | logit_metrics(batch, self.recipe)

    def _move(self, index: int) -> dict[str, float]:
        """Clip the accumulated gradient and take optimizer step ``index``."""
        optim, model, critic = self.recipe.optim, self.loss.policy.model, self.loss.critic
        limit = optim.max_grad_norm
        parameters = [*model.parameters(), *(critic.parameters() if critic else ())]
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit if limit is not None else torch.inf)
        require_finite_gradients(model, norm)
        rate = learning_rate(optim, index, optimizer_steps(self.recipe.train))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        before = float(norm)
        after = before if limit is None else min(before, limit)
        return {"grad/norm": before, "grad/norm_clipped": after, "optim/lr": rate}

    def _minibatches(self, sequences: Sequences, step: int, epoch: int) -> Iterator[Sequences]:
        """Equal shares of the sequences, or of whole groups where the objective compares them, shuffled every epoch."""
        generator = generator_for(self.recipe.seed, "minibatches", step, epoch)
        unit = self.recipe.coupled_sequences
        count = len(sequences) // unit
        order: list[int] = torch.randperm(count, generator=generator).tolist()
        size = count // self.recipe.train.minibatches
        for start in range(0, count, size):
            yield sequences.select([unit * k + j for k in sorted(order[start : start + size]) for j in range(unit)])
