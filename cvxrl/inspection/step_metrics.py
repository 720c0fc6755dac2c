"""Sections of INSPECT.json: what an objective's optimizer steps do. Imports no torch."""

from __future__ import annotations

from cvxrl.inspection.metrics import LogitMetrics, Range, Strict


class LineSearchMetrics(Strict):
    """How much of an update a line search on the objective's own loss accepts, and how far what it accepts fits.

    Attributes:
        share: of the update; 0 if none was accepted.
        evaluations: shares that were tried.
        sufficient_decrease: part of the decrease that the slope promises which the loss has to show.
        slope: derivative of the loss along the update at its start.
        loss_before, loss: at the start and at the accepted share; the latter None if none was accepted.
        room: multiple of the accepted step at which the loss is back at its start, as `SharpnessMetrics.room`.
        searched: as there.
    """

    share: float
    evaluations: int
    sufficient_decrease: float
    slope: float
    loss_before: float
    loss: float | None
    room: float | None
    searched: float | None


class SharpnessMetrics(Strict):
    """A line search along the update that the optimizer takes (arXiv 2601.16979).

    Attributes:
        room: multiple of the update at which the loss is back at its start; below 1 the update overshoots. None if
            every multiple that was tried lowers the loss, 0 if none does.
        searched: the largest or the smallest multiple tried, in these two cases.
        critical: critical sharpness 2 / (room x learning rate).
        passes: forward passes over the batch.
        line_search: what a line search makes of that update; None in records that lack it.
    """

    room: float | None
    searched: float
    critical: float | None
    passes: int
    line_search: LineSearchMetrics | None = None


class UpdateMetrics(Strict):
    """What one optimizer step of an objective does under the run's step control, measured on the frozen rollouts.

    Attributes:
        optimizer: `saved` state of the run, or `fresh`.
        learning_rate: of that step.
        update_to_weight: |change| / |weights|; None where the weights are zero.
        by_module: the same by kind of module.
        loss_before, loss_after: the objective's reduced loss.
        surrogate: change of E[r A], the reward surrogate.
        kl: mean KL(before || after) over the vocabulary, nats per token.
        kl_max: its largest token.
        entropy_before, entropy_after: mean entropy, nats per token.
        ratio: quantiles of the probability ratio r, by name.
        clipped: share of tokens whose gradient a clip at 1 -+ 0.2 would stop.
        ess_tokens, ess_sequences: effective sample size (sum w)^2 / sum w^2 as a share, of r and of its product.
        logits: the objective in logit space after the step, against the target from before it.
        share: of the optimizer's step that the step control accepted; None where steps are fixed.
        kl_interval, loss_change_interval: of `kl` and of `loss_after` - `loss_before`; None with a single prompt.
    """

    optimizer: str
    learning_rate: float
    update_to_weight: float | None
    by_module: dict[str, float | None]
    loss_before: float
    loss_after: float
    surrogate: float
    kl: float
    kl_max: float
    entropy_before: float
    entropy_after: float
    ratio: dict[str, float]
    clipped: float
    ess_tokens: float
    ess_sequences: float
    logits: LogitMetrics | None
    share: float | None = None
    kl_interval: Range | None = None
    loss_change_interval: Range | None = None


class DirectionMetrics(Strict):
    """One objective's loss along its own optimizer step d: L(theta + alpha d) on the frozen rollouts.

    Attributes:
        slope: <gradient of L at theta, d>, of the whole gradient before clipping; negative where the step goes down.
        shares: alpha, from 0.
        losses: L at each of them; None where it is not finite.
        changes: interval of L(theta + alpha d) - L(theta) at each; None with a single prompt.
    """

    slope: float
    shares: list[float]
    losses: list[float | None]
    changes: list[Range | None]


class ReusePoint(Strict):
    """One objective, and the policy it has made, after some updates on one rollout; all of the rollout is looked at.

    Attributes:
        update: optimizer steps taken; 0 is the policy that sampled.
        loss: the objective's reduced loss.
        norm: of its gradient on the whole rollout, before clipping.
        qkv: mean norm over the query, key and value projections.
        logits: the objective in logit space.
        target_kl: mean KL(target || policy) over the vocabulary, nats per token: the same yardstick for every
            objective.
        kl: mean KL(policy that sampled || policy), likewise.
        entropy: mean, nats per token.
        ratio: quantiles of the probability ratio r, by name.
        clipped: share of tokens whose gradient a clip at 1 -+ 0.2 would stop.
        ess_sequences: effective sample size of the sequences' ratios as a share.
        reward: the rollout's rewards weighted by the sequences' ratios (self-normalised importance sampling), no
            better than ``ess_sequences`` allows, and of the completions that the steps were made from: others score
            lower.
        intervals: of `loss`, `target_kl`, `kl`, `entropy` and `reward`, where there are two prompts.
    """

    update: int
    loss: float
    norm: float
    qkv: float | None
    logits: LogitMetrics
    target_kl: float
    kl: float
    entropy: float
    ratio: dict[str, float]
    clipped: float
    ess_sequences: float
    reward: float
    intervals: dict[str, Range]


class ReuseStep(Strict):
    """What an update says of the minibatch that it was made from, as metrics.jsonl has it.

    Attributes:
        update: number of the optimizer step, from 1.
        learning_rate: of that step.
        loss: before it.
        norm: of its gradient, before clipping.
        qkv: mean norm over the query, key and value projections.
        share: of the step that its step control accepted; None where steps are fixed.
    """

    update: int
    learning_rate: float
    loss: float
    norm: float
    qkv: float | None
    share: float | None = None


class ReuseMetrics(Strict):
    """One objective along the updates that it makes from one rollout, whose probabilities stay frozen.

    Attributes:
        optimizer: `saved` state of the run, or `fresh`.
        minibatches: updates per pass over the rollout.
        points: at updates 0, 1, 2, 4, 8, ... and the last.
        steps: every update.
        diverged: why it ended early, or None.
    """

    optimizer: str
    minibatches: int
    points: list[ReusePoint]
    steps: list[ReuseStep]
    diverged: str | None = None
