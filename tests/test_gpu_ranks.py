"""benchmarks/gpu_ranks.py: one file that is whole at any moment, a check that fails is no end, and a run on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT

SCRIPT = ROOT / "benchmarks" / "gpu_ranks.py"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = spec_from_file_location("gpu_ranks", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["gpu_ranks"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_a_check_that_fails_or_is_left_out_is_told_and_the_next_one_made(script: Any, tmp_path: Path) -> None:
    session = script.Session(tmp_path / "out.json", tmp_path, time.monotonic() + 1000, 2, "cpu", True)

    def left_out() -> dict[str, Any]:
        raise script.LeftOutError("no such device")

    session.check("divides", lambda: {"x": 1 / 0})
    session.check("needs", left_out)
    session.check("works", lambda: {"x": 1})
    session.until = time.monotonic() + 1
    session.check("late", lambda: {"x": 1})
    written = json.loads((tmp_path / "out.json").read_text())
    assert {c["name"]: c["status"] for c in written["checks"]} == {
        "divides": "failed",
        "needs": "left out",
        "works": "done",
        "late": "left out",
    }
    assert written["machine"]["torch"] and written["checks"][3]["why"] == "no time was left"


def test_runs_are_compared_step_by_step(script: Any, tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps({"step": i, "loss": 2.0 + i}) + "\n" for i in range(3)))
    records = script.read(file)
    assert [record["step"] for record in records] == [1, 2], "the evaluation before step 1 is none"
    assert script.apart(records, records) == {"loss": 0.0}
    assert script.apart(records, [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 4.4}]) == {"loss": pytest.approx(0.1)}


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_it_runs_on_two_ranks_of_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(out), "--smoke", "--seconds", "1400"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    checks = {check["name"]: check for check in json.loads(out.read_text())["checks"]}
    assert {name for name, check in checks.items() if check["status"] != "done"} <= {"vllm"}, done.stdout
    assert set(checks["sharded-again"]["apart"].values()) == {0.0}
    for name in ("replicated", "sharded", "resumed"):
        assert max(checks[name]["apart"].values()) < 1e-4, name
    assert checks["large"]["counted_of_peak"] > 0 and checks["large"]["counted_s_at_h100_rates"] > 0
