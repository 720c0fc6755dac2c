"""Entering a directory: the lock and its holder's name, and one rule for what is there already."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import pytest
from helpers import ROOT, tiny
from made_runs import make_run

from cvxrl.errors import UserError
from cvxrl.evaluation.folder import EvalDir
from cvxrl.runs.directory import RunDir
from cvxrl.runs.entry import LOCK_FILE, Entry, is_held, lock, refuse_if_held
from cvxrl.runs.files import StorageError

HOLD = "import sys, time\nfrom pathlib import Path\nfrom cvxrl.runs.entry import lock\nwith lock(Path(sys.argv[1])):\n"
HOLD += "    print('held', flush=True)\n    time.sleep(600)\n"


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds ``tmp_path / "held"``."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "held")], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_the_holder_is_named_and_its_lock_ends_with_it(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    folder = tmp_path / "held"
    for _ in range(2):  # the first refusal must not destroy the name
        with pytest.raises(UserError, match=f"in use by process {holder.pid} on {socket.gethostname()}, since 20"):
            refuse_if_held(folder)
        with pytest.raises(UserError, match=f"process {holder.pid}"), lock(folder):
            pass
    assert is_held(folder)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert not is_held(folder)
    with lock(folder) as held:
        assert held


def test_the_name_begins_behind_the_byte_that_windows_locks(tmp_path: Path) -> None:
    with lock(tmp_path):
        text = (tmp_path / LOCK_FILE).read_text()
        assert text[0] == " " and json.loads(text[1:])["pid"] == os.getpid()
    assert (tmp_path / LOCK_FILE).read_text() == ""


def test_a_holder_of_version_0_1_is_named(tmp_path: Path) -> None:
    with (tmp_path / LOCK_FILE).open("w") as stream:
        stream.write('{"pid": 7, "host": "far", "started": "2026-01-01T00:00:00+00:00"}')
        stream.flush()
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="in use by process 7 on far, since 2026-01-01T00:00:00"):
            refuse_if_held(tmp_path)
        stream.truncate(0)
        with pytest.raises(UserError, match="in use by another process"):
            refuse_if_held(tmp_path)


def test_looking_writes_nothing(tmp_path: Path) -> None:
    refuse_if_held(tmp_path)
    assert not is_held(tmp_path / "nowhere") and not list(tmp_path.iterdir())
    with lock(tmp_path):
        pass
    os.utime(tmp_path / LOCK_FILE, (0, 0))
    refuse_if_held(tmp_path)
    assert not is_held(tmp_path) and (tmp_path / LOCK_FILE).stat().st_mtime == 0


def test_a_process_that_is_started_does_not_inherit_the_lock(tmp_path: Path) -> None:
    with lock(tmp_path):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], close_fds=False)
    try:
        time.sleep(0.1)
        assert not is_held(tmp_path)
    finally:
        child.kill()
        child.wait()


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(descriptor: int, **_: Any) -> bool:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(filelock, "lock_descriptor", unsupported)
    with lock(tmp_path) as held, lock(tmp_path):
        assert not held and not is_held(tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"), lock(tmp_path / "file" / "folder"):
        pass


# --- one rule for runs and evaluations --------------------------------------------------------------------------


def run_there(folder: Path) -> None:
    made = make_run(folder.parent / "made")
    made.rename(folder)


def evaluation_there(folder: Path) -> None:
    folder.mkdir()
    (folder / "settings.json").write_text("{}")


def check_run(folder: Path, entry: Entry) -> None:
    RunDir(folder).check(tiny("math_grpo"), entry)


def check_evaluation(folder: Path, entry: Entry) -> None:
    EvalDir(folder).check(entry)


KINDS = {
    "run": (run_there, check_run, "this run exists already", "--seed or --out"),
    "evaluation": (evaluation_there, check_evaluation, "holds an unfinished evaluation", "--out for another folder"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_exists_is_not_begun_again_and_what_does_not_may_be_resumed(kind: str, tmp_path: Path) -> None:
    make, check, said, elsewhere = KINDS[kind]
    folder = tmp_path / "there"
    check(folder, "new")
    check(folder, "overwrite")
    check(folder, "resume")  # which begins it
    assert not folder.exists()
    make(folder)
    check(folder, "overwrite")
    with pytest.raises(UserError, match=said) as caught:
        check(folder, "new")
    assert all(way in str(caught.value) for way in ("--resume", "--overwrite", elsewhere))


@pytest.mark.parametrize("kind", KINDS)
def test_a_directory_in_use_or_without_permission_is_refused_before_anything_is_loaded(
    kind: str, tmp_path: Path
) -> None:
    check = KINDS[kind][1]
    with lock(tmp_path / "held"), pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
        check(tmp_path / "held", "new")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write here") as caught:
        check(tmp_path / "file" / "below", "new")
    assert str(tmp_path / "file") in str(caught.value) and "--out" in str(caught.value)


def test_settings_that_differ_are_named(tmp_path: Path) -> None:
    folder = make_run(tmp_path, overrides=["optim.lr=1e-3"])
    with pytest.raises(UserError) as caught:
        check_run(folder, "resume")
    assert "optim.lr" in {p.key for p in caught.value.problems}
    assert all("is now" in p.message and p.file.endswith("recipe.yaml") for p in caught.value.problems)
