"""`cvxrl eval` repeats a run's own evaluations bit for bit, and what is stored has one form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import SilentSink, quick_if, tiny

from cvxrl.engine.session import run_training
from cvxrl.evaluation.folder import EvalDir, read_record, read_samples
from cvxrl.evaluation.options import Options
from cvxrl.evaluation.plan import make_plan
from cvxrl.evaluation.record import EvalRecord
from cvxrl.evaluation.runner import Exam
from cvxrl.runs.directory import RunDir
from cvxrl.runs.jsonl import read_lines, read_records

KEPT = (
    *("train.steps=2", "optim.lr=1e-3", "eval.every=1", "eval.prompts=5", "eval.samples=3"),
    *("checkpoint.every=1", "logging.samples=9"),
)
CASES: dict[str, tuple[str, list[str]]] = {
    "nucleus and another seed": ("math_grpo", ["eval.top_p=0.9", "eval.seed=7"]),
    "batches of the recipe under autocast": ("math_lco_kld", ["rollout.batch=4", "train.precision=bf16"]),
    "half precision through the model's own forward": (
        "math_grpo",
        ["model.dtype=bfloat16", "rollout.engine=transformers"],
    ),
    "greedy": ("math_grpo", ["eval.temperature=0"]),
    "an adapter": ("math_lora", ["eval.prompts=1"]),
}


class Silent:
    def start(self, title: str, total: int, done: int) -> None: ...

    def advance(self, completions: int, correct: int) -> None: ...

    def note(self, text: str) -> None: ...


def trained(out: Path, name: str, *overrides: str) -> RunDir:
    recipe = tiny(name, *KEPT, *overrides)
    run_dir = RunDir.of(out, recipe)
    assert run_training(recipe, run_dir, SilentSink(), "new").status == "finished"
    return run_dir


def evaluate(ckpt: Path, out: Path, **options: Any) -> EvalRecord:
    plan = make_plan(Options(ckpt=str(ckpt), out=out, **options))
    exam = Exam.prepare(plan, "cpu")
    record = exam.run(Silent(), lambda: False)
    exam.close()
    assert record is not None
    return record


@pytest.mark.parametrize("case", quick_if("batches of the recipe under autocast".__eq__, CASES))
def test_eval_repeats_what_training_logged(case: str, tmp_path: Path) -> None:
    run_dir = trained(tmp_path, CASES[case][0], *CASES[case][1])
    logged = {r["step"]: r for r in read_records(run_dir.metrics)}
    assert (
        len({read_record(run_dir.evaluation(step)).checkpoint.sha256 for step in (0, 1, 2)}) == 3  # type: ignore[union-attr]
    ), "nothing was learned"
    for step, path in ((1, run_dir.checkpoints / "step-000001"), (2, run_dir.path)):
        record = evaluate(path, tmp_path / str(step))
        stored = read_record(run_dir.evaluation(step))
        assert record.results.accuracy.value == logged[step]["eval/accuracy"]
        assert record.results.accuracy.stderr == logged[step]["eval/stderr"]
        assert record.results.truncated == logged[step]["eval/truncated"]
        assert record.checkpoint is not None and stored.checkpoint is not None
        assert record.checkpoint.sha256 == stored.checkpoint.sha256
        assert record.task == stored.task and record.rows == stored.rows
        if case == "greedy":  # one completion of a question stands for all
            assert [q.correct * 3 for q in record.questions] == [q.correct for q in stored.questions]
            continue
        assert record.questions == stored.questions and record.sampling == stored.sampling
        shown = read_lines(run_dir.samples(step), json.loads, "")
        assert shown == [s.readable() for s in read_samples(EvalDir(tmp_path / str(step)).samples)[:9]]
