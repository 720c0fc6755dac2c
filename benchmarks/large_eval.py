"""What `cvxrl eval` of many questions takes beside sampling: the seconds of every part, and their sum over sampling.

One evaluation in this process, its parts timed as they are called: wall and processor seconds. `loading` is imports,
questions and policy.

    python benchmarks/large_eval.py outputs/math_grpo/seed-0                       # 1000 questions x 16
    python benchmarks/large_eval.py DIR --questions 100 --task my_math.yaml
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Seconds = dict[str, tuple[float, float]]


def timed(spent: Seconds, part: str, owner: Any, name: str) -> None:
    """Count what calls of ``owner.name`` take as ``part``."""
    inside: Callable[..., Any] = getattr(owner, name)

    def call(*arguments: Any, **named: Any) -> Any:
        wall, processor = time.perf_counter(), time.process_time()
        try:
            return inside(*arguments, **named)
        finally:
            before = spent.get(part, (0.0, 0.0))
            spent[part] = (before[0] + time.perf_counter() - wall, before[1] + time.process_time() - processor)

    setattr(owner, name, call)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("ckpt", help="as --ckpt of cvxrl eval")
    parser.add_argument("--task", help="as of cvxrl eval; the run's own otherwise")
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    spent: Seconds = {}
    began = time.perf_counter(), time.process_time()
    import cvxrl
    from cvxrl.evaluation import evaluator, runner
    from cvxrl.evaluation.folder import EvalDir
    from cvxrl.rollout.local_generator import LocalGenerator
    from cvxrl.tasks.graders import GraderBase

    timed(spent, "sampling", LocalGenerator, "generate")
    timed(spent, "grading", GraderBase, "grade")
    timed(spent, "judging, grading included", evaluator, "judge")
    timed(spent, "samples.jsonl", EvalDir, "append")
    timed(spent, "EVAL.json", runner, "write_json")
    timed(spent, "page", runner, "evaluation_page")
    timed(spent, "record", runner.Exam, "_record")
    timed(spent, "loading", runner.Exam, "prepare")
    asked = {"task": arguments.task} if arguments.task else {}
    with tempfile.TemporaryDirectory() as folder:
        cvxrl.evaluate(
            arguments.ckpt,
            questions=arguments.questions,
            samples=arguments.samples,
            out=Path(folder) / "evaluation",
            **asked,
        )
    spent["everything"] = (time.perf_counter() - began[0], time.process_time() - began[1])
    ratios = [whole / sampling for whole, sampling in zip(spent["everything"], spent["sampling"], strict=True)]
    if arguments.json:
        print(json.dumps({"seconds": spent, "of_sampling": ratios}))
        return
    for part, (wall, processor) in spent.items():
        print(f"{part:26} {wall:8.2f} s, processor {processor:8.2f} s")
    print(f"everything over sampling: {ratios[0]:.2f} in time, {ratios[1]:.2f} in processor time", file=sys.stderr)


if __name__ == "__main__":
    main()
