"""An optimizer in a checkpoint's state, under the recipe's settings: the state says where, the recipe how it steps."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from cvxrl.engine.optimizer import MASTERS, build_optimizer, copied_parameters
from cvxrl.recipe.training import OptimSpec

# What a parameter group of one kind of optimizer has, and of no other kind.
_KIND_OF = {"betas": "adamw", "momentum": "sgd", "beta2_decay": "adafactor"}


def why_not(saved: dict[str, Any], modules: Sequence[nn.Module], spec: OptimSpec) -> str | None:
    """Why the recipe's optimizer over these modules does not go on from a state, in words; None where it does."""
    groups = saved["param_groups"]
    kinds = {kind for key, kind in _KIND_OF.items() if key in groups[0]}
    if kinds != {spec.kind}:
        return f"is that of {' and '.join(sorted(kinds)) or 'another optimizer'}, which {spec.kind} does not go on from"
    built = build_optimizer(modules, spec).param_groups
    if [len(group["params"]) for group in groups] != [len(group["params"]) for group in built]:
        return "is of other parameters than the recipe trains"
    if spec.master_weights and copied_parameters(modules) and MASTERS not in saved:
        return "has no fp32 copies of the weights, which optim.master_weights steps"
    return None


def load_saved(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Put a newly built optimizer into a saved state, but with the settings that it was built with.

    A state holds the settings of its run too (betas, decay, ...), which would hide those of a changed recipe. What only
    it has, how the last line search went, stays.
    """
    settings = [{key: value for key, value in g.items() if key != "params"} for g in optimizer.param_groups]
    optimizer.load_state_dict(copy.deepcopy(saved))
    for group, built in zip(optimizer.param_groups, settings, strict=True):
        group.update(built)
