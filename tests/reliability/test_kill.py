"""kill -9 at any moment: the run goes on, and ends bit for bit as one that was never touched."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from helpers import ROOT, cut, quick_if

from cvxrl.recipe.load import load_recipe
from cvxrl.runs.jsonl import read_records
from reliability.harness import (
    KILLED,
    MANY,
    SAVED,
    SHORT,
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

# Recipes of more optimizer steps per rollout than so small a one has sequences; and those without a rollout to repeat.
MANY_STEPS = ("authors_grpo", "authors_lco_kld", "authors_ppo", "reuse_tpo")
NOT_HERE = ("math_base", "smoke", "smollm2_lco_kld", "base_sft", "old_base_sft")
# Everything that carries state between steps: optimizer, schedule, critic, verifier, reference, bf16.
CASES = {
    "schedule": USUAL,
    "bf16 weights": Case("math_lco_mse", (*SAVED, "model.dtype=bfloat16")),
    "bf16 passes": Case("math_lco_lch", (*SAVED, "train.precision=bf16")),
    "reference": Case("math_grpo", (*MANY, "regularizer.kl_coefficient=0.1")),
    "critic": Case("math_ppo", MANY),
    "dense": Case("math_lco_kld_dense", SAVED),
    "resampling": Case("math_dapo", MANY),
    "adapter": Case("math_lora", (*MANY, "model.lora.dropout=0.1", "regularizer.kl_coefficient=0.1")),
    **{
        path.stem: Case(path.stem, (*SAVED, *(["train.minibatches=2"] if path.stem in MANY_STEPS else [])))
        for path in sorted((ROOT / "recipes").glob("*.yaml"))
        if path.stem not in NOT_HERE
    },
}


def test_every_case_is_a_recipe() -> None:
    for case in CASES.values():
        assert load_recipe(case.recipe, cut(case.recipe, *case.overrides), 0).train.steps == 4


def test_random_kills(fork_server: ForkServer, whole: Whole, tmp_path: Path) -> None:
    kills = kill_randomly(fork_server, USUAL, tmp_path, 2, whole.seconds, Random(6))
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


SMALL = Case("math_reinforce", (*SHORT, "train.steps=3", "checkpoint.every=1", "checkpoint.keep=1", "eval.every=3"))


def count_operations(server: ForkServer, out: Path) -> tuple[Path, int]:
    out.mkdir(parents=True)
    assert server.run(SMALL.arguments(out), out / "log.txt", {"watch": str(out)}) == 0
    found = re.search(r"operations: (\d+)", (out / "log.txt").read_text())
    assert found is not None
    return SMALL.folder(out), int(found[1])


@pytest.mark.slow
def test_a_kill_between_file_operations(fork_server: ForkServer, tmp_path: Path) -> None:
    whole, count = count_operations(fork_server, tmp_path / "whole")
    assert count > 60
    number = Random(0).randrange(1, count)
    assert kill_at_operation(fork_server, SMALL, tmp_path / "killed", number)
    assert_same_run(whole, SMALL.folder(tmp_path / "killed"))


# Paths that are written then, and which operation on them is not done any more.
MOMENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "within a checkpoint": ("checkpoints/.step-000002.tmp", {"kill_at": 4}),
    "before the manifest of a checkpoint": ("checkpoints/.step-000002.tmp/.checksums", {"kill_at": 1}),
    "as a checkpoint gets its name": ("checkpoints/.step-000002.tmp", {"event": "os.rename", "kill_at": 1}),
    "within the export of the adapter": (".adapter.tmp", {"kill_at": 3}),
    "within the final export": (".policy.tmp", {"kill_at": 4}),
    "as the final export gets its name": (".policy.tmp", {"event": "os.rename", "kill_at": 1}),
    "before the last record": (".run.json.tmp", {"event": "os.rename", "kill_at": 2}),
}
ADAPTER = Case("math_lora", (*SAVED, *SHORT, "model.lora.dropout=0.1"))


@pytest.fixture(scope="module")
def adapted(fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run that trains an adapter."""
    return train_whole(fork_server, ADAPTER, tmp_path_factory.mktemp("adapted")).folder


@pytest.mark.parametrize("moment", quick_if("within a checkpoint".__eq__, MOMENTS))
def test_a_kill_in_the_middle_of(moment: str, fork_server: ForkServer, adapted: Path, tmp_path: Path) -> None:
    """Of an adapter's run, which writes everything that a run can write."""
    where, fault = MOMENTS[moment]
    folder, log = ADAPTER.folder(tmp_path), tmp_path / "log.txt"
    assert fork_server.run(ADAPTER.arguments(tmp_path), log, {"watch": str(folder / where), **fault}) == KILLED
    assert list(folder.rglob(f"{Path(where).name}*")) or "checksums" in where, "it was not the moment meant"
    assert json.loads((folder / "run.json").read_text())["status"] == "running"
    assert fork_server.run(ADAPTER.arguments(tmp_path, entry_for(folder)), log) == 0, log.read_text()
    assert_same_run(adapted, folder)


def test_a_kill_after_the_last_checkpoint(fork_server: ForkServer, tmp_path: Path) -> None:
    """Before the one that it replaces is removed: no later checkpoint will do so."""
    folder, log = SMALL.folder(tmp_path), tmp_path / "log.txt"
    fault = {"watch": str(folder / "checkpoints/step-000002"), "event": "os.rename", "kill_at": 1}
    assert fork_server.run(SMALL.arguments(tmp_path), log, fault) == KILLED
    checkpoints = folder / "checkpoints"
    assert sorted(p.name for p in checkpoints.iterdir()) == ["step-000002", "step-000003"]
    assert fork_server.run(SMALL.arguments(tmp_path, "resume"), log) == 0, log.read_text()
    assert [p.name for p in checkpoints.iterdir()] == ["step-000003"]


@pytest.mark.slow
@pytest.mark.parametrize("step", [0, 3])
def test_a_kill_in_the_middle_of_a_line(step: int, fork_server: ForkServer, whole: Whole, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    assert fork_server.run(USUAL.arguments(tmp_path), log, {"tear_record": step}) == KILLED
    lines = (USUAL.folder(tmp_path) / "metrics.jsonl").read_bytes().split(b"\n")
    assert lines[-1] and not lines[-1].endswith(b"}")
    assert fork_server.run(USUAL.arguments(tmp_path, "resume"), log) == 0, log.read_text()
    assert_same_run(whole.folder, USUAL.folder(tmp_path))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("ten", range(5))
def test_fifty_random_kills(ten: int, fork_server: ForkServer, whole: Whole, tmp_path: Path) -> None:
    """Ten of one run at a time; prints the records on disk at each kill."""
    kills = kill_randomly(fork_server, USUAL, tmp_path, 10, whole.seconds, Random(f"fifty {ten}"))
    print("records on disk at each kill:", *kills)
    assert len(kills) == 10 and max(kills) > 0
    assert_same_run(whole.folder, USUAL.folder(tmp_path))


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
