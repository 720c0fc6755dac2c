"""Where a recipe is computed, as a recipe section: on how many processes, and what each of them holds."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from cvxrl.recipe.base import Section


class PlacementSpec(Section):
    """Processes that train one policy together, each with its share of a step (docs/scale.md).

    It changes no prompt and no draw, but the last bits of sums, as another machine does.
    """

    ranks: Literal["auto"] | PositiveInt = Field(
        "auto",
        description="Processes, one a GPU; as many as the launcher starts (`torchrun --nproc-per-node 8 -m cvxrl train "
        "RECIPE`, or `python -m cvxrl.launch` with the same options), without one this process alone. A number refuses "
        "any other.",
    )
    shard: Literal["none", "full"] = Field(
        "none",
        description="What each process holds of parameters, gradients and optimizer state: `none` is all of it; `full` "
        "is its share (FSDP2).",
    )
    timeout: PositiveFloat = Field(
        600.0,
        description="Seconds that a process waits for another before it gives up: the time of a step's slowest part on "
        "one of them, or of writing a checkpoint.",
    )
