"""What one process of several holds and does of a recipe's step (no torch here)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cvxrl.ranks import this_rank
from cvxrl.recipe.engine import VllmSpec
from cvxrl.recipe.schema import Recipe

# Policies from here on are for machines with several GPUs.
_LARGE = 10**9
_SCALES = (1, 8, 64)


@dataclass(frozen=True)
class Placed:
    """A recipe on some ranks; prompts are split among them as evenly as they go, and the fullest rank is looked at.

    Attributes:
        ranks: processes that share a step, one a GPU.
        sharded: whether each holds its share of parameters, gradients and optimizer state only.
        prompts: of a step, on the fullest rank.
        sequences: likewise.
        fullest: of an optimizer step, on the rank that is dealt most: minibatches are drawn from the whole step, and a
            rank takes those of its own prompts.
    """

    ranks: int
    sharded: bool
    prompts: int
    sequences: int
    fullest: int

    @classmethod
    def of(cls, recipe: Recipe, ranks: int = 1) -> Placed:
        """The recipe on so many ranks."""
        prompts = -(-recipe.rollout.prompts // ranks)
        sequences = prompts * recipe.group_size
        mean = sequences / recipe.train.minibatches
        units = mean / recipe.coupled_sequences
        # The largest of so many Poisson numbers, to first order.
        spread = math.sqrt(2 * units * math.log(ranks)) if recipe.train.minibatches > 1 and ranks > 1 else 0.0
        fullest = min(sequences, math.ceil(mean + spread * recipe.coupled_sequences))
        sharded = recipe.placement.shard == "full" and ranks > 1
        return cls(ranks, sharded, prompts, sequences, fullest)

    @property
    def share(self) -> int:
        """By what the state of each is divided."""
        return self.ranks if self.sharded else 1


def vllm_of(recipe: Recipe) -> VllmSpec | None:
    """The vLLM that samples, if one does."""
    return recipe.rollout.engine if isinstance(recipe.rollout.engine, VllmSpec) else None


def served(recipe: Recipe) -> bool:
    """Whether a server samples, on devices of its own."""
    vllm = vllm_of(recipe)
    return vllm is not None and vllm.mode == "server"


def planned_ranks(recipe: Recipe, parameters: int | None) -> list[int]:
    """Numbers of ranks to plan for: the recipe's or the launcher's; of a large policy on GPUs, several."""
    if recipe.placement.ranks != "auto":
        return [recipe.placement.ranks]
    rank = this_rank()
    if rank is not None:
        return [rank.size]
    several = (parameters or 0) >= _LARGE and recipe.train.device != "cpu"
    return [ranks for ranks in _SCALES if ranks <= recipe.rollout.prompts] if several else [1]
