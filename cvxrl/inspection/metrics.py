"""Sections of INSPECT.json: the numbers of one objective, part by part. Imports no torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


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
