"""Which policies an inspection looks at, and what came with each. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cvxrl.inspection.foreign.checkpoint import ForeignCheckpoint
from cvxrl.inspection.foreign.completions import StoredCompletions
from cvxrl.recipe.model import ModelSpec
from cvxrl.recipe.schema import Recipe


@dataclass(frozen=True)
class Checkpoint:
    """A policy at one moment of its training.

    Attributes:
        step: last finished step, 0 before training; None where there is no run.
        model: recipe section that loads it.
        state: checkpoint of ours that also holds optimizer and value head, or None.
        foreign: what another trainer left beside the weights, or None.
        stored: completions to measure on; None samples them.
        rate: learning rate of the next optimizer step, where the recipe's is not known to be it.
        notes: what is known of these, and what is not, a sentence each.
        adapter: the trained adapter where there is no such checkpoint, or None.
    """

    step: int | None
    model: ModelSpec
    state: Path | None
    foreign: ForeignCheckpoint | None = None
    stored: StoredCompletions | None = None
    rate: float | None = None
    notes: tuple[str, ...] = ()
    adapter: Path | None = None

    @property
    def name(self) -> str:
        """Name of its folder and its row."""
        return "checkpoint" if self.step is None else f"step-{self.step:06d}"


@dataclass(frozen=True)
class Checkpoints:
    """What is looked at.

    Attributes:
        recipe: the run's, or the one that was named.
        chosen: in the order of training.
        folder: where frozen rollouts and results go unless told otherwise.
    """

    recipe: Recipe
    chosen: list[Checkpoint]
    folder: Path
