"""Before the first of many runs: what will run is counted, checked as a whole, and asked about where it is much."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT
from made_runs import make_run, make_seeds

from cvxrl.comparison import train
from cvxrl.comparison.plan import Job
from cvxrl.runs.directory import RunDir

RECIPES = ROOT / "recipes"


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Runs that would have been trained; made up instead."""
    started: list[Job] = []

    def make(planned: Sequence[Job], *_: Any) -> list[Any]:
        started.extend(planned)
        for job in planned:
            shutil.rmtree(job.path, ignore_errors=True)
            sets = [text for text in job.overrides if text.startswith("optim.lr")]
            make_run(job.out, job.recipe.stem, job.seed, overrides=sets)
        return []

    monkeypatch.setattr(train, "train_all", make)
    return started


def test_all_mistakes_come_before_the_first_run(cvxrl: Any, jobs: list[Job], tmp_path: Path) -> None:
    (tmp_path / "text.yaml").write_text(
        "extends: math_grpo\nname: text\n"
        "task: {source: {kind: dataset, path: gone.jsonl, prompt_field: q, answer_field: a}}\n"
    )
    (tmp_path / "own.yaml").write_text(
        "extends: math_grpo\nname: own\nobjective: {kind: callable, function: 'gone:loss'}\nmodel: {path: ./gone}\n"
    )
    given = ("math_grpo", "math_base", "math_lco_kld_dense", "base_sft", "text.yaml", "own.yaml", "--seeds", "0-2")
    done = cvxrl("compare", *given, "--vary", "optim.lr=1e-4,3e-4,1e-3", "--allow-diff", "--yes")
    assert done.code == 2 and not jobs and not (tmp_path / "outputs").exists()
    for words in (
        "left out",  # math_base, which names no objective and which others extend
        "5 methods x 3 values of optim.lr x 3 seeds = 45 runs",
        "base_sft.yaml: objective.kind: learns from demonstrations, math_grpo.yaml from rollouts",
        "math_lco_kld_dense.yaml: advantage.verifier: cannot find the policy",
        "gone.jsonl",
        "there is no module `gone`",
        "own.yaml: model.path: cannot find the policy `./gone`",
    ):
        assert words in done.err, (words, done.err)
    assert done.err.count("advantage.verifier") == 1, "the same mistake once, however many runs share it"


def test_what_would_be_refused_after_training_is_refused_before(cvxrl: Any, jobs: list[Job], tmp_path: Path) -> None:
    given = ("compare", "math_grpo", "math_dapo", "--seeds", "0-1")
    done = cvxrl(*given)
    assert done.code == 2 and "rollout.rounds: differs between the methods" in done.err and not jobs
    assert cvxrl(*given, "--allow-diff").code == 0 and len(jobs) == 4


def test_many_runs_are_asked_about(cvxrl: Any, jobs: list[Job], monkeypatch: pytest.MonkeyPatch) -> None:
    small = ("compare", "math_grpo", "--set", "train.steps=2", "--set", "eval.every=1")
    many = (*small, "--seeds", "0-20")
    done = cvxrl(*many)
    assert done.code == 2 and "--yes: 21 runs would be trained" in done.err and not jobs
    answers = [False, True]
    monkeypatch.setattr("typer.confirm", lambda *_, **__: answers.pop(0))
    monkeypatch.setattr("cvxrl.commands.training._on_a_terminal", lambda: True)
    assert cvxrl(*many).code == 2 and not jobs
    assert cvxrl(*many).code == 0 and len(jobs) == 21 and not answers
    done = cvxrl(*small, "--seeds", "0-41", "--yes")
    assert done.code == 0 and "1 method x 42 seeds = 42 runs: math_grpo\n21 finished, 21 to begin: " in done.err
    assert len(jobs) == 42


def test_the_plan_tells_the_time_by_runs_that_are_there(cvxrl: Any, jobs: list[Job], tmp_path: Path) -> None:
    done = cvxrl("compare", "math_grpo", "--seeds", "0-1")
    assert "2 to begin: 200 steps, in a time that the first run will show" in done.err
    for file in tmp_path.glob("outputs/math_grpo/*/metrics.jsonl"):
        file.write_text(file.read_text().replace('"time/total_s"', '"time/step_s": 1.5, "time/total_s"'))
    done = cvxrl("compare", "math_lco_kld", "math_grpo", "--seeds", "0-1", "--set", "train.steps=2", "--jobs", "2")
    assert done.code == 2  # the runs that are there have other settings
    make_seeds(tmp_path / "more", "math_grpo", [0.5, 0.6])
    for file in tmp_path.glob("more/math_grpo/*/metrics.jsonl"):
        file.write_text(file.read_text().replace('"time/total_s"', '"time/step_s": 1.5, "time/total_s"'))
    small = ("--set", "train.steps=2", "--set", "eval.every=1", "--out", "more", "--jobs", "2")
    done = cvxrl("compare", "math_lco_kld", "math_grpo", "--seeds", "0-1", *small)
    assert "2 finished, 2 to begin: 4 steps, about 0:00:03 at the pace of finished runs" in done.err


def test_lost_steps_are_done_again_on_demand_only(cvxrl: Any, jobs: list[Job], tmp_path: Path) -> None:
    make_run(tmp_path / "outputs", "math_grpo", 0, status="running")
    make_run(tmp_path / "outputs", "math_grpo", 1, status="running")
    (tmp_path / "outputs" / "math_grpo" / "seed-1" / "checkpoints" / "step-000001").mkdir(parents=True)
    given = ("compare", "math_grpo", "--seeds", "0-2", "--set", "train.steps=2", "--set", "eval.every=1")
    done = cvxrl(*given)
    assert done.code == 2 and "--yes: steps would be done again" in done.err and not jobs
    assert "1 to go on, 1 to begin again, 1 to begin" in done.err
    assert "math_grpo seed-0 begins again: its steps were done and not saved" in done.err
    assert cvxrl(*given, "--yes").code == 0
    assert [(job.resume, job.overwrite) for job in jobs] == [(False, True), (True, False), (False, False)]


def test_a_killed_run_is_told_from_one_that_runs(cvxrl: Any, tmp_path: Path) -> None:
    make_seeds(tmp_path / "outputs", "math_grpo", [0.5, 0.6])
    killed = make_run(tmp_path / "outputs", "math_grpo", 2, (0.4, 0.5, 0.6), status="running")
    assert "running, no process trains there, so it was killed; go on with" in cvxrl("compare", "outputs").err
    with RunDir(killed).lock():
        assert "running; go on with" in cvxrl("compare", "outputs").err
