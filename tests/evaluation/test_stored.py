"""What is stored of an evaluation: one form, and the forms of version 0.1."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, SilentSink, tiny

from cvxrl.engine.session import run_training
from cvxrl.engine.trainer import Trainer
from cvxrl.errors import UserError
from cvxrl.evaluation.folder import EvalDir, read_record
from cvxrl.evaluation.held_out import HeldOut
from cvxrl.evaluation.options import Options
from cvxrl.evaluation.plan import make_plan
from cvxrl.evaluation.record import EvalRecord, Settings
from cvxrl.evaluation.summary import summarize
from cvxrl.runs.directory import RunDir
from cvxrl.runs.jsonl import read_records
from cvxrl.tasks import Example, Grade

# As cvxrl 0.1 wrote evals/step-000010.json.
STEP_01: dict[str, Any] = {
    "step": 10,
    "accuracy": 0.5,
    "stderr": 0.25,
    "prompts": 2,
    "samples": 4,
    "temperature": 1.0,
    "truncated": 0.125,
    "grader_errors": 0.0,
    "correct": [[1, 0, 0, 0], [1, 1, 1, 0]],
}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    recipe = tiny("math_grpo", "train.steps=1", "eval.every=1")
    run_dir = RunDir.of(tmp_path_factory.mktemp("runs"), recipe)
    assert run_training(recipe, run_dir, SilentSink(), "new").status == "finished"
    return run_dir


def test_training_stores_what_eval_does(run_dir: RunDir) -> None:
    record = read_record(run_dir.evaluation(1))
    logged = read_records(run_dir.metrics)[-1]
    assert record.step == 1 and record.schema_version == 2
    assert record.checkpoint is not None and record.checkpoint.path == "checkpoints/step-000001"
    assert record.checkpoint.recipe == run_dir.read_record().digest and record.checkpoint.seed == 0
    assert record.task is not None and record.task.name == "held-out" and record.task.spec == tiny("math_grpo").task
    assert (record.sampling.questions, record.sampling.samples, record.sampling.seed) == (4, 2, 0)
    assert record.results.accuracy.value == logged["eval/accuracy"]
    assert len(record.questions) == 4 and all(len(column) == 2 for q in record.questions for column in q.columns)
    # What differs from run to run is not in it, so that a repetition writes the same bytes.
    assert record.finished is record.seconds is record.provenance is None


def test_weights_have_one_digest(run_dir: RunDir) -> None:
    before = read_record(run_dir.evaluation(0)).checkpoint
    assert before is not None and before.sha256 == run_dir.read_record().model_hash


def test_from_reads_what_training_stored(run_dir: RunDir, cvxrl: Any) -> None:
    done = cvxrl("eval", "--from", str(run_dir.evaluation(1)), "--k", "2", "--json")
    assert done.code == 0, done.err
    record, document = read_record(run_dir.evaluation(1)), json.loads(done.out)
    assert document["results"]["accuracy"] == record.results.accuracy.model_dump()
    right = [any(q.correct) for q in record.questions]
    assert document["results"]["at_k"][0]["pass_at_k"]["value"] == sum(right) / 4
    table = cvxrl("eval", "--from", str(run_dir.evaluation(1)))
    assert "after step 1" in table.out and "unknown" not in table.out and "4 x 2" in table.out
    assert str(run_dir.evaluation(1)) in table.out


def test_from_reads_what_version_0_1_stored_and_invents_nothing(cvxrl: Any, tmp_path: Path) -> None:
    (tmp_path / "step-000010.json").write_text(json.dumps(STEP_01))
    done = cvxrl("eval", "--from", "step-000010.json", "--k", "1,2", "--json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert document["step"] == 10 and document["checkpoint"] is document["task"] is document["provenance"] is None
    assert document["sampling"] == {
        **{"questions": 2, "samples": 4, "temperature": 1.0},
        **{"top_p": None, "max_new_tokens": None, "seed": None},
    }
    results = document["results"]
    accuracy = results["accuracy"]
    assert (accuracy["value"], accuracy["stderr"]) == (0.5, 0.25) and accuracy["low"] < 0.5 < accuracy["high"]
    assert (results["truncated"], results["grader_errors"]) == (0.125, 0.0)
    for name in ("strict_accuracy", "disagreement", "strict_missed", "strict_only", "no_answer", "mean_tokens"):
        assert results[name] is None, name
    assert [row["pass_at_k"]["value"] for row in results["at_k"]] == [0.5, 0.75]
    assert all(row["maj_at_k"] is None for row in results["at_k"])
    table = cvxrl("eval", "--from", "step-000010.json")
    assert table.code == 0 and "policy    unknown after step 10" in table.out and "0.500 ± 0.250" in table.out
    assert table.out.count("unknown") == 3 + 1 + 6 + 2  # policy, task, sampling twice; completions; maj@k of two k
    exported = cvxrl("eval", "--from", "step-000010.json", "--export-samples", "lm.jsonl")
    assert exported.code == 2 and "the completions are not those" in exported.err


@pytest.mark.parametrize(
    "change",
    [
        {"correct": [[1, 0, 0, 0]]},
        {"correct": [[1, 0, 0, 0], [1]]},
        {"correct": [], "prompts": 0},
        {"correct": [[2, 0, 0, 0], [1, 1, 1, 0]]},
        {"more": 1},
        {"temperature": None},
    ],
)
def test_a_damaged_file_of_version_0_1_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps(STEP_01 | change))
    with pytest.raises(UserError, match="cannot be read as an evaluation"):
        read_record(tmp_path / "x.json")


def test_a_record_without_a_column_is_not_taken_for_an_old_one(run_dir: RunDir, tmp_path: Path) -> None:
    values = json.loads(run_dir.evaluation(1).read_text())
    del values["questions"][0]["strict"]
    (tmp_path / "x.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"questions\.0\.strict"):
        read_record(tmp_path / "x.json")


def test_an_evaluation_of_version_0_1_is_read_but_not_gone_on_with(run_dir: RunDir, tmp_path: Path) -> None:
    values = json.loads(run_dir.evaluation(1).read_text())
    del values["step"], values["rows"]
    record = EvalRecord.model_validate(values | {"schema_version": 1})
    folder = EvalDir(tmp_path)
    folder.record.write_text(record.model_dump_json())
    assert read_record(folder.record) == record
    settings = {name: getattr(record, name) for name in Settings.model_fields}
    folder.settings.write_text(Settings(**settings).model_dump_json())
    with pytest.raises(UserError, match=r"begun by cvxrl 0\.1(.|\n)*--overwrite"):
        folder.enter(Settings(**settings | {"schema_version": 2}), "resume")


def test_eval_decodes_as_many_at_a_time_as_training_did(run_dir: RunDir, tmp_path: Path) -> None:
    def rows(**options: Any) -> int | None:
        return make_plan(Options(ckpt=str(run_dir.path), out=tmp_path / "out", **options)).rows

    stored = run_dir.evaluation(1).read_text()
    run_dir.evaluation(1).write_text(json.dumps(json.loads(stored) | {"rows": 5}))
    try:
        assert rows() == 5 and rows(batch=3) == 3
        assert rows(task="arithmetic") is None and rows(max_new_tokens=9) is None
        run_dir.evaluation(1).write_text("{")
        assert rows() is None
    finally:
        run_dir.evaluation(1).write_text(stored)


def test_texts_that_utf_8_cannot_hold_are_stored(tmp_path: Path) -> None:
    class Right:
        any_thread = True

        def grade(self, completions: Any, examples: Any) -> list[Grade]:
            return [Grade(correct=True, reward=1.0, extracted="\udc00", error=None) for _ in completions]

        def close(self) -> None: ...

    recipe = tiny("math_grpo", "eval.prompts=1")
    trainer = Trainer.build(recipe)

    class One:
        held_out_size = 1

        def held_out(self, index: int) -> Example:
            return Example(id="\ud800", prompt="1+1?", answer="\ud800 2")

    found = HeldOut.prepare(recipe, trainer.policy, trainer.generator, One(), Right(), trainer.world).evaluate(0)  # type: ignore[arg-type]
    question = found.record.questions[0]
    assert (question.id, question.answer, question.extracted) == ("\\ud800", "\\ud800 2", ["\\udc00"] * 2)
    assert EvalRecord.model_validate_json(found.record.model_dump_json()) == found.record


def test_every_evaluation_of_the_runs_that_version_0_1_left_is_read() -> None:
    runs = ROOT / "tests" / "fixtures" / "v01" / "runs"
    files = sorted(runs.glob("*/*/evals/step-*.json"))
    assert len(files) > 10
    for file in files:
        record = read_record(file)
        logged = {r["step"]: r for r in read_records(file.parents[1] / "metrics.jsonl")}[record.step]
        again = summarize(record.questions, [1])
        assert again.accuracy.value == pytest.approx(logged["eval/accuracy"], abs=1e-6)
        assert again.accuracy.stderr == pytest.approx(logged["eval/stderr"], abs=1e-6)
        assert record.results.truncated == logged["eval/truncated"]
