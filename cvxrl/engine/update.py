"""From experience to optimizer steps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from cvxrl.engine.assemble import Memory, per_token, token_batch
from cvxrl.engine.chunked import chunked_loss
from cvxrl.engine.critic import Critic
from cvxrl.engine.divergence import blame_batch, require_finite, require_finite_gradients
from cvxrl.engine.experience import Experience
from cvxrl.engine.gradient_metrics import gradient_metrics, logit_metrics
from cvxrl.engine.micro_batches import Limit, by_length, whole_groups
from cvxrl.engine.optimizer import learning_rate, optimizer_steps
from cvxrl.engine.readers import Reader
from cvxrl.engine.zero_advantage import split_resting
from cvxrl.objectives.batch import TokenBatch
from cvxrl.objectives.policy_gradient import value_loss
from cvxrl.objectives.reduce import sequence_weights
from cvxrl.objectives.registry import compute
from cvxrl.objectives.regularizer import regularization
from cvxrl.objectives.statistics import entropy
from cvxrl.policy.model import Policy, ResponseOutputs
from cvxrl.recipe.advantage import GaeAdvantage
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
    """Takes the optimizer steps that one experience pays for.

    Attributes:
        critic: trained beside the policy, if the advantages need one.
        reference: the policy that training started from, if the objective or the regulariser needs it.
    """

    recipe: Recipe
    policy: Policy
    optimizer: torch.optim.Optimizer
    critic: Critic | None = None
    reference: Reader | None = None

    @cached_property
    def reader(self) -> Reader:
        """The policy as the update sees it.

        Raises:
            UserError: the recipe asks for losses in chunks, and the policy's output layer does not allow them.
        """
        return Reader.of(self.policy, self.recipe)

    def check(self) -> None:
        """Raise UserError if the policy cannot be read as the recipe says."""
        _ = self.reader

    def update(self, experience: Experience, step: int) -> dict[str, float]:
        """Inner epochs x minibatches optimizer steps; returns metrics averaged over them.

        Raises:
            DivergedError: a loss or gradient is not finite; parameters are those of the last finite step.
        """
        train = self.recipe.train
        if train.reset_optimizer:
            self.optimizer.state.clear()
        memory = self.remember(experience, train.inner_epochs * train.minibatches > 1)
        totals: dict[str, float] = defaultdict(float)
        count = 0
        with training_mode(self.policy.model):
            for epoch in range(train.inner_epochs):
                for indices in self._minibatches(experience, step, epoch):
                    index = (step - 1) * train.inner_epochs * train.minibatches + count
                    for key, value in self.step(experience, indices, memory, index).items():
                        totals[key] += value
                    count += 1
        return {key: value / count for key, value in totals.items()}

    def step(self, experience: Experience, indices: Sequence[int], memory: Memory, index: int) -> dict[str, float]:
        """Optimizer step ``index`` of the run, over the sequences ``indices``.

        Micro-batches share one normaliser, so their split cannot change the gradient.

        Raises:
            DivergedError: see `update`.
        """
        weight_of = self.weights(experience, indices)
        num_tokens = sum(len(experience.responses[i]) for i in indices)
        moving, resting = split_resting(self.recipe, experience, indices, memory)
        sums: dict[str, float] = defaultdict(float)

        def run(micro: Sequence[int]) -> Tensor:
            """Loss of a micro-batch; what is logged of it is added up."""
            weight_N = per_token([weight_of[i] for i in micro], experience, micro).to(self.policy.device)
            loss, metrics = self._loss(experience, micro, memory, weight_N)
            with blame_batch(experience, micro):
                require_finite("loss", loss.detach())
            sums["loss"] += float(loss.detach())
            for key, value_N in metrics.items():
                sums[key] += float(value_N.sum()) / num_tokens
            return loss

        # Dropout, where a model has it, draws from the global generators; those must not carry state between steps.
        torch.manual_seed(generator_for(self.recipe.seed, "dropout", index).initial_seed())
        self.optimizer.zero_grad(set_to_none=True)
        for micro in self.micro_batches(experience, moving):
            run(micro).backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for micro in self.micro_batches(experience, resting):
                run(micro)
        if not moving:
            self._rest()
        online = self._look(experience, indices, memory) if self._looks(index) else {}
        with blame_batch(experience, indices):
            return {**sums, **online, **self._move(index)}

    def _rest(self) -> None:
        """A gradient of zero, which an optimizer with momentum or weight decay takes as a step; none it would skip."""
        for parameter in self.policy.model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)

    def _looks(self, index: int) -> bool:
        """Whether gradients are looked at in optimizer step ``index``."""
        train, every = self.recipe.train, self.recipe.logging.gradients
        return bool(every) and (index // (train.inner_epochs * train.minibatches) + 1) % every == 0

    def _look(self, experience: Experience, indices: Sequence[int], memory: Memory) -> dict[str, float]:
        """Diagnostics of the accumulated gradient, and of the logits of the first group."""
        metrics = gradient_metrics(self.policy.model)
        # In chunks there are no logits to look at, and none of the rollout's to compare with.
        if experience.credit is None or self.reader.head is not None:
            return metrics
        with torch.no_grad():
            batch, _ = self.batch(experience, indices[: experience.group_size], memory)
        return metrics | logit_metrics(batch, self.recipe)

    def _loss(
        self, experience: Experience, micro: Sequence[int], memory: Memory, weight_N: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum of the token losses of ``micro``, and per-token diagnostics."""
        if self.reader.head is None:
            loss_N, _, metrics = self.losses(experience, micro, memory)
            return (weight_N * loss_N).sum(), metrics
        loss, hidden_NH, metrics = chunked_loss(self.recipe, self.reader, experience, micro, memory, weight_N)
        if self.critic is not None:
            value_N = self._value_loss(self.critic, hidden_NH, experience, micro)
            loss = loss + (weight_N * value_N).sum()
            metrics["critic/loss"] = value_N.detach()
        return loss, metrics

    def weights(self, experience: Experience, indices: Sequence[int]) -> dict[int, float]:
        """Weight of every token of each sequence in the loss of an optimizer step over ``indices``."""
        lengths = torch.tensor([len(experience.responses[i]) for i in indices])
        weights = sequence_weights(lengths, self.recipe.reduction, self.recipe.rollout.max_new_tokens).float()
        return dict(zip(indices, weights.tolist(), strict=True))

    def batch(self, experience: Experience, micro: Sequence[int], memory: Memory) -> tuple[TokenBatch, ResponseOutputs]:
        """What the objective sees of the sequences ``micro``, and the forward pass it comes from, with gradient."""
        outputs = self.reader.outputs([experience.prompts[i] for i in micro], [experience.responses[i] for i in micro])
        return token_batch(outputs.logits_NV, experience, micro, memory), outputs

    def losses(
        self, experience: Experience, micro: Sequence[int], memory: Memory
    ) -> tuple[Tensor, TokenBatch, dict[str, Tensor]]:
        """Loss of every token of ``micro``, the batch it was computed from, and per-token diagnostics."""
        batch, outputs = self.batch(experience, micro, memory)
        output = compute(batch, self.recipe.objective)
        extra_N, extra_metrics = regularization(batch, self.recipe.regularizer)
        loss_N = output.loss_N + extra_N
        with torch.no_grad():
            metrics = {"policy/entropy": entropy(batch.logits_NV), **output.metrics, **extra_metrics}
        if self.critic is not None:
            value_N = self._value_loss(self.critic, outputs.hidden_NH, experience, micro)
            loss_N = loss_N + value_N
            metrics["critic/loss"] = value_N.detach()
        return loss_N, batch, metrics

    def _value_loss(self, critic: Critic, hidden_NH: Tensor, experience: Experience, micro: Sequence[int]) -> Tensor:
        spec, credit = self.recipe.advantage, experience.credit
        assert isinstance(spec, GaeAdvantage) and credit is not None and credit.values and credit.returns
        old_N, returns_N = (
            torch.cat([part[i] for i in micro]).to(hidden_NH.device) for part in (credit.values, credit.returns)
        )
        return spec.value_coefficient * value_loss(critic(hidden_NH), old_N, returns_N, spec.value_clip)

    def _move(self, index: int) -> dict[str, float]:
        """Clip the accumulated gradient and take optimizer step ``index``."""
        optim, model = self.recipe.optim, self.policy.model
        limit = optim.max_grad_norm
        parameters = [*model.parameters(), *(self.critic.parameters() if self.critic else ())]
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit if limit is not None else torch.inf)
        require_finite_gradients(model, norm)
        rate = learning_rate(optim, index, optimizer_steps(self.recipe.train))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        before = float(norm)
        after = before if limit is None else min(before, limit)
        return {"grad/norm": before, "grad/norm_clipped": after, "optim/lr": rate}

    def remember(self, experience: Experience, off_policy: bool) -> Memory:
        """What later passes must know of the reference, and of the policy before the first optimizer step.

        Args:
            experience: the step's data.
            off_policy: whether the policy will move while the data is used. Otherwise the policy that sampled is the
                current one, and its logits are at hand in the pass itself.
        """
        prompts, responses = experience.prompts, experience.responses
        reference = None if self.reference is None else self.reference.log_probs(prompts, responses)
        if experience.credit is None or not off_policy:
            return Memory(None, None, reference)
        if "old_logits" in self.recipe.objective.needs:
            if self.reader.head is not None:
                hidden = self.reader.each(prompts, responses, self.reader.hidden)
                return Memory(None, None, reference, hidden, self.reader.head.frozen())
            return Memory.of_logits(self.reader.logits(prompts, responses), responses, reference)
        return Memory(None, self.reader.log_probs(prompts, responses), reference)

    def micro_batches(self, experience: Experience, indices: Sequence[int]) -> Iterator[list[int]]:
        """Parts of ``indices`` for one forward pass each; whole groups where the objective compares them."""
        limit, prompts, responses = Limit.of(self.recipe.train), experience.prompts, experience.responses
        if "groups" in self.recipe.objective.needs:
            return whole_groups(prompts, responses, indices, experience.group_size, limit)
        return by_length(prompts, responses, indices, limit)

    def _minibatches(self, experience: Experience, step: int, epoch: int) -> Iterator[list[int]]:
        """Equal shares of the sequences, or of whole groups where the objective compares them, shuffled every epoch."""
        generator = generator_for(self.recipe.seed, "minibatches", step, epoch)
        unit = experience.group_size if "groups" in self.recipe.objective.needs else 1
        count = len(experience.responses) // unit
        order: list[int] = torch.randperm(count, generator=generator).tolist()
        size = count // self.recipe.train.minibatches
        for start in range(0, count, size):
            yield [unit * k + j for k in sorted(order[start : start + size]) for j in range(unit)]
