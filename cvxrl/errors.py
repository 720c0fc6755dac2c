"""Errors that a user can cause: one sentence that says what is wrong and one that says what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeVar

_T = TypeVar("_T")


@dataclass(frozen=True)
class Problem:
    """One mistake in what the user gave us.

    Attributes:
        message: what is wrong, in one line.
        key: dotted recipe key or command-line option that holds the mistake, if any.
        file: file that holds the mistake, if any.
        remedy: what to do about it, in one line.
    """

    message: str
    key: str = ""
    file: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        """Render as ``file: key: message (remedy)``, leaving out what is empty."""
        where = ": ".join(part for part in (self.file, self.key) if part)
        text = f"{where}: {self.message}" if where else self.message
        return f"{text}\n    -> {self.remedy}" if self.remedy else text


class UserError(Exception):
    """The user's input cannot be used; exit code 2. Carries every mistake found, not only the first."""

    def __init__(self, *problems: Problem | str) -> None:
        """Collect one or more problems; a plain string is a problem without file or key."""
        self.problems = tuple(p if isinstance(p, Problem) else Problem(p) for p in problems)
        super().__init__("\n".join(str(p) for p in self.problems))

    def __reduce__(self) -> tuple[type[UserError], tuple[Problem, ...]]:
        """From one process to another with its problems, not with their text alone."""
        return type(self), self.problems


def suggest(given: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Beginning of a remedy: "did you mean `x`? " for the known word nearest to ``given``, or nothing.

    Args:
        given: what the user wrote.
        known: what could have been meant.
        cutoff: smallest similarity, from 0 (any word) to 1 (equal ones); see `difflib.SequenceMatcher.ratio`.
    """
    return did_you_mean(nearest(given, known, cutoff))


def nearest(given: str, known: Iterable[str], cutoff: float = 0.6) -> list[str]:
    """The known word nearest to ``given``, if it is near enough (see `suggest`)."""
    return get_close_matches(given, list(known), n=1, cutoff=cutoff)


def did_you_mean(meant: Sequence[str]) -> str:
    """The same for words that were found in another way: "did you mean `a` or `b`? ", or nothing for none."""
    return f"did you mean {' or '.join(f'`{word}`' for word in meant)}? " if meant else ""


class Mistakes:
    """Collects problems, so that independent mistakes are told together."""

    def __init__(self) -> None:
        """Nothing is wrong yet."""
        self.problems: list[Problem] = []

    def attempt(self, action: Callable[..., _T], *arguments: Any, **options: Any) -> _T | None:
        """Result of the action, or None after noting its problems."""
        try:
            return action(*arguments, **options)
        except UserError as error:
            self.problems += (problem for problem in error.problems if problem not in self.problems)
            return None
