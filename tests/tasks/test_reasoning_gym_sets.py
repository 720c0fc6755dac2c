"""Problems of reasoning-gym are the same in every process, and its own answers are right."""

from __future__ import annotations

import hashlib
import pickle
import sys
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from cvxrl.errors import UserError
from cvxrl.recipe.task import TaskSpec
from cvxrl.tasks import Example, check_golds, load_grader, load_task
from cvxrl.tasks.judges import reasoning_gym, reasoning_gym_problems
from cvxrl.tasks.sandbox import Sandbox
from cvxrl.tasks.worker import Judge

# Needs an option that names other data sets.
COMPOSED = "composite"


def spec(dataset: str, reward: str = "reasoning-gym", extract: str = "tag") -> TaskSpec:
    source = {"kind": "reasoning-gym", "dataset": dataset}
    task = {"source": source, "extract": {"kind": extract}, "reward": {"kind": reward}}
    return TypeAdapter(TaskSpec).validate_python(task)


@pytest.mark.parametrize(
    "dataset", ["polynomial_multiplication", pytest.param("isomorphic_strings", marks=pytest.mark.slow)]
)
def test_problems_that_depend_on_the_hash_seed_are_graded_as_they_were_made(
    dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("reasoning_gym")
    monkeypatch.setenv("PYTHONHASHSEED", "1")
    task = load_task(spec(dataset), seed=0)
    examples = [task.train(i) for i in range(12)]
    monkeypatch.setenv("PYTHONHASHSEED", "2")
    grader = load_grader(spec(dataset))
    try:
        grades = grader.grade([f"<answer>{e.answer}</answer>" for e in examples], examples)
    finally:
        grader.close()
    assert [(g.correct, g.error) for g in grades] == [(True, None)] * 12


def test_an_empty_right_answer_is_refused_for_string_equality() -> None:
    wanted = TypeAdapter(TaskSpec).validate_python({"source": {"kind": "arithmetic"}})
    with pytest.raises(UserError, match=r"2 of 2 .* by no reply: row 0 `` \(empty\)"):
        check_golds(wanted, load_grader(wanted), [Example("0", "p", ""), Example("1", "q", "")])


def every_data_set(options: dict[str, Any]) -> Judge:
    """A judge of jobs `{"dataset", "number"}`: a digest of the problem, and the score of its own answer."""

    problems = reasoning_gym_problems({})

    def judge(job: dict[str, Any]) -> dict[str, Any]:
        source = {"kind": "reasoning-gym", "dataset": job["dataset"], "size": 50}
        made = problems({"source": source, "number": job["number"]})
        assert isinstance(made, dict)
        entry = pickle.loads(b64decode(made["entry"]))
        text = f"{entry['question']}\n{entry['answer']}"
        answer = None if entry["answer"] is None else str(entry["answer"]).strip()
        score = None if answer is None else reasoning_gym(source)({"number": job["number"], "reply": answer})
        return {"digest": hashlib.sha256(text.encode()).hexdigest(), "own": score}

    return judge


@pytest.fixture
def two_processes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Sandbox]]:
    monkeypatch.setattr(sys, "path", [*sys.path, str(Path(__file__).parent)])
    made = [Sandbox(f"{Path(__file__).stem}:every_data_set", {}, timeout_s=120, memory_mb=8192) for _ in range(2)]
    yield made
    for sandbox in made:
        sandbox.close()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_data_set_makes_the_same_problems_in_two_processes_and_accepts_its_own_answers(
    two_processes: list[Sandbox],
) -> None:
    package = pytest.importorskip("reasoning_gym")
    names = sorted(set(package.factory.DATASETS) - {COMPOSED})
    # In another order in the second process, so that nothing can be owed to what was made before.
    jobs = [{"dataset": name, "number": number} for name in names for number in (0, 7, 31)]
    first = two_processes[0].run(jobs)
    second = two_processes[1].run(jobs[::-1])[::-1]
    assert len(names) > 100
    assert [(job, result) for job, result in zip(jobs, first, strict=True) if result.error] == []
    assert [job for job, a, b in zip(jobs, first, second, strict=True) if a["digest"] != b["digest"]] == []
    assert [(job, r["own"]) for job, r in zip(jobs, first, strict=True) if r["own"] not in (None, 1.0)] == []
