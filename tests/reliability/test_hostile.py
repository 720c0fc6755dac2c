"""What a policy can write, against all that reads it: bounded time and memory, an error counted, no exception."""

from __future__ import annotations

import resource
import time
from collections.abc import Collection
from typing import Any

import pytest
from pydantic import TypeAdapter

from cvxrl.evaluation.answers import strictly_correct
from cvxrl.recipe.extract import ExtractSpec
from cvxrl.recipe.task import TaskSpec
from cvxrl.tasks import Example, Grader, load_grader, load_task

# Long enough: what takes the square of it would take an hour.
LONG = 2**18
# A reply may take this long here. The limits of the graders below are 1 to 3 s; the rest is for a busy machine.
PATIENCE_S = 60.0
REPLIES: dict[str, str] = {
    "nothing": "",
    "brackets": "(" * 50_000 + ")" * 50_000,
    "braces": r"\boxed{" + "{" * 100_000 + "}" * 100_000 + "}",
    "boxes in boxes": r"\boxed{" * 20_000 + "1" + "}" * 20_000,
    "boxes that never open": r"\boxed " * (LONG // 8),
    "a box and much space": r"\boxed" + " " * LONG + "1",
    "many digits": "1" * LONG,
    "many numbers": "1," * (LONG // 2),
    "thousands": "1" + ",000" * (LONG // 4) + ",00",
    "a number and much space": "= 1" + " " * LONG + "x",
    "a number and many dots": "= 1" + "." * LONG + "x",
    "spaces and dots": "= 1" + " ." * (LONG // 2) + "x",
    "minus signs": "-" * LONG + "1",
    "a tower": r"\boxed{9^{9^{9^{9^{9^{9}}}}}}",
    "a high tower": r"\boxed{" + "9^{" * 300 + "9" + "}" * 300 + "}",
    "factorials": r"\boxed{((100000!)!)!}",
    "a long sum": r"\boxed{\sum_{k=1}^{10^{12}} \frac{1}{k^k}}",
    "an endless product": r"\boxed{\prod_{k=1}^{10^{9}} k}",
    "a huge power": r"\boxed{(x+1)^{100000000}}",
    "many roots": r"\boxed{" + r"\sqrt{" * 2000 + "2" + "}" * 2000 + "}",
    "fractions in fractions": r"\boxed{" + r"\frac{1}{1+" * 500 + "1" + "}" * 500 + "}",
    "a macro bomb": r"\def\a{\a\a}\boxed{\a}" + r"\newcommand{\x}{\x\x\x}" * 1000,
    "a matrix": r"\boxed{\begin{pmatrix}" + " & ".join("x" * 3000) + r"\end{pmatrix}}",
    "surrogates": "\ud800\udfff = \udcff 1",
    "a box of surrogates": "\\boxed{\ud800}",
    "zeros and controls": "\0\x01\x1b[2J\r\n\u2028" * 1000 + "1",
    "other digits": "٣ = ৪ \U0001d7d9",
    "right to left": "\u202e\\boxed{1}\u202c",
    "an open tag": "<answer>" * (LONG // 8),
    "tags": "<answer>1</answer>" * (LONG // 16),
    "for a greedy pattern": "a" * 40,
    "code": r"\boxed{__import__('os').system('true')}",
    "format": "{0.__class__}%s%n" * 1000,
}
EXTRACTIONS: list[dict[str, Any]] = [
    {"kind": "none"},
    {"kind": "last-integer"},
    {"kind": "last-number"},
    {"kind": "boxed"},
    {"kind": "tag"},
    {"kind": "regex", "pattern": "(a+)+b", "timeout_s": 1.0},
]
CARELESS = {"kind": "callable", "function": "reliability.hostile:careless", "timeout_s": 1.0, "memory_mb": 512}
EXACT = {"kind": "exact"}
# On a busy machine, its usual work takes a second.
MATHEMATICS = {"kind": "math-verify", "timeout_s": 3.0, "memory_mb": 512}
# Nothing but hostile replies would end a run by default, which tests/tasks hold.
ALL_HOSTILE = {"max_error_share": 1.0}


def make(reward: dict[str, Any], extraction: dict[str, Any], source: dict[str, Any] | None = None) -> Grader:
    task = {
        "source": source or {"kind": "arithmetic"},
        "reward": reward,
        "extract": extraction,
        "grading": ALL_HOSTILE,
    }
    return load_grader(TypeAdapter(TaskSpec).validate_python(task))


def survives(grader: Grader, example: Example, replies: list[str]) -> list[str | None]:
    """Grade one by one; returns the errors."""
    errors = []
    for reply in replies:
        start = time.monotonic()
        grade = grader.grade([reply], [example])[0]
        assert time.monotonic() - start < PATIENCE_S, reply[:40]
        assert grade.reward == grade.reward and not (grade.correct and grade.error)
        errors.append(grade.error)
    return errors


def check(reward: dict[str, Any], extraction: dict[str, Any], names: Collection[str]) -> dict[str, str | None]:
    """Errors by name of the reply; the grader lives on and this process has not grown."""
    grader = make(reward, extraction)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        errors = survives(grader, Example("0", "1?", "1"), [REPLIES[name] for name in names])
        assert grader.grade(["<answer>7</answer> 7"], [Example("0", "1?", "7")])[0].error in (None, "parse")
    finally:
        grader.close()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 512 * 1024  # KiB
    return dict(zip(names, errors, strict=True))


@pytest.mark.parametrize("extraction", EXTRACTIONS, ids=lambda e: str(e["kind"]))
def test_no_reply_breaks_exact_grading(extraction: dict[str, Any]) -> None:
    errors = check(EXACT, extraction, REPLIES)
    late = [name for name, error in errors.items() if error == "timeout"]
    assert late == (["for a greedy pattern"] if extraction["kind"] == "regex" else [])


def test_some_replies_against_math_verify() -> None:
    check(MATHEMATICS, {"kind": "boxed"}, ["a box of surrogates", "a macro bomb", "a tower"])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("extraction", [{"kind": "none"}, {"kind": "boxed"}], ids=lambda e: str(e["kind"]))
def test_no_reply_breaks_math_verify(extraction: dict[str, Any]) -> None:
    errors = check(MATHEMATICS, extraction, REPLIES)
    assert {"timeout", "parse"} <= set(errors.values())
    print({name: error for name, error in errors.items() if error})


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("extraction", EXTRACTIONS, ids=lambda e: str(e["kind"]))
def test_no_reply_breaks_a_function(extraction: dict[str, Any]) -> None:
    check(CARELESS, extraction, REPLIES)


@pytest.mark.slow
def test_reasoning_gym_survives() -> None:
    source = {"kind": "reasoning-gym", "dataset": "chain_sum"}
    reward = {"kind": "reasoning-gym", "timeout_s": 1.0, "memory_mb": 512}
    spec = TypeAdapter(TaskSpec).validate_python({"source": source, "reward": reward, "extract": {"kind": "none"}})
    grader = load_grader(spec)
    try:
        survives(grader, load_task(spec, 0).train(0), list(REPLIES.values()))
    finally:
        grader.close()


@pytest.mark.parametrize("extraction", EXTRACTIONS[:-1], ids=lambda e: str(e["kind"]))
def test_no_reply_breaks_the_strict_grader(extraction: dict[str, Any]) -> None:
    spec = TypeAdapter(ExtractSpec).validate_python(extraction)
    for reply in REPLIES.values():
        start = time.monotonic()
        assert strictly_correct(reply, "1", spec, False, None) in (True, False)
        assert time.monotonic() - start < PATIENCE_S, reply[:40]


def test_a_function_that_hangs_or_dies_costs_one_reply() -> None:
    grader = make({**CARELESS, "ungraded": -1.0}, {"kind": "none"})
    try:
        grades = grader.grade(["hang", "12", "memory", "die", "1a"], [Example("0", "", "")] * 5)
    finally:
        grader.close()
    assert [g.error for g in grades] == ["timeout", None, "memory", "crash", None]
    assert [g.reward for g in grades] == [-1.0, 1.0, -1.0, -1.0, 0.5]
