"""The loss of an optimizer step at the policy's current weights, with or without its gradient; no optimizer here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from cvxrl.engine.credit import Critic
from cvxrl.engine.divergence import DivergedError, blame, require_finite
from cvxrl.engine.equal_passes import empty_pass, most_passes
from cvxrl.engine.readers import Reader
from cvxrl.engine.sequences import Sequences, flat, hidden_batch, token_batch
from cvxrl.engine.world import SingleProcess, World, sum_metrics
from cvxrl.objectives.batch import TokenBatch
from cvxrl.objectives.linear import HiddenBatch, linear_objective, linear_statistics
from cvxrl.objectives.policy_gradient import value_loss
from cvxrl.objectives.reduce import sequence_weights
from cvxrl.objectives.registry import compute, penalties, regularization
from cvxrl.objectives.statistics import action_log_probs, entropy
from cvxrl.policy.model import Policy, ResponseOutputs
from cvxrl.recipe.advantage import GaeAdvantage
from cvxrl.recipe.schema import Recipe

# Told of a pass: its sequences, and the policy's logits [N, V] there, or hidden states [N, H] where losses are chunked.
Hear = Callable[[Sequences, Tensor], None]


@dataclass(frozen=True)
class _Passed:
    """What one forward pass came to.

    Attributes:
        loss: weighted sum of the token losses, with gradient.
        said: see `Hear`.
        metrics: per-token diagnostics that come with the loss.
        entropies: of every token; they are work of their own, which a loss alone does without.
    """

    loss: Tensor
    said: Tensor
    metrics: dict[str, Tensor]
    entropies: Callable[[], Tensor]


@dataclass(frozen=True)
class Loss:
    """Objective, regulariser and value loss of a recipe, on sequences, by the weights the policy has at the moment.

    A step's sequences go through `remember` once, while the policy is still the one that sampled, and through `weigh`
    for every optimizer step; what comes out can be evaluated as often as wanted, at whatever weights.

    Attributes:
        critic: trained beside the policy, if the advantages need one.
        reference: the policy that training started from, if the objective or the regulariser needs it.
        world: the processes that share a step; they share its normaliser too.
    """

    recipe: Recipe
    policy: Policy
    critic: Critic | None = None
    reference: Reader | None = None
    world: World = field(default_factory=SingleProcess)

    @cached_property
    def reader(self) -> Reader:
        """The policy as the loss sees it.

        Raises:
            UserError: the recipe asks for losses in chunks, and the policy's output layer does not allow them.
        """
        return Reader.of(self.policy, self.recipe)

    @property
    def trained(self) -> list[nn.Module]:
        """What its gradient goes into: the policy, and the critic if there is one."""
        return [self.policy.model, *([self.critic] if self.critic else [])]

    def remember(self, sequences: Sequences, off_policy: bool) -> Sequences:
        """The same with what the reference says, and the policy before the first optimizer step.

        Args:
            sequences: as they were collected.
            off_policy: whether the policy will move while they are used. Otherwise the policy that sampled is the
                current one, and its logits are at hand in the pass itself.

        Returns:
            What has been remembered already, by the policy of then, as it is.
        """
        if sequences.moved:
            return sequences
        if self.reference is not None:
            sequences = replace(sequences, reference_logprobs=self.reference.log_probs(sequences))
        if sequences.advantages is None or not off_policy:
            return sequences
        if "old_logits" not in self.recipe.objective.needs:
            told = sequences.sampled_logprobs if self.recipe.rollout.old_logprobs == "sampler" else None
            return replace(sequences, old_logprobs=self.reader.log_probs(sequences) if told is None else told)
        if self.reader.head is None:
            return with_old_logits(sequences, self.reader.logits(sequences))
        with self.policy.whole():
            hidden = self.reader.each(sequences, self.reader.hidden)
            return replace(sequences, old_hidden=hidden, old_head=self.reader.head.frozen())

    def weigh(self, sequences: Sequences) -> Sequences:
        """The sequences of one optimizer step with the weight of each one's tokens.

        The normaliser is that of all processes, and micro-batches share it: no split can change the gradient.
        """
        lengths = torch.tensor(sequences.lengths)
        totals = self.world.sum(torch.tensor([int(lengths.sum()), len(sequences)]))
        weights = sequence_weights(
            lengths, self.recipe.reduction, self.recipe.rollout.max_new_tokens, *map(int, totals.tolist())
        )
        return replace(sequences, weights=weights.float().tolist())

    @torch.no_grad()
    def evaluate(self, step: Sequences) -> dict[str, float]:
        """Loss of an optimizer step, under `loss`, and the means of its diagnostics over the step's tokens.

        Args:
            step: all sequences of this process, weighed.

        Raises:
            DivergedError: the loss is not finite.
        """
        return self._run(step.select([]), step)

    def backward(self, step: Sequences, hear: Hear | None = None) -> dict[str, float]:
        """As `evaluate`, and add the gradient to the parameters'; responses without one get no backward pass.

        Args:
            step: all sequences of this process, weighed.
            hear: told, pass by pass, what the policy said.
        """
        moving, still = self.split(step)
        return self._run(moving, still if self.recipe.logging.idle_groups else still.select([]), hear)

    @torch.no_grad()
    def value(self, passes: Iterable[Sequences]) -> float:
        """The loss alone, finite or not, of weighed sequences that are given pass by pass.

        On the passes of `backward` it is, at the same weights, the same number: a difference of two is one of weights.
        """
        with self.policy.whole():
            total = sum((float(self._weighted(micro).loss) for micro in passes), start=0.0)
        return float(self.world.sum(torch.tensor([total], dtype=torch.float64)))

    def _run(self, moving: Sequences, still: Sequences, hear: Hear | None = None) -> dict[str, float]:
        """Pass over all sequences, with a backward pass for those that move the policy."""
        sums: dict[str, float] = defaultdict(float, loss=0.0)
        counts = torch.tensor([sum(moving.lengths) + sum(still.lengths)])
        num_tokens = int(self.world.sum(counts))
        limit, coupling = self.reader.limit, self.recipe.objective.coupling
        passes = list(moving.split(limit, coupling))
        most, resting = len(passes), len(still)
        if self.policy.sharding is not None:
            most, resting = most_passes(self.reader, self.world, passes, still)
        if torch.is_grad_enabled() and not most:
            self._zero_gradients()
        bad: list[DivergedError] = []

        def run(micro: Sequences) -> Tensor:
            passed = self._weighted(micro)
            try:
                with blame(micro):
                    require_finite("loss", passed.loss.detach())
            except DivergedError as error:
                if self.policy.sharding is None:
                    raise
                bad.append(error)  # the others cannot make their passes without this process
            if hear is not None:
                hear(micro, passed.said)
            sums["loss"] += float(passed.loss.detach())
            with torch.no_grad():
                metrics = {"policy/entropy": passed.entropies(), **passed.metrics}
            for key, value_N in metrics.items():
                sums[key] += float(value_N.sum()) / num_tokens
            return passed.loss

        for micro in passes:
            self.policy.run(partial(run, micro)).backward()
        for _ in range(most - len(passes)):
            empty_pass(self.reader).backward()  # type: ignore[no-untyped-call]
        if resting:
            with torch.no_grad(), self.policy.whole():
                for micro in still.split(limit, coupling):
                    run(micro)
        if bad:
            raise bad[0]
        return sum_metrics(self.world, sums)

    def split(self, step: Sequences) -> tuple[Sequences, Sequences]:
        """Those that move the policy, and those whose gradient is zero whatever it says of them.

        A group whose rewards are all the same teaches nothing: its advantages are zero. It stays in the weights of the
        reduction and in the metrics; only the backward pass, two thirds of the work, is left out.
        """
        extra, declared = self.recipe.regularizer, self.recipe.objective.zero_advantage
        # Each of these pulls on a token without an advantage: a critic's own loss, scores of single tokens, penalties.
        pulled = step.group_advantages is None or step.values is not None or step.dense is not None
        pulled = pulled or bool(extra.kl_coefficient or extra.entropy_coefficient)
        still = declared == "no gradient" or (declared == "no gradient on-policy" and not step.moved)
        if pulled or not still:
            return step, step.select([])
        assert step.group_advantages is not None
        idle = [not bool(advantages_G.any()) for advantages_G in step.group_advantages]
        moving = [i for i, rests in enumerate(idle) if not rests]
        return step.select(moving), step.select([i for i, rests in enumerate(idle) if rests])

    def _zero_gradients(self) -> None:
        """A gradient of zero, which an optimizer with momentum or weight decay takes as a step; none it would skip."""
        for parameter in self.policy.model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)

    def _weighted(self, micro: Sequences) -> _Passed:
        """Weighted sum of the token losses of one forward pass."""
        weight_N = micro.per_token(self.policy.device)
        if self.reader.head is not None:
            return self._in_chunks(micro, weight_N)
        loss_N, batch, metrics = self._token_losses(micro)
        said_NV = batch.logits_NV.detach()
        return _Passed((weight_N * loss_N).sum(), said_NV, metrics, lambda: entropy(said_NV))

    def batch(self, sequences: Sequences) -> tuple[TokenBatch, ResponseOutputs]:
        """What the objective sees of the sequences, and the forward pass it comes from, with gradient."""
        outputs = self.reader.outputs(sequences)
        return token_batch(outputs.logits_NV, sequences), outputs

    def losses(self, sequences: Sequences) -> tuple[Tensor, TokenBatch, dict[str, Tensor]]:
        """Loss of every token, the batch it was computed from, and per-token diagnostics; from full logits."""
        loss_N, batch, metrics = self._token_losses(sequences)
        with torch.no_grad():
            return loss_N, batch, {"policy/entropy": entropy(batch.logits_NV), **metrics}

    def _token_losses(self, sequences: Sequences) -> tuple[Tensor, TokenBatch, dict[str, Tensor]]:
        """As `losses`, with those diagnostics alone that come with the loss."""
        batch, outputs = self.batch(sequences)
        output = compute(batch, self.recipe.objective)
        extra_N, extra_metrics = regularization(batch, self.recipe.regularizer)
        loss_N = output.loss_N + extra_N
        metrics = {**output.metrics, **extra_metrics}
        if self.critic is not None:
            value_N = self._value_loss(self.critic, outputs.hidden_NH, sequences)
            loss_N = loss_N + value_N
            metrics["critic/loss"] = value_N.detach()
        return loss_N, batch, metrics

    def _in_chunks(self, micro: Sequences, weight_N: Tensor) -> _Passed:
        """As `_weighted`, from hidden states, a few tokens at a time: no [N, V] tensor."""
        head, chunk = self.reader.head, self.reader.chunk_tokens
        assert head is not None
        hidden_NH = self.reader.hidden(micro)
        batch = hidden_batch(hidden_NH, head, micro)
        found = linear_objective(batch, self.recipe.objective, weight_N, chunk_tokens=chunk)
        spec = self.recipe.regularizer
        logprobs_N = entropy_N = None
        if spec.kl_coefficient or spec.entropy_coefficient:
            logprobs_N, entropy_N = _statistics(batch, chunk)
        extra_N, extra = penalties(batch.actions_N, logprobs_N, entropy_N, batch.reference_logprobs_N, spec)
        loss = found.loss + (weight_N * extra_N).sum()
        metrics = {**found.metrics, **extra}
        if self.critic is not None:
            value_N = self._value_loss(self.critic, hidden_NH, micro)
            loss = loss + (weight_N * value_N).sum()
            metrics["critic/loss"] = value_N.detach()

        def entropies() -> Tensor:
            # Where the loss needed no projection, the log does.
            return found.entropy_N if found.entropy_N is not None else _statistics(batch, chunk)[1]

        return _Passed(loss, hidden_NH.detach(), metrics, entropies)

    def _value_loss(self, critic: Critic, hidden_NH: Tensor, sequences: Sequences) -> Tensor:
        spec = self.recipe.advantage
        assert isinstance(spec, GaeAdvantage) and sequences.values and sequences.returns
        old_N, returns_N = (torch.cat(part).to(hidden_NH.device) for part in (sequences.values, sequences.returns))
        return spec.value_coefficient * value_loss(critic(hidden_NH), old_N, returns_N, spec.value_clip)


@torch.no_grad()
def with_old_logits(sequences: Sequences, logits: list[Tensor]) -> Sequences:
    """The same with logits of the policy that sampled, [T, V] each, and the log-probabilities that follow."""
    log_probs = [
        action_log_probs(part_TV, flat([response], part_TV.device))
        for part_TV, response in zip(logits, sequences.responses, strict=True)
    ]
    return replace(sequences, old_logits=logits, old_logprobs=log_probs)


def _statistics(batch: HiddenBatch, chunk_tokens: int | None) -> tuple[Tensor, Tensor]:
    """Log-probability of the sampled token and entropy, with gradient."""
    found = linear_statistics(batch.hidden_NH, batch.head, batch.actions_N, chunk_tokens=chunk_tokens)
    return found.logprobs_N, found.entropy_N
