"""Tasks as numbered examples: some for training, others, never with the same prompt, held out."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np

from cvxrl.errors import Problem, UserError

TRAIN: Final = 0
HELD_OUT: Final = 1
DEMONSTRATION: Final = 2
PREFERENCE: Final = 3


@dataclass(frozen=True)
class Example:
    """One prompt and its right answer.

    Attributes:
        id: names the example within its source, the same in every run.
        prompt: the bare problem, before any template.
        answer: what a reply is graded against.
        demonstration: a full reply to imitate in supervised training, if the source has any.
        preference: a chosen and a rejected reply, for preference training, if the source has any.
        info: what else the source knows about the example; callable rewards receive it.
    """

    id: str
    prompt: str
    answer: str
    demonstration: str | None = None
    preference: tuple[str, str] | None = None
    info: Mapping[str, Any] = field(default_factory=dict)


class Task(Protocol):
    """A supply of examples. No prompt is ever both in training and held out."""

    @property
    def name(self) -> str:
        """What the task is called in tables."""

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digest that changes if the examples change, whatever the seed."""

    @property
    def train_size(self) -> int | None:
        """How many training examples there are: all are among the first so many indices; none if made on demand."""

    @property
    def held_out_size(self) -> int | None:
        """How many held-out examples there are; none means as many as are asked for."""

    def train(self, index: int) -> Example:
        """Return the example at `index` (from 0) of the whole run's order of training; pure in `index`."""

    def held_out(self, index: int) -> Example:
        """Return held-out example `index`: the same for every seed, so that runs meet equal prompts."""


@dataclass(frozen=True)
class Source:
    """Where a task's examples come from; `SOURCE` of a source's module.

    Attributes:
        load: from the source's recipe section and the run's seed to a task.
        load_rows: from the recipe section to all examples that an evaluation may ask if no share of them is held out;
            none for a source that always holds out a share.
    """

    load: Callable[[Any, int], Task]
    load_rows: Callable[[Any], Sequence[Example]] | None = None


def is_held_out(prompt: str, share: float) -> bool:
    """Tell whether `prompt` belongs to the held-out `share` (0 to 1) of all prompts.

    A hash of the text decides, so the answer depends on nothing else and the two sets cannot meet. The hash is
    cryptographic because a checksum such as CRC is linear in the bits of the prompt: its held-out sums would follow a
    pattern.
    """
    digest = hashlib.blake2b(prompt.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def draw_example(
    draw: Callable[[np.random.Generator], Example], seed: list[int], share: float, held_out: bool
) -> Example:
    """Draw until an example falls on the wanted side of the held-out split.

    Args:
        draw: makes an example from a generator.
        seed: entropy of the generator.
        share: held-out share, in (0, 1).
        held_out: which side is wanted.

    Raises:
        UserError: no such example turned up, because the source has too few different prompts.
    """
    rng = np.random.default_rng(seed)
    # After 50 / p draws a side that holds a share p of the prompts has been missed with probability below e^-50.
    for _ in range(math.ceil(50 / min(share, 1 - share))):
        example = draw(rng)
        if is_held_out(example.prompt, share) == held_out:
            return example
    side = "held-out" if held_out else "training"
    raise UserError(
        Problem(
            f"no {side} prompts: the source has too few different prompts for held_out={share}",
            key="task.source.held_out",
            remedy="move task.source.held_out towards 0.5, or let the source make more different prompts",
        )
    )


def digest(*parts: str) -> str:
    """Return the SHA-256 of `parts`, in hexadecimal; moving text from one part to the next changes it."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode(errors="backslashreplace")  # a data file may hold lone surrogates
        total.update(len(data).to_bytes(8, "big") + data)
    return total.hexdigest()
