"""A task over a list of examples: split once, then walked in a fresh order every epoch."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from cvxrl.errors import Problem, UserError
from cvxrl.tasks.base import HELD_OUT, TRAIN, Example, digest, is_held_out

_log = logging.getLogger(__name__)


class FiniteTask:
    """A list of training examples and a list of held-out ones."""

    def __init__(self, name: str, train: Sequence[Example], held_out: Sequence[Example], seed: int) -> None:
        """Keep both lists and drop from `train` every prompt that is also held out.

        Raises:
            UserError: nothing is left to train on.
        """
        reserved = {e.prompt for e in held_out}
        kept = tuple(e for e in train if e.prompt not in reserved)
        if not kept:
            raise UserError(
                Problem(
                    f"{name}: no training example is left ({len(train)} read, {len(held_out)} held out)",
                    key="task.source",
                    remedy="lower task.source.held_out, or name other held-out rows",
                )
            )
        if len(kept) < len(train):
            _log.warning("%s: left out %d training rows whose prompt is held out", name, len(train) - len(kept))
        self.name = name
        self._train = kept
        self._held_out = tuple(held_out)
        self._seed = seed
        self.train_size: int | None = len(kept)
        self.held_out_size: int | None = len(self._held_out)
        self.fingerprint = digest(
            *(text for part in (kept, self._held_out) for e in part for text in (e.id, e.prompt, e.answer)),
            *(e.demonstration or "" for e in kept),
            *(text for e in kept for text in e.preference or ()),
            str(len(kept)),
        )
        # One epoch is walked at a time; two are kept because a batch may straddle the boundary.
        self._order = lru_cache(maxsize=2)(self._permutation)
        self._held_out_order = held_out_order(len(self._held_out))

    @classmethod
    def split(cls, name: str, examples: Sequence[Example], share: float, seed: int) -> FiniteTask:
        """Hold out the prompts whose hash falls in `share`; 0 holds out none.

        Raises:
            UserError: one of the two parts is empty.
        """
        held_out = [e for e in examples if is_held_out(e.prompt, share)]
        if share > 0 and not held_out:
            raise UserError(
                Problem(
                    f"{name}: held_out={share} of {len(examples)} examples leaves no held-out prompt",
                    key="task.source.held_out",
                    remedy="raise it, give held-out rows of their own, or set it to 0 (no evaluation)",
                )
            )
        return cls(name, [e for e in examples if not is_held_out(e.prompt, share)], held_out, seed)

    def train(self, index: int) -> Example:
        """Return the example at `index` of the run; every epoch visits each one once, in its own order."""
        epoch, position = divmod(index, len(self._train))
        return self._train[int(self._order(epoch)[position])]

    def held_out(self, index: int) -> Example:
        """Return held-out example `index` of a fixed shuffled order: the first few are a fair sample.

        Raises:
            IndexError: `index` is not below `held_out_size`.
        """
        return self._held_out[int(self._held_out_order[index])]

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([self._seed, TRAIN, epoch]).permutation(len(self._train))


def held_out_order(count: int) -> NDArray[np.int64]:
    """Order in which held-out examples are asked: one fixed shuffle, so that the first few are a fair sample."""
    return np.random.default_rng([0, HELD_OUT]).permutation(count)
