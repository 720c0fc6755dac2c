"""The memory benchmark at a small size: it runs, and chunks take less than a twentieth of what full logits take."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from helpers import ROOT


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak memory from /proc")
@pytest.mark.parametrize("objective", ["lco-kld", "lco-kld-frozen", "grpo", "lco-mse", "lco-lch"])
def test_chunks_take_less_than_a_twentieth(objective: str) -> None:
    sizes = ["--tokens", "2048", "--vocab", "50000", "--hidden", "32", "--chunk", "16", "--rounds", "1"]
    command = [sys.executable, "benchmarks/loss_memory.py", "--objective", objective, *sizes, "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=environment)
    (row,) = json.loads(done.stdout)
    assert row["tokens"] == 2048 and row["plain_mib"] > 2 * 2048 * 50000 * 4 / 2**20
    assert row["memory_ratio"] < 1 / 20
