"""Whether a recipe's guards fire, in constant memory and time per step, however long the run.

What a guard remembers is a function of the records alone: a resumed run shows it those it has read back, and decides as
a whole one does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from cvxrl.engine.divergence import DivergedError
from cvxrl.errors import Problem, UserError
from cvxrl.recipe.monitoring import GuardsSpec, RewardGuard

Metrics = Mapping[str, float | None]
# Neither above nor below any limit.
_ABSENT = float("nan")


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
        self.step, self.args = step, (step, name, detail)


class Guards:
    """The guards of a recipe, shown one record after the other."""

    def __init__(self, spec: GuardsSpec) -> None:
        """Nothing has been seen yet."""
        self._spec = spec
        self._rules: dict[str, _Rule] = {}
        if (entropy := spec.entropy) is not None:
            low = entropy.below
            self._rules["entropy"] = _InARow(
                "policy/entropy", entropy.patience, lambda value: value < low, f"below {low:g}", overflow=_ABSENT
            )
        if (kl := spec.kl) is not None:
            high = kl.above
            # An estimate that overflowed is above every limit.
            self._rules["kl"] = _InARow(
                "policy/kl", kl.patience, lambda value: value > high, f"above {high:g}", overflow=float("inf")
            )
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


def require_silent(fired: Sequence[Firing], step: int) -> None:
    """Refuse to go on with guards under which the run would have ended at a step that is done.

    Raises:
        UserError: one problem per guard.
    """
    problems = [
        Problem(
            f"would have stopped the run at step {step}: {firing.detail}",
            firing.name,
            remedy="loosen it, or go on without it",
        )
        for firing in fired
        if firing.stop
    ]
    if problems:
        raise UserError(*problems)


class _Rule(Protocol):
    def after(self, record: Metrics) -> str | None:
        """The numbers, if the rule holds after this step."""


class _InARow:
    """A limit that ``patience`` steps in a row are beyond; a step without the metric is not."""

    def __init__(self, key: str, patience: int, beyond: Callable[[float], bool], limit: str, overflow: float) -> None:
        """``overflow`` is what a number that is not finite counts as."""
        self._key, self._patience, self._beyond, self._limit = key, patience, beyond, limit
        self._overflow = overflow
        self._recent: deque[float] = deque(maxlen=patience)

    def after(self, record: Metrics) -> str | None:
        value = record.get(self._key, _ABSENT)
        self._recent.append(self._overflow if value is None else value)
        if len(self._recent) < self._patience or not all(map(self._beyond, self._recent)):
            return None
        return f"{self._key} {self._recent[-1]:.3g} is {self._limit} for {self._patience} steps in a row"


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
