"""Bad input: exit code 2, every mistake with its key and a remedy, no traceback, nothing half-made."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import traceback
from pathlib import Path
from unittest import mock

import pytest
from helpers import ROOT, SMALL_POLICY

from cvxrl.cli import main

GRPO = str(ROOT / "recipes" / "math_grpo.yaml")


def cvxrl(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command in this process: its exit code and what it prints, a traceback included."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "argv", ["cvxrl", *arguments]),
        mock.patch.dict(os.environ, {"NO_COLOR": "1", "COLUMNS": "200"}),
    ):
        code = 0
        try:
            main()
        except SystemExit as error:
            code = int(error.code or 0)
        except Exception:
            code = 1
            traceback.print_exc()
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def assert_refused(done: subprocess.CompletedProcess[str], cwd: Path, *words: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr, (word, done.stderr)
    assert not (cwd / "outputs").exists()


CASES = {
    "misspelt key": (["optim.lrr=1"], ["optim.lrr", "did you mean `lr`"]),
    "unknown section": (["optimizer.lr=1"], ["optimizer", "did you mean `optim`"]),
    "wrong type": (["train.steps=many"], ["train.steps", "`many` is not a number"]),
    "a boolean for a number": (["train.steps=true"], ["train.steps", "true is not a number"]),
    "text for a number": (['train.steps="8"'], ["train.steps", "without quotes"]),
    "1.1's base 60": (["train.steps=1:30"], ["train.steps", "`1:30` is not a number"]),
    "1.1's yes": (["train.deterministic=yes"], ["train.deterministic", "write true or false"]),
    "a boolean in a list": (["optim.betas=[true, 0.9]"], ["optim.betas", "true is not a number"]),
    "a short list": (["optim.betas=[0.9]"], ["optim.betas", "give at least 2"]),
    "a number without end": ([f"train.steps={'9' * 40}"], ["train.steps", "40 digits"]),
    "more than any machine": (["rollout.prompts=1000000000000"], ["train.steps", "1e+12"]),
    "a key of another section": (["lr=1"], ["lr: unknown key", "did you mean `optim.lr`"]),
    "a key by its meaning": (["optim.learning_rate=1"], ["did you mean `optim.lr`"]),
    "a key of another name": (["epochs=2"], ["did you mean `train.inner_epochs`"]),
    "text for a section": (["model=foo"], ["model", "write the keys below it"]),
    "a number for text": (["name=2024"], ["name", "put it in quotes"]),
    "not key=value": (["train.steps"], ["--set", "key=value"]),
    "nan": (["optim.lr=.nan"], ["optim.lr"]),
    "group of one": (["rollout.samples=1"], ["advantage.kind", "rollout.samples to 2"]),
    "minibatch": (["train.minibatches=7"], ["train.minibatches", "divisor"]),
    "top-p": (["rollout.top_p=0.9"], ["rollout.top_p", "ratio"]),
    "unknown objective": (["objective.kind=lco-kl"], ["objective.kind", "did you mean `lco-kld`"]),
    "field of another objective": (["objective.beta=2"], ["objective.beta", "it is a key of lco-kld"]),
    "unknown task": (["task.source.kind=arithmetics"], ["task.source.kind", "did you mean `arithmetic`"]),
    "unknown dtype": (["model.dtype=float16"], ["model.dtype", "float32"]),
    "name that escapes": (["name=../x"], ["name"]),
    "missing policy": (["model.path=./nowhere"], ["model.path", "no such directory"]),
    "missing package": (["model.path=package:no_such_package/x"], ["model.path", "install the package that ships"]),
    "hub unreachable": (["model.path=nobody/nothing"], ["model.path", "Hub"]),
    "warm-up too long": (["optim.warmup_steps=100"], ["optim.warmup_steps"]),
    "prompt too long": (["rollout.max_new_tokens=60"], ["context", "rollout.max_new_tokens"]),
    "missing data file": (["task.source={kind: dataset, path: none.jsonl}"], ["task.source", "none.jsonl"]),
    "unknown gym data set": (["task.source={kind: reasoning-gym, dataset: chain_sums}"], ["chain_sum"]),
    "no demonstrations": (
        [
            "objective={kind: sft}",
            "task.source={kind: reasoning-gym, dataset: gcd}",
            "model.path=package:cvxrl/assets/base",
        ],
        ["demonstration"],
    ),
    "no cuda": (["train.device=cuda"], ["train.device", "cpu"]),
}


@pytest.mark.parametrize("case", CASES)
def test_refused(case: str, tmp_path: Path) -> None:
    if case == "no cuda":
        import torch

        if torch.cuda.is_available():
            pytest.skip("there is a CUDA device")
    overrides, words = CASES[case]
    arguments = [part for text in overrides for part in ("--set", text)]
    assert_refused(cvxrl("train", GRPO, *arguments, cwd=tmp_path), tmp_path, *words)


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    overrides = ["--set", "optim.lrr=1", "--set", "train.steps=0", "--set", "objective.kind=x", "--set", "seed=-1"]
    done = cvxrl("train", GRPO, *overrides, cwd=tmp_path)
    assert_refused(done, tmp_path, "optim.lrr", "train.steps", "objective.kind", "seed")
    assert done.stderr.count("error:") == 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("extends: b.yaml\nname: a\n", ["circle", "a.yaml -> b.yaml -> a.yaml"]),
        ("extends: missing.yaml\n", ["missing.yaml", "extends"]),
        ("name: a\nname: b\n", ["duplicate key", "line 2"]),
        ("- 1\n", ["mapping"]),
        ("name: [\n", ["line"]),
        ("", ["mapping"]),
        ("name: a\n", ["model", "task", "missing"]),
        ("x: !!python/object/apply:os.system [ls]\n", ["line 1"]),
    ],
)
def test_bad_files(text: str, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    assert_refused(cvxrl("train", "a.yaml", cwd=tmp_path), tmp_path, *words)


def test_missing_recipe(tmp_path: Path) -> None:
    assert_refused(cvxrl("train", "nowhere.yaml", cwd=tmp_path), tmp_path, "nowhere.yaml", "no such file")


def test_data_set_problems(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "fields.jsonl").write_text('{"question": "1+1?", "answer": "2"}\n' * 3)
    for name, words in (("empty", ["empty"]), ("fields", ["prompt", "question"])):
        source = f"task.source={{kind: dataset, path: {name}.jsonl}}"
        assert_refused(cvxrl("train", GRPO, "--set", source, cwd=tmp_path), tmp_path, *words)


def test_existing_run_needs_a_decision(tmp_path: Path) -> None:
    small = ["--set", "train.steps=1", "--set", "rollout.prompts=2", "--set", "eval.every=0"]
    small += ["--set", "rollout.max_new_tokens=8", "--set", f"model.path={SMALL_POLICY}"]
    first = cvxrl("train", GRPO, *small, "--json", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    import json

    assert json.loads(first.stdout)["status"] == "finished"
    marker = tmp_path / "outputs" / "math_grpo" / "seed-0" / "metrics.jsonl"
    before = marker.read_bytes()
    again = cvxrl("train", GRPO, *small, cwd=tmp_path)
    assert again.returncode == 2 and "--resume" in again.stderr and "--overwrite" in again.stderr
    changed = cvxrl("train", GRPO, *small, "--set", "optim.lr=0.5", "--resume", cwd=tmp_path)
    assert changed.returncode == 2 and "optim.lr" in changed.stderr
    assert marker.read_bytes() == before
    assert cvxrl("train", GRPO, *small, "--overwrite", cwd=tmp_path).returncode == 0


def test_output_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    done = cvxrl("train", GRPO, "--out", "file", cwd=tmp_path)
    assert done.returncode == 2 and "--out" in done.stderr and "Traceback" not in done.stderr
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_with_other_files_is_never_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "math_grpo" / "seed-0"
    folder.mkdir(parents=True)
    (folder / "thesis.tex").write_text("mine")
    done = cvxrl("train", GRPO, "--overwrite", cwd=tmp_path)
    assert done.returncode == 2 and (folder / "thesis.tex").read_text() == "mine"


def test_dry_run_prints_the_equation_and_writes_nothing(tmp_path: Path) -> None:
    done = cvxrl("train", GRPO, "--dry-run", cwd=tmp_path)
    assert done.returncode == 0 and "min(r A" in done.stdout and "tokens per step" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_help_never_imports_torch() -> None:
    code = (
        "import sys\nfrom cvxrl.cli import main\nsys.argv = ['cvxrl', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "assert 'torch' not in sys.modules and 'pydantic' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0


def test_mistakes_that_only_loading_finds_are_told_together(tmp_path: Path) -> None:
    source = "task.source={kind: dataset, path: none.jsonl}"
    overrides = ["--set", "model.path=./nowhere", "--set", source, "--set", "advantage.kind=reward"]
    function = ["--set", "task.reward={kind: callable, function: 'no_such_module:f'}"]
    done = cvxrl("train", GRPO, *overrides, *function, cwd=tmp_path)
    assert_refused(done, tmp_path, "nowhere", "none.jsonl", "no_such_module")
    assert done.stderr.count("error:") == 3


def test_what_a_later_step_would_stumble_over_is_found_before_the_first(tmp_path: Path) -> None:
    rows = [f'{{"prompt": "{i}+1?", "answer": "{i + 1}"}}' for i in range(1, 10)]
    long = '{"prompt": "' + "+".join("1" * 30) + '?", "answer": "30"}'
    (tmp_path / "long.jsonl").write_text("\n".join([*rows, long]))
    (tmp_path / "short.jsonl").write_text("\n".join(rows))
    source = "task.source={{kind: dataset, path: {}.jsonl, held_out: 0}}"
    one = ["--set", "rollout.prompts=1", "--set", "rollout.samples=4"]
    late = cvxrl("train", GRPO, *one, "--set", source.format("long"), "--set", "eval.every=0", cwd=tmp_path)
    assert_refused(late, tmp_path, "prompt tokens", "context of 64")
    none = cvxrl("train", GRPO, *one, "--set", source.format("short"), cwd=tmp_path)
    assert_refused(none, tmp_path, "eval.every", "no held-out examples")
