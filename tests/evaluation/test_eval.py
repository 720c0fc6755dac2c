"""`cvxrl eval`: random numbers, batches, resume, the record, the export, the shipped tasks."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import SilentSink, quick_if, tiny

from cvxrl.engine.session import run_training
from cvxrl.engine.trainer import Trainer
from cvxrl.errors import Problem, UserError
from cvxrl.evaluation import evaluator, memory
from cvxrl.evaluation.evaluator import Asked, Evaluator
from cvxrl.evaluation.export import export_samples
from cvxrl.evaluation.folder import EvalDir, read_record, read_samples
from cvxrl.evaluation.options import Options
from cvxrl.evaluation.plan import make_plan
from cvxrl.evaluation.progress import BarProgress
from cvxrl.evaluation.record import EvalRecord, QuestionRecord
from cvxrl.evaluation.runner import Exam
from cvxrl.evaluation.source import find_task, shipped_tasks, with_data
from cvxrl.evaluation.summary import summarize
from cvxrl.evaluation.table import print_record
from cvxrl.policy.load import load_policy
from cvxrl.recipe.model import ModelSpec
from cvxrl.rollout.randomness import StreamKey
from cvxrl.runs.directory import RunDir
from cvxrl.tasks import load_grader, load_questions

BASE = "package:cvxrl/assets/base"


class Silent:
    def start(self, title: str, total: int, done: int) -> None:
        self.total, self.done, self.notes = total, done, list[str]()

    def advance(self, completions: int, correct: int) -> None:
        self.done += completions

    def note(self, text: str) -> None:
        self.notes.append(text)


def exam(out: Path, **options: Any) -> Exam:
    settings = {"ckpt": BASE, "task": "arithmetic", "questions": 6, "samples": 3, "seed": 5, **options}
    return Exam.prepare(make_plan(Options(out=out, **settings)), "cpu")


def run(out: Path, rows: int | None = None, **options: Any) -> EvalRecord:
    record = exam(out, batch=rows, **options).run(Silent(), lambda: False)
    assert record is not None
    return record


def completions(out: Path) -> dict[tuple[int, int], str]:
    return {(s.question, s.sample): s.completion for s in read_samples(EvalDir(out).samples)}


# --- random numbers ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EvalRecord]:
    out = tmp_path_factory.mktemp("whole") / "all"
    return out, run(out)


@pytest.mark.parametrize("rows", quick_if((4).__eq__, [1, 2, 4, 100]))
def test_batches_change_no_completion(rows: int, whole: tuple[Path, EvalRecord], tmp_path: Path) -> None:
    record = run(tmp_path / "split", rows)
    assert completions(tmp_path / "split") == completions(whole[0])
    assert record.results == whole[1].results and record.questions == whole[1].questions


def test_more_samples_and_questions_leave_the_first_alone(whole: tuple[Path, EvalRecord], tmp_path: Path) -> None:
    run(tmp_path / "more", questions=8, samples=5)
    more = completions(tmp_path / "more")
    assert len(more) == 40
    assert {key: more[key] for key in completions(whole[0])} == completions(whole[0])


def test_another_seed_gives_other_completions(whole: tuple[Path, EvalRecord], tmp_path: Path) -> None:
    run(tmp_path / "other", seed=6)
    assert completions(tmp_path / "other") != completions(whole[0])


def test_samples_of_a_question_differ(whole: tuple[Path, EvalRecord]) -> None:
    assert len(set(completions(whole[0]).values())) > 6  # more than one per question


def test_nobody_else_s_generator_moves(tmp_path: Path) -> None:
    asked = exam(tmp_path / "out")
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    asked.run(Silent(), lambda: False)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (np.random.get_state()[1].tolist(), random.getstate())


def weights_after(recipe: Any, out: Path) -> bytes:
    run_dir = RunDir.of(out, recipe)
    assert run_training(recipe, run_dir, SilentSink(), "new").status == "finished"
    return (run_dir.policy / "model.safetensors").read_bytes()


def test_a_shared_stream_would_let_evaluation_change_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control of test_engine's test that evaluating changes no training number."""

    def trained(every: int, name: str) -> bytes:
        shared = torch.Generator().manual_seed(0)
        monkeypatch.setattr(StreamKey, "uniform", lambda _, n: torch.rand(n, generator=shared, dtype=torch.float64))
        return weights_after(tiny("math_lco_kld", f"eval.every={every}"), tmp_path / name)

    assert trained(1, "often") != trained(0, "never")


# --- batches and memory -----------------------------------------------------------------------------------------


def test_batches_are_filled_across_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[list[Asked]] = []
    original = Evaluator._generate
    monkeypatch.setattr(
        Evaluator, "_generate", lambda self, batch: batches.append(list(batch)) or original(self, batch)
    )
    run(tmp_path / "out", 4, questions=3)
    assert batches == [[(0, 0), (0, 1), (0, 2), (1, 0)], [(1, 1), (1, 2), (2, 0), (2, 1)], [(2, 2)]]


def test_bytes_per_row_by_hand() -> None:
    policy = load_policy(ModelSpec(path=BASE), torch.device("cpu"))
    cache = 2 * 4 * 4 * 32 * 4 * (10 + 40)  # keys and values, layers, heads, width, bytes, tokens
    prefill = 10 * (4 * 128 + 4 * 32 + 2 * 384) * 4
    drawing = policy.model.config.vocab_size * (4 + 8 + 16)
    assert memory.bytes_per_row(policy, 10, 40) == cache + prefill + drawing + 8 * 40


def test_rows_follow_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = load_policy(ModelSpec(path=BASE), torch.device("cpu"))
    row = memory.bytes_per_row(policy, 10, 40)
    for free, rows in ((0, 1), (row / memory.MEMORY_SHARE * 7.5, 7), (1 << 50, memory.MOST_ROWS)):
        monkeypatch.setattr(memory, "free_bytes", lambda _, free=free: free)
        assert memory.rows_that_fit(policy, 10, 40) == rows


def test_out_of_memory_halves_the_batch(
    whole: tuple[Path, EvalRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = exam(tmp_path / "out", batch=16)
    original, tried = Evaluator._generate, []

    def ask(self: Evaluator, batch: list[Asked]) -> Any:
        tried.append(len(batch))
        if tried[-1] > 5:
            raise torch.OutOfMemoryError("too much")
        return original(self, batch)

    monkeypatch.setattr(Evaluator, "_generate", ask)
    progress = Silent()
    record = asked.run(progress, lambda: False)
    assert record is not None and record.results == whole[1].results and record.rows == 4
    assert tried[:3] == [16, 8, 4] and len(progress.notes) == 2


def test_a_batch_is_graded_while_the_next_one_is_sampled(
    whole: tuple[Path, EvalRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The grader waits until the next batch is being sampled: in turn, it would wait for ever."""
    sampling = [threading.Event() for _ in range(6)]
    generate, judge, graded = Evaluator._generate, evaluator.judge, itertools.count(1)

    def generated(self: Evaluator, batch: list[Asked]) -> Any:
        sampling[min(3 * q + s for q, s in batch) // 4].set()
        return generate(self, batch)

    def judged(*arguments: Any) -> Any:
        number = next(graded)
        assert number == 5 or sampling[number].wait(30)
        return judge(*arguments)

    monkeypatch.setattr(Evaluator, "_generate", generated)
    monkeypatch.setattr(evaluator, "judge", judged)
    asked = exam(tmp_path / "out", batch=4)
    record = asked.run(Silent(), lambda: False)
    assert record is not None and record.questions == whole[1].questions and next(graded) == 6
    assert completions(tmp_path / "out") == completions(whole[0])


@pytest.mark.parametrize("at", [1, 5])
def test_what_a_grader_refuses_ends_the_evaluation_and_what_was_graded_is_kept(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, graded = evaluator.judge, itertools.count(1)

    def judged(*arguments: Any) -> Any:
        if next(graded) == at:
            raise UserError(Problem("no more", "task.reward"))
        return judge(*arguments)

    monkeypatch.setattr(evaluator, "judge", judged)
    with pytest.raises(UserError, match="no more"):
        exam(tmp_path / "out", batch=4).run(Silent(), lambda: False)
    assert len(completions(tmp_path / "out")) == 4 * (at - 1)


def test_a_completion_that_fits_nowhere_is_the_user_s_to_shorten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(self: Evaluator, batch: list[Asked]) -> Any:
        raise torch.OutOfMemoryError("too much")

    monkeypatch.setattr(Evaluator, "_generate", ask)
    with pytest.raises(UserError, match="out of memory") as caught:
        exam(tmp_path / "out").run(Silent(), lambda: False)
    assert caught.value.problems[0].key == "--max-new-tokens"


# --- resume -----------------------------------------------------------------------------------------------------


def test_an_interrupted_evaluation_resumes_to_the_same_record(whole: tuple[Path, EvalRecord], tmp_path: Path) -> None:
    out = tmp_path / "out"
    calls = itertools.count()
    assert exam(out, batch=4).run(Silent(), lambda: next(calls) == 1) is None
    assert not EvalDir(out).record.exists() and len(completions(out)) == 8
    with EvalDir(out).samples.open("a") as stream:
        stream.write('{"question": 3, "sam')  # what a crash in the middle of a write leaves
    progress = Silent()
    record = exam(out, batch=4, entry="resume").run(progress, lambda: False)
    assert record is not None and progress.done == progress.total == 18
    assert record.questions == whole[1].questions and record.results == whole[1].results
    assert completions(out) == completions(whole[0])


def test_resume_adds_samples_and_asks_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = run(tmp_path / "out", samples=2)
    asked: list[Asked] = []
    original = Evaluator._generate
    monkeypatch.setattr(Evaluator, "_generate", lambda self, batch: asked.extend(batch) or original(self, batch))
    more = run(tmp_path / "out", samples=3, entry="resume")
    assert asked == [(q, 2) for q in range(6)]
    assert [q.correct[:2] for q in more.questions] == [q.correct for q in few.questions]
    assert read_record(tmp_path / "out" / "EVAL.json") == more


def test_resume_names_what_differs(tmp_path: Path) -> None:
    run(tmp_path / "out", samples=2)
    with pytest.raises(UserError) as caught:
        run(tmp_path / "out", samples=1, temperature=0.5, questions=5, entry="resume")
    keys = {p.key for p in caught.value.problems}
    assert keys == {"sampling.samples", "sampling.temperature", "sampling.questions", "task.fingerprint", "task.unique"}


def test_resume_refuses_another_policy(tmp_path: Path) -> None:
    run(tmp_path / "out", samples=1)
    trainer = Trainer.build(tiny("math_grpo"))
    with torch.no_grad():
        next(iter(trainer.policy.model.parameters()))[0, 0] += 1e-3
    trainer.policy.save(tmp_path / "moved")
    with pytest.raises(UserError, match=r"checkpoint\.sha256"):
        run(tmp_path / "out", samples=1, ckpt=str(tmp_path / "moved"), entry="resume")


def test_one_process_at_a_time(tmp_path: Path) -> None:
    asked = exam(tmp_path / "out")
    with EvalDir(tmp_path / "out").lock(), pytest.raises(UserError, match="another process"):
        asked.run(Silent(), lambda: False)


# --- the record -------------------------------------------------------------------------------------------------


def test_the_record_holds_what_any_k_needs(whole: tuple[Path, EvalRecord]) -> None:
    record = read_record(EvalDir(whole[0]).record)
    assert record == whole[1]
    assert summarize(record.questions, [1]).at_k == record.results.at_k
    assert summarize(record.questions, [2, 3]).at_k[1].pass_at_k.value == np.mean(
        [max(q.correct) for q in record.questions]
    )
    assert record.results.accuracy.value == np.mean([s.correct for s in read_samples(EvalDir(whole[0]).samples)])
    assert record.checkpoint.parameters == 855_296 and record.task.version == 1


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: "", "Invalid JSON"),
        (lambda text: text[: len(text) // 2], "Invalid JSON"),
        (lambda text: "[]", "cannot be read as an evaluation"),
        (lambda text: text.replace('"correct": [\n        1', '"correct": [\n        2', 1), "less than or equal to 1"),
        (lambda text: text.replace('"samples": 3', '"samples": 4', 1), "does not have 4 of everything"),
        (lambda text: text.replace('"questions": 6', '"questions": 7', 1), "6 questions"),
    ],
)
def test_a_damaged_record_is_refused(damage: Any, said: str, whole: tuple[Path, EvalRecord], tmp_path: Path) -> None:
    original = EvalDir(whole[0]).record.read_text()
    assert damage(original) != original
    (tmp_path / "EVAL.json").write_text(damage(original))
    with pytest.raises(UserError, match=said):
        read_record(tmp_path / "EVAL.json")


def test_completions_with_odd_line_breaks_survive(whole: tuple[Path, EvalRecord], tmp_path: Path) -> None:
    samples = read_samples(EvalDir(whole[0]).samples)
    odd = samples[0].model_copy(update={"completion": "a\u2028b\u0085c\nd"})
    EvalDir(tmp_path).append([odd, samples[1]])
    assert read_samples(tmp_path / "samples.jsonl") == [odd, samples[1]]


def test_export_has_the_form_of_log_samples(whole: tuple[Path, EvalRecord], tmp_path: Path) -> None:
    export_samples(whole[1], read_samples(EvalDir(whole[0]).samples), tmp_path / "samples.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert len(lines) == 6
    assert set(lines[0]) == {
        *("doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics"),
        *("doc_hash", "prompt_hash", "target_hash", "exact_match"),
    }
    assert len(lines[0]["resps"][0]) == 3 and lines[0]["arguments"]["gen_args_0"]["arg_1"]["max_gen_toks"] == 40
    assert lines[0]["target_hash"] == hashlib.sha256(lines[0]["target"].encode()).hexdigest()
    assert np.mean([line["exact_match"] for line in lines]) == pytest.approx(whole[1].results.accuracy.value)


def test_export_refuses_completions_of_another_evaluation(whole: tuple[Path, EvalRecord], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not those of"):
        export_samples(whole[1], read_samples(EvalDir(whole[0]).samples)[:-1], tmp_path / "x")


def test_the_tables_fit_80_columns_and_name_n(whole: tuple[Path, EvalRecord]) -> None:
    stream = io.StringIO()
    print_record(whole[1], stream)
    tables = [line for line in stream.getvalue().splitlines() if not line.startswith(("policy", "task", "sampling"))]
    assert max(map(len, tables)) <= 80
    assert sum("6 x 3" in line for line in tables) == 9 + len(whole[1].results.at_k)
    assert "\x1b" not in stream.getvalue()


# --- progress ---------------------------------------------------------------------------------------------------


def test_questions_that_repeat_are_counted_and_said(whole: tuple[Path, EvalRecord]) -> None:
    record = whole[1]
    assert record.task is not None and record.task.unique == len(record.questions)
    twice = record.model_copy(update={"task": record.task.model_copy(update={"unique": 4})})
    shown = io.StringIO()
    print_record(twice, shown)
    assert "6 questions (4 different) x 3" in shown.getvalue()


def test_an_accuracy_has_an_interval_where_all_are_right() -> None:
    one = {"id": "a", "answer": "1", "correct": [1, 1], "strict": None, "truncated": None, "error": None}
    question = QuestionRecord.model_validate({**one, "extracted": None, "tokens": None})
    results = summarize([question] * 15, [1])
    assert results.accuracy.stderr == 0 and results.accuracy.high == 1.0
    assert results.accuracy.low == pytest.approx(0.765, abs=1e-3)
    assert summarize([question], [1]).accuracy.low is None  # of one question nothing is known


def test_plain_progress_is_a_few_lines_with_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("cvxrl.report.progress.time.monotonic", lambda: now[0])
    stream = io.StringIO()
    with BarProgress(stream) as progress:
        progress.start("sums", 1000, 200)
        for _ in range(80):
            now[0] += 1.0
            progress.advance(10, 5)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "sums: 1000 completions, 200 done before"
    assert len(lines) == 9 and "\x1b" not in stream.getvalue()
    assert lines[1].split() == ["300/1000", "right", "0.500", "left", "0:01:10"]  # 10 a second, 700 to go
    assert lines[-1].endswith("left 0:00:00")


def test_a_terminal_gets_a_bar() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with BarProgress(stream) as progress:
        progress.start("sums", 10, 0)
        progress.advance(10, 5)
    assert "10/10" in stream.getvalue() and "right 0.500" in stream.getvalue()


# --- policies and tasks -----------------------------------------------------------------------------------------


def test_a_run_directory_brings_policy_and_task(tmp_path: Path) -> None:
    recipe = tiny("math_lco_kld", "checkpoint.every=1")
    run_dir = RunDir.of(tmp_path, recipe)
    run_training(recipe, run_dir, SilentSink(), "new")
    plan = make_plan(Options(ckpt=str(run_dir.path)))
    assert plan.folder.path == run_dir.path / "evals" / "held-out" and plan.sampling.samples == 2
    record = Exam.prepare(plan, "cpu").run(Silent(), lambda: False)
    assert record is not None and record.checkpoint.seed == 0 and record.sampling.questions == 4
    held_out = [Trainer.build(recipe).task.held_out(i).id for i in range(4)]
    assert [q.id for q in record.questions] == held_out
    inside = make_plan(Options(ckpt=str(run_dir.checkpoints / "step-000001")))
    assert inside.task.spec == recipe.task and inside.folder.path.name == "held-out-step-000001"
    # Without its final policy the newest checkpoint answers.
    (run_dir.policy / "config.json").unlink()
    assert make_plan(Options(ckpt=str(run_dir.path))).target.step == "step-000002"


ROWS: dict[str, dict[str, str]] = {
    "gsm8k": {"question": "6 eggs and 12?", "answer": "6 + 12 = <<6+12=18>>18\n#### 18"},
    "math500": {"problem": "Half?", "answer": r"\frac{1}{2}"},
    "amc23": {"question": "How many?", "answer": "27.0"},
    "aime24": {"problem": "How many?", "answer": "033"},
    "aime25": {"problem": "How many?", "answer": "70"},
    "minerva": {"question": "Energy?", "answer": r"4.5e33"},
}
REPLIES = {
    "gsm8k": ("so there are 18.", "so there are 17."),
    "math500": (r"thus \boxed{0.5}", r"thus \boxed{0.6}"),
    "amc23": (r"\boxed{27}", r"\boxed{28}"),
    "aime24": (r"\boxed{33}", r"\boxed{34}"),
    "aime25": (r"\boxed{70}", r"\boxed{70"),
    "minerva": (r"\boxed{4.5e33}", r"\boxed{4.5e32}"),
}


def test_every_shipped_task_is_tested() -> None:
    assert set(shipped_tasks()) == {*ROWS, "arithmetic", "carrying-sums"}


@pytest.mark.parametrize("name", quick_if("math500".__eq__, ROWS))
def test_a_shipped_task_reads_a_local_copy_and_grades(name: str, tmp_path: Path) -> None:
    file = tmp_path / "copy.jsonl"
    file.write_text("".join(json.dumps({k: f"{v}" for k, v in ROWS[name].items()}) + "\n" for _ in range(2)))
    task = with_data(find_task(name, None), str(file), None)
    assert task.name == name and task.version == 1
    examples = load_questions(task.spec, None, whole=task.whole, exactly=False)
    assert len(examples) == 2
    grader = load_grader(task.spec)
    try:
        right, wrong = grader.grade(list(REPLIES[name]), examples)
    finally:
        grader.close()
    assert right.correct and not wrong.correct and right.error is None


def test_questions_come_in_the_order_of_training_s_evaluation(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"prompt": "0", "answer": "0"}\n')
    (tmp_path / "test.jsonl").write_text("".join(f'{{"prompt": "{i}?", "answer": "{i}"}}\n' for i in range(20)))
    source = f"{{kind: dataset, path: {tmp_path}/train.jsonl, eval_path: {tmp_path}/test.jsonl}}"
    recipe = tiny("math_grpo", f"task.source={source}", "rollout.prompts=1")
    task = Trainer.build(recipe).task
    asked = load_questions(recipe.task, 20, whole=False, exactly=True)
    assert [e.prompt for e in asked] == [task.held_out(i).prompt for i in range(20)]
    assert sorted(int(e.answer) for e in asked) == list(range(20)) != [int(e.answer) for e in asked]


def test_a_run_is_not_asked_what_it_trained_on(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1+1?", "answer": "2"}\n')
    recipe = tiny("math_grpo", f"task.source={{kind: dataset, path: {tmp_path}/rows.jsonl, held_out: 0}}")
    with pytest.raises(UserError, match="holds no questions out"):
        load_questions(recipe.task, 1, whole=False, exactly=False)
    assert len(load_questions(recipe.task, 1, whole=True, exactly=False)) == 1
