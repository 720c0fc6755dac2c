"""What a run says of its graders and of its held-out questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import SMALL_POLICY

REWARDS = """
import os
def broken(completion, **_):
    print("about to die")
    os._exit(0)
def half(completion, **_):
    return 1.0 if len(completion) % 4 else os._exit(0)
"""
# Few replies: each that ends its grader's process is the start of another.
SMALL = ("--set", "train.steps=2", "--set", "optim.warmup_steps=0", "--set", "rollout.max_new_tokens=8")
SMALL += ("--set", "rollout.prompts=2", "--set", "rollout.samples=2", "--set", f"model.path={SMALL_POLICY}")


@pytest.fixture
def rewards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run_rewards.py").write_text(REWARDS)


def callable_reward(function: str) -> tuple[str, str]:
    return "--set", f"task.reward={{kind: callable, function: 'run_rewards:{function}', memory_mb: 512}}"


@pytest.mark.usefixtures("rewards")
def test_a_reward_that_never_works_ends_the_run(cvxrl: Any, tmp_path: Path) -> None:
    done = cvxrl("train", "smoke", *SMALL, *callable_reward("broken"))
    assert done.code == 2
    assert "could not grade a reply (crash)" in done.out and "grader.log" in done.out
    assert "of the last" in done.err and "task.grading.max_error_share" in done.err
    run = tmp_path / "outputs" / "smoke" / "seed-0"
    assert "about to die" in (run / "grader.log").read_text()
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "failed" and "could not grade" in record["failure"]


@pytest.mark.usefixtures("rewards")
def test_the_share_of_replies_that_could_not_be_graded_is_shown(cvxrl: Any, tmp_path: Path) -> None:
    goes_on = ("--set", "task.grading.max_error_share=1", "--set", "eval.every=0")
    done = cvxrl("train", "smoke", *SMALL, *goes_on, *callable_reward("broken"))
    assert done.code == 0
    assert "could not grade a reply" in done.out and "reward 0.000 grader errors 1.000" in done.out
    assert "grader errors in training, up to 1.000" in " ".join(done.out.split())


def test_the_number_of_held_out_questions_is_the_number_asked(cvxrl: Any, tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}+{j}?", "answer": i + j} for i in range(1, 7) for j in range(5)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = "task.source={kind: dataset, path: sums.jsonl}"
    done = cvxrl("train", "smoke", *SMALL, "--set", data, "--set", "eval.prompts=128")
    assert done.code == 0, done.err
    evaluations = sorted((tmp_path / "outputs/smoke/seed-0/evals").glob("step-*.json"))
    count = json.loads(evaluations[-1].read_text())["sampling"]["questions"]
    assert 0 < count < 10
    assert f"held-out accuracy, {count} x 2 samples" in " ".join(done.out.split()) and "128 x" not in done.out
    assert f"eval.prompts is 128, the task holds {count} out: all {count} are asked" in done.out
