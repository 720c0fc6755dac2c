"""README's first command brings along all that the commands need: the extras, the tests' too, are not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, SMALL_POLICY, quick_if
from made_runs import make_seeds
from plain_install import PlainFinder, dependencies, required

SMALL = ("train.steps=1", "rollout.prompts=2", "rollout.samples=2", "eval.every=1", "eval.prompts=2", "eval.samples=1")
POLICY = f"model.path={SMALL_POLICY}"
SETS = [word for text in (*SMALL, POLICY, "rollout.max_new_tokens=8") for word in ("--set", text)]
COMMANDS = [
    ["train", "smoke", *SETS],
    ["eval", "--ckpt", "outputs/smoke/seed-0", "--task", "math_grpo", "--questions", "2", "--samples", "2"],
    ["compare", "outputs/math_grpo"],
    ["inspect-grads", "outputs/smoke/seed-0", "--parts", "logits", "--prompts", "2", "--samples", "2", "--json"],
]


PAGE = [["compare", "outputs/math_grpo", "--html", "page.html"]]


def run_plainly(requirements: list[str], commands: list[list[str]], folder: Path) -> subprocess.CompletedProcess[str]:
    """All commands, one after the other, in one process that sees what these requirements bring."""
    asked = {"dependencies": requirements, "commands": commands, "policies": ["outputs/smoke/seed-0/policy"]}
    (folder / "asked.json").write_text(json.dumps(asked))
    command = [sys.executable, str(ROOT / "tests" / "plain_install.py"), "asked.json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("page", quick_if(lambda page: not page, [False, True]))
def test_every_command_works_without_the_extras(page: bool, tmp_path: Path) -> None:
    make_seeds(tmp_path / "outputs", "math_grpo", [0.7, 0.8])
    done = run_plainly(dependencies(), COMMANDS + PAGE * page, tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "Qwen3ForCausalLM" in done.stdout
    assert (tmp_path / "page.html").is_file() == page
    assert (tmp_path / "outputs/smoke/seed-0/policy/model.safetensors").is_file()


def test_what_only_an_extra_brings_is_hidden() -> None:
    kept = required(dependencies())
    assert {"torch", "transformers", "accelerate", "jinja2"} <= kept
    assert not {"pytest", "peft", "math-verify", "reasoning-gym", "hatchling"} & kept
    assert "accelerate" not in required(text for text in dependencies() if not text.startswith("accelerate"))
    finder = PlainFinder(kept)
    assert finder.find_spec("pytest") is None and finder.find_spec("torch") is not None
    assert finder.find_spec("_pytest.config") is None and finder.find_spec("json") is not None
