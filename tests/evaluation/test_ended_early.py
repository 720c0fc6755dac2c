"""An evaluation that ends early keeps what was sampled; a grader that is bound to its thread grades in turn."""

from __future__ import annotations

import copy
import itertools
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers import SMALL_POLICY
from thread_world import Meeting, ThreadWorld, together

from cvxrl.errors import Problem, UserError
from cvxrl.evaluation import evaluator
from cvxrl.evaluation.evaluator import Asked, Evaluator
from cvxrl.evaluation.folder import EvalDir, read_samples
from cvxrl.evaluation.options import Options
from cvxrl.evaluation.plan import make_plan
from cvxrl.evaluation.record import EvalRecord
from cvxrl.evaluation.runner import Exam
from cvxrl.recipe.reward import CallableReward
from cvxrl.rollout.generator import Episode, SamplerLost
from cvxrl.tasks import load_grader

# Three batches of four completions, and a fourth of two.
OPTIONS: dict[str, Any] = {"ckpt": str(SMALL_POLICY), "task": "arithmetic", "questions": 7, "samples": 2, "batch": 4}
# What answers an alarm can be set in the main thread alone.
ALARM = """
import signal

def reward(**_):
    signal.signal(signal.SIGALRM, signal.getsignal(signal.SIGALRM))
    return 1.0
"""


class Silent:
    def start(self, title: str, total: int, done: int) -> None: ...

    def advance(self, completions: int, correct: int) -> None:
        assert completions

    def note(self, text: str) -> None: ...


class Apart(ThreadWorld):
    """Ranks that get copies of one another's lists, as processes do."""

    def gather(self, value: Any) -> list[Any]:
        return copy.deepcopy(super().gather(value))


def exam(out: Path, askers: Any = None, **options: Any) -> Exam:
    return Exam.prepare(make_plan(Options(out=out, **OPTIONS, **options)), "cpu", askers)


def run(asked: Exam, stop: Callable[[], bool] = lambda: False) -> EvalRecord | None:
    return asked.run(Silent(), stop)


def kept(out: Path) -> int:
    return len(read_samples(EvalDir(out).samples))


def at_batch(monkeypatch: pytest.MonkeyPatch, number: int, happens: Callable[[], Any]) -> list[int]:
    """Something that happens while this batch is sampled, from 1; the sizes of all batches."""
    sizes: list[int] = []
    generate = Evaluator._generate

    def generated(self: Evaluator, batch: Sequence[Asked]) -> list[Episode]:
        sizes.append(len(batch))
        if len(sizes) == number:
            happens()
        return generate(self, batch)

    monkeypatch.setattr(Evaluator, "_generate", generated)
    return sizes


@pytest.mark.parametrize("number", [1, 2])
def test_the_batch_under_way_is_finished_and_kept(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pressed = threading.Event()
    sizes = at_batch(monkeypatch, number, pressed.set)
    assert run(exam(tmp_path / "out"), pressed.is_set) is None
    assert sizes == [4] * number and kept(tmp_path / "out") == 4 * number


def test_all_that_is_asked_is_an_evaluation_whoever_wanted_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pressed = threading.Event()
    at_batch(monkeypatch, 4, pressed.set)
    record = run(exam(tmp_path / "out"), pressed.is_set)
    assert record is not None and kept(tmp_path / "out") == 14


def test_ranks_stop_together(tmp_path: Path) -> None:
    """One of two is asked to stop, while it samples its first batch of two."""
    meeting, asked, out = Meeting(2), itertools.count(), tmp_path / "out"
    stops = [lambda: False, lambda: next(asked) == 0]
    ranks = [exam(out, Apart(rank, meeting)) for rank in range(2)]
    assert together([lambda r=r: run(ranks[r], stops[r]) or "stopped" for r in range(2)]) == ["stopped"] * 2  # type: ignore[misc]
    assert kept(out) == 8


def lost() -> None:
    raise SamplerLost(Problem("gone", "rollout.engine"))


def test_a_sampler_that_is_lost_loses_no_batch_that_it_had_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even one of which the grading takes longer than the sampler's end."""
    gone, judge = threading.Event(), evaluator.judge

    def judged(*arguments: Any) -> Any:
        assert gone.wait(30) or not sizes[2:]
        return judge(*arguments)

    def goes() -> None:
        gone.set()
        lost()

    sizes = at_batch(monkeypatch, 2, goes)
    monkeypatch.setattr(evaluator, "judge", judged)
    with pytest.raises(UserError, match="gone"):
        run(exam(tmp_path / "out"))
    assert sizes == [4, 4] and kept(tmp_path / "out") == 4


def test_at_once_keeps_what_is_graded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed_again() -> None:
        for thread in threading.enumerate():
            if thread.name == "beside":
                thread.join(30)
        raise KeyboardInterrupt

    at_batch(monkeypatch, 2, pressed_again)
    with pytest.raises(KeyboardInterrupt):
        run(exam(tmp_path / "out"))
    assert kept(tmp_path / "out") == 4


@pytest.mark.parametrize("at", [0, 3])
def test_a_function_in_this_process_is_called_in_its_thread(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether all goes well or the sampler is lost at the third batch, when two have been graded."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "with_alarm", raising=False)
    (tmp_path / "with_alarm.py").write_text(ALARM)
    asked = exam(tmp_path / "out")
    reward = CallableReward(function="with_alarm:reward", isolated=False)
    asked.evaluator.grader = load_grader(asked.evaluator.task.model_copy(update={"reward": reward}))
    at_batch(monkeypatch, at, lost)
    if at:
        with pytest.raises(UserError, match="gone"):
            run(asked)
        assert kept(tmp_path / "out") == 8
        return
    record = run(asked)
    assert record is not None and record.results.accuracy.value == 1.0
