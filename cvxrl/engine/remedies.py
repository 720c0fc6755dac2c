"""What makes a recipe fit into a device that it does not fit into, by the same count (no torch here)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from cvxrl.engine.memory import footprint
from cvxrl.engine.placed import Placed
from cvxrl.engine.plan import RankPlan
from cvxrl.engine.sizes import shape_of
from cvxrl.errors import Problem
from cvxrl.recipe.schema import Recipe
from cvxrl.report.format import size

_MOST_RANKS = 4096
_SHARDED = {"placement.shard": "full"}
# Fields that lower the peak, in the order in which one would give something up for it.
_CHANGES: tuple[Mapping[str, Any], ...] = (
    {"train.gradient_checkpointing": True},
    {"train.loss": "chunked"},
    {"rollout.batch": 32},
    {"train.micro_batch": 1, "train.micro_batch_tokens": None},
    {"model.dtype": "bfloat16"},
    {"model.lora.rank": 16, "optim.master_weights": False},
)


def too_large(recipe: Recipe, planned: RankPlan, memory: int) -> Problem:
    """What to say of a run that does not fit, with the changes that would make it, and what each then takes."""
    whose = "1 rank takes" if planned.ranks == 1 else f"each of {planned.ranks} ranks takes"
    what = f"{whose} {size(planned.memory.peak)} by count, and the device has {size(memory)}"
    enough = [f"{words} ({size(peak)})" for words, peak in _alone(recipe, planned.ranks, memory) if peak <= memory]
    if not enough:
        words, peak = _together(recipe, planned.ranks, memory)
        together = f"{words}, all together ({size(peak)})"
        enough = [together if peak <= memory else "take a smaller policy, or devices with more memory"]
    return Problem(what, "placement", remedy="; or ".join(enough))


def _alone(recipe: Recipe, ranks: int, memory: int) -> Iterator[tuple[str, int]]:
    """Each change by itself, and the fewest ranks that would do, as words and peak."""
    for change in (_SHARDED, *_CHANGES) if ranks > 1 else _CHANGES:
        changed = _changed(recipe, change)
        if changed is not None:
            yield _words(change), _peak(changed, ranks, memory)
    sharded, more = _changed(recipe, _SHARDED) or recipe, 2 * ranks
    while more <= min(_MOST_RANKS, recipe.rollout.prompts) and _peak(sharded, more, memory) > memory:
        more *= 2
    if more <= recipe.rollout.prompts:
        yield f"{more} ranks with placement.shard full", _peak(sharded, more, memory)


def _together(recipe: Recipe, ranks: int, memory: int) -> tuple[str, int]:
    """Changes one after the other, those that help, until they are enough.

    Twice over, since one may help only when another has made its part of the step the largest.
    """
    said, peak = [], _peak(recipe, ranks, memory)
    for change in 2 * ((_SHARDED, *_CHANGES) if ranks > 1 else _CHANGES):
        changed = _changed(recipe, change) if peak > memory else None
        if changed is not None and (lower := _peak(changed, ranks, memory)) < peak:
            recipe, peak = changed, lower
            said.append(_words(change))
    return ", ".join(said), peak


def _changed(recipe: Recipe, change: Mapping[str, Any]) -> Recipe | None:
    """The recipe with other values; None where it has them already, or does not allow them."""
    values = recipe.model_dump()
    for key, value in change.items():
        *path, field = key.split(".")
        section = values
        for name in path:
            section[name] = section[name] or {}
            section = section[name]
        section[field] = value
    try:
        changed = Recipe.model_validate(values)
    except ValidationError:
        return None
    return changed if changed != recipe else None


def _peak(recipe: Recipe, ranks: int, memory: int) -> int:
    shape = shape_of(recipe.model)
    assert shape is not None
    return footprint(recipe, shape, Placed.of(recipe, ranks), memory).peak


def _words(change: Mapping[str, Any]) -> str:
    """As `--set` takes them."""
    return " with ".join(
        f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in change.items()
    )
