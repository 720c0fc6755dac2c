"""How the sequences of an optimizer step are split over forward passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from cvxrl.errors import Problem, UserError
from cvxrl.recipe.schema import TrainSpec

Rows = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Limit:
    """What one forward pass may hold; nothing given means everything at once.

    Attributes:
        sequences: most sequences.
        tokens: most tokens of prompts and responses, padding included.
    """

    sequences: int | None = None
    tokens: int | None = None

    @classmethod
    def of(cls, train: TrainSpec) -> Limit:
        """What the recipe says."""
        return cls(train.micro_batch, train.micro_batch_tokens)

    def admits(self, sequences: int, longest: int) -> bool:
        """Whether so many sequences, padded to the longest, fit."""
        few = self.sequences is None or sequences <= self.sequences
        return few and (self.tokens is None or sequences * longest <= self.tokens)

    def require(self, sequences: int, longest: int) -> None:
        """Refuse what must stay together but is above the token budget.

        Raises:
            UserError: with the budget that it would take.
        """
        if self.tokens is not None and sequences * longest > self.tokens:
            what = f"a sequence of {longest}" if sequences == 1 else f"a group of {sequences} x {longest}"
            raise UserError(
                Problem(
                    f"{what} tokens is above the budget of {self.tokens}",
                    "train.micro_batch_tokens",
                    remedy=f"raise it to {sequences * longest} or more, shorten the prompts, or lower "
                    "rollout.max_new_tokens",
                )
            )


def by_length(prompts: Rows, responses: Rows, indices: Sequence[int], limit: Limit) -> Iterator[list[int]]:
    """Micro-batches of sequences of similar length, which wastes little on padding.

    Raises:
        UserError: one sequence is above the token budget.
    """
    ordered = sorted(indices, key=lambda i: (len(prompts[i]) + len(responses[i]), i))
    yield from _packed([[i] for i in ordered], lambda i: len(prompts[i]) + len(responses[i]), limit)


def whole_groups(
    prompts: Rows, responses: Rows, indices: Sequence[int], group_size: int, limit: Limit
) -> Iterator[list[int]]:
    """Micro-batches of whole groups, at least one.

    Args:
        prompts: all prompts of the experience.
        responses: their responses.
        indices: the sequences to take, group by group.
        group_size: sequences per group.
        limit: of a pass; a group with more sequences than it admits is taken alone.

    Raises:
        UserError: one group is above the token budget.
    """
    groups = [list(indices[i : i + group_size]) for i in range(0, len(indices), group_size)]
    groups.sort(key=lambda group: (max(len(responses[i]) for i in group), group[0]))
    yield from _packed(groups, lambda i: len(prompts[i]) + len(responses[i]), limit)


def _packed(units: Sequence[list[int]], length: Callable[[int], int], limit: Limit) -> Iterator[list[int]]:
    """As many units in a row as the limit admits."""
    micro: list[int] = []
    longest = 0
    for unit in units:
        width = max(length(i) for i in unit)
        limit.require(len(unit), width)
        if micro and not limit.admits(len(micro) + len(unit), max(longest, width)):
            yield micro
            micro, longest = [], 0
        micro, longest = [*micro, *unit], max(longest, width)
    if micro:
        yield micro
