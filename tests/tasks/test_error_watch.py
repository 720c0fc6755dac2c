"""Functions of the user's that misbehave: told at once, counted, and the end of the command where they are too many."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from cvxrl.errors import UserError
from cvxrl.recipe.task import GradingSpec, TaskSpec
from cvxrl.tasks import Example, Grader, load_grader, load_task
from cvxrl.tasks.graders import ErrorWatch
from cvxrl.tasks.judges import finite_number

MODULE = """
import os, sys, time
def good(completion, **_):
    print("read", completion)
    return 1.0
def leaves(completion, **_): sys.exit(0)
def dies(completion, **_): os._exit(0)
def blocks(completion, **_): time.sleep(60)
def fills(completion, **_): return float(len(bytearray(10 * 2**30)))
def asks(completion, **_): return float(input())
def sometimes(completion, **_): return 1.0 if completion == "good" else os._exit(1)
class Pair:
    def __float__(self): raise RuntimeError("two elements")
def pairs(completion, **_): return Pair()
class One:
    def __float__(self): return 0.5
def tensor_of_one(completion, **_): return One()
def examples(): sys.exit(3)
"""
EXAMPLE = Example("0", "p", "1")


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "odd_rewards.py").write_text(MODULE)
    (tmp_path / "leaves_at_once.py").write_text("import sys\nprint('bye')\nsys.exit(0)\n")
    (tmp_path / "dies_at_once.py").write_text("import os\nprint('last words', flush=True)\nos._exit(0)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("odd_rewards", "leaves_at_once", "dies_at_once"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def spec(function: str, grading: dict[str, Any] | None = None, **reward: Any) -> TaskSpec:
    reward = {"kind": "callable", "function": function, "memory_mb": 512, "timeout_s": 5.0} | reward
    source = {"kind": "arithmetic"}
    return TypeAdapter(TaskSpec).validate_python({"source": source, "reward": reward, "grading": grading or {}})


@pytest.fixture
def load() -> Iterator[Any]:
    made: list[Grader] = []

    def make(*arguments: Any, **options: Any) -> Grader:
        made.append(load_grader(spec(*arguments, **options)))
        return made[-1]

    yield make
    for grader in made:
        grader.close()


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("leaves_at_once:f", r"importing `leaves_at_once` failed: SystemExit: 0 \(.*leaves_at_once.py, line 3\)"),
        ("dies_at_once:f", r"loading `dies_at_once:f` ended the process:\s+last words"),
        ("odd_rewards:nothing", "`odd_rewards` has no `nothing`"),
    ],
)
def test_a_module_that_ends_its_process_is_refused_by_name(load: Any, function: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        load(function)
    assert caught.value.problems[0].key == "task.reward.function"


def test_leaving_is_no_way_out_in_this_process_either(load: Any) -> None:
    with pytest.raises(UserError, match="importing `leaves_at_once` failed: SystemExit: 0"):
        load("leaves_at_once:f", isolated=False)
    with pytest.raises(UserError, match="failed on a reply: SystemExit: 0"):
        load("odd_rewards:leaves", isolated=False).grade(["x"], [EXAMPLE])
    source = {"kind": "callable", "function": "odd_rewards:examples"}
    with pytest.raises(UserError, match="`odd_rewards:examples` failed: SystemExit: 3"):
        load_task(TypeAdapter(TaskSpec).validate_python({"source": source}), seed=0)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("leaves", "failed on a reply: SystemExit: 0"),
        ("asks", "failed on a reply: EOFError"),
        ("pairs", r"returned .*\(Pair\)"),
    ],
)
def test_nonsense_stops_at_once(load: Any, function: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load(f"odd_rewards:{function}").grade(["x"], [EXAMPLE])


@pytest.mark.parametrize(("function", "error"), [("dies", "crash"), ("fills", "memory"), ("blocks", "timeout")])
def test_what_breaks_a_limit_is_told_at_once_and_ends_the_command_in_the_end(
    load: Any, function: str, error: str
) -> None:
    grader = load(f"odd_rewards:{function}", {"over": 4}, timeout_s=2.0 if function == "blocks" else 20.0)
    told: list[str] = []
    grader.attend(told.append, None)
    with pytest.raises(
        UserError, match=rf"`odd_rewards:{function}` could not grade . of the last . replies: . {error}"
    ):
        for number in range(4):
            grader.grade([f"x{number}"], [EXAMPLE])
    assert len(told) == 1 and f"could not grade a reply ({error})" in told[0]


def test_a_share_below_the_limit_goes_on_and_a_limit_of_one_never_stops(load: Any) -> None:
    replies = ["good", "good", "bad 1", "good", "bad 2", "good"]
    errors = [None, None, "crash", None, "crash", None]
    below = load("odd_rewards:sometimes", {"over": 8}).grade(replies, [EXAMPLE] * 6)
    assert [grade.error for grade in below] == errors
    worst = load("odd_rewards:sometimes", {"over": 2, "max_error_share": 1.0}).grade(["a", "b", "c"], [EXAMPLE] * 3)
    assert [grade.error for grade in worst] == ["crash"] * 3


def grader_log(folder: Path) -> str:
    return (folder / "grader.log").read_text() if (folder / "grader.log").is_file() else ""


@pytest.mark.parametrize("isolated", [True, False])
def test_what_a_function_prints_is_kept(load: Any, tmp_path: Path, isolated: bool, capsys: Any) -> None:
    grader = load("odd_rewards:good", isolated=isolated)
    grader.attend(print, tmp_path / "grader.log")
    assert grader.grade(["one", "two"], [EXAMPLE] * 2)[1].reward == 1.0
    grader.close()
    for _ in range(200):  # a thread writes it
        if "read two" in grader_log(tmp_path):
            break
        time.sleep(0.05)
    assert (tmp_path / "grader.log").read_text() == "read one\nread two\n"
    assert capsys.readouterr().out == ""


def test_replies_that_are_no_mathematics_are_no_failures_of_the_grader() -> None:
    watch = ErrorWatch(GradingSpec(over=4), "the grader")
    for _ in range(8):
        watch.saw("parse")
    watch.settle()
    with pytest.raises(UserError, match="3 of the last 4 replies: 2 timeout, 1 gold"):
        for error in ("timeout", "timeout", "gold"):
            watch.saw(error)


def test_numbers_of_any_kind_are_rewards_and_nothing_else() -> None:
    class Torn:
        def __float__(self) -> float:
            raise RuntimeError("a tensor of two elements")

    kept = [finite_number(value) for value in (True, 2, 0.5, "1", None, Torn(), [1.0], float("inf"), b"1")]
    assert kept == [1.0, 2.0, 0.5, None, None, None, None, None, None]
