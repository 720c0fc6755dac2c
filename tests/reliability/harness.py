"""Start, kill and resume runs; compare what they leave."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from helpers import ROOT, cut, without_times
from safetensors.torch import load_file

from cvxrl.runs.directory import RunDir
from cvxrl.runs.jsonl import read_records

# In the environment of every process that these tests start; must never be found in a file.
SECRET = "correcthorsebatterystaple"
ENVIRONMENT = {
    **os.environ,
    "HF_HUB_OFFLINE": "1",
    "NO_COLOR": "1",
    "COLUMNS": "200",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
    "HF_TOKEN": "hf_" + SECRET,
    "MY_API_KEY": SECRET,
}
KILLED = -signal.SIGKILL
PATIENCE_S = 600.0  # a whole process imports for long where the machine is busy; pytest's own limit is shorter


@dataclass(frozen=True)
class Case:
    """A recipe and its overrides; training arguments and the run directory follow."""

    recipe: str
    overrides: Sequence[str] = ()

    def arguments(self, out: Path, entry: str = "new") -> list[str]:
        """Command line of `cvxrl train`."""
        given = cut(self.recipe, *self.overrides)
        sets = [part for text in given for part in ("--set", text)]
        flag = {"new": [], "resume": ["--resume"], "overwrite": ["--overwrite"]}[entry]
        return ["train", str(ROOT / "recipes" / f"{self.recipe}.yaml"), *sets, "--out", str(out), *flag]

    def folder(self, out: Path) -> Path:
        """Run directory."""
        return out / self.recipe / "seed-0"


class Running:
    """A process that trains, whichever way it was started."""

    def __init__(self, pid: int, wait: Any, ended: Any, log: Path) -> None:
        self.pid, self.wait, self.ended, self.log = pid, wait, ended, log

    def send(self, number: int) -> None:
        """Send a signal; harmless if the process has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


class ForkServer:
    """See forkserver.py; one child at a time."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("forkserver.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=ENVIRONMENT,
            text=True,
        )
        assert self._answer("ready")

    def start(self, arguments: Sequence[str], log: Path, fault: dict[str, Any] | None = None) -> Running:
        """Fork a child that runs `cvxrl` with these arguments."""
        assert self._process.stdin is not None
        request = {"argv": list(arguments), "log": str(log), "fault": fault}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        pid = self._answer("pid")
        return Running(pid, lambda: self._answer("status"), lambda: not Path(f"/proc/{pid}").exists(), log)

    def run(self, arguments: Sequence[str], log: Path, fault: dict[str, Any] | None = None) -> int:
        """The same, to its end; returns the exit code, or minus the signal."""
        code: int = self.start(arguments, log, fault).wait()
        assert "Traceback" not in log.read_text(errors="replace"), log.read_text(errors="replace")
        return code

    def close(self) -> None:
        """End the server."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE_S)

    def _answer(self, key: str) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())[key]


class Spawner:
    """The same interface over whole processes, imports included."""

    def start(self, arguments: Sequence[str], log: Path, fault: dict[str, Any] | None = None) -> Running:
        """`python -m cvxrl` in a process of its own."""
        assert fault is None
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "cvxrl", *arguments], stdout=stream, stderr=stream, env=ENVIRONMENT, cwd=ROOT
            )
        return Running(process.pid, lambda: process.wait(PATIENCE_S), lambda: process.poll() is not None, log)

    def run(self, arguments: Sequence[str], log: Path) -> int:
        """The same, to its end."""
        code: int = self.start(arguments, log).wait()
        return code


SAVED = ("train.steps=4", "checkpoint.every=2", "eval.every=4", "rollout.prompts=2")
MANY = (*SAVED, "train.inner_epochs=2", "train.minibatches=2")
SHORT = ("task.reward.noise=coin", "rollout.max_new_tokens=8")  # replies so short are never right
USUAL = Case("math_lco_kld", (*MANY, *SHORT, "optim.schedule=cosine", "optim.warmup_steps=3"))


def wait_for(condition: Any, seconds: float = PATIENCE_S) -> None:
    """Poll until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.005)


def entry_for(folder: Path) -> str:
    """How a person would go on after a crash: `resume` once the run had begun, from the start if nothing was saved."""
    if not (folder / "recipe.yaml").is_file():
        return "new"
    return "overwrite" if RunDir(folder).lost_steps() else "resume"


def kill_randomly(starter: Any, case: Case, out: Path, kills: int, seconds: float, random: Random) -> list[int]:
    """Kill a run again and again at random moments, going on after each; returns the steps on disk at each kill.

    Args:
        starter: ForkServer or Spawner.
        case: what to train.
        out: output folder.
        kills: how many kills to make; a run that ends before its turn is begun anew.
        seconds: how long the whole run takes, from the lock to the end.
        random: draws the moments.
    """
    folder, log, seen = case.folder(out), out / "log.txt", []
    out.mkdir(parents=True, exist_ok=True)
    entry = "new"
    while len(seen) < kills:
        before = (folder / ".lock").stat().st_mtime_ns if (folder / ".lock").exists() else 0
        running = starter.start(case.arguments(out, entry), log)
        # The start, which imports and loads, is as long as the rest and writes nothing: the clock starts at the lock.
        lock = folder / ".lock"
        wait_for(lambda: running.ended() or (lock.exists() and lock.stat().st_mtime_ns != before))  # noqa: B023
        time.sleep(random.uniform(0.0, seconds))
        running.send(signal.SIGKILL)
        code = running.wait()
        assert code in (KILLED, 0), log.read_text(errors="replace")
        if code == KILLED:
            metrics = folder / "metrics.jsonl"
            seen.append(metrics.read_bytes().count(b"\n") if metrics.exists() else 0)
        entry = entry_for(folder) if code == KILLED else "overwrite"
    code = starter.run(case.arguments(out, entry), log)
    assert code == 0, log.read_text(errors="replace")
    return seen


def assert_same_run(expected: Path, found: Path, *, checkpoints: bool = True) -> None:
    """Bit for bit the same metrics (timings aside), evaluations, completions, final weights, and nothing left over.

    A stop that was asked for saves a checkpoint of its own; then the lists of checkpoints differ rightly.
    """
    left, right = (list(map(without_times, read_records(p / "metrics.jsonl"))) for p in (expected, found))
    assert left == right
    assert left, "nothing was compared"
    for folder in ("evals", "rollouts", *(["checkpoints"] if checkpoints else [])):
        names = [sorted(p.name for p in (root / folder).glob("*")) for root in (expected, found)]
        assert names[0] == names[1]
    for folder in ("evals", "rollouts"):
        for file in (expected / folder).glob("*"):
            assert file.read_bytes() == (found / folder / file.name).read_bytes(), file
    files = [sorted(p.relative_to(root) for p in root.glob("*/*.safetensors")) for root in (expected, found)]
    assert files[0] == files[1] and files[0]
    for file in files[0]:
        weights = [load_file(root / file) for root in (expected, found)]
        assert weights[0].keys() == weights[1].keys()
        for name, tensor in weights[0].items():
            assert tensor.dtype == weights[1][name].dtype
            assert tensor.view(torch.uint8).equal(weights[1][name].view(torch.uint8)), (file, name)
    assert json.loads((found / "run.json").read_text())["status"] == "finished"
    assert not [p for p in found.rglob(".*") if p.name != ".lock"]


@dataclass(frozen=True)
class Whole:
    """A run that nobody disturbed, and the seconds from its lock to its end."""

    folder: Path
    seconds: float


def train_whole(server: ForkServer, case: Case, out: Path) -> Whole:
    """Run a case undisturbed."""
    out.mkdir(parents=True, exist_ok=True)
    assert server.run(case.arguments(out), out / "log.txt") == 0, (out / "log.txt").read_text()
    folder = case.folder(out)
    began, ended = ((folder / name).stat().st_mtime for name in ("recipe.yaml", "run.json"))
    return Whole(folder, ended - began)


def unfinish(folder: Path) -> None:
    """Make a finished run look like one that was killed before its export."""
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "status": "running", "ended": None}))
    shutil.rmtree(folder / "policy", ignore_errors=True)


def reseal(checkpoint: Path) -> None:
    """Write the checksums anew, so that a change made on purpose passes for whole."""
    manifest = json.loads((checkpoint / "checksums.json").read_text())
    for name in manifest["files"]:
        manifest["files"][name] = hashlib.sha256((checkpoint / name).read_bytes()).hexdigest()
    (checkpoint / "checksums.json").write_text(json.dumps(manifest))
