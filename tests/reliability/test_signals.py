"""Ctrl-C, SIGTERM, and two processes that want one directory."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from cvxrl.runs.directory import RunDir
from cvxrl.runs.jsonl import read_records
from reliability.harness import USUAL, ForkServer, Spawner, Whole, assert_same_run


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, *(pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGTERM, signal.SIGHUP))],
)
def test_a_signal_finishes_the_step_and_saves(
    number: int, fork_server: ForkServer, whole: Whole, tmp_path: Path
) -> None:
    fault = {"signal_after": [1], "signal": number}
    log = tmp_path / "log.txt"
    assert fork_server.run(USUAL.arguments(tmp_path), log, fault) == 130
    assert "finishing step 1; again to stop at once; go on with: cvxrl train " in log.read_text()
    assert "--resume\n" in log.read_text()
    folder = USUAL.folder(tmp_path)
    assert json.loads((folder / "run.json").read_text())["status"] == "interrupted"
    assert [r["step"] for r in read_records(folder / "metrics.jsonl")] == [0, 1]
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["step-000001"]
    assert fork_server.run(USUAL.arguments(tmp_path, "resume"), tmp_path / "log.txt") == 0
    assert_same_run(whole.folder, folder, checkpoints=False)


def test_a_second_signal_stops_at_once(fork_server: ForkServer, whole: Whole, tmp_path: Path) -> None:
    fault = {"signal_after": [3, 3]}  # the second one comes before the step's checkpoint
    assert fork_server.run(USUAL.arguments(tmp_path), tmp_path / "log.txt", fault) == 130
    folder = USUAL.folder(tmp_path)
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["step-000002"]
    assert fork_server.run(USUAL.arguments(tmp_path, "resume"), tmp_path / "log.txt") == 0
    assert_same_run(whole.folder, folder)


@pytest.mark.slow
@pytest.mark.parametrize("fsync", [1, 4])
def test_a_second_signal_within_a_checkpoint(fsync: int, fork_server: ForkServer, whole: Whole, tmp_path: Path) -> None:
    """The first is after step 3; the second comes while its checkpoint is written."""
    fault = {"signal_after": [3], "signal_at_fsync": fsync}
    assert fork_server.run(USUAL.arguments(tmp_path), tmp_path / "log.txt", fault) == 130
    folder = USUAL.folder(tmp_path)
    assert json.loads((folder / "run.json").read_text())["status"] == "interrupted"
    assert [p.name for p in (folder / "checkpoints").glob("step-*")] == ["step-000002"]
    assert fork_server.run(USUAL.arguments(tmp_path, "resume"), tmp_path / "log.txt") == 0
    assert_same_run(whole.folder, folder)


def test_a_clock_that_runs_backwards(fork_server: ForkServer, whole: Whole, interrupted: Path, tmp_path: Path) -> None:
    """Neither the clock nor the dates of the files decide anything."""
    folder = Path(shutil.copytree(interrupted, USUAL.folder(tmp_path)))
    for number, file in enumerate(sorted(folder.rglob("*"))):
        date = 4e9 if number % 2 else 0.0
        os.utime(file, (date, date))
    log = tmp_path / "log.txt"
    assert fork_server.run(USUAL.arguments(tmp_path, "resume"), log, {"clock": True}) == 0, log.read_text()
    assert_same_run(whole.folder, folder, checkpoints=False)
    record = json.loads((folder / "run.json").read_text())
    assert record["ended"] < record["resumed"][-1]["at"] < record["started"], "the clock did not run backwards"
    times = [r["time/step_s"] for r in read_records(folder / "metrics.jsonl") if r["step"]]
    assert all(seconds > 0 for seconds in times)


def test_the_second_process_is_refused_by_name(fork_server: ForkServer, interrupted: Path, tmp_path: Path) -> None:
    shutil.copytree(interrupted, USUAL.folder(tmp_path))
    before = {p: p.stat().st_mtime_ns for p in USUAL.folder(tmp_path).rglob("*") if p.name != ".lock"}
    with RunDir(USUAL.folder(tmp_path)).lock():
        for entry in ("new", "resume", "overwrite"):
            log = tmp_path / "log.txt"
            assert fork_server.run(USUAL.arguments(tmp_path, entry), log) == 2
            assert f"in use by process {os.getpid()} on {os.uname().nodename}" in log.read_text()
    after = {p: p.stat().st_mtime_ns for p in USUAL.folder(tmp_path).rglob("*") if p.name != ".lock"}
    assert before == after


@pytest.mark.slow
def test_of_two_that_start_together_one_wins(whole: Whole, tmp_path: Path) -> None:
    both = [Spawner().start(USUAL.arguments(tmp_path), tmp_path / f"{i}.txt") for i in range(2)]
    assert sorted(running.wait() for running in both) == [0, 2]
    assert_same_run(whole.folder, USUAL.folder(tmp_path))
