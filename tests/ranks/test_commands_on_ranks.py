"""Every command under the launcher: `eval` and `cvxrl.train` split their work, the others are one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ranks.launched import settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
POLICY = "package:cvxrl/assets/forgetful"
ASKED = ("--task", "carrying-sums", "--questions", "30", "--samples", "4", "--max-new-tokens", "24")


def launched(folder: Path, *arguments: str, ranks: int = 2) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cvxrl.launch", "--nproc-per-node", str(ranks), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)


def answers(folder: Path) -> list[dict[str, Any]]:
    """Samples of an evaluation, in the order of its questions, without what another number of rows rounds."""
    found = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    for sample in found:
        for key in ("seconds", "token_logprobs"):
            sample.pop(key, None)
    return sorted(found, key=lambda sample: (sample["question"], sample["sample"]))


def test_an_evaluation_on_two_ranks_is_that_of_one_process(tmp_path: Path) -> None:
    for name, ranks in (("one", 1), ("two", 2)):
        done = launched(tmp_path, "eval", "--ckpt", POLICY, *ASKED, "--out", name, "--json", ranks=ranks)
        assert done.returncode == 0, done.stderr
        json.loads(done.stdout)  # one document, from the main rank alone
    one, two = (json.loads((tmp_path / name / "EVAL.json").read_text()) for name in ("one", "two"))
    assert one["results"] == two["results"] and one["questions"] == two["questions"]
    assert answers(tmp_path / "one") == answers(tmp_path / "two")


def test_the_python_api_trains_on_ranks(tmp_path: Path) -> None:
    changes = [word for word in settings("rollout.prompts=3") if word != "--set"]
    script = tmp_path / "own.py"
    script.write_text(
        "import cvxrl\n"
        f"recipe = cvxrl.load_recipe('math_grpo', {changes!r})\n"
        f"print(cvxrl.train(recipe, out='runs').status)\n"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    (record,) = (tmp_path / "runs").rglob("run.json")
    found = json.loads(record.read_text())
    assert found["status"] == "finished" and found["provenance"]["machine"]["ranks"] == "2", found


@pytest.mark.parametrize("command", [("compare", "runs"), ("inspect-grads", "runs/seed-0")])
def test_what_is_one_process_refuses_ranks_once(command: tuple[str, ...], tmp_path: Path) -> None:
    done = launched(tmp_path, *command)
    said = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == 2 and len(said) == 1 and "one process" in said[0], done.stderr
