"""kill -9 at any moment: the run goes on, and ends bit for bit as one that was never touched."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from random import Random

import pytest
import torch
from helpers import ROOT

from cvxrl.runs.metrics import read_records
from reliability.harness import (
    KILLED,
    MANY,
    SAVED,
    USUAL,
    Case,
    ForkServer,
    Spawner,
    Whole,
    assert_same_run,
    entry_for,
    kill_randomly,
    reseal,
    train_whole,
    unfinish,
)

# Everything that carries state between steps: optimizer, schedule, critic, verifier, reference, bf16.
CASES = {
    "schedule": USUAL,
    "bf16 weights": Case("math_lco_mse", (*SAVED, "model.dtype=bfloat16")),
    "bf16 passes": Case("math_lco_lch", (*SAVED, "train.precision=bf16")),
    "reference": Case("math_grpo", (*MANY, "regularizer.kl_coefficient=0.1")),
    "critic": Case("math_ppo", MANY),
    "dense": Case("math_lco_kld_dense", SAVED),
    "resampling": Case("math_dapo", MANY),
    **{
        path.stem: Case(path.stem, SAVED)
        for path in sorted((ROOT / "recipes").glob("*.yaml"))
        if path.stem not in ("math_base", "smoke", "smollm2_lco_kld", "base_sft")
    },
}


def test_five_random_kills(fork_server: ForkServer, whole: Whole, tmp_path: Path) -> None:
    kills = kill_randomly(fork_server, USUAL, tmp_path, 5, whole.seconds, Random(6))
    assert max(kills) > 0, "no kill came after the first record"
    assert_same_run(whole.folder, USUAL.folder(tmp_path))


def test_the_comparison_can_fail(fork_server: ForkServer, whole: Whole, tmp_path: Path) -> None:
    """Negative control: a checkpoint whose optimizer forgot its moments leads elsewhere."""
    shutil.copytree(whole.folder, USUAL.folder(tmp_path))
    folder = USUAL.folder(tmp_path)
    shutil.rmtree(folder / "checkpoints" / "step-000004")
    unfinish(folder)
    state = folder / "checkpoints" / "step-000002" / "trainer.pt"
    saved = torch.load(state)
    saved["optimizer"]["state"] = {}
    torch.save(saved, state)
    reseal(state.parent)
    assert fork_server.run(USUAL.arguments(tmp_path, "resume"), tmp_path / "log.txt") == 0
    with pytest.raises(AssertionError):
        assert_same_run(whole.folder, folder)


def kill_at_operation(server: ForkServer, case: Case, out: Path, number: int) -> bool:
    """Kill at the n-th file operation, go on to the end; False if there were fewer operations."""
    out.mkdir(parents=True)
    fault = {"watch": str(out), "kill_at": number}
    code = server.run(case.arguments(out), out / "log.txt", fault)
    if code == 0:
        return False
    assert code == KILLED
    read_records(case.folder(out) / "metrics.jsonl")  # readable, or absent, at every moment
    code = server.run(case.arguments(out, entry_for(case.folder(out))), out / "log.txt")
    assert code == 0, (number, (out / "log.txt").read_text())
    return True


SMALL = Case("math_reinforce", ("train.steps=3", "checkpoint.every=1", "checkpoint.keep=1", "eval.every=3"))


def count_operations(server: ForkServer, out: Path) -> tuple[Path, int]:
    out.mkdir(parents=True)
    assert server.run(SMALL.arguments(out), out / "log.txt", {"watch": str(out)}) == 0
    found = re.search(r"operations: (\d+)", (out / "log.txt").read_text())
    assert found is not None
    return SMALL.folder(out), int(found[1])


def test_kills_between_file_operations(fork_server: ForkServer, tmp_path: Path) -> None:
    whole, count = count_operations(fork_server, tmp_path / "whole")
    assert count > 60
    for number in sorted(Random(0).sample(range(1, count), 2)):
        out = tmp_path / str(number)
        assert kill_at_operation(fork_server, SMALL, out, number)
        assert_same_run(whole, SMALL.folder(out))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_kills_at_every_other_file_operation(fork_server: ForkServer, tmp_path: Path) -> None:
    whole, count = count_operations(fork_server, tmp_path / "whole")
    for number in range(1, count, 2):
        out = tmp_path / str(number)
        if kill_at_operation(fork_server, SMALL, out, number):
            assert_same_run(whole, SMALL.folder(out))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", CASES)
def test_random_kills_of_every_objective(name: str, fork_server: ForkServer, tmp_path: Path) -> None:
    """Two kills each, of whole processes."""
    case = CASES[name]
    whole = train_whole(fork_server, case, tmp_path / "whole")
    kill_randomly(Spawner(), case, tmp_path / "killed", 2, whole.seconds, Random(name))
    assert_same_run(whole.folder, case.folder(tmp_path / "killed"))
