"""Tables of the objectives along the updates that they make from one rollout."""

from __future__ import annotations

from cvxrl.inspection.record import CheckpointMetrics
from cvxrl.inspection.step_metrics import ReusePoint
from cvxrl.report.document import Table
from cvxrl.report.format import fixed, percent, share, short

_COLUMNS = ("<objective", "update", "convex", "away", "clip", "|g|", "loss", "KL*", "H", "r p01", "E[R]", "ESS")
_NOTE = (
    "Optimizer steps on the same rollout, whose probabilities stay frozen; all columns are of the whole rollout. "
    "convex, away: as in logit space. clip: frozen by the clip far from the target. |g|: gradient norm. KL*: "
    "KL(target || policy) per token, one target for all. H: entropy. r p01: 1% of the tokens have a smaller ratio. "
    "E[R]: reward of these completions, weighted by the policy's ratios, whose effective share is ESS; it is what the "
    "steps were made from, so that others score lower."
)


def reuse_table(checkpoint: CheckpointMetrics) -> Table:
    """One row per objective and look; empty where it was not measured."""
    rows = []
    ended = []
    for o in checkpoint.objectives:
        if o.reuse is None:
            continue
        rows += [[o.label, *_cells(point)] for point in o.reuse.points]
        if o.reuse.diverged is not None:
            ended.append(f" {o.label} ended {o.reuse.diverged}.")
    return Table("Along the updates on one rollout", _COLUMNS, rows, _NOTE + "".join(ended))


def _cells(point: ReusePoint) -> list[str]:
    frozen = point.logits.frozen_by
    return [
        str(point.update),
        share(point.logits.convex),
        share(point.logits.away),
        share(frozen.get("clip", 0.0)),
        short(point.norm, 2),
        short(point.loss, 2),
        short(point.target_kl, 2),
        fixed(point.entropy, 2),
        short(point.ratio["p01"], 2),
        fixed(point.reward, 2),
        percent(point.ess_sequences, 0),
    ]
