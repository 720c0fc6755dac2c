"""Completions that a step trains on, as they are stored to be read: which, and with which numbers."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SilentSink, tiny

from cvxrl.engine.sequences import Sequences
from cvxrl.engine.session import run_training
from cvxrl.engine.shown import _spread, shown_completions
from cvxrl.runs.directory import RunDir
from cvxrl.runs.jsonl import read_lines


def trained(out: Path, *overrides: str) -> RunDir:
    recipe = tiny("math_grpo", "logging.rollouts=2", "logging.samples=3", *overrides)
    run_dir = RunDir.of(out, recipe)
    assert run_training(recipe, run_dir, SilentSink(), "new").status == "finished"
    return run_dir


def lines(run_dir: RunDir, step: int) -> list[dict[str, Any]]:
    return read_lines(run_dir.training_samples(step), json.loads, "")


def test_the_lowest_and_the_highest_reward_are_shown() -> None:
    assert _spread([1.0, 0.0, 0.5, 0.0, 1.0], 3) == [1, 2, 4]
    assert _spread([1.0, 0.0], 3) == [1, 0]
    assert _spread([1.0, 0.0, 0.5], 1) == [1]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return trained(tmp_path_factory.mktemp("run"), "train.steps=2", "eval.every=2")


def test_steps_are_stored_as_the_recipe_says_with_their_advantages(run: RunDir) -> None:
    names = {f.name for f in (run.path / "rollouts").iterdir()}
    assert names == {"train-000001.jsonl", "train-000002.jsonl", "step-000000.jsonl", "step-000002.jsonl"}
    shown = lines(run, 2)
    assert len(shown) == 3 and len({each["prompt"] for each in shown}) == 1
    rewards = [each["reward"] for each in shown]
    assert rewards == sorted(rewards) and rewards[0] == 0 and rewards[-1] == 1
    for each in shown:
        count = len(each["token_texts"])
        assert len(each["token_logprobs"]) == len(each["token_advantages"]) == count
        assert len(set(each["token_advantages"])) == 1 and all(value <= 0 for value in each["token_logprobs"])
        assert each["completion"] == "".join(t for t in each["token_texts"] if t != "<eos>")
        assert each["reward"] == float(each["correct"])
    assert shown[0]["token_advantages"][0] < 0 < shown[-1]["token_advantages"][0]
    # (R - mean) / (std + eps) of 4 rewards of which k are right: the two values differ by 1 / (std + eps).
    gap = shown[-1]["token_advantages"][0] - shown[0]["token_advantages"][0]
    deviations = [math.sqrt(k / 4 * (1 - k / 4) * 4 / 3) for k in (1, 2, 3)]
    assert min(abs(gap - 1 / deviation) for deviation in deviations) < 1e-3


def test_waiting_rollouts_are_shown_at_the_step_that_trains_on_them(run: RunDir, tmp_path: Path) -> None:
    late = lines(trained(tmp_path, "train.steps=2", "eval.every=0", "rollout.lag=1"), 2)
    assert [each["prompt"] for each in late] == [each["prompt"] for each in lines(run, 2)]
    assert late != lines(run, 2)  # sampled by the policy before step 1


@dataclass
class Made:
    """A group of one prompt, of which only the rewards are asked for before anything else."""

    rewards: list[float]
    example: Any = None
    episodes: Any = ()
    grades: Any = ()


@pytest.mark.parametrize(
    ("step", "settings"),
    [(2, ("logging.rollouts=0",)), (2, ("logging.samples=0",)), (3, ("logging.rollouts=2",))],
)
def test_nothing_is_stored_where_nothing_is_wanted(step: int, settings: tuple[str, ...]) -> None:
    sequences = replace(Sequences.of([[1]], [[2]], 1), advantages=[torch.zeros(1)])
    recipe = tiny("math_grpo", *settings)
    assert shown_completions(recipe, None, step, [Made([1.0])], sequences) == []  # type: ignore[arg-type]


def test_a_run_has_a_page(run: RunDir) -> None:
    page = run.completions.read_text(encoding="utf-8")
    assert "<h1>Completions of math_grpo, seed 0</h1>" in page
    for label in ("step 0, evaluation", "step 1, training", "step 2, evaluation"):
        assert label in page
