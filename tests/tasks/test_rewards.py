"""Extraction and grading."""

import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from cvxrl.errors import UserError
from cvxrl.recipe.task import TaskSpec
from cvxrl.rollout.beside import beside
from cvxrl.tasks import Example, Grade, Grader, load_grader, load_task
from cvxrl.tasks.extraction import last_integer, last_number
from cvxrl.tasks.passages import last_boxed, last_group, last_tag
from cvxrl.tasks.sandbox import Sandbox
from cvxrl.tasks.worker import limit_cpu, limit_memory


def grader(reward: dict[str, Any], extract: dict[str, Any] | None = None, **source: Any) -> Grader:
    task = {
        "source": source or {"kind": "arithmetic"},
        "reward": reward,
        "extract": extract or {"kind": "none"},
    }
    return load_grader(TypeAdapter(TaskSpec).validate_python(task))


def one(made: Grader, reply: str, answer: str) -> Grade:
    return made.grade([reply], [Example("0", "prompt", answer)])[0]


# --- extraction -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("4+7=11+9=20+3=23", "23"),
        ("The answer is 23.", "23"),
        ("x = -5", "-5"),
        ("x = \N{MINUS SIGN}5", "-5"),
        ("20-3", "3"),
        ("f(2)-3", "3"),
        ("it costs $1,234,567 in all", "1234567"),
        ("1,2,3", "3"),
        ("12345,678", "678"),
        ("7 apples weigh 3.5 kg", "7"),
        ("0.75", None),
        (".75", None),
        ("007", "7"),
        ("-0", "0"),
        ("none", None),
        ("", None),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_last_integer(text: str, found: str | None) -> None:
    assert last_integer(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("7 apples weigh 3.5 kg", "3.5"),
        ("1,072.50", "1072.5"),
        ("72.00", "72"),
        ("-.5", "-0.5"),
        ("-0.0", "0"),
        ("so 3.", "3"),
        ("The balance is -$5", "-5"),
        (r"-\$2{,}125.50", "-2125.5"),
        ("(\N{MINUS SIGN}\N{EURO SIGN}5)", "-5"),
        ("-$.5", "-0.5"),
        ("$-5", "-5"),
        ("$-$5", "-5"),
        ("- $5", "5"),
        ("- 5", "5"),
        ("3-$5", "5"),
        ("$3-$5", "5"),
        ("$3$-$5$", "5"),
        (r"\$3-\$5, or \$3\$-\$5", "5"),
        ("5%-$3", "3"),
        ("in all--$5", "5"),
        ("non-$5", "5"),
    ],
)
def test_last_number(text: str, found: str) -> None:
    assert last_number(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"\boxed{5}", "5"),
        (r"\boxed{\frac{1}{2}} units", r"\frac{1}{2}"),
        (r"\boxed{1}, no, \boxed{2}", "2"),
        (r"\boxed{1} and \boxed{2}", "1, 2"),
        (r"$\boxed{1}$, $\boxed{2}$ or \(\boxed{1}\)", "1, 2"),
        ("\\boxed{1}\n\\boxed{2}", "2"),
        (r"\boxed{3} x \boxed{1} and \boxed{2", None),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed {4}", "4"),
        (r"\boxed{\left\{1}", r"\left\{1"),
        (r"\boxed{5", None),
        (r"\boxed{1}, no, \boxed{2", None),
        (r"\boxed{\frac{1}{2}", None),
        (r"\boxed{1\\", None),
        (r"boxed{5}", None),
        ("5", None),
    ],
)
def test_last_boxed(text: str, found: str | None) -> None:
    assert last_boxed(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("<answer> 4 </answer>", "4"),
        ("<answer>4</answer> <answer>5</answer>", "5"),
        ("<answer>4\n5</answer> done", "4\n5"),
        ("<answer>4</answer> <answer>5", None),
        ("<answer>4", None),
        ("4</answer>", None),
        ("<answers>4</answers>", None),
    ],
)
def test_last_tag(text: str, found: str | None) -> None:
    assert last_tag(text, "answer") == found


def test_last_group() -> None:
    assert last_group("a=1 a=2", r"a=(\d)") == "2"
    assert last_group("b", r"b|(a)") is None
    assert last_group("c", r"(a)") is None


# --- exact ------------------------------------------------------------------------------------------------


def test_exact_rewards_are_the_recipe_s() -> None:
    made = grader({"kind": "exact", "correct": 2.0, "incorrect": -1.0}, {"kind": "last-integer"})
    assert one(made, "1+1=2", "2") == Grade(2.0, True, "2")
    assert one(made, "1+1=3", "2") == Grade(-1.0, False, "3")
    assert one(made, "dunno", "2") == Grade(-1.0, False, None)


@pytest.mark.parametrize(
    ("answer", "reply", "kind"),
    [
        ("2{,}125", "so $2{,}125$.", "last-integer"),
        ("2{,}125", "2125", "last-integer"),
        ("2125", r"so 2\,125", "last-integer"),
        ("2 125", "2 125 seats", "last-integer"),
        ("12500", "in all 12 500", "last-number"),
        ("$1,200.50", "1200.5", "last-number"),
        ("9.0", "so 9", "last-integer"),
        ("5.", "5", "last-integer"),
        ("x = 5", "5", "last-integer"),
        ("72 apples", "72", "last-integer"),
        ("45%", "45", "last-number"),
        ("-$3", "-3", "last-integer"),
        ("-2125", "it is -$2,125", "last-integer"),
        (r"-\$2{,}125", r"it is -\$2,125", "last-integer"),
        ("-\N{EURO SIGN}.50", "-0.5", "last-number"),
        ("\N{POUND SIGN}-3", "-\N{POUND SIGN}3", "last-number"),
        ("3/2", "3/2", "last-integer"),
    ],
)
def test_numbers_of_right_answers_may_be_written_as_people_write_them(answer: str, reply: str, kind: str) -> None:
    grade = one(grader({"kind": "exact"}, {"kind": kind}), reply, answer)
    assert (grade.correct, grade.error) == (True, None)


@pytest.mark.parametrize(
    ("answer", "reply"), [("2{,}125", "125"), ("300", "100 200 300 400"), ("100200300", "1100 200 300"), ("9.5", "9")]
)
def test_another_number_is_wrong(answer: str, reply: str) -> None:
    assert not one(grader({"kind": "exact"}, {"kind": "last-integer"}), reply, answer).correct


def test_numeric_answers_are_compared_in_one_spelling() -> None:
    made = grader({"kind": "exact"}, {"kind": "last-integer"})
    assert one(made, "so 1234", "1,234").correct
    assert one(made, "so 3", "three") == Grade(0.0, False, "3", error="gold")
    assert one(made, "so 3", "4 and 3").error == "gold"


def test_without_extraction_the_whole_reply_must_be_the_answer() -> None:
    made = grader({"kind": "exact"})
    assert one(made, " 2\n", "2").correct
    assert not one(made, "it is 2", "2").correct


@pytest.mark.parametrize("answer", ["", "  "])
@pytest.mark.parametrize(
    ("extract", "reply"),
    [({"kind": "none"}, " "), ({"kind": "tag"}, "<answer></answer>"), ({"kind": "boxed"}, r"\boxed{ }")],
)
def test_an_empty_right_answer_is_met_by_no_reply(extract: dict[str, Any], reply: str, answer: str) -> None:
    made = grader({"kind": "exact"}, extract)
    assert one(made, reply, answer) == Grade(0.0, False, "", error="gold")
    assert made.unmatchable([answer]) == ["empty"]


# --- math-verify ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mathematics() -> Iterator[Grader]:
    pytest.importorskip("math_verify")
    made = grader({"kind": "math-verify"}, {"kind": "boxed"})
    yield made
    made.close()


@pytest.mark.parametrize(
    ("answer", "reply", "correct"),
    [
        (r"\frac{1}{2}", r"\boxed{0.5}", True),
        (r"\frac{1}{2}", r"\boxed{\frac{2}{4}}", True),
        ("$1,234$", r"\boxed{1234}", True),
        (r"so \boxed{7}", r"\boxed{7}", True),
        ("23", r"\boxed{24}", False),
        ("3x+4y+14=0", r"\boxed{x=0}", False),
        # An interval answers an inequality, but an inequality does not answer an interval: gold goes first.
        ("1<x<2", r"\boxed{(1,2)}", True),
        ("(1,2)", r"\boxed{1<x<2}", False),
    ],
)
def test_mathematical_equality(mathematics: Grader, answer: str, reply: str, correct: bool) -> None:
    grade = one(mathematics, reply, answer)
    assert (grade.correct, grade.reward, grade.error) == (correct, float(correct), None)


def test_what_cannot_be_parsed_is_an_error_and_what_is_absent_is_wrong(mathematics: Grader) -> None:
    assert one(mathematics, r"\boxed{\frac{1}}", "1").error == "parse"
    assert one(mathematics, r"\boxed{}", "1").error == "parse"
    assert one(mathematics, r"\boxed{1}", "").error == "gold"
    assert one(mathematics, "I do not know", "1") == Grade(0.0, False, None)
    assert one(mathematics, r"\boxed{1", "1") == Grade(0.0, False, None)


def test_without_extraction_math_verify_finds_the_answer_itself() -> None:
    pytest.importorskip("math_verify")
    made = grader({"kind": "math-verify"})
    try:
        assert one(made, "Therefore the answer is $\\frac{3}{6}$.", "1/2").correct
        assert not one(made, "Therefore the answer is $\\frac{3}{5}$.", "1/2").correct
    finally:
        made.close()


def test_an_endless_comparison_is_an_error_and_the_next_reply_is_graded() -> None:
    pytest.importorskip("math_verify")
    made = grader({"kind": "math-verify", "timeout_s": 2.0, "incorrect": -1.0}, {"kind": "boxed"})
    try:
        started = time.monotonic()
        bad, good = made.grade([r"\boxed{9^{9^{9^{9}}}}", r"\boxed{3}"], [Example("0", "", "3")] * 2)
        assert (bad.reward, bad.correct) == (-1.0, False) and bad.error in ("timeout", "memory")
        assert good == Grade(1.0, True, "3")
        assert time.monotonic() - started < 120
    finally:
        made.close()


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "cvxrl\[math\]"'):
        grader({"kind": "math-verify"})


# --- the process behind it --------------------------------------------------------------------------------


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    monkeypatch.setattr(sys, "path", [*sys.path, str(Path(__file__).parent)])
    made = Sandbox("misbehaving:misbehave", {}, timeout_s=1.5, memory_mb=256)
    yield made
    made.close()


def test_the_sandbox_survives_whatever_a_judge_does(sandbox: Sandbox) -> None:
    deeds = ["print", "fail", "sleep", "die", "fill the memory", "hold the interpreter", "fine"]
    verdicts = [sandbox.run([{"do": deed}])[0] for deed in deeds]
    assert [v.error for v in verdicts[:5]] == [None, "KeyError", "timeout", "crash", "memory"]
    assert verdicts[5].error == "timeout"
    assert verdicts[6].score is not None and verdicts[6].score != os.getpid()


def test_the_process_is_kept_after_an_ordinary_failure_and_replaced_after_a_lost_one(sandbox: Sandbox) -> None:
    first, _, second, _, third = (
        sandbox.run([{"do": d, "n": n}])[0].score for n, d in enumerate(["a", "fail", "b", "die", "c"])
    )
    assert first == second != third


def test_equal_jobs_are_judged_once(sandbox: Sandbox) -> None:
    started = time.monotonic()
    assert [v.error for v in sandbox.run([{"do": "sleep"}] * 8)] == ["timeout"] * 8
    assert time.monotonic() - started < 8


def test_a_judge_loads_no_library_of_ours_and_closing_ends_its_process(sandbox: Sandbox) -> None:
    pid = int(sandbox.run([{"do": "fine"}])[0].score or 0)
    os.kill(pid, 0)
    sandbox.close()
    sandbox.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert sandbox.run([{"do": "libraries"}])[0].score == 0.0


def test_an_interrupt_ends_the_wait_at_once_and_its_reply_is_nobody_s(sandbox: Sandbox) -> None:
    """The process still answers the job that nobody waits for; the next job is another process's."""
    first = sandbox.run([{"do": "fine"}])[0].score
    sandbox._timeout_s, results = 5.0, list[Any]()

    def job() -> None:
        results.extend(sandbox.run([{"do": "sleep"}]))

    with pytest.raises(KeyboardInterrupt), beside(job, torch.device("cpu")):
        time.sleep(0.1)
        raise KeyboardInterrupt
    assert not results, "it has not been waited for"
    assert sandbox.run([{"do": "fine", "n": 1}])[0].score not in (None, first)


def test_a_forgotten_sandbox_takes_its_process_along() -> None:
    made = Sandbox("cvxrl.tasks.judges:math_verify", {}, timeout_s=5, memory_mb=512)
    pytest.importorskip("math_verify")
    made.run([{"gold": "1", "reply": "1", "whole": False}])
    worker = made._worker
    assert worker is not None
    process = worker._process
    del made, worker
    assert process.poll() is not None


def test_a_judge_that_cannot_start_says_why() -> None:
    with pytest.raises(UserError, match="No module named 'nowhere_at_all'"):
        Sandbox("nowhere_at_all:judge", {}, timeout_s=1, memory_mb=64).run([{}])


def test_without_the_systems_limits_there_is_still_the_time_limit(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A system that has no `resource` module: setting limits does nothing, and what a job may take is measured here."""
    monkeypatch.setitem(sys.modules, "resource", None)
    limit_cpu(0.0)
    limit_memory(0)
    [timeout, fine] = sandbox.run([{"do": "sleep"}, {"do": "fine"}])
    assert timeout.error == "timeout" and fine.score is not None


# --- reasoning-gym's own score ----------------------------------------------------------------------------


def test_reasoning_gym_scores_answers_other_than_its_own() -> None:
    pytest.importorskip("reasoning_gym")
    source = {"kind": "reasoning-gym", "dataset": "countdown", "config": {"min_numbers": 3, "max_numbers": 3}}
    spec = TypeAdapter(TaskSpec).validate_python(
        {"source": source, "extract": {"kind": "tag"}, "reward": {"kind": "reasoning-gym"}}
    )
    example = load_task(spec, seed=0).train(0)
    made = load_grader(spec)
    try:
        replies = [f"<answer>({example.answer})</answer>", "<answer>1+1</answer>", example.answer]
        right, wrong, absent = made.grade(replies, [example] * 3)
        assert f"({example.answer})" != example.answer  # exact equality would call the first reply wrong
        assert (right.reward, right.correct) == (1.0, True)
        assert (wrong.reward, wrong.correct) == (0.0, False)
        assert absent == Grade(0.0, False, None)
    finally:
        made.close()


# --- callable ---------------------------------------------------------------------------------------------

MODULE = """
def share(completion, answer, prompt, info, extracted, scale=1.0): return scale * (extracted == answer)
def truth(completion, answer, **_): return answer in completion
def nothing(**_): return None
def words(**_): return "1.0"
def undefined(**_): return float("nan")
def broken(completion, **_): return int(completion)
def narrow(completion): return 1.0
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rewards.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)


def mine(name: str, **more: Any) -> Grader:
    return grader({"kind": "callable", "function": f"my_rewards:{name}", **more}, {"kind": "last-integer"})


@pytest.mark.usefixtures("module")
def test_a_function_s_number_is_the_reward() -> None:
    half = mine("share", kwargs={"scale": 0.5}, threshold=0.5)
    assert one(half, "so 4", "4") == Grade(0.5, True, "4")
    assert one(half, "so 5", "4") == Grade(0.0, False, "5")
    assert one(mine("share", kwargs={"scale": 0.5}), "so 4", "4") == Grade(0.5, False, "4")
    assert one(mine("truth"), "so 4", "4") == Grade(1.0, True, "4")


@pytest.mark.usefixtures("module")
def test_a_function_in_this_process_may_need_its_thread() -> None:
    assert not mine("truth", isolated=False).any_thread
    assert (
        grader({"kind": "exact"}).any_thread and grader({"kind": "callable", "function": "my_rewards:truth"}).any_thread
    )


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothing", "returned None"),
        ("words", "returned '1.0'"),
        ("undefined", "returned nan"),
        ("broken", r"failed on a reply: ValueError.*my_rewards.py, line 7"),
    ],
)
def test_a_function_that_fails_stops_the_run(name: str, said: str) -> None:
    made = mine(name)
    with pytest.raises(UserError, match=said):
        one(made, "so", "4")


@pytest.mark.usefixtures("module")
def test_a_function_that_does_not_fit_is_refused_before_the_run() -> None:
    with pytest.raises(UserError, match=r"does not fit.*\n.*it must take completion, answer"):
        mine("narrow")
    with pytest.raises(UserError, match="did you mean `share`"):
        mine("shore")
    with pytest.raises(UserError, match="is what the grader itself passes"):
        mine("truth", kwargs={"answer": 3})


def test_grades_need_one_example_per_reply() -> None:
    with pytest.raises(ValueError):
        grader({"kind": "exact"}).grade(["1", "2"], [Example("0", "", "1")])
    assert math.isclose(one(grader({"kind": "exact"}), "1", "1").reward, 1.0)
