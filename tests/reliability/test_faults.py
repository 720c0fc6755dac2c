"""Full disks, failing disks, torn files, changed inputs: every case goes on, or ends in a sentence and exit code 2."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT, SMALL_POLICY, quick_if
from safetensors.torch import load_file, save_file

from cvxrl.comparison.sources import read_run
from cvxrl.errors import UserError
from cvxrl.evaluation.target import find_target
from cvxrl.runs.jsonl import read_records
from reliability.harness import (
    ENVIRONMENT,
    SECRET,
    USUAL,
    Case,
    ForkServer,
    Whole,
    assert_same_run,
    entry_for,
    unfinish,
)


def refused(server: ForkServer, arguments: list[str], log: Path, *words: str, fault: Any = None) -> None:
    """Exit code 2, a sentence with these words and a remedy, no traceback."""
    assert server.run(arguments, log, fault) == 2, log.read_text()
    said = log.read_text()
    assert "error: " in said and "->" in said
    for word in words:
        assert word in said, (word, said)


def goes_on(server: ForkServer, whole: Path, out: Path) -> None:
    """The next start ends as the undisturbed run did."""
    folder = USUAL.folder(out)
    assert server.run(USUAL.arguments(out, entry_for(folder)), out / "log.txt") == 0, (out / "log.txt").read_text()
    assert_same_run(whole, folder, checkpoints=False)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"fsync_at": 1, "errno": errno.ENOSPC}, marks=pytest.mark.slow),  # recipe.yaml
        {"fsync_at": 9, "errno": errno.EIO},  # within a checkpoint
        pytest.param({"file_size": 200_000}, marks=pytest.mark.slow),  # the weights do not fit
    ],
)
def test_a_write_that_fails(fault: dict[str, int], fork_server: ForkServer, whole: Whole, tmp_path: Path) -> None:
    words = "cannot write", str(tmp_path), "--resume"
    refused(fork_server, USUAL.arguments(tmp_path), tmp_path / "log.txt", *words, fault=fault)
    goes_on(fork_server, whole.folder, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("number", range(1, 60, 3))
def test_every_fsync_may_fail(number: int, fork_server: ForkServer, whole: Whole, tmp_path: Path) -> None:
    fault = {"fsync_at": number, "errno": errno.EIO}
    code = fork_server.run(USUAL.arguments(tmp_path), tmp_path / "log.txt", fault)
    assert code in (0, 2), (tmp_path / "log.txt").read_text()
    if code == 2:
        goes_on(fork_server, whole.folder, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kilobytes", "entry"), [(16, "resume"), (250, "overwrite"), (1150, "resume"), (1550, "resume")]
)
def test_a_disk_that_is_full(kilobytes: int, entry: str, whole: Whole, tmp_path: Path) -> None:
    """A real small file system, in a mount namespace of its own; then it grows and the run goes on.

    Where not even the first checkpoint found room there is nothing to go on from.
    """
    if subprocess.run(["unshare", "-Urm", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    disk, log = tmp_path / "disk", tmp_path / "log.txt"
    disk.mkdir()
    first, again = (" ".join(f"'{a}'" for a in USUAL.arguments(disk, e)) for e in ("new", entry))
    script = f"""
        mount -t tmpfs -o size={kilobytes}k none {disk} || exit 9
        python -m cvxrl {first} >{log} 2>&1; echo "code $?"
        mount -o remount,size=100m {disk} || exit 9
        if [ -f {USUAL.folder(disk)}/recipe.yaml ]; then python -m cvxrl {again} >>{log} 2>&1
        else python -m cvxrl {first} >>{log} 2>&1; fi; echo "code $?"
        cp -r {disk}/. {tmp_path}/kept"""
    done = subprocess.run(["unshare", "-Urm", "sh", "-c", script], env=ENVIRONMENT, cwd=ROOT, capture_output=True)
    assert done.stdout.split() == [b"code", b"2", b"code", b"0"], log.read_text()
    assert "No space left" in log.read_text() and "Traceback" not in log.read_text()
    assert_same_run(whole.folder, USUAL.folder(tmp_path / "kept"), checkpoints=False)


def test_a_folder_that_cannot_be_written(fork_server: ForkServer, tmp_path: Path) -> None:
    refused(fork_server, USUAL.arguments(Path("/proc/nowhere")), tmp_path / "log.txt", "/proc", "--out")


def read_or_refused(folder: Path) -> None:
    """`compare` and `eval` read the directory, or say what is wrong with it."""
    for look in (read_run, lambda f: find_target(str(f))):
        try:
            look(folder)
        except UserError as error:
            assert str(folder) in str(error)


def truncate(path: Path, share: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def both(folder: Path, harm: Callable[[Path], Any]) -> None:
    for checkpoint in (folder / "checkpoints").iterdir():
        harm(checkpoint)


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


NEWEST = "checkpoints/step-000003"
MENDED: dict[str, Callable[[Path], Any]] = {
    "torn last line": lambda d: truncate(d / "metrics.jsonl", 0.97),
    "torn weights": lambda d: truncate(d / NEWEST / "model.safetensors"),
    "half a checkpoint, and what killed writers leave": lambda d: (
        (d / NEWEST).rename(d / "checkpoints" / ".step-000003.tmp"),
        (d / ".run.json.tmp").write_text("{"),
        (d / "policy").mkdir(exist_ok=True),
        (d / "run.json").unlink(),
    ),
}
REFUSED: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "no whole checkpoint": (lambda d: both(d, lambda c: flip(c / "trainer.pt")), ["trainer.pt", "damaged"]),
    "checkpoints without checksums": (lambda d: both(d, lambda c: (c / "checksums.json").unlink()), ["checksums.json"]),
    "checkpoints of a newer version": (
        lambda d: both(d, lambda c: edit(c / "checksums.json", schema_version=99)),
        ["newer cvxrl", "layout 99"],
    ),
    "torn run.json": (lambda d: truncate(d / "run.json"), ["run.json", "damaged", "--overwrite"]),
    "run.json of an older version": (lambda d: edit(d / "run.json", schema_version=0), ["another cvxrl", "layout 0"]),
    "run.json of something else": (lambda d: (d / "run.json").write_text("[]"), ["run.json", "without a layout"]),
    "torn recipe": (lambda d: truncate(d / "recipe.yaml"), ["recipe.yaml"]),
    "other data": (lambda d: edit(d / "run.json", task_fingerprint="0" * 64), ["task.source", "data set changed"]),
    "other weights": (lambda d: edit(d / "run.json", model_hash="0" * 64), ["initial weights changed"]),
    "other tokenizer": (lambda d: edit(d / "run.json", tokenizer_hash="0" * 64), ["tokenizer changed"]),
}


@pytest.mark.parametrize("case", quick_if("torn weights".__ne__, MENDED))
def test_what_is_mended(case: str, fork_server: ForkServer, whole: Whole, interrupted: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(interrupted, USUAL.folder(tmp_path)))
    MENDED[case](folder)
    read_or_refused(folder)
    goes_on(fork_server, whole.folder, tmp_path)
    assert read_run(folder).status == "finished"


def _torn(log: str) -> str:
    """Half of the second line is gone."""
    first, second, *others = log.splitlines(keepends=True)
    return "".join([first, second[: len(second) // 2] + "\n", *others])


LOST: dict[str, Callable[[Path], Any]] = {
    "torn line in the middle": lambda d: (d / "metrics.jsonl").write_text(_torn((d / "metrics.jsonl").read_text())),
    "empty": lambda d: (d / "metrics.jsonl").write_text(""),
    "gone": lambda d: (d / "metrics.jsonl").unlink(),
}


@pytest.mark.parametrize("case", ["empty", *(pytest.param(c, marks=pytest.mark.slow) for c in LOST if c != "empty")])
def test_checkpoints_decide_and_lost_records_are_mended_and_named(
    case: str, fork_server: ForkServer, whole: Whole, interrupted: Path, tmp_path: Path
) -> None:
    """Checkpoints of steps 2 and 3, an evaluation of step 0: the run ends with the same weights, from step 3 on."""
    folder, log = Path(shutil.copytree(interrupted, USUAL.folder(tmp_path))), tmp_path / "log.txt"
    LOST[case](folder)
    assert fork_server.run(USUAL.arguments(tmp_path, "resume"), log) == 0, log.read_text()
    said = log.read_text()
    assert "metrics.jsonl lacks the records of step 1" in said and ", 3 done before" in said
    resumed = json.loads((folder / "run.json").read_text())["resumed"][-1]
    assert resumed["step"] == 3 and resumed["lost"].startswith("metrics.jsonl lacks the records of step 1")
    weights, same = (load_file(path / "policy" / "model.safetensors") for path in (whole.folder, folder))
    assert all(weights[name].equal(same[name]) for name in weights)
    records = {int(r["step"]): r for r in read_records(folder / "metrics.jsonl")}
    assert (
        max(records) == 4
        and records[0]["eval/accuracy"] == read_records(whole.folder / "metrics.jsonl")[0]["eval/accuracy"]
    )
    assert read_run(folder).status == "finished"


def test_steps_without_a_checkpoint_are_not_thrown_away_in_silence(
    fork_server: ForkServer, whole: Whole, interrupted: Path, tmp_path: Path
) -> None:
    folder, log = Path(shutil.copytree(interrupted, USUAL.folder(tmp_path))), tmp_path / "log.txt"
    shutil.rmtree(folder / "checkpoints")
    kept = (folder / "metrics.jsonl").read_bytes()
    words = "3 steps were done and no checkpoint was saved", "--overwrite starts again from step 0"
    refused(fork_server, USUAL.arguments(tmp_path, "resume"), log, *words)
    assert (folder / "metrics.jsonl").read_bytes() == kept
    (folder / "metrics.jsonl").write_text("")  # run.json remembers all the same
    refused(fork_server, USUAL.arguments(tmp_path, "resume"), log, *words)


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str, fork_server: ForkServer, interrupted: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(interrupted, USUAL.folder(tmp_path)))
    harm, words = REFUSED[case]
    harm(folder)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    refused(fork_server, USUAL.arguments(tmp_path, "resume"), tmp_path / "log.txt", *words)
    assert before == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}, "a refused run was changed"
    read_or_refused(folder)


def test_changed_files_are_named(fork_server: ForkServer, tmp_path: Path) -> None:
    """The real thing: a data file and a model directory that change between two sessions."""
    data, model = tmp_path / "data.jsonl", Path(shutil.copytree(SMALL_POLICY, tmp_path / "model"))
    data.write_text("".join(f'{{"q": "{i}+1?", "a": "{i + 1}"}}\n' for i in range(9)))
    source = f"task.source={{kind: dataset, path: {data}, prompt_field: q, answer_field: a}}"
    small = (
        "train.steps=1",
        "checkpoint.final=true",
        "eval.every=0",
        "rollout.prompts=2",
        f"model.path={model}",
        source,
    )
    case, log = Case("math_grpo", small), tmp_path / "log.txt"
    assert fork_server.run(case.arguments(tmp_path), log) == 0, log.read_text()
    unfinish(case.folder(tmp_path))
    data.write_text(data.read_text().replace('"a": "4"', '"a": "5"'))
    weights = load_file(model / "model.safetensors")
    name = next(iter(weights))
    save_file({**weights, name: weights[name] + torch.finfo().eps}, model / "model.safetensors", {"format": "pt"})
    refused(fork_server, case.arguments(tmp_path, "resume"), log, "data set changed", "initial weights changed")


def test_no_secret_is_written(whole: Whole, interrupted: Path, fork_server: ForkServer, tmp_path: Path) -> None:
    files = [p for root in (whole.folder, interrupted) for p in root.rglob("*") if p.is_file()]
    assert len(files) > 20
    assert not [p for p in files if SECRET.encode() in p.read_bytes()]
    given = Case("math_grpo", (f'task.reward={{kind: callable, function: "a:b", kwargs: {{key: {SECRET}}}}}',))
    refused(fork_server, given.arguments(tmp_path), tmp_path / "log.txt", "MY_API_KEY")
    assert SECRET not in (tmp_path / "log.txt").read_text() and not given.folder(tmp_path).exists()
