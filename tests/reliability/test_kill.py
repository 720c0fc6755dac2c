"""kill -9 at any moment: the run goes on, and ends bit for bit as one that was never touched."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

import pytest
from helpers import ROOT
from reliability.harness import KILLED, Case, ForkServer, Spawner, assert_same_run, entry_for, kill_randomly

from cvxrl.runs.metrics import read_records

SAVED = ("train.steps=4", "checkpoint.every=2", "eval.every=4", "rollout.prompts=2")
MANY = (*SAVED, "train.inner_epochs=2", "train.minibatches=2")
# Everything that carries state between steps: optimizer, schedule, critic, verifier, reference, bf16.
CASES = {
    "schedule": Case("math_lco_kld", (*MANY, "optim.schedule=cosine", "optim.warmup_steps=3")),
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


def reference(server: ForkServer, case: Case, out: Path) -> tuple[Path, float]:
    """Run a case undisturbed; returns its directory and the seconds from its lock to its end."""
    out.mkdir(parents=True)
    assert server.run(case.arguments(out), out / "log.txt") == 0, (out / "log.txt").read_text()
    folder = case.folder(out)
    began, ended = (folder / "recipe.yaml").stat().st_mtime, (folder / "run.json").stat().st_mtime
    return folder, ended - began


def test_five_random_kills(fork_server: ForkServer, tmp_path: Path) -> None:
    case = CASES["schedule"]
    whole, seconds = reference(fork_server, case, tmp_path / "whole")
    kills = kill_randomly(fork_server, case, tmp_path / "killed", 5, seconds, Random(6))
    assert max(kills) > 0, "no kill came after the first record"
    assert_same_run(whole, case.folder(tmp_path / "killed"))


def test_the_comparison_can_fail(fork_server: ForkServer, tmp_path: Path) -> None:
    """Negative control: without the optimizer's state a resumed run is another run."""
    case = Case("math_grpo", ("train.steps=2", "checkpoint.every=1", "eval.every=0"))
    whole, _ = reference(fork_server, case, tmp_path / "a")
    other = Case("math_grpo", (*case.overrides, "optim.betas=[0.9, 0.9999]"))
    different, _ = reference(fork_server, other, tmp_path / "b")
    with pytest.raises(AssertionError):
        assert_same_run(whole, different)


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
    for number in sorted(Random(0).sample(range(1, count), 3)):
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
    whole, seconds = reference(fork_server, case, tmp_path / "whole")
    kill_randomly(Spawner(), case, tmp_path / "killed", 2, seconds, Random(name))
    assert_same_run(whole, case.folder(tmp_path / "killed"))
