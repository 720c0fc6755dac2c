"""A policy that comes with python code of its own: the run's recipe lets it run in every command, or a flag does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from helpers import SilentSink, tiny
from tiny_models import save_family

from cvxrl.engine.session import run_training
from cvxrl.runs.directory import RunDir

CODE = """from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own_of_this_test"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def own_code(folder: Path) -> Path:
    save_family("llama", folder)
    (folder / "own.py").write_text(CODE)
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "own_of_this_test", "auto_map": names}))
    return folder


def test_the_runs_own_recipe_or_a_flag_lets_code_run(tmp_path: Path, cvxrl: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    policy = own_code(tmp_path / "own")
    small = ("model.trust_remote_code=true", "train.steps=1", "checkpoint.every=1", "rollout.max_new_tokens=8")
    recipe = tiny("math_grpo", f"model.path={policy}", *small, "eval.every=0")
    run_dir = RunDir.of(tmp_path / "runs", recipe)
    assert run_training(recipe, run_dir, SilentSink(), "new").status == "finished"
    asked = ["--questions", "2", "--samples", "1", "--device", "cpu"]
    assert cvxrl("eval", "--ckpt", str(run_dir.path), *asked).code == 0
    look = cvxrl("inspect-grads", str(run_dir.path), "--parts", "logits", "--device", "cpu", "--objectives", "grpo")
    assert look.code == 0, look.err
    asked += ["--task", "arithmetic", "--max-new-tokens", "4"]
    refused = cvxrl("eval", "--ckpt", str(policy), *asked)
    assert refused.code == 2 and "--trust-remote-code lets it run" in " ".join(refused.err.split()), refused.err
    assert cvxrl("eval", "--ckpt", str(policy), *asked, "--trust-remote-code").code == 0
    refused = cvxrl("train", "math_grpo", "--set", f"model.path={policy}")
    assert refused.code == 2 and "model.trust_remote_code lets it run" in " ".join(refused.err.split()), refused.err
