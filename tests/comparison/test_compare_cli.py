"""`cvxrl compare` as a shell sees it: exit codes, stdout, stderr, files."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from forked import Forked
from helpers import ROOT, SMALL_POLICY, quick_if, without_times
from made_runs import make_run, make_seeds

from cvxrl.cli import main
from cvxrl.comparison.plan import Job
from cvxrl.comparison.train import Lines, train_all
from cvxrl.runs.directory import RunDir
from cvxrl.runs.jsonl import read_records

GRPO, LCO = "math_grpo", "math_lco_kld"
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
SMALL = [
    *("--set", "train.steps=2", "--set", "rollout.prompts=2", "--set", "rollout.samples=2"),
    *("--set", "eval.prompts=4", "--set", "eval.samples=2", "--set", "eval.every=1"),
    *("--set", "rollout.max_new_tokens=12", "--set", f"model.path={SMALL_POLICY}"),
]


def from_a_shell(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cvxrl", *arguments]
    return subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=200)


def cvxrl(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The same in this process, which has loaded everything already; what trains still has processes of its own."""
    said, complained = io.StringIO(), io.StringIO()
    code = 0
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(complained),
    ):
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", ["cvxrl", *arguments])
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
    return subprocess.CompletedProcess(arguments, code, said.getvalue(), complained.getvalue())


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    make_seeds(tmp_path / "outputs", GRPO, [0.7, 0.7, 0.8, 0.9, 1.0])
    make_seeds(tmp_path / "outputs", LCO, [0.1, 0.2, 0.3, 0.4, 0.5])
    return tmp_path


def recipe(name: str) -> str:
    return str(ROOT / "recipes" / f"{name}.yaml")


def test_tables_fit_a_pipe(outputs: Path) -> None:
    done = from_a_shell("compare", "outputs/*/seed-*", cwd=outputs)
    assert done.returncode == 0 and done.stderr == ""
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "\x1b" not in done.stdout and "─" not in done.stdout
    for words in ("worse, 5 seeds", "0.820  [0.", "objective.kind", "harmed"):
        assert words in done.stdout, words


@pytest.mark.parametrize(
    ("gates", "code", "start"),
    quick_if(
        lambda gates, code, start: start is cvxrl,
        [
            (["P(math_grpo > math_lco_kld) > 0.9", "collapsed(math_grpo) == 0"], 0, cvxrl),
            (["P(math_lco_kld > math_grpo) > 0.9", "collapsed(math_grpo) == 0"], 3, cvxrl),
            (["P(math_lco_kld > math_grpo) > 0.9", "collapsed(math_grpo) == 0"], 3, from_a_shell),
        ],
    ),
)
def test_gates(gates: list[str], code: int, start: Any, outputs: Path) -> None:
    done = start("compare", "outputs", *(part for gate in gates for part in ("--require", gate)), cwd=outputs)
    assert done.returncode == code, done.stderr
    assert done.stderr.count("require: ") == 2
    assert ("not met, left side is 0, right side is 0.9" in done.stderr) == (code == 3)


def test_json_is_one_document_and_files_are_written(outputs: Path) -> None:
    files = ["--csv", "a/runs.csv", "--md", "a/tables.md", "--tex", "a/table.tex"]
    done = cvxrl("compare", "outputs", "--json", *files, "--require", "mean(math_grpo) > 2", cwd=outputs)
    assert done.returncode == 3
    document = json.loads(done.stdout)
    assert [m["label"] for m in document["methods"]] == [GRPO, LCO]
    assert document["require"][0]["met"] is False
    rows = list(csv.DictReader((outputs / "a" / "runs.csv").open()))
    assert len(rows) == 10 and {r["method"] for r in rows} == {GRPO, LCO}
    assert [float(r["score"]) for r in rows[:5]] == [0.7, 0.7, 0.8, 0.9, 1.0]
    page = (outputs / "a" / "tables.md").read_text()
    assert r"math\_grpo & 5 & $0.820$ $[" in (outputs / "a" / "table.tex").read_text()
    assert "| math_grpo | 5 | 0.820 |" in page and "cvxrl compare outputs --json" in page


def test_a_damaged_run_hides_no_good_one(outputs: Path) -> None:
    (outputs / "outputs" / LCO / "seed-4" / "run.json").write_text("{")
    (outputs / "outputs" / LCO / "seed-3" / "metrics.jsonl").write_text("{\n{\n")
    done = cvxrl("compare", "outputs", cwd=outputs)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "seed-4/run.json" in done.stderr and "seed-3/metrics.jsonl" in done.stderr
    assert done.stderr.count("    -> ") == 2
    assert "math_lco_kld      3  0.200" in done.stdout
    document = json.loads(cvxrl("compare", "outputs", "--json", cwd=outputs).stdout)
    assert len(document["problems"]) == 2 and document["methods"][1]["scores"] == [0.1, 0.2, 0.3]


BAD = {
    "nothing matches": (["nowhere/*"], ["nowhere/*", "nothing matches"]),
    "empty folder": (["empty"], ["empty", "no run directory"]),
    "unknown metric": (["outputs", "--metric", "eval/acc"], ["--metric", "did you mean `eval/accuracy`"]),
    "unknown baseline": (["outputs", "--baseline", "ppo"], ["--baseline", "choose one of math_grpo"]),
    "unknown method in a gate": (["outputs", "--require", "mean(ppo) > 0"], ["no method `ppo`"]),
    "malformed gate": (["outputs", "--require", "mean(math_grpo) >"], ["--require", "expected"]),
    "malformed seeds": (["outputs", "--seeds", "4-0"], ["--seeds", "runs backwards"]),
    "malformed diverged-as": (["outputs", "--diverged-as", "nan"], ["--diverged-as", "last or omit"]),
    "unknown varied key": (["outputs", "--vary", "optim.lrr"], ["--vary", "did you mean `optim.lr`"]),
    "malformed varied values": (["outputs", "--vary", "optim.lr=1,,2"], ["--vary", "optim.lr=1e-4,1e-3"]),
    "training options without recipes": (["outputs", "--set", "optim.lr=1"], ["--set", "give recipes"]),
    "file in a file": (["outputs", "--csv", "empty/../notes/x.csv"], ["x.csv", "cannot write"]),
    "folder as a file": (["outputs", "--md", "empty"], ["empty", "cannot write"]),
    "file as a folder": (["outputs", "--figures", "notes"], ["notes", "cannot write into this folder"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str, outputs: Path) -> None:
    (outputs / "empty").mkdir()
    (outputs / "notes").write_text("")
    arguments, words = BAD[case]
    done = cvxrl("compare", *arguments, cwd=outputs)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr, (word, done.stderr)


def test_mistakes_are_told_all_at_once(outputs: Path) -> None:
    done = cvxrl("compare", "outputs", "--seeds", "x", "--require", "1", "--require", "2", cwd=outputs)
    assert done.returncode == 2 and done.stderr.count("error: ") == 3


def test_recipes_without_runs_name_the_remedy(outputs: Path) -> None:
    done = cvxrl("compare", recipe("math_lco_mse"), cwd=outputs)
    assert done.returncode == 2 and "add --seeds 0-4" in done.stderr


def test_recipes_stand_for_their_runs(outputs: Path) -> None:
    done = cvxrl("compare", recipe(GRPO), recipe(LCO), "--json", cwd=outputs)
    assert done.returncode == 0, done.stderr
    assert [m["finished"] for m in json.loads(done.stdout)["methods"]] == [5, 5]


@pytest.mark.usefixtures("forked")
def test_what_is_missing_is_trained_and_what_is_finished_is_reused(tmp_path: Path) -> None:
    arguments = ["compare", recipe(GRPO), "--seeds", "0-1", *SMALL, "--jobs", "2", "--json"]
    first = cvxrl(*arguments, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert first.stderr.count("finished in") == 2
    folder = tmp_path / "outputs" / GRPO
    before = {p: (p / "metrics.jsonl").stat().st_mtime_ns for p in sorted(folder.iterdir())}
    assert [p.name for p in before] == ["seed-0", "seed-1"]
    # A run that was stopped is finished; the others are left alone.
    record = folder / "seed-1" / "run.json"
    record.write_text(record.read_text().replace('"finished"', '"running"'))
    again = cvxrl(*arguments, cwd=tmp_path)
    assert again.returncode == 0 and "seed-1: resuming" in again.stderr and "seed-0" not in again.stderr
    after = {p: (p / "metrics.jsonl").stat().st_mtime_ns for p in before}
    assert [after[p] == before[p] for p in before] == [True, False]
    one, two = (json.loads(done.stdout)["methods"][0]["scores"] for done in (first, again))
    assert one == two
    # Another recipe in the same place is refused, with the key.
    changed = cvxrl(*arguments, "--set", "optim.lr=0.5", cwd=tmp_path)
    assert changed.returncode == 2 and "optim.lr" in changed.stderr and "--out" in changed.stderr


@pytest.mark.usefixtures("forked")
def test_a_run_that_cannot_train_is_a_problem_of_its_own(tmp_path: Path) -> None:
    make_seeds(tmp_path / "outputs", LCO, [0.7, 0.8])
    bad = ["--set", "rollout.max_new_tokens=5000", "--set", "name=bad", "--allow-diff"]  # seen when it is loaded
    done = cvxrl("compare", "outputs", recipe(GRPO), "--seeds", "0-1", "--jobs", "2", *bad, cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.count("training failed") == 2 and "rollout.max_new_tokens" in done.stderr
    assert "math_lco_kld" in done.stdout


@pytest.mark.parametrize("start", [Forked, pytest.param(subprocess.Popen, marks=pytest.mark.slow)])
def test_ctrl_c_lets_every_run_save_itself(start: Any, forked: None, tmp_path: Path) -> None:
    small = [*SMALL, "--set", "train.steps=100000", "--set", "eval.every=0"]
    command = [sys.executable, "-m", "cvxrl", "compare", recipe(GRPO), "--seeds", "0", *small]
    with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err, contextlib.chdir(tmp_path):
        process = start(command, env=ENVIRONMENT, stdout=out, stderr=err)
    metrics = tmp_path / "outputs" / GRPO / "seed-0" / "metrics.jsonl"
    deadline = time.monotonic() + 100
    while not (metrics.is_file() and metrics.stat().st_size > 1000) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.wait()
    said = (tmp_path / "err").read_text()
    assert process.returncode == 130 and "Traceback" not in said
    told = "finishing step [0-9]+ of math_grpo seed-0; again to stop at once; go on with: cvxrl compare "
    assert re.search(told, said)
    record = json.loads((metrics.parent / "run.json").read_text())
    assert record["status"] == "interrupted"
    assert list((metrics.parent / "checkpoints").iterdir())


def test_two_recipes_of_one_name(tmp_path: Path) -> None:
    (tmp_path / "copy.yaml").write_text(f"extends: {recipe(GRPO)}\nrollout: {{prompts: 2}}\n")
    done = cvxrl("compare", recipe(GRPO), "copy.yaml", "--seeds", "0", cwd=tmp_path)
    assert done.returncode == 2 and "same name" in done.stderr
    assert not (tmp_path / "outputs").exists()


def test_a_diverged_run_is_a_result(tmp_path: Path) -> None:
    make_seeds(tmp_path / "outputs", GRPO, [0.7, 0.8, 0.9])
    make_seeds(tmp_path / "outputs", LCO, [0.7, 0.8])
    make_run(tmp_path / "outputs", LCO, 2, (0.4, 0.5, 0.6), status="diverged", diverged_at=2)
    done = cvxrl("compare", "outputs", "--require", "diverged(math_lco_kld) == 0", "--json", cwd=tmp_path)
    assert done.returncode == 3 and "count as 0" in done.stderr
    assert json.loads(done.stdout)["methods"][1]["scores"] == [0.7, 0.8, 0.0]


@pytest.mark.parametrize(("given", "variable", "used"), [(None, None, "1"), (None, "3", "3"), (2, "3", "2")])
def test_threads_of_a_run_do_not_depend_on_how_many_run(
    given: int | None, variable: str | None, used: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    seen: list[str] = []

    class Finished:
        returncode = 0

        def __init__(self, *_: object, env: dict[str, str], **__: object) -> None:
            seen.append(env["OMP_NUM_THREADS"])

        def poll(self) -> int:
            return 0

    monkeypatch.setattr(subprocess, "Popen", Finished)
    jobs = [Job(Path("x.yaml"), (), seed, tmp_path, tmp_path / str(seed), 1, resume=False) for seed in range(2)]
    for at_a_time in (1, 2):
        assert not train_all(jobs, at_a_time, given, Lines(sys.stderr))
    assert seen == [used] * 4


@pytest.mark.slow
def test_runs_beside_each_other_train_as_alone(tmp_path: Path) -> None:
    for jobs in ("1", "2"):
        arguments = ["--seeds", "0-1", *SMALL, "--jobs", jobs, "--threads", "1", "--out", jobs]
        done = cvxrl("compare", recipe(GRPO), *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    for seed in ("seed-0", "seed-1"):
        alone, beside = (RunDir(tmp_path / jobs / GRPO / seed) for jobs in ("1", "2"))
        weights = [(run.policy / "model.safetensors").read_bytes() for run in (alone, beside)]
        assert weights[0] == weights[1]
        records = [[without_times(r) for r in read_records(run.metrics)] for run in (alone, beside)]
        assert records[0] == records[1] and len(records[0]) == 3


@pytest.mark.parametrize("streams", [(1,), (2,), (1, 2)])
@pytest.mark.usefixtures("forked")
def test_the_exit_code_counts_where_nobody_reads(streams: tuple[int, ...], outputs: Path) -> None:
    """What `2>&1 | head -1` leaves: a pipe without a reader."""
    reader, writer = os.pipe()
    os.close(reader)
    required = ["--require", "mean(math_grpo) > 2", "--csv", str(outputs / "all.csv")]
    with open(os.devnull, "wb") as nowhere, open(writer, "wb") as closed:
        out, err = (closed if number in streams else nowhere for number in (1, 2))
        command = [sys.executable, "-m", "cvxrl", "compare", str(outputs / "outputs"), *required]
        assert Forked(command, stdout=out, stderr=err, env=ENVIRONMENT).wait() == 3
        assert Forked([*command[:4], "nowhere"], stdout=out, stderr=err, env=ENVIRONMENT).wait() == 2
