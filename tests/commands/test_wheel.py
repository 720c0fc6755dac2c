"""A wheel, away from the checkout: every command works in an empty directory, with recipes by their names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

SMALL = ("train.steps=2", "rollout.prompts=2", "rollout.samples=4", "eval.prompts=4", "eval.every=2")

QUESTIONS = ("--questions", "4", "--samples", "2")
LITTLE = ("--objectives", "grpo,math_lco_mse", "--prompts", "2", "--samples", "4", "--parts", "logits")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the package as a wheel of this checkout installs it, and nothing else."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder / "dist"), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel)], check=True)
    return folder / "site"


@pytest.mark.slow
def test_every_command_in_an_empty_directory(installed: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(installed), "COLUMNS": "80"}

    def call(*arguments: str) -> str:
        command = [sys.executable, "-m", "cvxrl", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    sets = [part for text in SMALL for part in ("--set", text)]
    where = subprocess.run(
        [sys.executable, "-c", "import cvxrl; print(cvxrl.__file__)"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.startswith(str(installed)), "the wheel is what is tested"
    assert "math_lco_kld_dense" in call("train", "--help")
    trained = json.loads(call("train", "math_grpo", *sets, "--json"))
    assert trained["status"] == "finished"
    (tmp_path / "mine.yaml").write_text("extends: math_lco_kld\nname: mine\n")
    assert json.loads(call("train", "mine.yaml", *sets, "--json"))["status"] == "finished"
    evaluated = json.loads(call("eval", "--ckpt", "outputs/mine/seed-0", "--task", "math_grpo", "--json", *QUESTIONS))
    assert evaluated["task"]["name"] == "math_grpo"
    compared = json.loads(call("compare", "math_grpo", "mine.yaml", *sets, "--seeds", "0-1", "--json"))
    assert [method["label"] for method in compared["methods"]] == ["math_grpo", "mine"]
    inspected = json.loads(
        call("inspect-grads", "package:cvxrl/assets/base", "--recipe", "math_grpo", *LITTLE, "--json")
    )
    assert len(inspected["snapshots"]) == 1
