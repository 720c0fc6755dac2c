"""Small recipes and policies that several tests use."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from cvxrl.recipe.load import load_recipe
from cvxrl.recipe.schema import Recipe
from cvxrl.runs.sink import Row

ROOT = Path(__file__).resolve().parents[1]
TINY = (
    "rollout.prompts=4",
    "rollout.samples=4",
    "rollout.max_new_tokens=24",
    "train.steps=2",
    "optim.warmup_steps=0",
    "eval.every=2",
    "eval.prompts=4",
    "eval.samples=2",
    "checkpoint.every=0",
    "checkpoint.final=false",
)


# Any policy can stand for the verifier that an earlier stage of the pipeline would have trained.
STAND_INS = {"math_lco_kld_dense": ("advantage.verifier=package:cvxrl/assets/forgetful",)}


def tiny(name: str, *overrides: str) -> Recipe:
    """A shipped recipe cut down to two small steps."""
    return load_recipe(ROOT / "recipes" / f"{name}.yaml", [*TINY, *STAND_INS.get(name, ()), *overrides])


def new_model(family: str, **config: Any) -> Any:
    """A new model of a family of transformers, which is loaded here and not while tests are collected."""
    import transformers

    head = "LMHeadModel" if family == "GPT2" else "ForCausalLM"
    return getattr(transformers, family + head)(getattr(transformers, f"{family}Config")(**config))


def quick_if(is_quick: Callable[..., bool], cases: Iterable[Any]) -> list[Any]:
    """Parameters of a test, of which all but some are slow; a case of several values is given as a tuple."""
    marked = []
    for case in cases:
        values = case if isinstance(case, tuple) else (case,)
        marked.append(pytest.param(*values, marks=[] if is_quick(*values) else [pytest.mark.slow]))
    return marked


class SilentSink:
    """A sink that only remembers."""

    def __init__(self) -> None:
        self.records: list[dict[str, float]] = []
        self.rows: list[Row] = []

    def start(self, title: str, steps: int, done: int) -> None: ...

    def step(self, record: Any) -> None:
        self.records.append(dict(record))

    def event(self, text: str) -> None: ...

    def finish(self, status: str, rows: Any) -> None:
        self.rows = list(rows)


def without_times(record: dict[str, float]) -> dict[str, float]:
    """A record without its timings, which no two runs share."""
    return {key: value for key, value in record.items() if not key.startswith("time/")}
