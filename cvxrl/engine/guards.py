"""Whether a recipe's guards fire, in constant memory and time per step, however long the run.

What a guard remembers is a function of the records alone: a resumed run shows it those it has read back, and decides as
a whole one does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from cvxrl.engine.divergence import DivergedError
from cvxrl.recipe.guards import EntropyGuard, GuardsSpec, KlGuard, RewardGuard

Metrics = Mapping[str, float | None]


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
    """A guard ended the run; the parameters are finite, the metrics say it went wrong.

    Attributes:
        step: whose record made it fire.
    """

    def __init__(self, step: int, name: str, detail: str) -> None:
        """Name the guard as its key in the recipe."""
        super().__init__(name, detail)
        self.step = step


class Guards:
    """The guards of a recipe, shown one record after the other."""

    def __init__(self, spec: GuardsSpec) -> None:
        """Nothing has been seen yet."""
        self._spec = spec
        self._rules: dict[str, _Rule] = {}
        if spec.entropy is not None:
            self._rules["entropy"] = _Entropy(spec.entropy)
        if spec.kl is not None:
            self._rules["kl"] = _Kl(spec.kl)
        if spec.reward is not None:
            self._rules["reward"] = _Reward(spec.reward)
        self._held: set[str] = set()

    def see(self, record: Metrics) -> list[Firing]:
        """Guards whose rule holds after ``record``: the next training step, or the evaluation of step 0.

        Args:
            record: as metrics.jsonl holds it, where a number that is not finite is none.
        """
        if not record["step"]:
            return []
        found = []
        for name, rule in self._rules.items():
            detail = rule.after(record)
            if detail is not None:
                stop = getattr(self._spec, name).action == "stop"
                found.append(Firing(f"guards.{name}", detail, stop, name not in self._held))
        self._held = {firing.name.removeprefix("guards.") for firing in found}
        return found


class _Rule(Protocol):
    def after(self, record: Metrics) -> str | None:
        """The numbers, if the rule holds after this step."""


class _Entropy:
    def __init__(self, guard: EntropyGuard) -> None:
        self._guard = guard
        self._recent: deque[float | None] = deque(maxlen=guard.patience)

    def after(self, record: Metrics) -> str | None:
        guard, value = self._guard, record.get("policy/entropy")
        self._recent.append(value)
        if len(self._recent) < guard.patience or not all(v is not None and v < guard.below for v in self._recent):
            return None
        return f"policy/entropy {value:.3g} is below {guard.below:g} for {guard.patience} steps in a row"


class _Kl:
    """An estimate that overflowed is none in a record, and above every limit."""

    def __init__(self, guard: KlGuard) -> None:
        self._guard = guard
        self._recent: deque[float] = deque(maxlen=guard.patience)

    def after(self, record: Metrics) -> str | None:
        guard, value = self._guard, record.get("policy/kl", float("nan"))
        self._recent.append(float("inf") if value is None else value)
        if len(self._recent) < guard.patience or not all(v > guard.above for v in self._recent):
            return None
        return f"policy/kl {self._recent[-1]:.3g} is above {guard.above:g} for {guard.patience} steps in a row"


class _Reward:
    """Steps without a reward are passed over."""

    def __init__(self, guard: RewardGuard) -> None:
        self._guard = guard
        self._recent: deque[float] = deque(maxlen=guard.window)
        self._best = self._mean = float("-inf")

    def after(self, record: Metrics) -> str | None:
        guard, value = self._guard, record.get("reward/mean")
        if value is not None:
            self._recent.append(value)
            if len(self._recent) == guard.window:
                self._mean = sum(self._recent) / guard.window
                self._best = max(self._best, self._mean)
        if len(self._recent) < guard.window or self._best - self._mean < guard.drop:
            return None
        fell = f"fell from {self._best:.3g} to {self._mean:.3g}, by at least {guard.drop:g}"
        return f"reward/mean over {guard.window} steps {fell}"
