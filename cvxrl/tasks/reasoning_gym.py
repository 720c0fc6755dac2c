"""Problems of the package reasoning-gym, by name.

They are made in a process of their own, whose hash seed is pinned and whose global random stream is set for every
problem: some data sets iterate over sets of text, or draw from that stream, and would make another problem of the same
number in every process. The process that scores replies makes them again in the same way.
"""

from __future__ import annotations

import base64
import dataclasses
import os
import pickle
import threading
from functools import cache, cached_property, lru_cache
from importlib.metadata import version
from typing import Any

import numpy as np

from cvxrl.errors import Problem, UserError
from cvxrl.imports import import_optional, near_or_known, require_installed
from cvxrl.recipe.task import ReasoningGymSource
from cvxrl.tasks.base import HELD_OUT, TRAIN, Example, Source, digest, draw_example
from cvxrl.tasks.sandbox import JobResult, Sandbox

# Some data sets search for seconds; one that takes minutes would stop every step.
_MAKE_S = 120.0
_MAKE_MB = 1 << 20  # no limit: nobody hostile chooses these problems
_REMEMBERED = 1024
_ONE_AT_A_TIME = threading.Lock()
_FINGERPRINTED = 16


class ReasoningGymTask:
    """Draws problem numbers; reasoning-gym makes problem k from k alone, so few are kept."""

    train_size: int | None = None
    held_out_size: int | None = None

    def __init__(self, spec: ReasoningGymSource, seed: int) -> None:
        """Ask the process that makes the problems for the data set.

        Raises:
            UserError: reasoning-gym is missing, or does not know the data set or one of its options.
        """
        require_installed("reasoning_gym", "reasoning-gym", "tasks", "task.source.kind")
        self.name = spec.dataset
        self._spec = spec
        self._seed = seed
        self._problem = lru_cache(maxsize=_REMEMBERED)(self._make)
        made = _ask(spec, number=None)
        if "refused" in made:
            raise UserError(*(Problem(**problem) for problem in made["refused"]))

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

    def _make(self, number: int) -> Example:
        made = _ask(self._spec, number)
        if made.error is not None:
            message = f"reasoning-gym could not make problem {number} of `{self.name}`: {made.error}"
            remedy = "take another data set, or other options in task.source.config"
            raise UserError(Problem(message, "task.source.dataset", remedy=remedy))
        entry = pickle.loads(base64.b64decode(made["entry"]))  # from our own process, with its types
        return Example(
            id=f"{self.name}-{number}",
            prompt=str(entry["question"]),
            answer="" if entry["answer"] is None else str(entry["answer"]).strip(),
            info={"number": number, "metadata": entry["metadata"]},
        )


def _ask(spec: ReasoningGymSource, number: int | None) -> JobResult:
    """Problem `number` of a data set; or, without one, whether there is such a data set."""
    with _ONE_AT_A_TIME:
        [made] = _maker(os.getpid()).run([{"source": spec.model_dump(mode="json"), "number": number}])
    return made


@cache
def _maker(pid: int) -> Sandbox:
    """The process that makes the problems of every task of process `pid`: importing the package takes seconds."""
    return Sandbox("cvxrl.tasks.judges:reasoning_gym_problems", {}, _MAKE_S, _MAKE_MB, "task.source.kind")


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
