"""How the sequences of an optimizer step are split over forward passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from cvxrl.errors import Problem, UserError
from cvxrl.recipe.training import TrainSpec

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


def by_length(prompts: Rows, responses: Rows, limit: Limit) -> Iterator[list[int]]:
    """Micro-batches of sequences of similar length, as indices; little is wasted on padding.

    Raises:
        UserError: one sequence is above the token budget.
    """
    lengths = [len(p) + len(r) for p, r in zip(prompts, responses, strict=True)]
    ordered = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    yield from _packed([[i] for i in ordered], lengths, limit)


def whole_groups(prompts: Rows, responses: Rows, groups: Sequence[int], limit: Limit) -> Iterator[list[int]]:
    """Micro-batches of whole groups, at least one, as indices.

    Args:
        prompts: one per sequence.
        responses: as many.
        groups: number of each sequence's group, those of a group adjacent.
        limit: of a pass; a group with more sequences than it admits is taken alone.

    Raises:
        UserError: one group is above the token budget.
    """
    lengths = [len(p) + len(r) for p, r in zip(prompts, responses, strict=True)]
    units = [list(members) for _, members in groupby(range(len(groups)), key=groups.__getitem__)]
    units.sort(key=lambda unit: (max(len(responses[i]) for i in unit), unit[0]))
    yield from _packed(units, lengths, limit)


def _packed(units: Sequence[list[int]], lengths: Sequence[int], limit: Limit) -> Iterator[list[int]]:
    """As many units in a row as the limit admits."""
    micro: list[int] = []
    longest = 0
    for unit in units:
        width = max(lengths[i] for i in unit)
        limit.require(len(unit), width)
        if micro and not limit.admits(len(micro) + len(unit), max(longest, width)):
            yield micro
            micro, longest = [], 0
        micro, longest = [*micro, *unit], max(longest, width)
    if micro:
        yield micro
