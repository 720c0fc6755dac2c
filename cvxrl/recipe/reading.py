"""What `reading: authors-code` stands for, spelled out in recipe fields (docs/method.md, section 6)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

AUTHORS_CODE = "authors-code"

_COMMON: dict[str, Any] = {
    "advantage": {"kind": "reward"},
    "optim": {"max_grad_norm": None, "schedule": "constant", "warmup_steps": 0},
    "train": {"reset_optimizer": True, "inner_epochs": 1},
}
_SIGN: dict[str, Any] = {"negative_beta_scale": 100.0}
_OBJECTIVE: dict[str, dict[str, Any]] = {
    "lco-kld": {**_SIGN, "target": "frozen", "support": {"kind": "top-k-fill"}},
    "lco-mse": {**_SIGN, "target": "moving"},
    "lco-lch": {**_SIGN, "target": "moving"},
}


def preset(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that the reading of ``values`` sets, where the layer that names the reading does not set them itself.

    Args:
        values: the merged recipe, that layer included.

    Returns:
        A mapping to lay below that layer and above everything it extends; empty for `reading: paper`.
    """
    objective, reward = (_section(values, *path) for path in (("objective",), ("task", "reward")))
    kind = objective.get("kind")
    if values.get("reading") != AUTHORS_CODE or kind not in _OBJECTIVE:
        return {}
    fields = {**_COMMON, "objective": {"kind": kind, **_OBJECTIVE[kind]}}
    if reward.get("kind") != "callable":
        fields["task"] = {"reward": {"correct": 1.0, "incorrect": -1.0}}
    return fields


def _section(values: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    found: Any = values
    for part in path:
        found = found.get(part, {}) if isinstance(found, Mapping) else {}
    return found if isinstance(found, Mapping) else {}
