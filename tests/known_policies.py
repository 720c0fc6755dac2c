"""The policies that hundreds of tests load are read from the disk once, and the short ways that serve them found once.

Every policy that is loaded is compared with its own forward pass: at load, at the lengths of the run, token by token.
That is a quarter of a run of two steps. `tests/policy` and `tests/rollout` hold that it is done, with nothing known
before.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from helpers import SMALL_POLICY

# None of these changes while it is tested: the small one, and two that ship.
PATHS = {str(SMALL_POLICY), *(f"package:cvxrl/assets/{name}" for name in ("base", "forgetful"))}
_known: dict[Any, Any] = {}


def _of(model: Any) -> tuple[Any, ...] | None:
    """What of the model decides which ways serve it; None of one that is not a known policy as it was read."""
    from cvxrl.policy.adapter import has_adapter

    spec = vars(model).get("read_once")
    return None if spec is None or has_adapter(model) else (spec, next(model.parameters()).dtype)


def _once(key: tuple[Any, ...], find: Callable[[], Any]) -> Any:
    if key not in _known:
        _known[key] = find()
    return _known[key]


def read_once(patch: pytest.MonkeyPatch) -> None:
    """From the second time on, a known policy is a copy of what is in memory."""
    from cvxrl.policy import load

    read = load.load_pretrained

    def found(spec: Any) -> Any:
        if spec.path not in PATHS:
            return read(spec)
        tokenizer, model = copy.deepcopy(_once(("read", spec.model_dump_json()), lambda: read(spec)))
        model.read_once = spec.model_dump_json()
        return tokenizer, model

    patch.setattr(load, "load_pretrained", found)


def probe_once(patch: pytest.MonkeyPatch) -> None:
    """The ways that serve it are those that were found the first time, at these lengths."""
    from cvxrl.policy.checked import Checked
    from cvxrl.rollout import choice

    of, cover, first, again = Checked.of, Checked.cover, choice._first_that_agrees, choice._agrees_at

    def checked(model: Any, vocabulary: Any) -> Checked:
        if (key := _of(model)) is None:
            return of(model, vocabulary)
        return Checked(model, vocabulary, _once(("ways", key), lambda: of(model, vocabulary)).ways)

    def covered(self: Checked, shortest: int, longest: int) -> None:
        if (key := _of(self.model)) is None:
            return cover(self, shortest, longest)
        before = key, self.ways, self.shortest, self.longest, shortest, longest

        def find() -> Any:
            cover(self, shortest, longest)
            return self.ways, self.shortest, self.longest

        self.ways, self.shortest, self.longest = _once(("lengths", *before), find)
        return None

    def chosen(policy: Any, engine: str, can_be_plain: bool) -> Any:
        if (key := _of(policy.model)) is None:
            return first(policy, engine, can_be_plain)
        at = engine, can_be_plain, policy.checked.shortest, policy.checked.longest
        return _once(("decoder", key, *at), lambda: first(policy, engine, can_be_plain))

    def agrees(policy: Any, known: Any, lengths: Any) -> Any:
        if (key := _of(policy.model)) is None:
            return again(policy, known, lengths)
        return _once(("agrees", key, known.name, lengths), lambda: again(policy, known, lengths))

    patch.setattr(Checked, "of", staticmethod(checked))
    patch.setattr(Checked, "cover", covered)
    patch.setattr(choice, "_first_that_agrees", chosen)
    patch.setattr(choice, "_agrees_at", agrees)
