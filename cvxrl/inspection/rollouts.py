"""Rollouts that are sampled once, kept in a file and read from there ever after, so that numbers repeat."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from cvxrl.engine.collectors import Collector
from cvxrl.engine.sequences import Sequences
from cvxrl.errors import Problem, UserError
from cvxrl.recipe.digest import without_neutral
from cvxrl.recipe.schema import Recipe
from cvxrl.runs.files import write_json

_SHOWN = 12  # hexadecimal digits of a key in a file's name


class FrozenRollouts(BaseModel):
    """Completions of a checkpoint, graded.

    Attributes:
        schema_version: version of this layout.
        key: what decides them: policy, tokenizer, task, seed, step, sampling; equal keys give equal rollouts.
        prompts, responses: token ids, those of a prompt adjacent.
        logprobs: what the sampler reported for each response token; None where another trainer's were not kept.
        ids: the task's example that each sequence belongs to.
        rewards: rewards of the samples of each prompt.
        metrics: what the grader and the sampler said of them, keys as in metrics.jsonl.
        advantages: those that another trainer learned from; None where the recipe's estimator makes them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = 1
    key: dict[str, Any]
    prompts: list[list[int]]
    responses: list[list[int]]
    logprobs: list[list[float]] | None
    ids: list[str]
    rewards: list[list[float]]
    metrics: dict[str, float]
    advantages: list[list[float]] | None = None

    @property
    def sequences(self) -> Sequences:
        """As the engine sees them, without advantages."""
        made = Sequences.of(self.prompts, self.responses, len(self.rewards[0]), self.ids)
        if self.logprobs is None:
            return made
        return replace(made, sampled_logprobs=[torch.tensor(values) for values in self.logprobs])

    @property
    def rewards_PG(self) -> Tensor:
        """Rewards of the samples of each prompt."""
        return torch.tensor(self.rewards)


def rollout_key(recipe: Recipe, step: int, model_hash: str, tokenizer_hash: str, task: str) -> dict[str, Any]:
    """Everything that decides what a checkpoint says and what it is rewarded with: another entry, new rollouts."""
    noise = recipe.task.reward.noise
    return {
        **({"noise": noise.model_dump(mode="json")} if noise.kind != "none" else {}),
        "policy": model_hash,
        "tokenizer": tokenizer_hash,
        "questions": task,
        "task": recipe.task.model_dump(mode="json", exclude=recipe.task.not_in_digests),
        # Whose rollouts a training step waits for, and how it weighs them, is no matter of what this policy says.
        "rollout": without_neutral(
            recipe.rollout.model_dump(mode="json", exclude={"lag", "mismatch", "old_logprobs"}), "rollout."
        ),
        "seed": recipe.seed,
        "step": step,
    }


def rollout_file(folder: Path, key: dict[str, Any]) -> Path:
    """Where rollouts with this key are kept."""
    canonical = json.dumps(key, sort_keys=True, separators=(",", ":"))
    return folder / f"rollouts-{hashlib.sha256(canonical.encode()).hexdigest()[:_SHOWN]}.json"


def read_rollouts(file: Path) -> FrozenRollouts:
    """Read what `freeze` wrote.

    Raises:
        UserError: the file is damaged.
    """
    try:
        return FrozenRollouts.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            Problem(f"cannot be read as frozen rollouts: {reason}", file=str(file), remedy="--fresh samples them again")
        ) from None


def freeze(collector: Collector, step: int, key: dict[str, Any], file: Path) -> FrozenRollouts:
    """Sample and grade the rollouts of training step ``step``, and write them down."""
    experience = collector.collect(step)
    sequences = experience.sequences
    assert sequences.sampled_logprobs is not None and experience.rewards_PG is not None
    frozen = FrozenRollouts(
        key=key,
        prompts=sequences.prompts,
        responses=sequences.responses,
        logprobs=[values.tolist() for values in sequences.sampled_logprobs],
        ids=sequences.ids,
        rewards=experience.rewards_PG.tolist(),
        metrics={k: v for k, v in experience.metrics.items() if not k.startswith("advantage/")},
    )
    write_json(file, frozen.model_dump(exclude={"advantages"}))
    return frozen
