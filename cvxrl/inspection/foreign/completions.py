"""Completions that TRL stored (`log_completions`): texts by prompt, with their rewards and advantages. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from cvxrl.errors import Problem, UserError
from cvxrl.inspection.foreign.checkpoint import ForeignCheckpoint

OPTION = "--completions"
_OWN = ("step", "prompt", "completion", "advantage")
# A text, or the messages of a conversation.
Text = str | list[dict[str, Any]]


@dataclass(frozen=True)
class StoredCompletions:
    """G completions of each of P prompts.

    Attributes:
        file: where they were read.
        step: optimizer step that they were logged at.
        of_evaluation: whether an evaluation sampled them.
        prompts: [P].
        completions: [P][G].
        rewards: each one's sum over the reward functions, [P][G]; NaN where none gave one; None where none is stored.
        advantages: as the trainer used them, [P][G]; None where they are not stored.
        functions: the reward functions.
        weights: of their sum; None where they are not known, and taken as 1.
        dropped: rows outside of whole groups.
    """

    file: Path
    step: int | None
    of_evaluation: bool
    prompts: list[Text]
    completions: list[list[Text]]
    rewards: list[list[float]] | None
    advantages: list[list[float]] | None
    functions: tuple[str, ...]
    weights: tuple[float, ...] | None
    dropped: int

    @property
    def samples(self) -> int:
        """Completions of each prompt."""
        return len(self.completions[0])

    def first(self, prompts: int) -> StoredCompletions:
        """Those of the first prompts alone."""
        return replace(
            self,
            prompts=self.prompts[:prompts],
            completions=self.completions[:prompts],
            rewards=None if self.rewards is None else self.rewards[:prompts],
            advantages=None if self.advantages is None else self.advantages[:prompts],
        )


def read_completions(file: Path, checkpoint: ForeignCheckpoint | None) -> StoredCompletions:
    """Read one file.

    Raises:
        UserError: it is no such table, or cannot be told into groups.
    """
    table = _table(file)
    steps = {int(step) for step in table.get("step", []) if step is not None}
    step = max(steps) if steps else None
    evaluated = checkpoint is not None and step is not None and checkpoint.evaluated(step)
    keys = [json.dumps(prompt, sort_keys=True, default=str) for prompt in table["prompt"]]
    settings = {} if checkpoint is None else checkpoint.settings
    size = _group_size(keys, settings, evaluated)
    rows, dropped = _groups(keys, size)
    if not rows:
        raise _unfit(file, f"no {size} completions in a row have one prompt")
    functions = _functions(table, checkpoint)
    given = settings.get("reward_weights")
    weights = tuple(map(float, given)) if isinstance(given, list) and len(given) == len(functions) else None
    rewards = _rewards(table, functions, weights or (1.0,) * len(functions)) if functions else None
    advantages = [0.0 if _is_missing(a) else float(a) for a in table["advantage"]] if "advantage" in table else None
    if rewards is None and advantages is None:
        raise _unfit(file, "it has neither rewards nor advantages, so that nothing says which completion is better")
    return StoredCompletions(
        file=file,
        step=step,
        of_evaluation=evaluated,
        prompts=[table["prompt"][group[0]] for group in rows],
        completions=[[table["completion"][i] for i in group] for group in rows],
        rewards=None if rewards is None else [[rewards[i] for i in group] for group in rows],
        advantages=None if advantages is None else [[advantages[i] for i in group] for group in rows],
        functions=functions,
        weights=weights,
        dropped=dropped,
    )


def _table(file: Path) -> dict[str, list[Any]]:
    from pyarrow import ArrowException
    from pyarrow.parquet import read_table

    try:
        table: dict[str, list[Any]] = read_table(file).to_pydict()
    except (OSError, ArrowException) as error:
        raise _unfit(file, str(error).splitlines()[0]) from None
    if not table.get("prompt") or "completion" not in table:
        raise _unfit(file, "it has no columns prompt and completion, or no rows")
    return table


def _group_size(keys: Sequence[str], settings: dict[str, Any], evaluated: bool) -> int:
    """Samples of a prompt: as the trainer was told, or else what all runs of one prompt are multiples of."""
    trained = settings.get("num_generations")
    told = (settings.get("num_generations_eval") or trained) if evaluated else trained
    if isinstance(told, int) and told > 0:
        return told
    return math.gcd(*(len(list(run)) for _, run in groupby(keys)))


def _groups(keys: Sequence[str], size: int) -> tuple[list[list[int]], int]:
    """Rows of each whole group, and how many are in none."""
    found, start = [], 0
    for _, run in groupby(keys):
        length = len(list(run))
        found += [[*range(at, at + size)] for at in range(start, start + length - size + 1, size)]
        start += length
    return found, len(keys) - size * len(found)


def _functions(table: dict[str, list[Any]], checkpoint: ForeignCheckpoint | None) -> tuple[str, ...]:
    """Columns of rewards: those whose means were logged, or else all columns of numbers."""
    logged = {key for entry in (checkpoint.history if checkpoint else []) for key in entry}
    named = [name for name in table if {f"rewards/{name}/mean", f"eval_rewards/{name}/mean"} & logged]
    if named:
        return tuple(named)
    others = (name for name in table if name not in _OWN)
    return tuple(name for name in others if all(v is None or isinstance(v, float) for v in table[name]))


def _rewards(table: dict[str, list[Any]], functions: Sequence[str], weights: Sequence[float]) -> list[float]:
    """Weighted sums over the functions that gave a reward; NaN where none did."""
    sums = []
    for row in zip(*(table[name] for name in functions), strict=True):
        given = [weight * value for weight, value in zip(weights, row, strict=True) if not _is_missing(value)]
        sums.append(sum(given) if given else math.nan)
    return sums


def _is_missing(value: Any) -> bool:
    return value is None or math.isnan(value)


def _unfit(file: Path, what: str) -> UserError:
    remedy = "name another file, or a recipe to sample anew with --recipe RECIPE --fresh"
    return UserError(Problem(f"holds no completions to measure on: {what}", OPTION, str(file), remedy))
