"""What `cvxrl eval` of many questions takes beside sampling the same completions.

Three measurements in turn, `--rounds` times: the command as a user calls it, in a process of its own, start-up and all;
sampling alone in this process, the same prompts in the same batches with the same random numbers, nothing decoded,
graded or written; and, with `--parts`, an evaluation in this process with a stopwatch around each of its parts. Wall
seconds and processor seconds (user and system, child processes that grade included) of each, and their ratios.

    python benchmarks/large_eval.py outputs/math_grpo/seed-0                       # 1000 questions x 16
    python benchmarks/large_eval.py DIR --questions 100 --task my_math.yaml --parts
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cvxrl.evaluation.options import Options
from cvxrl.evaluation.plan import make_plan

Seconds = dict[str, tuple[float, float]]


def processor() -> float:
    """Seconds of this process and of those that it waited for."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


@contextmanager
def counted(spent: Seconds, part: str) -> Iterator[None]:
    """Add what the block takes to ``part``."""
    wall, cpu = time.perf_counter(), processor()
    try:
        yield
    finally:
        before = spent.get(part, (0.0, 0.0))
        spent[part] = (before[0] + time.perf_counter() - wall, before[1] + processor() - cpu)


def timed(spent: Seconds, part: str, owner: Any, name: str) -> Callable[[], None]:
    """Count what calls of ``owner.name`` take as ``part``; returns what ends it."""
    inside: Callable[..., Any] = getattr(owner, name)

    def call(*arguments: Any, **named: Any) -> Any:
        with counted(spent, part):
            return inside(*arguments, **named)

    setattr(owner, name, call)
    return lambda: setattr(owner, name, inside)


def command(options: Options, extra: list[str]) -> tuple[float, float]:
    """The command in a process of its own."""
    asked = ["--ckpt", options.ckpt, "--questions", options.questions, "--samples", options.samples]
    asked += ["--task", options.task] if options.task else []
    spent: Seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "cvxrl", "eval", *map(str, asked), "--out", f"{folder}/evaluation", *extra]
        with (Path(folder) / "log.txt").open("w+") as log, counted(spent, "command"):
            if subprocess.run(words, stdout=log, stderr=subprocess.STDOUT, check=False).returncode:
                log.seek(0)
                sys.exit(log.read()[-2000:])
    return spent["command"]


class Sampler:
    """The generator of an evaluation, with the prompts and batches that the command would give it."""

    def __init__(self, options: Options) -> None:
        """Load the policy and the questions."""
        from cvxrl.evaluation.memory import rows_that_fit
        from cvxrl.evaluation.runner import Exam

        self.exam = Exam.prepare(make_plan(options), "auto")
        asked = self.exam.evaluator
        if asked.rows is None:
            asked.rows = rows_that_fit(asked.policy, max(map(len, asked.prompts)), asked.sampling.max_new_tokens)
        self.rows = asked.rows

    def sample(self) -> tuple[float, float]:
        """All completions."""
        sampling = self.exam.settings.sampling
        every = [(q, s) for q in range(sampling.questions) for s in range(sampling.samples)]
        spent: Seconds = {}
        with counted(spent, "sampling"):
            for start in range(0, len(every), self.rows):
                self.exam.evaluator._generate(every[start : start + self.rows])
        return spent["sampling"]


def parts(options: Options) -> Seconds:
    """The parts of an evaluation in this process."""
    from cvxrl.evaluation import evaluator, runner
    from cvxrl.evaluation.folder import EvalDir
    from cvxrl.evaluation.progress import BarProgress
    from cvxrl.rollout.local_generator import LocalGenerator
    from cvxrl.tasks.graders import GraderBase

    spent: Seconds = {}
    with tempfile.TemporaryDirectory() as folder, counted(spent, "everything but imports"):
        ends = [
            timed(spent, part, owner, name)
            for part, owner, name in (
                ("loading", runner.Exam, "prepare"),
                ("sampling", LocalGenerator, "generate"),
                ("judging, grading included", evaluator, "judge"),
                ("grading", GraderBase, "grade"),
                ("samples.jsonl", EvalDir, "append"),
                ("numbers", runner.Exam, "_record"),
                ("EVAL.json", runner, "write_json"),
                ("completions.html", runner, "evaluation_page"),
            )
        ]
        try:
            plan = make_plan(Options(**{**vars(options), "out": Path(folder) / "evaluation"}))
            exam = runner.Exam.prepare(plan, "auto")
            with BarProgress(open(os.devnull, "w")) as progress:
                exam.run(progress, lambda: False)
            exam.close()
        finally:
            for end in ends:
                end()
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("ckpt", help="as --ckpt of cvxrl eval")
    parser.add_argument("--task", help="as of cvxrl eval; the run's own otherwise")
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parts", action="store_true", help="also say what the parts of an evaluation take")
    parser.add_argument(
        "--words", action="append", default=[], help="further words of the command, e.g. --words=--json"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    options = Options(
        ckpt=arguments.ckpt, task=arguments.task, questions=arguments.questions, samples=arguments.samples
    )
    with tempfile.TemporaryDirectory() as folder:
        sampler = Sampler(Options(**{**vars(options), "out": Path(folder) / "evaluation"}))
    sides: dict[str, list[tuple[float, float]]] = {"sampling": [], "command": []}
    for _ in range(arguments.rounds):
        for side, found in (("sampling", sampler.sample()), ("command", command(options, arguments.words))):
            sides[side].append(found)
            print(f"{side:26} {found[0]:8.2f} s, processor {found[1]:8.2f} s", file=sys.stderr)
    ratios = [
        statistics.median(whole[k] / alone[k] for whole, alone in zip(sides["command"], sides["sampling"], strict=True))
        for k in (0, 1)
    ]
    spent = parts(options) if arguments.parts else {}
    if arguments.json:
        load = os.getloadavg()
        print(json.dumps({**sides, "parts": spent, "of_sampling": ratios, "rows": sampler.rows, "load": load}))
        return
    for part, (wall, cpu) in spent.items():
        print(f"  {part:24} {wall:8.2f} s, processor {cpu:8.2f} s")
    print(f"command over sampling, median of {arguments.rounds}: {ratios[0]:.2f} in time, {ratios[1]:.2f} in processor")


if __name__ == "__main__":
    main()
