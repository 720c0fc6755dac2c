"""Optimizer steps of an objective, taken and taken back: what one does on the frozen rollouts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cvxrl.engine.sequences import Sequences
from cvxrl.engine.update import training_mode
from cvxrl.gradients.logit_space import Rules
from cvxrl.gradients.parameters import update_ratio
from cvxrl.inspection.checkpoint import LoadedCheckpoint, MeasuredObjective
from cvxrl.inspection.measure_gradients import finite_or_none, weighted_losses
from cvxrl.inspection.measure_logits import measure_logits
from cvxrl.inspection.prompts import Prompts, interval_of_mean, interval_of_sum
from cvxrl.inspection.schedule import next_index, next_rate
from cvxrl.inspection.step_metrics import UpdateMetrics
from cvxrl.objectives.statistics import entropy, per_sequence, probability_ratio
from cvxrl.recipe.lco import LcoKldSpec
from cvxrl.recipe.step import FixedStep

if TYPE_CHECKING:
    from cvxrl.inspection.measure_direction import StepLine

_QUANTILES = {"min": 0.0, "p01": 0.01, "p50": 0.5, "p99": 0.99, "max": 1.0}
_CLIP = 0.2  # the usual clip range, so that the share can be compared across objectives that have none


@dataclass(frozen=True)
class TokenDistributions:
    """What a policy says of every response token.

    Attributes:
        log_probs_NV: over the vocabulary, CPU.
        entropy_N: of it.
        actions_N: sampled tokens.
        advantages_N: of the sampled tokens.
        sequence_N: index of the sequence.
    """

    log_probs_NV: Tensor
    entropy_N: Tensor
    actions_N: Tensor
    advantages_N: Tensor
    sequence_N: Tensor

    @property
    def action_N(self) -> Tensor:
        """Log-probability of the sampled tokens."""
        return self.log_probs_NV.gather(-1, self.actions_N.unsqueeze(-1)).squeeze(-1)


@torch.no_grad()
def token_distributions(objective: MeasuredObjective) -> TokenDistributions:
    """Ask the policy as it now is; order of tokens: sequence by sequence, as in the rollouts."""
    sequences = objective.sequences
    rows = objective.loss.reader.logits(sequences)
    logits_NV = torch.cat([part.cpu() for part in rows])
    return TokenDistributions(
        log_probs_NV=torch.log_softmax(logits_NV, dim=-1),
        entropy_N=entropy(logits_NV),
        actions_N=torch.tensor([token for r in sequences.responses for token in r]),
        advantages_N=advantages(objective),
        sequence_N=torch.repeat_interleave(torch.tensor(sequences.lengths)),
    )


def advantages(objective: MeasuredObjective) -> Tensor:
    """Advantages of an objective's sampled tokens, [N], on the CPU."""
    assert objective.sequences.advantages is not None
    return torch.cat([part.cpu() for part in objective.sequences.advantages])


def kl(before: TokenDistributions, after: TokenDistributions) -> Tensor:
    """KL(before || after) over the vocabulary, nats, [N]."""
    return (before.log_probs_NV.exp() * (before.log_probs_NV - after.log_probs_NV)).sum(dim=-1)


def take_steps(
    objective: MeasuredObjective, sequences: Sequences, count: int, step: int, tick: Callable[[int], None]
) -> dict[str, float]:
    """Move the policy by ``count`` optimizer steps on the frozen rollouts; returns what training logs of the last."""
    updater = objective.updater()
    found: dict[str, float] = {}
    for number in range(count):
        part = sequences if number else objective.first(sequences)
        with training_mode(objective.loss.policy.model, dropout=objective.recipe.model.dropout):
            found = updater.step(part, next_index(objective.recipe, step))
        tick(len(sequences))
    updater.optimizer.zero_grad(set_to_none=True)
    return found


def measure_update(
    loaded: LoadedCheckpoint,
    objective: MeasuredObjective,
    distributions: TokenDistributions,
    target: LcoKldSpec,
    rules: Rules | None,
    tick: Callable[[int], None],
    line: StepLine | None = None,
) -> UpdateMetrics:
    """Take one step of the objective, look, and take it back.

    Where the objective takes its whole step, that is the end of its ``line``, which is not computed once more: neither
    the step nor the losses at both ends.

    Args:
        loaded: the checkpoint.
        objective: the objective.
        distributions: what the policy says before; its advantages may be another objective's.
        target: the yardstick.
        rules: of logit space; None leaves it out.
        tick: told how many sequences were passed over.
        line: the line of its step, whose block restores the policy; None where there is none.
    """
    before, sequences = replace(distributions, advantages_N=advantages(objective)), loaded.remembered(objective)
    step, logged = loaded.source.step or 0, dict[str, float]()
    taken = line if isinstance(objective.recipe.step, FixedStep) else None
    if line is not None:
        line.move(0.0)
    weights = _copies(loaded.trainable) if line is None else dict(zip(loaded.trainable, line.start, strict=False))
    losses_before = losses_by_prompt(objective, sequences) if taken is None else taken.losses_at(0.0)
    with loaded.restored() if line is None else nullcontext():
        if taken is None:
            logged = take_steps(objective, sequences, 1, step, tick)
        else:
            taken.move(1.0)
            tick(len(sequences))
        change = {name: p.detach() - weights[name] for name, p in loaded.trainable.items()}
        after = token_distributions(objective)
        losses_after = losses_by_prompt(objective, sequences) if taken is None else taken.losses_at(1.0)
        logits = None if rules is None else measure_logits(objective, sequences, target, rules, tick)
    recipe = objective.recipe
    whole, by_module = update_ratio(change, weights)
    return UpdateMetrics(
        optimizer=objective.optimizer_state,
        learning_rate=next_rate(recipe, step),
        update_to_weight=finite_or_none(whole),
        by_module={name: finite_or_none(ratio) for name, ratio in by_module.items()},
        loss_before=float(losses_before.sum()),
        loss_after=float(losses_after.sum()),
        logits=logits,
        share=logged.get("step/share"),
        kl_interval=interval_of_mean(kl(before, after), Prompts.of(sequences).of_tokens(sequences)),
        loss_change_interval=interval_of_sum(losses_after - losses_before),
        **_compare(before, after),
    )


def _copies(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in parameters.items()}


@torch.no_grad()
def losses_by_prompt(objective: MeasuredObjective, sequences: Sequences) -> Tensor:
    """What the sequences of each prompt add to the loss of an optimizer step, [P], float64 on the CPU."""
    prompts = Prompts.of(sequences)
    total_P = torch.zeros(len(prompts), dtype=torch.float64)
    for micro in objective.passes(sequences):
        share_N, _ = weighted_losses(objective, micro)
        total_P.index_add_(0, prompts.of_tokens(micro), share_N.double().cpu())
    return total_P


def _compare(before: TokenDistributions, after: TokenDistributions) -> dict[str, float | dict[str, float]]:
    log_ratio_N = after.action_N - before.action_N
    kl_N = kl(before, after)
    return {
        "surrogate": float(((probability_ratio(log_ratio_N) - 1) * before.advantages_N).mean()),
        "kl": float(kl_N.mean()),
        "kl_max": float(kl_N.max()),
        "entropy_before": float(before.entropy_N.mean()),
        "entropy_after": float(after.entropy_N.mean()),
        "ratio": ratio_quantiles(log_ratio_N),
        "clipped": clipped_share(log_ratio_N, before.advantages_N),
        "ess_tokens": effective_share(log_ratio_N),
        "ess_sequences": effective_share(per_sequence(log_ratio_N, before.sequence_N)),
    }


def ratio_quantiles(log_ratio_N: Tensor) -> dict[str, float]:
    """Quantiles of the probability ratio by name."""
    ratio_N = probability_ratio(log_ratio_N).double()
    found = torch.quantile(ratio_N, torch.tensor(list(_QUANTILES.values()), dtype=torch.float64))
    return dict(zip(_QUANTILES, found.tolist(), strict=True))


def clipped_share(log_ratio_N: Tensor, advantages_N: Tensor) -> float:
    """Share of tokens whose gradient the usual clip would stop."""
    ratio_N = probability_ratio(log_ratio_N)
    clipped_N = torch.where(advantages_N > 0, ratio_N > 1 + _CLIP, (advantages_N < 0) & (ratio_N < 1 - _CLIP))
    return float(clipped_N.double().mean())


def effective_share(log_weights: Tensor) -> float:
    """Effective sample size (sum w)^2 / (n sum w^2) of weights given by their logarithms, in (0, 1]."""
    logs = log_weights.double()
    return float(torch.exp(2 * torch.logsumexp(logs, 0) - torch.logsumexp(2 * logs, 0)) / logs.numel())
