"""INSPECT.json: what was looked at and every number. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from cvxrl.errors import Problem, UserError
from cvxrl.runs.provenance import Provenance

SCHEMA_VERSION = 1


class Strict(BaseModel):
    """Fields that are all known and do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Range(Strict):
    """Both ends of a 95% interval over prompts."""

    low: float
    high: float


class LogitMetrics(Strict):
    """One objective in the space of each token's logits (docs/gradients.md, section 1); shares are of ``directed``.

    Attributes:
        tokens: response tokens.
        directed: those whose target is not where they are.
        structure: how the Hessian was found.
        convex, concave, indefinite: shares by the signs of the Hessian's eigenvalues; a Hessian of zeros is convex.
            None, as the other shares, where no token has a target.
        known: tokens whose signs are known; None in records of version 0.1.
        smallest, largest: extreme eigenvalues over ``eigenvalue_tokens`` tokens, which records of version 0.1 lack.
        away: share whose descent direction points away from the target.
        cosine: mean cosine of descent direction and direction to the target.
        frozen: share whose gradient is gone though the target is not near.
        frozen_by: the same by reason.
        distance: mean total variation to the target.
        gradient: root mean square of the tokens' gradient norms.
        intervals: of `convex`, `away` and `frozen`, where there are two prompts.
    """

    tokens: int
    directed: int
    structure: str
    convex: float | None
    concave: float | None
    indefinite: float | None
    known: int | None = None
    smallest: float | None
    largest: float | None
    eigenvalue_tokens: int | None = None
    away: float | None
    cosine: float | None
    frozen: float | None
    frozen_by: dict[str, float]
    distance: float
    gradient: float
    intervals: dict[str, Range] = {}


class ProbabilityBand(Strict):
    """Tokens whose sampled probability lies in [low, high).

    Attributes:
        tokens: their share of the tokens.
        norm: norm of the gradient that they make together.
        share: that norm as a share of the sum over the bands; None where there is no gradient.
    """

    low: float
    high: float
    tokens: float
    norm: float
    share: float | None


class NoiseScaleInterval(Strict):
    """An estimate with its interval; a bound is None where the data does not give one."""

    value: float | None
    low: float | None
    high: float | None


class GradientMetrics(Strict):
    """One objective in the space of the parameters (docs/gradients.md, section 2).

    Attributes:
        norm: of the whole gradient, before clipping.
        qkv: mean norm over the query, key and value projections.
        by_module, by_layer: norms of parts.
        positive, negative: norms of what tokens with positive and negative advantage contribute.
        sign_cosine: their cosine; None where one is zero.
        negative_share: negative / (positive + negative).
        minibatch_cosine: mean cosine of pairs of minibatch gradients, of those that are not zero; None below two.
        minibatches, minibatches_with_gradient: how many there are, and how many have a gradient; None in records of
            version 0.1.
        snr: estimated |G|^2 / trace of the covariance of the whole batch's gradient.
        noise_scale: prompts at which noise and gradient are equally large, with a 95% interval.
        prompts: of the whole batch.
        bands: by probability of the sampled token; empty where not measured.
        band_completions: completions they were measured on.
    """

    norm: float
    qkv: float | None
    by_module: dict[str, float]
    by_layer: dict[str, float]
    positive: float
    negative: float
    sign_cosine: float | None
    negative_share: float | None
    minibatch_cosine: float | None
    minibatches: int | None = None
    minibatches_with_gradient: int | None = None
    snr: float | None
    noise_scale: NoiseScaleInterval
    prompts: int
    bands: list[ProbabilityBand]
    band_completions: int


class CurvatureMetrics(Strict):
    """Hessian of one objective's loss in the parameters (docs/gradients.md, section 3).

    Attributes:
        largest, smallest: extreme eigenvalues.
        largest_error, smallest_error: an exact eigenvalue lies this near.
        trace, trace_error: Hutchinson's estimate and its standard error.
        products: Hessian-vector products made.
        completions: of the batch it was measured on.
    """

    largest: float
    largest_error: float
    smallest: float
    smallest_error: float
    trace: float
    trace_error: float
    products: int
    completions: int


class SharpnessMetrics(Strict):
    """A line search along the update that the optimizer takes (arXiv 2601.16979).

    Attributes:
        room: multiple of the update at which the loss is back at its start; below 1 the update overshoots. None if
            every multiple that was tried lowers the loss, 0 if none does.
        searched: the largest or the smallest multiple tried, in these two cases.
        critical: critical sharpness 2 / (room x learning rate).
        passes: forward passes over the batch.
    """

    room: float | None
    searched: float
    critical: float | None
    passes: int


class UpdateMetrics(Strict):
    """What one optimizer step of an objective does, measured on the frozen rollouts.

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
    kl_interval: Range | None = None
    loss_change_interval: Range | None = None


class ObjectiveMetrics(Strict):
    """Everything measured of one objective; parts that were not asked for are None.

    Attributes:
        label: its name.
        own: whether the run trains with it.
        equation: its loss per token.
        logits: at the policy that sampled.
        displaced: at a policy that has moved on, the same for all objectives.
        verdict: what the numbers say, in words.
    """

    label: str
    own: bool
    equation: str
    logits: LogitMetrics | None = None
    displaced: LogitMetrics | None = None
    gradients: GradientMetrics | None = None
    update: UpdateMetrics | None = None
    sharpness: SharpnessMetrics | None = None
    curvature: CurvatureMetrics | None = None
    verdict: list[str] = []


class CheckpointMetrics(Strict):
    """One checkpoint.

    Attributes:
        step: last finished step; None for a checkpoint without a run.
        policy: digest of its weights.
        rollouts: file of the frozen rollouts.
        prompts, samples, tokens: their size.
        correct, reward: share judged right, mean reward.
        entropy: mean over the response tokens, nats.
        probability: mean probability of the sampled tokens.
        displaced_kl: mean KL(rollout policy || displaced policy), nats per token; None where not displaced.
        objectives: one entry each, the run's own first.
        cosines: cosine of the gradients of each pair of objectives, [label][label].
    """

    step: int | None
    policy: str
    rollouts: str
    prompts: int
    samples: int
    tokens: int
    correct: float
    reward: float
    entropy: float
    probability: float
    displaced_kl: float | None
    objectives: list[ObjectiveMetrics]
    cosines: dict[str, dict[str, float | None]]


class InspectRecord(Strict):
    """Contents of INSPECT.json.

    Attributes:
        schema_version: version of this layout.
        path: what the user named.
        recipe: name of the recipe.
        target: the target that all objectives are held against, in words.
        drift: optimizer steps of the run's own objective to the displaced policy.
        parameters: trainable parameters.
        notes: what was left out, and why.
        snapshots: in the order of training.
        provenance: versions, commit and machine.
    """

    schema_version: int = SCHEMA_VERSION
    path: str
    recipe: str
    target: str
    drift: int
    parameters: int
    notes: list[str]
    snapshots: list[CheckpointMetrics]
    provenance: Provenance


def read_record(path: Path) -> InspectRecord:
    """Read INSPECT.json.

    Raises:
        UserError: it is missing or not such a record.
    """
    try:
        return InspectRecord.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            Problem(f"cannot be read as an inspection: {reason}", file=str(path), remedy="run inspect-grads again")
        ) from None
