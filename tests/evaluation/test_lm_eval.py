"""lm-evaluation-harness asks a cvxrl checkpoint the same questions and must find the same accuracy."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cvxrl.evaluation.export import export_samples
from cvxrl.evaluation.folder import EvalDir, read_samples
from cvxrl.evaluation.options import Options
from cvxrl.evaluation.plan import make_plan
from cvxrl.evaluation.record import EvalRecord
from cvxrl.evaluation.runner import Exam
from cvxrl.policy.load import load_policy
from cvxrl.recipe.model import ModelSpec
from cvxrl.recipe.task import ArithmeticSource
from cvxrl.tasks.arithmetic import ArithmeticTask

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason='needs pip install "cvxrl[lm-eval]"'),
]
QUESTIONS = 200
OURS = """
name: sums
version: 1
task:
  source: {kind: dataset, path: questions.jsonl, held_out: 0}
  extract: {kind: last-integer}
sampling: {temperature: 0.0, max_new_tokens: 40}
"""
THEIRS = """
task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: questions.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["<eos>"], do_sample: false, max_gen_toks: 40}
filter_list:
  - name: last-integer
    filter:
      - {function: regex, regex_pattern: "([0-9]+)", group_select: -1}
      - {function: take_first}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


class Silent:
    def start(self, title: str, total: int, done: int) -> None: ...
    def advance(self, completions: int, correct: int) -> None: ...
    def note(self, text: str) -> None: ...


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that is right two times out of three, questions, and a task file for either side."""
    folder = tmp_path_factory.mktemp("lm_eval")
    policy = load_policy(ModelSpec(path="package:cvxrl/assets/base"), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter += 0.5 * parameter.std() * torch.randn(parameter.shape, generator=generator)
    policy.save(folder / "policy")
    task = ArithmeticTask(ArithmeticSource(), 0)
    rows = {e.prompt: e.answer for e in (task.held_out(i) for i in range(QUESTIONS))}
    lines = (json.dumps({"prompt": prompt, "answer": answer}) + "\n" for prompt, answer in rows.items())
    (folder / "questions.jsonl").write_text("".join(lines))
    (folder / "ours.yaml").write_text(OURS)
    (folder / "harness").mkdir()
    (folder / "harness" / "sums.yaml").write_text(THEIRS)
    return folder


def ours(place: Path) -> EvalRecord:
    options = Options(
        ckpt=str(place / "policy"),
        task=str(place / "ours.yaml"),
        data=str(place / "questions.jsonl"),
        out=place / "out",
        entry="overwrite",
    )
    record = Exam.prepare(make_plan(options), "cpu").run(None, Silent(), lambda: False)
    assert record is not None
    export_samples(record, read_samples(EvalDir(place / "out").samples), place / "ours.jsonl")
    return record


def theirs(place: Path) -> tuple[float, list[dict[str, object]]]:
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", "pretrained=policy,dtype=float32"]
    command += ["--tasks", "sums", "--include_path", "harness", "--device", "cpu", "--batch_size", "50"]
    command += ["--log_samples", "--output_path", "theirs"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(place / "cache")}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=230)
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = (place / "theirs").rglob("results_*.json")
    (samples,) = (place / "theirs").rglob("samples_sums_*.jsonl")
    accuracy = json.loads(results.read_text())["results"]["sums"]["exact_match,last-integer"]
    return accuracy, [json.loads(line) for line in samples.read_text().splitlines()]


def test_the_harness_finds_the_same_accuracy(place: Path) -> None:
    record = ours(place)
    accuracy, logged = theirs(place)
    print(f"cvxrl eval {record.results.accuracy.value:.4f}, lm-eval {accuracy:.4f}, {len(logged)} questions")
    assert 0.2 < accuracy < 0.9  # a policy that is always right would agree with any grader
    assert record.results.accuracy.value == pytest.approx(accuracy, abs=1e-12)
    mine = {line["doc"]["prompt"]: line for line in map(json.loads, (place / "ours.jsonl").read_text().splitlines())}
    for line in logged:
        same = mine[line["doc"]["prompt"]]  # type: ignore[index]
        assert same["resps"] == line["resps"], (same["resps"], line["resps"])
        assert same["exact_match"] == line["exact_match"] and same["target_hash"] == line["target_hash"]
        assert set(same) == set(line), set(same) ^ set(line)
