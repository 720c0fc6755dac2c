"""Runs that processes of their own have read are those that this one reads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from made_runs import make_seeds

from cvxrl.comparison.readers import processes_for, read_all
from cvxrl.comparison.run import LoggedRun
from cvxrl.comparison.run_directory import RunDirectories
from cvxrl.comparison.sources import read_runs
from cvxrl.errors import UserError


def contents(run: LoggedRun) -> dict[str, object]:
    """All that is known of a run; numbers as they are."""
    series = {key: (run.series(key).step_T.tolist(), run.series(key).value_T.tolist()) for key in sorted(run.metrics)}
    return vars(run) | {"records": None, "_columns": None, "series": series}


def dies_elsewhere(path: Path) -> str:
    if path.name == "second" and os.environ["HOME_PROCESS"] != str(os.getpid()):
        os._exit(9)
    return path.name


def breaks(path: Path) -> str:
    raise ZeroDivisionError(path.name)


def test_processes_read_what_this_one_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = make_seeds(tmp_path, "math_grpo", [0.5, 0.6, 0.7, 0.8])
    (paths[1] / "metrics.jsonl").write_text('{"step": 1}\n{"step": 1}\n')
    (paths[2] / "run.json").unlink()
    found, problems = read_runs([*paths, tmp_path / "nothing"])
    monkeypatch.setattr("cvxrl.comparison.sources.processes_for", lambda _: 3)
    again, same_problems = read_runs([*paths, tmp_path / "nothing"])
    assert [run.path for run in again] == [paths[0], paths[3]]
    assert list(map(contents, again)) == list(map(contents, found))
    assert same_problems == problems
    assert len(problems) > 2


@pytest.mark.parametrize("processes", [1, 2])
def test_a_mistake_crosses_processes_whole(tmp_path: Path, processes: int) -> None:
    paths = make_seeds(tmp_path, "math_grpo", [0.5, 0.6])
    (paths[1] / "run.json").unlink()
    run, error = read_all(RunDirectories().read, paths, processes)
    assert isinstance(run, LoggedRun)
    assert isinstance(error, UserError)
    assert error.problems[0].file == str(paths[1] / "run.json")


def test_what_a_lost_process_did_not_send_is_read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME_PROCESS", str(os.getpid()))
    names = ["first", "second", "third", "fourth", "fifth", "sixth"]
    assert read_all(dies_elsewhere, [Path(name) for name in names], 2) == names


def test_a_bug_keeps_its_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError, match="first"):
        read_all(breaks, [Path("first"), Path("second")], 2)
    assert not capfd.readouterr().err


def test_processes_are_for_large_logs_and_idle_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cvxrl.comparison.readers._cores", lambda: 4)

    def log(name: str, mebibytes: int) -> Path:
        (tmp_path / name).mkdir()
        with (tmp_path / name / "metrics.jsonl").open("wb") as file:
            file.truncate(mebibytes << 20)  # takes no room on the disk
        return tmp_path / name

    runs = [log(str(number), 100) for number in range(4)]
    small = [log(f"small {number}", 1) for number in range(60)]
    counted: list[tuple[list[Path], int]] = [([], 1), (runs[:1], 1), (runs[:2], 2), (runs, 4), (small, 1)]
    assert [processes_for(paths) for paths, _ in counted] == [number for _, number in counted]
    assert processes_for([*runs, *runs, tmp_path / "nothing"]) == 4
    monkeypatch.setattr("cvxrl.comparison.readers._cores", lambda: 1)
    assert processes_for(runs) == 1
