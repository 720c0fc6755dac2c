"""Finds the answers in replies, whatever the replies are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cvxrl.recipe.extract import ExtractSpec, RegexExtract
from cvxrl.tasks.extract import extract
from cvxrl.tasks.sandbox import Guard


@dataclass(frozen=True)
class Found:
    """The answer in a reply.

    Attributes:
        text: the answer, or None if there is none.
        error: why it could not be looked for: `timeout`, `memory` or `crash`.
    """

    text: str | None
    error: str | None = None


class Finder:
    """Applies the recipe's extraction.

    All kinds take time proportional to the reply, but for a regular expression, which can take for ever on a text that
    the policy chose; it runs in a process of its own, under a limit.
    """

    def __init__(self, spec: ExtractSpec) -> None:
        """Keep the recipe section; a process starts with the first reply."""
        self._spec = spec
        self._guard: Guard | None = None
        if isinstance(spec, RegexExtract):
            options = {"pattern": spec.pattern}
            self._guard = Guard("cvxrl.tasks.judges:pattern", options, spec.timeout_s, spec.memory_mb)

    def find(self, replies: Sequence[str]) -> list[Found]:
        """What each reply answers."""
        if self._guard is None:
            return [Found(extract(reply, self._spec)) for reply in replies]
        verdicts = self._guard.run([{"reply": reply} for reply in replies])
        return [Found(verdict.get("text"), verdict.error) for verdict in verdicts]

    def close(self) -> None:
        """End the process, if there is one."""
        if self._guard is not None:
            self._guard.close()
