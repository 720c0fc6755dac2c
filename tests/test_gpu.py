"""benchmarks/gpu.py: every part ends in a result or a reason, on a machine without a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT

BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(scope="module")
def script() -> Any:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = spec_from_file_location("gpu", BENCHMARKS / "gpu.py")
        assert spec is not None and spec.loader is not None
        module = module_from_spec(spec)
        sys.modules["gpu"] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(BENCHMARKS))
    return module


def test_parts_share_the_time_of_one_call(script: Any) -> None:
    parts = script.all_parts()
    assert [part.name for part in parts] == ["objectives", "engines", "bf16", "losses", "step"]
    assert sum(part.share for part in parts) == pytest.approx(1.0)


def test_every_objective_has_a_loss_and_a_gradient_to_compare(script: Any) -> None:
    from pydantic import TypeAdapter

    from cvxrl.objectives.registry import OBJECTIVES
    from cvxrl.recipe.objective import ObjectiveSpec

    for kind in OBJECTIVES:
        spec = TypeAdapter(ObjectiveSpec).validate_python({"kind": kind})
        loss_N, gradient_NV = script.loss_and_gradient(spec, "cpu", 16, 8)
        assert loss_N.shape == (8,) and gradient_NV.shape == (8, 16) and bool(gradient_NV.any()), kind
    assert script.distance(torch.tensor([1.0, -2.0]), torch.tensor([1.0, -1.9])) == pytest.approx(0.05)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_it_runs_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), str(out), "--smoke", "--seconds", "1100"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    checks = {check["name"]: check for check in json.loads(out.read_text())["checks"]}
    left = {name: check["why"] for name, check in checks.items() if check["status"] != "done"}
    # Processors without instructions for bf16 take minutes for a step.
    assert left.keys() <= {"vllm", "bf16-weights", "step-trl", "step-trl-static", "step-trl-vllm"}, left
    assert all(check["status"] != "failed" for check in checks.values()), left
    assert checks["objectives"]["largest_relative_distance"] == 0.0 and checks["objectives"]["objectives"] >= 14
    assert max(checks["static"]["apart"].values()) < 1e-3
    assert checks["loss-grpo"]["of_floor"] > 0 and checks["loss-grpo"]["liger"].startswith("not run: ")
