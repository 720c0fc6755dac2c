"""The function of each kind of objective. A test keeps these kinds, and `callable`, equal to the recipe's union."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cvxrl.objectives.batch import ObjectiveOutput, TokenBatch
from cvxrl.objectives.callable import call_objective
from cvxrl.objectives.lco import lco_kld, lco_lch, lco_mse
from cvxrl.objectives.policy_gradient import awr, cispo, grpo, gspo, reinforce
from cvxrl.objectives.preference import dpo, qrm, sft
from cvxrl.objectives.regression import dro, gvpo, pmd, rebel, tpo
from cvxrl.recipe.objective import CallableObjective, ObjectiveSpec

# Each function takes its own spec class; the tag guarantees the match, which the type system cannot express.
OBJECTIVES: dict[str, Callable[[TokenBatch, Any], ObjectiveOutput]] = {
    "lco-kld": lco_kld,
    "lco-mse": lco_mse,
    "lco-lch": lco_lch,
    "grpo": grpo,
    "gspo": gspo,
    "cispo": cispo,
    "reinforce": reinforce,
    "awr": awr,
    "tpo": tpo,
    "pmd": pmd,
    "dro": dro,
    "rebel": rebel,
    "gvpo": gvpo,
    "sft": sft,
    "dpo": dpo,
    "qrm": qrm,
}


def compute(batch: TokenBatch, spec: ObjectiveSpec) -> ObjectiveOutput:
    """Per-token losses of ``batch`` under the objective that ``spec`` names."""
    if isinstance(spec, CallableObjective):
        return call_objective(batch, spec)
    return OBJECTIVES[spec.kind](batch, spec)
