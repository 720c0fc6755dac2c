"""README's first command brings along all that the commands need: the extras, the tests' too, are not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from helpers import ROOT
from plain_install import PlainFinder, dependencies, required

SMALL = ("train.steps=1", "rollout.prompts=2", "rollout.samples=2", "eval.every=1", "eval.prompts=2", "eval.samples=1")
SETS = [word for text in (*SMALL, "rollout.max_new_tokens=8") for word in ("--set", text)]
COMMANDS = [
    ["train", "smoke", *SETS],
    ["train", "smoke", *SETS, "--seed", "1"],
    ["eval", "--ckpt", "outputs/smoke/seed-0", "--task", "math_grpo", "--questions", "2", "--samples", "2"],
    ["compare", "outputs/smoke", "--html", "page.html"],
    ["inspect-grads", "outputs/smoke/seed-0", "--parts", "logits", "--prompts", "2", "--samples", "2", "--json"],
]


def run_plainly(requirements: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """All commands, one after the other, in one process that sees what these requirements bring."""
    asked = {"dependencies": requirements, "commands": COMMANDS, "policies": ["outputs/smoke/seed-0/policy"]}
    (folder / "asked.json").write_text(json.dumps(asked))
    command = [sys.executable, str(ROOT / "tests" / "plain_install.py"), "asked.json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_every_command_works_without_the_extras(tmp_path: Path) -> None:
    done = run_plainly(dependencies(), tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "Qwen3ForCausalLM" in done.stdout
    assert (tmp_path / "page.html").is_file() and list(tmp_path.glob("outputs/*/seed-0/policy/model.safetensors"))


def test_what_only_an_extra_brings_is_hidden() -> None:
    kept = required(dependencies())
    assert {"torch", "transformers", "accelerate", "jinja2"} <= kept
    assert not {"pytest", "peft", "math-verify", "reasoning-gym", "hatchling"} & kept
    assert "accelerate" not in required(text for text in dependencies() if not text.startswith("accelerate"))
    finder = PlainFinder(kept)
    assert finder.find_spec("pytest") is None and finder.find_spec("torch") is not None
    assert finder.find_spec("_pytest.config") is None and finder.find_spec("json") is not None
