"""Whether a recipe's guards fire: a pure function of the records so far, so a resumed run decides as a whole one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cvxrl.engine.divergence import DivergedError
from cvxrl.recipe.guards import EntropyGuard, GuardsSpec, KlGuard, RewardGuard

_Records = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Firing:
    """A guard whose rule holds at the last record.

    Attributes:
        name: key of the guard in the recipe, e.g. `guards.kl`.
        detail: the numbers, in one line.
        stop: whether the run has to end.
        first: the rule did not hold one step earlier.
    """

    name: str
    detail: str
    stop: bool
    first: bool


class GuardStop(DivergedError):
    """A guard ended the run; the parameters are finite, the metrics say it went wrong."""


def firing(spec: GuardsSpec, records: _Records) -> list[Firing]:
    """Guards whose rule holds after the newest of ``records`` (training steps in order, evaluations of step 0 too)."""
    guards = [(name, guard) for name in ("entropy", "kl", "reward") if (guard := getattr(spec, name)) is not None]
    if not guards:
        return []
    steps = [r for r in records if r["step"] > 0]
    found = []
    for name, guard in guards:
        detail = _rule(guard, steps)
        if detail is not None:
            first = _rule(guard, steps[:-1]) is None
            found.append(Firing(f"guards.{name}", detail, guard.action == "stop", first))
    return found


def _rule(guard: EntropyGuard | KlGuard | RewardGuard, steps: _Records) -> str | None:
    """The numbers, if the guard's rule holds after the last of ``steps``."""
    match guard:
        case EntropyGuard():
            return _entropy(guard, steps)
        case KlGuard():
            return _kl(guard, steps)
        case RewardGuard():
            return _reward(guard, steps)


def _entropy(guard: EntropyGuard, steps: _Records) -> str | None:
    recent = _last(steps, "policy/entropy", guard.patience)
    if recent is None or not all(value < guard.below for value in recent):
        return None
    return f"policy/entropy {recent[-1]:.3g} is below {guard.below:g} for {guard.patience} steps in a row"


def _kl(guard: KlGuard, steps: _Records) -> str | None:
    recent = _last(steps, "policy/kl", guard.patience)
    if recent is None or not all(value > guard.above for value in recent):
        return None
    return f"policy/kl {recent[-1]:.3g} is above {guard.above:g} for {guard.patience} steps in a row"


def _reward(guard: RewardGuard, steps: _Records) -> str | None:
    rewards = [r["reward/mean"] for r in steps if r.get("reward/mean") is not None]
    width = guard.window
    means = [sum(rewards[i : i + width]) / width for i in range(len(rewards) - width + 1)]
    if not means or max(means) - means[-1] < guard.drop:
        return None
    return f"reward/mean over {width} steps fell from {max(means):.3g} to {means[-1]:.3g}, by at least {guard.drop:g}"


def _last(steps: _Records, key: str, count: int) -> list[float] | None:
    """Newest ``count`` values of a metric; None if fewer steps have it."""
    values = [step.get(key) for step in steps[-count:]]
    present = [value for value in values if value is not None]
    return present if len(present) == count else None
