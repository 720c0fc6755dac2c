"""Optimizer steps on a loss: minibatches, the learning rate's schedule, clipping, and how much of a step is taken."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cvxrl.engine.divergence import blame, require_finite_gradients
from cvxrl.engine.logit_metrics import logit_metrics
from cvxrl.engine.loss import Loss
from cvxrl.engine.replicas import sum_gradients
from cvxrl.engine.sequences import Sequences
from cvxrl.engine.trial import Trial, between_searches, take_untried
from cvxrl.engine.world import SingleProcess, World, is_sharded, local_part
from cvxrl.gradients.parameters import norms
from cvxrl.recipe.schema import Recipe, learning_rate, optimizer_steps
from cvxrl.recipe.step import FixedStep
from cvxrl.rollout.randomness import generator_for

_CHANCE = ("drop", "jitter")
# Numbers whose squares float32 adds up without a wrong digit.
_BLOCK = 2**16


@contextmanager
def training_mode(model: nn.Module, *, dropout: bool) -> Iterator[None]:
    """The training pass is made in this block alone: nothing that is only read may depend on chance.

    A policy's configuration may drop attention weights, residuals, embeddings or whole layers, and shake its routers.
    All of that hangs on a module's training mode, by whatever name a family has it, so modules stay in evaluation mode:
    the pass that is trained on gives the probabilities that the policy samples with; ratios begin at 1, margins at 0.

    Args:
        model: in evaluation mode, and again when the block ends.
        dropout: whether the policy's own dropout is on; an adapter's always is.
    """
    if dropout:
        model.train()
    for name, module in model.named_modules():
        if name.endswith(".lora_dropout"):
            module.train()
        if getattr(module, "gradient_checkpointing", False) and not dropout:
            _checkpoint(module)
    try:
        yield
    finally:
        model.eval()


def _checkpoint(module: nn.Module) -> None:
    """Put a module, but not those inside it, into training mode, without which nothing is checkpointed."""
    module.training = True
    # What it drops by itself, it drops by a number of its own rather than through a module.
    for name, value in vars(module).items():
        if isinstance(value, float) and any(word in name for word in _CHANCE):
            setattr(module, name, 0.0)


@dataclass(frozen=True)
class Updater:
    """Takes the optimizer steps that one step's sequences pay for."""

    loss: Loss
    optimizer: torch.optim.Optimizer

    @property
    def recipe(self) -> Recipe:
        """The recipe of the loss."""
        return self.loss.recipe

    def update(
        self, sequences: Sequences, step: int, tell: Callable[[dict[str, float]], None] | None = None
    ) -> dict[str, float]:
        """Inner epochs x minibatches optimizer steps; returns metrics averaged over those of them that have them.

        Args:
            sequences: what the step collected.
            step: its number, from 1.
            tell: is given every optimizer step's own metrics, as soon as they are known.

        Raises:
            DivergedError: a loss or gradient is not finite; parameters are those of the last finite step.
        """
        train = self.recipe.train
        if train.reset_optimizer:
            self.optimizer.state.clear()
        remembered = self.loss.remember(sequences, train.inner_epochs * train.minibatches > 1)
        told: dict[str, list[float]] = defaultdict(list)
        count = 0
        with training_mode(self.loss.policy.model, dropout=self.recipe.model.dropout):
            for epoch in range(train.inner_epochs):
                for part in self.minibatches(remembered, step, epoch):
                    index = (step - 1) * train.inner_epochs * train.minibatches + count
                    found = self.step(part, index)
                    for key, value in found.items():
                        told[key].append(value)
                    count += 1
                    if tell is not None:
                        tell({"step": step, "update": count, "epoch": epoch + 1, **found})
        return {key: sum(values) / len(values) for key, values in told.items()}

    def step(self, sequences: Sequences, index: int) -> dict[str, float]:
        """Optimizer step ``index`` of the run, over remembered sequences.

        Raises:
            DivergedError: see `update`.
        """
        # Dropout, where a model has it, draws from the global generators; those must not carry state between steps.
        # Every process drops for its own sequences.
        rank = self.loss.world.rank
        seed = generator_for(self.recipe.seed, "dropout", index, *([rank] if rank else [])).initial_seed()
        torch.manual_seed(seed)
        self.optimizer.zero_grad(set_to_none=True)
        weighed, control = self.loss.weigh(sequences), self.recipe.step
        trial, untried = None, False
        if not isinstance(control, FixedStep):
            untried = between_searches(self.optimizer, control)
            trial = None if untried else Trial(self.loss, control, weighed, seed, index)
        metrics = self.loss.backward(weighed, trial.hear if trial else None)
        if self.loss.world.size > 1:
            replicas = [p for p in self._parameters() if p.requires_grad and not is_sharded(p)]
            sum_gradients(self.loss.world, replicas)
        looked = self._look(sequences) if self._looks(index) else {}
        with blame(sequences):
            moved, clipped = self._clip(index)
            if trial is not None:
                return {**metrics, **looked, **moved, **trial.take(self.optimizer, metrics["loss"], clipped)}
            if untried:
                return {**metrics, **looked, **moved, **take_untried(self.loss, self.optimizer)}
            self.optimizer.step()
            return {**metrics, **looked, **moved}

    def _parameters(self) -> list[nn.Parameter]:
        """Those of the policy, and of the critic if there is one."""
        return [parameter for module in self.loss.trained for parameter in module.parameters()]

    def _looks(self, index: int) -> bool:
        """Whether gradients are looked at in optimizer step ``index``."""
        train, every = self.recipe.train, self.recipe.logging.gradients
        return bool(every) and (index // (train.inner_epochs * train.minibatches) + 1) % every == 0

    def _look(self, sequences: Sequences) -> dict[str, float]:
        """Diagnostics of the accumulated gradient, and of the logits of the first group."""
        policy = self.loss.policy
        metrics = gradient_metrics(policy.model, self.loss.world)
        # In chunks there are no logits to look at, and none of the rollout's to compare with.
        if sequences.advantages is None or self.loss.reader.head is not None:
            return metrics
        with torch.no_grad(), policy.whole():
            return metrics | logit_metrics(self.loss, sequences)

    def _clip(self, index: int) -> tuple[dict[str, float], float]:
        """Clip the accumulated gradient and set the learning rate of optimizer step ``index``.

        Returns:
            What is logged, and what the gradient was multiplied with.
        """
        optim, model = self.recipe.optim, self.loss.policy.model
        limit = optim.max_grad_norm
        parameters = [p for p in self._parameters() if p.grad is not None]
        norm = global_norm((p.grad for p in parameters if p.grad is not None), self.loss.world)
        require_finite_gradients(model, norm, self.loss.world)
        if limit is not None:
            clip(parameters, limit, norm)
        rate = learning_rate(optim, index, optimizer_steps(self.recipe.train))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        before = float(norm)
        after = before if limit is None else min(before, limit)
        factor = 1.0 if limit is None else min(1.0, limit / (before + 1e-6))  # as torch has it
        return {"grad/norm": before, "grad/norm_clipped": after, "optim/lr": rate}, factor

    def minibatches(self, sequences: Sequences, step: int, epoch: int) -> Iterator[Sequences]:
        """Equal shares of the sequences, or of whole groups where the objective compares them, shuffled every epoch.

        They are drawn from those of all processes; what is yielded is this one's part, which may be empty.
        """
        world, generator = self.loss.world, generator_for(self.recipe.seed, "minibatches", step, epoch)
        units = sequences.units(self.recipe.objective.coupling)
        counts = world.gather(len(units))
        first, total = sum(counts[: world.rank]), sum(counts)
        order: list[int] = torch.randperm(total, generator=generator).tolist()
        size = total // self.recipe.train.minibatches
        for start in range(0, total, size):
            chosen = [k - first for k in sorted(order[start : start + size]) if first <= k < first + len(units)]
            yield sequences.select([i for k in chosen for i in units[k]])


def global_norm(gradients: Iterable[Tensor], world: World | None = None) -> Tensor:
    """Euclidean norm of all of them together, float32 or wider: the norms of blocks, and the norm of those.

    A whole tensor's squares, added up in its own type, lose digits with its size: 2e-3 of the norm is missing at 28
    million float32 numbers, and bfloat16 rounds every tensor's norm to three digits.

    Args:
        gradients: whole ones, the same in every process, and sharded ones.
        world: the processes that hold the parts of the sharded ones.

    Returns:
        The same number in every process, NaN or infinite if any part is.
    """
    given = list(gradients)
    parts = [local_part(gradient) for gradient in given if is_sharded(gradient)]
    whole = _norm([gradient.detach() for gradient in given if not is_sharded(gradient)])
    if not parts:
        return whole
    # A maximum over processes may lose a NaN; a sum never does.
    square = (world or SingleProcess()).sum(_norm(parts).double().square().cpu())
    return (square + whole.double().square().cpu()).sqrt().to(whole.dtype).to(parts[0].device)


def clip(parameters: Sequence[Tensor], limit: float, norm: Tensor) -> None:
    """Multiply the gradients by limit / norm if their common norm is above the limit."""
    held = []
    for parameter in parameters:
        assert parameter.grad is not None
        part = local_part(parameter)
        part.grad = local_part(parameter.grad)  # the same memory
        held.append(part)
    nn.utils.clip_grads_with_norm_(held, limit, norm)


def gradient_metrics(model: nn.Module, world: World) -> dict[str, float]:
    """Norms of the accumulated gradient before clipping: by kind of module, and the mean over q, k and v."""
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    total = world.sum if any(map(is_sharded, gradients.values())) else None
    found = norms({name: local_part(gradient) for name, gradient in gradients.items()}, total)
    return {"grad/qkv": found.attention_mean, **{f"grad/module/{kind}": n for kind, n in found.by_module.items()}}


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    sizes = [size for tensor in tensors for size in _block_norms(tensor.reshape(-1))]
    return torch.linalg.vector_norm(torch.stack(sizes)) if sizes else torch.zeros(())


def _block_norms(flat: Tensor) -> list[Tensor]:
    exact = torch.promote_types(flat.dtype, torch.float32)
    if flat.device.type != "cpu":  # adds up in a tree, not in a few running totals
        return [torch.linalg.vector_norm(flat, dtype=exact)]
    # Squares of half-precision numbers have few digits, so that adding them up in float32 rounds to one side.
    inside = flat.dtype if flat.dtype == exact else torch.float64
    return [torch.linalg.vector_norm(block.to(inside)).to(exact) for block in torch.split(flat, _BLOCK)]
