"""One objective along the updates that it makes from one rollout, while the rollout's probabilities stay frozen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice

import torch
from torch import Tensor

from cvxrl.engine.divergence import DivergedError
from cvxrl.engine.sequences import Sequences
from cvxrl.engine.update import Updater, training_mode
from cvxrl.gradients.logit_space import Rules
from cvxrl.gradients.parameters import norms
from cvxrl.gradients.token_positions import target_shift
from cvxrl.inspection.checkpoint import LoadedCheckpoint, MeasuredObjective
from cvxrl.inspection.measure_gradients import finite_or_none, weighted_losses
from cvxrl.inspection.measure_logits import LogitColumns
from cvxrl.inspection.measure_update import clipped_share, effective_share, ratio_quantiles
from cvxrl.inspection.metrics import Range
from cvxrl.inspection.prompts import Prompts, interval_of_mean, interval_of_sum
from cvxrl.inspection.schedule import next_index
from cvxrl.inspection.step_metrics import ReuseMetrics, ReusePoint, ReuseStep
from cvxrl.inspection.walk import Walk
from cvxrl.objectives.batch import TokenBatch
from cvxrl.objectives.statistics import action_log_probs, entropy, per_sequence
from cvxrl.recipe.lco import LcoKldSpec

Tick = Callable[[int], None]


def measure_reuse(
    loaded: LoadedCheckpoint,
    objective: MeasuredObjective,
    walk: Walk,
    target: LcoKldSpec,
    rules: Rules,
    tick: Tick,
) -> ReuseMetrics:
    """Take the recipe's optimizer steps one after another, look after some of them, and take all of them back.

    Args:
        loaded: the checkpoint.
        objective: the objective; its steps are those that training would take next on this rollout.
        walk: how many, and of which minibatches.
        target: the yardstick.
        rules: of logit space.
        tick: told how many sequences were stepped on or looked at.
    """
    walking = objective.under(walk.recipe(objective.recipe))
    frozen = loaded.remembered(walking)
    looks, points, steps = set(walk.looks), [], []
    diverged = None

    def look(sequences: Sequences, update: int) -> None:
        if update in looks:
            points.append(_Look(loaded, walking, target, rules).over(sequences, update))
            tick(len(sequences))

    with loaded.restored():
        # Before anything has moved the pass itself says what the policy that sampled said.
        look(walking.on_policy, 0)
        try:
            for update, found in enumerate(_updates(walking, frozen, walk, loaded.source.step or 0), start=1):
                steps.append(_step(update, found))
                tick(len(frozen) // walk.minibatches)
                look(frozen, update)
        except DivergedError as error:
            diverged = f"after update {len(steps)}: {error}"
    return ReuseMetrics(
        optimizer=walking.optimizer_state,
        minibatches=walk.minibatches,
        points=points,
        steps=steps,
        diverged=diverged,
    )


def _updates(objective: MeasuredObjective, frozen: Sequences, walk: Walk, step: int) -> Iterator[dict[str, float]]:
    """What training says of each optimizer step of outer step ``step`` + 1, as it takes them."""
    updater = objective.updater()
    index = next_index(objective.recipe, step, walk.updates)
    for count, part in enumerate(islice(_parts(updater, objective.first(frozen), step, walk.epochs), walk.updates)):
        with training_mode(updater.loss.policy.model, dropout=objective.recipe.model.dropout):
            found = updater.step(part, index + count)
        yield found


def _parts(updater: Updater, frozen: Sequences, step: int, epochs: int) -> Iterator[Sequences]:
    for epoch in range(epochs):
        yield from updater.minibatches(frozen, step + 1, epoch)


def _step(update: int, found: dict[str, float]) -> ReuseStep:
    return ReuseStep(
        update=update,
        learning_rate=found["optim/lr"],
        loss=found["loss"],
        norm=found["grad/norm"],
        qkv=finite_or_none(found["grad/qkv"]),
        share=found.get("step/share"),
    )


@dataclass
class _Look:
    """One pass over the rollout with its backward pass, at the policy as it now is; columns have an entry per token."""

    loaded: LoadedCheckpoint
    objective: MeasuredObjective
    target: LcoKldSpec
    rules: Rules
    columns: dict[str, list[Tensor]] = field(default_factory=dict)
    ratios_S: dict[int, float] = field(default_factory=dict)

    def over(self, sequences: Sequences, update: int) -> ReusePoint:
        """Look at every sequence."""
        logits = LogitColumns(self.objective, self.target, self.rules)
        prompts = Prompts.of(sequences)
        self._clear()
        # As in training: what has no gradient by definition gets none, rather than one of rounding.
        moving, still = self.objective.loss.split(sequences)
        for part, moves in ((moving, True), (still, False)):
            for micro in self.objective.passes(part):
                with torch.set_grad_enabled(moves):
                    share_N, batch = weighted_losses(self.objective, micro)
                if moves:
                    share_N.sum().backward()  # type: ignore[no-untyped-call]
                seen = replace(batch, logits_NV=batch.logits_NV.detach())
                logits.add(seen, micro)
                self._note(seen, micro, share_N.detach(), prompts)
        gradient = {name: p.grad for name, p in self.loaded.trainable.items()}
        sizes = norms({name: torch.zeros(()) if g is None else g for name, g in gradient.items()})
        self._clear()
        prompt_N, columns = self._joined("prompt"), {name: self._joined(name) for name in self.columns}
        reward, interval, share = self._reward(sequences, prompts)
        intervals = {name: interval_of_mean(columns[name], prompt_N) for name in ("target_kl", "kl", "entropy")}
        intervals["loss"] = interval_of_sum(torch.bincount(prompt_N, weights=columns["loss"].double()))
        intervals["reward"] = interval
        return ReusePoint(
            update=update,
            loss=float(columns["loss"].double().sum()),
            norm=sizes.total,
            qkv=finite_or_none(sizes.attention_mean),
            logits=logits.summary(),
            target_kl=float(columns["target_kl"].mean()),
            kl=float(columns["kl"].mean()),
            entropy=float(columns["entropy"].mean()),
            ratio=ratio_quantiles(columns["log_ratio"]),
            clipped=clipped_share(columns["log_ratio"], columns["advantage"]),
            ess_sequences=share,
            reward=reward,
            intervals={name: found for name, found in intervals.items() if found is not None},
        )

    @torch.no_grad()
    def _note(self, batch: TokenBatch, micro: Sequences, share_N: Tensor, prompts: Prompts) -> None:
        old_NV, log_probs_NV = batch.require("old_logits_NV"), torch.log_softmax(batch.logits_NV, dim=-1)
        ids_NK, shift_NK = target_shift(batch, self.target)
        aim_NV = torch.log_softmax(old_NV.scatter_add(-1, ids_NK, shift_NK.to(old_NV.dtype)), dim=-1)
        log_ratio_N = action_log_probs(batch.logits_NV, batch.actions_N) - action_log_probs(old_NV, batch.actions_N)
        for name, column_N in {
            "prompt": prompts.of_tokens(micro),
            "loss": share_N,
            "advantage": batch.require("advantages_N"),
            "log_ratio": log_ratio_N,
            "entropy": entropy(batch.logits_NV),
            "target_kl": _kl(aim_NV, log_probs_NV),
            "kl": _kl(torch.log_softmax(old_NV, dim=-1), log_probs_NV),
        }.items():
            self.columns.setdefault(name, []).append(column_N.cpu())
        totals_S = per_sequence(log_ratio_N.double(), batch.require("sequence_N"))
        self.ratios_S |= dict(zip(micro.positions, totals_S.tolist(), strict=True))

    def _reward(self, sequences: Sequences, prompts: Prompts) -> tuple[float, Range | None, float]:
        """Expected reward, its interval, and the share of the sequences that it rests on."""
        log_ratio_S = torch.tensor([self.ratios_S[p] for p in sequences.positions], dtype=torch.float64)
        weights_S = (log_ratio_S - log_ratio_S.max()).exp()
        rewards_S = self.loaded.rollouts.rewards_PG.flatten().double()[sequences.positions]
        reward = float((weights_S * rewards_S).sum() / weights_S.sum())
        interval = interval_of_mean(rewards_S, prompts.of_sequences(sequences), weights_S)
        return reward, interval, effective_share(log_ratio_S)

    def _joined(self, name: str) -> Tensor:
        return torch.cat(self.columns[name])

    def _clear(self) -> None:
        for parameter in self.loaded.trainable.values():
            parameter.grad = None


def _kl(from_NV: Tensor, to_NV: Tensor) -> Tensor:
    """KL between distributions given by their log-probabilities, nats, [N]."""
    return (from_NV.exp() * (from_NV - to_NV)).sum(dim=-1)
