"""Objectives in logit space, on all response tokens of the frozen rollouts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cvxrl.engine.sequences import Sequences
from cvxrl.gradients.logit_gradient import REASONS
from cvxrl.gradients.logit_space import Rules, logit_space
from cvxrl.inspection.checkpoint import MeasuredObjective
from cvxrl.inspection.metrics import LogitMetrics
from cvxrl.inspection.prompts import Prompts, interval_of_share
from cvxrl.objectives.batch import TokenBatch
from cvxrl.recipe.lco import LcoKldSpec
from cvxrl.rollout.randomness import generator_for

_COLUMNS = (
    "psd_N",
    "nsd_N",
    "known_N",
    "min_eigenvalue_N",
    "max_eigenvalue_N",
    "gradient_norm_N",
    "cosine_N",
    "away_N",
    "distance_N",
    "directed_N",
    "reason_N",
)


class LogitColumns:
    """Per-token columns of one objective, collected pass by pass, and their summary."""

    def __init__(self, objective: MeasuredObjective, target: LcoKldSpec, rules: Rules) -> None:
        """Begin without tokens; see `measure_logits`."""
        self._objective, self._target, self._rules = objective, target, rules
        self._prompts = Prompts.of(objective.sequences)
        self._found: dict[str, list[Tensor]] = {name: [] for name in _COLUMNS}
        self._prompt_N: list[Tensor] = []
        self._structure = ""

    def add(self, batch: TokenBatch, micro: Sequences) -> None:
        """Look at the tokens of one pass over ``micro``, which is weighed."""
        recipe = self._objective.recipe
        space = logit_space(
            batch,
            recipe.objective,
            self._target,
            rules=self._rules,
            regularizer=recipe.regularizer,
            weights_N=micro.per_token(batch.logits_NV.device).double(),
            generator=generator_for(recipe.seed, "inspected tokens", len(self._prompt_N)),
        )
        self._structure = space.structure.kind
        for name in _COLUMNS:
            self._found[name].append(getattr(space, name))
        self._prompt_N.append(self._prompts.of_tokens(micro))

    def summary(self) -> LogitMetrics:
        """Of all tokens so far."""
        columns = {name: torch.cat(parts) for name, parts in self._found.items()}
        return summarize(columns, torch.cat(self._prompt_N), self._structure)


def measure_logits(
    objective: MeasuredObjective, sequences: Sequences, target: LcoKldSpec, rules: Rules, tick: Callable[[int], None]
) -> LogitMetrics:
    """Look at every token of an objective at the policy as it now is.

    Args:
        objective: the objective.
        sequences: the rollouts, weighed, with what the policy that sampled said where it is not the current one.
        target: the yardstick.
        rules: thresholds and amount of work.
        tick: told how many sequences were done.
    """
    columns = LogitColumns(objective, target, rules)
    for micro in objective.passes(sequences):
        with torch.no_grad():
            batch, _ = objective.loss.batch(micro)
        columns.add(batch, micro)
        tick(len(micro))
    return columns.summary()


def summarize(columns: dict[str, Tensor], prompt_N: Tensor, structure: str) -> LogitMetrics:
    """Shares and extremes of per-token columns; see `LogitMetrics`.

    Args:
        columns: one entry per token each.
        prompt_N: number of the prompt that each token belongs to.
        structure: how the Hessian was found.
    """
    known_N, directed_N = columns["known_N"], columns["directed_N"]
    convex_N, concave_N = columns["psd_N"] & known_N, columns["nsd_N"] & known_N
    reason_N, cosine_N = columns["reason_N"], columns["cosine_N"]
    has_cosine_N = ~cosine_N.isnan()
    flat_N = convex_N & concave_N  # the Hessian is zero
    shares = {
        "convex": (convex_N, known_N & directed_N),
        "away": (columns["away_N"], directed_N),
        "frozen": (reason_N > 0, directed_N),
    }
    intervals = {name: interval_of_share(chosen_N, of_N, prompt_N) for name, (chosen_N, of_N) in shares.items()}
    frozen_by = {name: _share(reason_N == i, directed_N) for i, name in enumerate(REASONS) if name}
    return LogitMetrics(
        tokens=known_N.numel(),
        directed=int(directed_N.sum()),
        structure=structure,
        known=int(known_N.sum()),
        convex=_share(convex_N, known_N & directed_N),
        concave=_share(concave_N & ~flat_N, known_N & directed_N),
        indefinite=_share(~convex_N & ~concave_N, known_N & directed_N),
        smallest=_extreme(columns["min_eigenvalue_N"], torch.min),
        largest=_extreme(columns["max_eigenvalue_N"], torch.max),
        eigenvalue_tokens=int((~columns["min_eigenvalue_N"].isnan()).sum()),
        away=_share(columns["away_N"], directed_N),
        cosine=float(cosine_N[has_cosine_N].mean()) if bool(has_cosine_N.any()) else None,
        frozen=_share(reason_N > 0, directed_N),
        frozen_by={name: share for name, share in frozen_by.items() if share is not None},
        distance=float(columns["distance_N"].mean()),
        gradient=float(columns["gradient_norm_N"].square().mean().sqrt()),
        intervals={name: found for name, found in intervals.items() if found is not None},
    )


def _share(chosen_N: Tensor, of_N: Tensor) -> float | None:
    count = int(of_N.sum())
    return int((chosen_N & of_N).sum()) / count if count else None


def _extreme(values_N: Tensor, pick: Callable[[Tensor], Tensor]) -> float | None:
    measured_N = values_N[~values_N.isnan()]
    # Adding zero turns -0 into 0.
    return float(pick(measured_N)) + 0.0 if measured_N.numel() else None
