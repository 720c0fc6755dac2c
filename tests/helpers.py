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


# A policy of two narrow layers, which answers a third to a half of the questions right as the one that ships does, and
# takes a third of its time: `cvxrl train base_sft` with `hidden_size: 64, layers: 2, heads: 4, kv_heads: 2,
# head_dim: 16, intermediate_size: 128`, 1000 steps at a learning rate of 4e-3 on demonstrations of which 30% forget to
# carry; its last norm times 0.7, so that samples of a prompt differ.
SMALL_POLICY = ROOT / "tests" / "fixtures" / "small"
SHIPPED_POLICY = "model.path=package:cvxrl/assets/forgetful"
OWN_MODEL = ("base_sft", "old_base_sft", "smollm2")

# Any policy can stand for the verifier that an earlier stage of the pipeline would have trained.
STAND_INS = {"math_lco_kld_dense": (f"advantage.verifier={SMALL_POLICY}",)}


def tiny(name: str, *overrides: str) -> Recipe:
    """A shipped recipe cut down to two small steps of a small policy."""
    return load_recipe(ROOT / "recipes" / f"{name}.yaml", cut(name, *overrides))


def cut(name: str, *overrides: str) -> list[str]:
    """The overrides that do so, before others."""
    own = name.startswith(OWN_MODEL) or any(text.startswith("model.path=") for text in overrides)
    return [*TINY, *([] if own else [f"model.path={SMALL_POLICY}"]), *STAND_INS.get(name, ()), *overrides]


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
