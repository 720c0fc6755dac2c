"""`cvxrl eval` from the outside: exit codes, messages, what is written, one JSON document."""

from __future__ import annotations

import itertools
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT

from cvxrl.evaluation import evaluator

BASE = ["--ckpt", "package:cvxrl/assets/base"]
SMALL = [*BASE, "--task", "arithmetic", "--questions", "4", "--samples", "2", "--device", "cpu"]


REFUSED: dict[str, tuple[list[str], list[str]]] = {
    "no checkpoint named": (["--task", "arithmetic"], ["--ckpt", "missing", "run directory"]),
    "no such directory": (["--ckpt", "./nowhere", "--task", "arithmetic"], ["--ckpt", "no such directory"]),
    "no such run": (["--ckpt", "runs/x/seed-0", "--task", "arithmetic"], ["--ckpt"]),
    "mistyped run": (["--ckpt", "folder/nowhere"], ["--ckpt", "there is no `folder/nowhere`"]),
    "empty directory": (["--ckpt", "folder", "--task", "arithmetic"], ["--ckpt", "neither a run nor a policy"]),
    "package not installed": (
        ["--ckpt", "package:no_such/x", "--task", "arithmetic"],
        ["--ckpt", "install the package that ships"],
    ),
    "Hub out of reach": (["--ckpt", "nobody/nothing", "--task", "arithmetic"], ["--ckpt", "Hub", "network"]),
    "no task": (BASE, ["--task", "belongs to no run", "gsm8k"]),
    "unknown task": ([*BASE, "--task", "gsm9k"], ["--task", "did you mean `gsm8k`"]),
    "missing task file": ([*BASE, "--task", "mine.yaml"], ["mine.yaml", "no such file"]),
    "task file with mistakes": (
        [*BASE, "--task", "bad.yaml"],
        ["bad.yaml", "version", "did you mean `samples`", "name"],
    ),
    "unknown gym": ([*BASE, "--task", "reasoning-gym:chain_sums"], ["chain_sum"]),
    "no chat template": ([*BASE, "--task", "reasoning-gym:gcd", "--max-new-tokens", "9"], ["--template", "chat"]),
    "data is missing": ([*BASE, "--task", "gsm8k", "--data", "none.jsonl"], ["--data", "none.jsonl"]),
    "data for generated questions": ([*SMALL, "--data", "empty.jsonl"], ["--data", "not rows"]),
    "empty data": ([*BASE, "--task", "gsm8k", "--data", "empty.jsonl"], ["empty.jsonl", "empty"]),
    "other fields": ([*BASE, "--task", "gsm8k", "--data", "fields.jsonl"], ["question", "fields are prompt, answer"]),
    "unreadable data": ([*BASE, "--task", "gsm8k", "--data", "broken.jsonl"], ["broken.jsonl", "cannot be read"]),
    "data only on the Hub": ([*BASE, "--task", "gsm8k"], ["openai/gsm8k", "--data"]),
    "too many questions": ([*BASE, "--task", "gsm8k", "--data", "two.jsonl", "--questions", "3"], ["has 2 questions"]),
    "k above samples": ([*SMALL, "--k", "1,4,8"], ["--k", "4, 8 is more than the 2", "--samples to 8"]),
    "k that is no number": ([*SMALL, "--k", "1,,x"], ["--k", "`x`"]),
    "greedy samples": ([*SMALL, "--temperature", "0"], ["--samples", "same"]),
    "samples without bound": ([*BASE, "--task", "arithmetic", "--samples", "5000"], ["--samples", "1024"]),
    "prompt too long": ([*SMALL, "--max-new-tokens", "60"], ["--max-new-tokens", "context of 64"]),
    "out is a file": ([*SMALL, "--out", "empty.jsonl"], ["--out", "cannot write"]),
    "resume and overwrite": ([*SMALL, "--resume", "--overwrite"], ["--resume", "--overwrite"]),
    "from with ckpt": (["--from", "EVAL.json", "--seed", "1", *BASE], ["--from", "--ckpt, --seed"]),
    "from nothing": (["--from", "EVAL.json"], ["EVAL.json", "no such file"]),
    "from a directory": (["--from", "folder"], ["folder", "cannot read"]),
    "from another file": (["--from", "two.jsonl"], ["two.jsonl", "cannot be read as an evaluation"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, cvxrl: Any, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "fields.jsonl").write_text('{"prompt": "1+1?", "answer": "2"}\n')
    (tmp_path / "broken.jsonl").write_text('{"question": \n')
    (tmp_path / "two.jsonl").write_text('{"question": "1+1?", "answer": "#### 2"}\n' * 2)
    (tmp_path / "bad.yaml").write_text(
        "version: 0\ntask: {source: {kind: arithmetic}}\nsampling: {sample: 3, max_new_tokens: 9}\n"
    )
    before = sorted(tmp_path.iterdir())
    arguments, words = REFUSED[case]
    done = cvxrl("eval", *arguments)
    assert done.code == 2, done.out + done.err
    assert "Traceback" not in done.err and done.out == ""
    for word in words:
        assert word in done.err, (word, done.err)
    assert sorted(tmp_path.iterdir()) == before


def test_all_mistakes_at_once(cvxrl: Any) -> None:
    done = cvxrl(
        "eval", "--ckpt", "./no", "--task", "gsm9k", "--samples", "0", "--temperature", "-1", "--k", "x", "--seed", "-1"
    )
    assert done.code == 2
    for key in ("--ckpt", "--task", "--samples", "--temperature", "--k", "--seed"):
        assert f"error: {key}:" in done.err, done.err


def test_data_and_policy_mistakes_are_told_together(cvxrl: Any, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    done = cvxrl("eval", "--ckpt", "nobody/nothing", "--task", "gsm8k", "--data", "empty.jsonl")
    assert done.code == 2 and "empty.jsonl" in done.err and "--ckpt" in done.err


def test_unfinished_and_corrupt_runs(cvxrl: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{")
    assert "no such file" in cvxrl("eval", "--ckpt", "run").err  # its recipe.yaml
    (run / "recipe.yaml").write_text(f"extends: {ROOT}/recipes/math_grpo.yaml\n")
    done = cvxrl("eval", "--ckpt", "run")
    assert done.code == 2 and "run.json: is damaged" in done.err
    (run / "run.json").unlink()
    done = cvxrl("eval", "--ckpt", "run")
    assert done.code == 2 and "no policy and no checkpoint" in done.err and "--resume" in done.err
    damaged = run / "checkpoints" / "step-000001"
    damaged.mkdir(parents=True)
    (damaged / "config.json").write_text("{}")
    done = cvxrl("eval", "--ckpt", "run")
    assert done.code == 2 and "damaged" in done.err
    (run / "policy").mkdir()
    (run / "policy" / "config.json").write_text("{}")
    done = cvxrl("eval", "--ckpt", "run/policy")
    assert done.code == 2 and "--ckpt" in done.err and "cannot load" in done.err


def test_an_evaluation_end_to_end(cvxrl: Any, tmp_path: Path) -> None:
    first = cvxrl("eval", *SMALL, "--out", "out", "--export-samples", "lm.jsonl", "--json")
    assert first.code == 0, first.err
    document = json.loads(first.out)
    assert document["results"]["questions"] == 4 and [row["k"] for row in document["results"]["at_k"]] == [1]
    assert "8/8" in first.err and len((tmp_path / "lm.jsonl").read_text().splitlines()) == 4
    stored = (tmp_path / "out" / "EVAL.json").read_bytes()
    again = cvxrl("eval", *SMALL, "--out", "out")
    assert again.code == 2 and "--resume" in again.err and "--overwrite" in again.err
    assert (tmp_path / "out" / "EVAL.json").read_bytes() == stored
    recomputed = json.loads(cvxrl("eval", "--from", "out/EVAL.json", "--k", "2", "--json").out)
    correct = [q["correct"] for q in json.loads(stored)["questions"]]
    assert recomputed["results"]["at_k"][0]["pass_at_k"]["value"] == sum(map(any, correct)) / 4
    too_large = cvxrl("eval", "--from", "out/EVAL.json", "--k", "3")
    assert too_large.code == 2 and "--resume" in too_large.err
    assert cvxrl("eval", *SMALL, "--out", "out", "--seed", "9", "--resume").code == 2
    table = cvxrl("eval", *SMALL, "--out", "out", "--seed", "9", "--overwrite")
    assert table.code == 0 and "4 x 2" in table.out and "arithmetic" not in table.err.splitlines()[-1]
    assert (tmp_path / "out" / "EVAL.json").read_bytes() != stored


def test_greedy_takes_one_sample_of_the_task_s_four(cvxrl: Any) -> None:
    done = cvxrl("eval", *BASE, "--task", "arithmetic", "--questions", "3", "--temperature", "0", "--json")
    assert json.loads(done.out)["results"]["samples"] == 1 and "one completion per question" in done.err
    assert json.loads(done.out)["results"]["accuracy"]["value"] == 1.0  # greedy decoding is always right


def test_ctrl_c_keeps_what_is_done(cvxrl: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, first = evaluator.judge, itertools.count()

    def judge(*arguments: Any) -> Any:
        if next(first) == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments)

    monkeypatch.setattr(evaluator, "judge", judge)
    done = cvxrl("eval", *SMALL, "--out", "out", "--batch", "2")
    assert done.code == 130 and done.err.count(" --out out --batch 2 --resume\n") == 2
    assert "finishing this batch of completions; again to stop at once; go on with: cvxrl eval " in done.err
    assert len((tmp_path / "out" / "samples.jsonl").read_text().splitlines()) == 4
    monkeypatch.setattr(evaluator, "judge", original)
    assert cvxrl("eval", *SMALL, "--out", "out", "--resume").code == 0


def test_help_names_every_shipped_task(cvxrl: Any) -> None:
    from cvxrl.evaluation.source import shipped_tasks

    text = " ".join(cvxrl("eval", "--help").out.split())
    assert all(name in text for name in shipped_tasks())
