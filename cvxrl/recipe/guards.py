"""Guards: stated rules on logged metrics that warn or stop a run. None is on unless the recipe names it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from cvxrl.recipe.base import Section

_ACTION = "`warn` says so once and goes on; `stop` ends the run as diverged, which `compare` counts."


class EntropyGuard(Section):
    """`policy/entropy` below `below` for `patience` steps in a row: the policy has stopped exploring."""

    below: NonNegativeFloat = Field(description="Lowest mean entropy, in nats per token.")
    patience: PositiveInt = Field(5, description="Steps in a row before the guard acts.")
    action: Literal["warn", "stop"] = Field("warn", description=_ACTION)


class KlGuard(Section):
    """`policy/kl` above `above` for `patience` steps in a row: a step moves the policy too far."""

    above: PositiveFloat = Field(description="Largest KL(policy before the step, policy after it), in nats per token.")
    patience: PositiveInt = Field(1, description="Steps in a row before the guard acts.")
    action: Literal["warn", "stop"] = Field("warn", description=_ACTION)


class RewardGuard(Section):
    """Mean `reward/mean` of the last `window` steps at least `drop` below the best such mean so far: collapse."""

    drop: PositiveFloat = Field(description="Fall of the windowed mean from its maximum, in units of reward.")
    window: PositiveInt = Field(10, description="Steps that are averaged.")
    action: Literal["warn", "stop"] = Field("warn", description=_ACTION)


class GuardsSpec(Section):
    """Rules that watch the metrics; each is off unless given."""

    entropy: EntropyGuard | None = Field(None, description="Entropy collapse.")
    kl: KlGuard | None = Field(None, description="KL explosion.")
    reward: RewardGuard | None = Field(None, description="Reward collapse.")
