"""Problems of the package reasoning-gym, by name."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from importlib.metadata import version
from typing import Any

import numpy as np

from cvxrl.errors import Problem, UserError
from cvxrl.imports import import_optional, near_or_known
from cvxrl.recipe.task import ReasoningGymSource
from cvxrl.tasks.base import HELD_OUT, TRAIN, Example, Source, digest, draw_example

_FINGERPRINTED = 16


class ReasoningGymTask:
    """Draws problem numbers; reasoning-gym makes problem k from k alone, so nothing is stored."""

    train_size: int | None = None
    held_out_size: int | None = None

    def __init__(self, spec: ReasoningGymSource, seed: int) -> None:
        """Make the data set.

        Raises:
            UserError: reasoning-gym is missing, or does not know the data set or one of its options.
        """
        self.name = spec.dataset
        self._spec = spec
        self._seed = seed
        self._dataset = create(spec)

    def train(self, index: int) -> Example:
        """Return training example `index`."""
        return draw_example(self._draw, [self._seed, TRAIN, index], self._spec.held_out, held_out=False)

    def held_out(self, index: int) -> Example:
        """Return held-out example `index`; the run's seed has no part in it."""
        return draw_example(self._draw, [0, HELD_OUT, index], self._spec.held_out, held_out=True)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the recipe section, the package's version and the first problems."""
        first = (self._problem(i) for i in range(min(_FINGERPRINTED, self._spec.size)))
        texts = (f"{e.prompt}\n{e.answer}" for e in first)
        return digest(self._spec.model_dump_json(), version("reasoning-gym"), *texts)

    def _draw(self, rng: np.random.Generator) -> Example:
        return self._problem(int(rng.integers(self._spec.size)))

    def _problem(self, number: int) -> Example:
        entry = self._dataset[number]
        return Example(
            id=f"{self.name}-{number}",
            prompt=str(entry["question"]),
            answer=str(entry["answer"]).strip(),
            info={"number": number, "metadata": entry["metadata"]},
        )


def create(spec: ReasoningGymSource) -> Any:
    """Make the reasoning-gym data set that `spec` describes.

    Raises:
        UserError: reasoning-gym is missing, or does not know the data set or one of its options.
    """
    package = import_optional("reasoning_gym", "reasoning-gym", "tasks", "task.source.kind")
    known: dict[str, tuple[type, type]] = package.factory.DATASETS
    if spec.dataset not in known:
        raise UserError(
            Problem(
                f"reasoning-gym has no data set `{spec.dataset}`",
                key="task.source.dataset",
                remedy=near_or_known(spec.dataset, list(known)),
            )
        )
    options = [f.name for f in dataclasses.fields(known[spec.dataset][1]) if f.name not in ("seed", "size")]
    unknown = [o for o in spec.config if o not in options]
    if unknown:
        raise UserError(
            *(
                Problem(
                    f"`{spec.dataset}` has no option `{o}`",
                    key=f"task.source.config.{o}",
                    remedy=near_or_known(o, options),
                )
                for o in unknown
            )
        )
    try:
        return package.create_dataset(spec.dataset, seed=0, size=spec.size, **spec.config)
    except (AssertionError, TypeError, ValueError) as error:
        # reasoning-gym checks its options with assertions and, for wrong types, by failing on them.
        raise UserError(
            Problem(
                f"`{spec.dataset}` refuses these options: {error}",
                key="task.source.config",
                remedy=f"options are {', '.join(options)}; `size` is task.source.size",
            )
        ) from error


SOURCE = Source(ReasoningGymTask)
