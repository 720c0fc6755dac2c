"""From experience to optimizer steps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cvxrl.engine.divergence import require_finite, require_finite_gradients
from cvxrl.engine.experience import Experience
from cvxrl.engine.optimizer import learning_rate, optimizer_steps
from cvxrl.objectives.batch import TokenBatch
from cvxrl.objectives.reduce import sequence_weights
from cvxrl.objectives.registry import compute
from cvxrl.objectives.statistics import action_log_probs, entropy, k3
from cvxrl.policy.model import Policy
from cvxrl.recipe.schema import Recipe
from cvxrl.rollout.generators import generator_for


@dataclass(frozen=True)
class OldPolicy:
    """What the policy said before the first optimizer step of a rollout: one tensor per sequence."""

    logits: list[Tensor]


@dataclass(frozen=True)
class Updater:
    """Takes the optimizer steps that one experience pays for."""

    recipe: Recipe
    policy: Policy
    optimizer: torch.optim.Optimizer

    def update(self, experience: Experience, step: int) -> dict[str, float]:
        """Inner epochs x minibatches optimizer steps; returns metrics averaged over them.

        Raises:
            DivergedError: a loss or gradient is not finite; parameters are those of the last finite step.
        """
        train = self.recipe.train
        off_policy = train.inner_epochs * train.minibatches > 1 and "demonstrations" not in self.recipe.objective.needs
        old = self._remember(experience) if off_policy else None
        totals: dict[str, float] = defaultdict(float)
        count = 0
        for epoch in range(train.inner_epochs):
            for indices in self._minibatches(len(experience.responses), step, epoch):
                index = (step - 1) * train.inner_epochs * train.minibatches + count
                for key, value in self._optimizer_step(experience, indices, old, index).items():
                    totals[key] += value
                count += 1
        return {key: value / count for key, value in totals.items()}

    @torch.no_grad()
    def policy_shift(self, experience: Experience, num_sequences: int) -> dict[str, float]:
        """KL(rollout policy || policy now), estimated with k3 on the tokens of the first ``num_sequences``."""
        if experience.logprobs is None or num_sequences == 0:
            return {}
        indices = range(min(num_sequences, len(experience.responses)))
        new = self._log_probs(experience, indices, self.recipe.train.micro_batch)
        log_ratio = new - torch.cat([experience.logprobs[i] for i in indices])
        return {"policy/kl": float(k3(log_ratio).mean())}

    @torch.no_grad()
    def ratio_deviation(self, experience: Experience, num_sequences: int = 32) -> float:
        """Largest |ratio - 1| between the sampler's and the trainer's probabilities before any update.

        The whole experience is checked at the configured micro-batch size, its first sequences also at sizes 1 and 4.
        """
        assert experience.logprobs is not None
        whole = range(len(experience.responses))
        few = whole[:num_sequences]
        worst = 0.0
        for indices, size in ((whole, self.recipe.train.micro_batch), (few, 4), (few, 1)):
            new = self._log_probs(experience, indices, size)
            old = torch.cat([experience.logprobs[i] for i in indices])
            worst = max(worst, float(torch.expm1(new - old).abs().max()))
        return worst

    def _optimizer_step(
        self, experience: Experience, indices: Sequence[int], old: OldPolicy | None, index: int
    ) -> dict[str, float]:
        """One step over ``indices``: micro-batches share one normaliser, so their split cannot change the gradient."""
        recipe, model = self.recipe, self.policy.model
        lengths = torch.tensor([len(experience.responses[i]) for i in indices])
        weights = sequence_weights(lengths, recipe.reduction, recipe.rollout.max_new_tokens).float()
        weight_of = dict(zip(indices, weights.tolist(), strict=True))
        sums: dict[str, float] = defaultdict(float)
        model.train()
        self.optimizer.zero_grad(set_to_none=True)
        for micro in _by_length(experience, indices, recipe.train.micro_batch):
            batch = self._token_batch(experience, micro, old)
            output = compute(batch, recipe.objective)
            weight_N = _per_token([weight_of[i] for i in micro], experience, micro).to(output.loss_N.device)
            loss = (weight_N * output.loss_N).sum()
            require_finite("loss", loss.detach())
            loss.backward()  # type: ignore[no-untyped-call]
            sums["loss"] += float(loss.detach())
            with torch.no_grad():
                per_token = {"policy/entropy": entropy(batch.logits_NV), **output.metrics}
            for key, value_N in per_token.items():
                sums[key] += float(value_N.sum()) / int(lengths.sum())
        return {**sums, **self._move(index)}

    def _move(self, index: int) -> dict[str, float]:
        """Clip the accumulated gradient and take optimizer step ``index``."""
        optim, model = self.recipe.optim, self.policy.model
        limit = optim.max_grad_norm
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), limit if limit is not None else torch.inf)
        require_finite_gradients(model, norm)
        rate = learning_rate(optim, index, optimizer_steps(self.recipe.train))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        before = float(norm)
        after = before if limit is None else min(before, limit)
        return {"grad/norm": before, "grad/norm_clipped": after, "optim/lr": rate}

    def _token_batch(self, experience: Experience, micro: Sequence[int], old: OldPolicy | None) -> TokenBatch:
        """Current logits and everything the objective needs, for the response tokens of ``micro``."""
        logits_NV = self._logits(experience, micro)
        actions_N = torch.tensor([t for i in micro for t in experience.responses[i]], device=logits_NV.device)
        if experience.advantages_S is None:
            return TokenBatch(logits_NV, actions_N)
        # On-policy the policy that sampled is the current one; its logits are at hand.
        old_NV = logits_NV.detach() if old is None else torch.cat([old.logits[i] for i in micro])
        advantages_N = _per_token(experience.advantages_S[list(micro)].tolist(), experience, micro)
        return TokenBatch(
            logits_NV,
            actions_N,
            advantages_N=advantages_N.to(logits_NV.device),
            old_logits_NV=old_NV,
            old_logprobs_N=action_log_probs(old_NV, actions_N),
        )

    def _logits(self, experience: Experience, micro: Sequence[int]) -> Tensor:
        """fp32 logits over temperature at the response tokens of ``micro``, [N, V]."""
        bf16 = self.recipe.train.precision == "bf16"
        with torch.autocast(self.policy.device.type, dtype=torch.bfloat16, enabled=bf16):
            logits = self.policy.response_logits(
                [experience.prompts[i] for i in micro], [experience.responses[i] for i in micro]
            )
        temperature = 1.0 if experience.advantages_S is None else self.recipe.rollout.temperature
        return logits.float() / temperature

    @torch.no_grad()
    def _remember(self, experience: Experience) -> OldPolicy:
        """Logits of the rollout policy, kept for passes after the first optimizer step."""
        logits: list[Tensor | None] = [None] * len(experience.responses)
        for micro in _by_length(experience, range(len(experience.responses)), self.recipe.train.micro_batch):
            parts = torch.split(self._logits(experience, micro), [len(experience.responses[i]) for i in micro])
            for i, part in zip(micro, parts, strict=True):
                logits[i] = part
        return OldPolicy([part for part in logits if part is not None])

    def _log_probs(self, experience: Experience, indices: Sequence[int], size: int | None) -> Tensor:
        """Log-probability of each response token of ``indices``, in their order, on the CPU."""
        parts: Mapping[int, Tensor] = {}
        for micro in _by_length(experience, indices, size):
            actions = torch.tensor([t for i in micro for t in experience.responses[i]], device=self.policy.device)
            logprobs = action_log_probs(self._logits(experience, micro), actions).cpu()
            lengths = [len(experience.responses[i]) for i in micro]
            parts = {**parts, **dict(zip(micro, torch.split(logprobs, lengths), strict=True))}
        return torch.cat([parts[i] for i in indices])

    def _minibatches(self, count: int, step: int, epoch: int) -> Iterator[list[int]]:
        """Equal shares of the sequences, shuffled anew in each inner epoch."""
        generator = generator_for(self.recipe.seed, "minibatches", step, epoch)
        order: list[int] = torch.randperm(count, generator=generator).tolist()
        size = count // self.recipe.train.minibatches
        for start in range(0, count, size):
            yield sorted(order[start : start + size])


def _by_length(experience: Experience, indices: Sequence[int], size: int | None) -> Iterator[list[int]]:
    """Micro-batches of ``size`` sequences of similar length, which wastes little on padding."""
    ordered = sorted(indices, key=lambda i: (len(experience.prompts[i]) + len(experience.responses[i]), i))
    step = size or len(ordered)
    for start in range(0, len(ordered), step):
        yield ordered[start : start + step]


def _per_token(values: Sequence[float], experience: Experience, micro: Sequence[int]) -> Tensor:
    """Repeat one value per sequence over its response tokens, [N]."""
    lengths = torch.tensor([len(experience.responses[i]) for i in micro])
    return torch.tensor(values, dtype=torch.float32).repeat_interleave(lengths)
