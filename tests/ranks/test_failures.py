"""However a run on ranks ends, it ends on all of them: one message, one exit code, and a run.json that is true."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from forked import Forked

import cvxrl.engine.session  # noqa: F401  # what is forked has loaded everything
from cvxrl.launch import LOST, exit_code
from ranks.launched import Launched, record, settings


def trouble(what: str, rank: int, at: int = 2) -> str:
    options = f"{{what: {what}, rank: {rank}, at: {at}}}"
    return f"objective={{kind: callable, function: ranks.troubles:loss, options: {options}}}"


def on_ranks(folder: Path, arguments: Sequence[str], size: int = 2, before: Callable[[], Any] | None = None) -> Any:
    """Exit codes of the ranks, and what was said on stderr by any of them.

    Without a launcher, whose part in it is to end all where one ends.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(exist_ok=True)
    said = folder / "said.txt"
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    command = [sys.executable, "-m", "cvxrl", *arguments]
    with (folder / "out.txt").open("wb") as out, said.open("wb") as err:
        processes = [
            Forked(command, stdout=out, stderr=err, env=os.environ | address | {"RANK": str(r), "LOCAL_RANK": str(r)})
            for r in range(size)
        ]
        codes = [process.wait() for process in processes]
    return codes, said.read_text()


def messages(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("error:")]


def test_bad_input_is_told_once(tmp_path: Path) -> None:
    mistakes = settings("rollout.prompts=1", "placement.ranks=3")
    codes, said = on_ranks(tmp_path, ["train", "math_grpo", "--out", str(tmp_path / "o"), *mistakes])
    assert codes == [2, 2] and not (tmp_path / "o").exists()
    assert [line.split(": ")[1] for line in messages(said)] == ["placement.ranks", "rollout.prompts"], said


def test_a_loss_that_is_not_finite_on_one_rank_ends_both(tmp_path: Path) -> None:
    arguments = ["train", "math_grpo", "--out", str(tmp_path), *settings(trouble("nan", rank=1))]
    codes, said = on_ranks(tmp_path, arguments)
    assert codes == [4, 4] and not messages(said)
    found = record(tmp_path)
    assert found["status"] == "diverged" and found["divergence"]["tensor"] == "loss"
    assert found["divergence"]["step"] == 2 and found["divergence"]["last_checkpoint"] == "checkpoints/step-000001"
    assert sorted(found["divergence"]["sequences"]) == list(range(8, 16)), (
        "those of rank 1, numbered within the whole step"
    )
    lines = (tmp_path / "math_grpo/seed-0/rollouts/diverged-000002.jsonl").read_text().splitlines()
    assert [json.loads(line)["sequence"] for line in lines] == found["divergence"]["sequences"]


def test_a_bug_on_one_rank_is_told_with_its_traceback(tmp_path: Path) -> None:
    arguments = ["train", "math_grpo", "--out", str(tmp_path), *settings(trouble("bug", rank=1))]
    codes, said = on_ranks(tmp_path, arguments)
    assert codes == [1, 1] and said.count("KeyError: 'a key that is not there'") == 1
    assert "on rank 1" in said and record(tmp_path)["status"] == "failed"
    assert "a key that is not there" in (tmp_path / "math_grpo/seed-0/run.log").read_text()


@pytest.mark.slow
def test_a_reward_that_fails_on_one_rank_ends_both(tmp_path: Path) -> None:
    reward = "task.reward={kind: callable, function: 'ranks.troubles:reward'}"
    codes, said = on_ranks(tmp_path, ["train", "math_grpo", "--out", str(tmp_path), *settings(reward)])
    assert codes == [2, 2] and len(messages(said)) == 1, said
    assert "failed on a reply: KeyError: '1'" in messages(said)[0] and record(tmp_path)["status"] == "failed"


@pytest.mark.slow
def test_prompts_that_do_not_divide_are_shared_out(tmp_path: Path) -> None:
    codes, said = on_ranks(tmp_path, ["train", "math_grpo", "--out", str(tmp_path), *settings("rollout.prompts=4")], 3)
    assert codes == [0, 0, 0] and record(tmp_path)["status"] == "finished", said


@pytest.mark.parametrize("codes", [[2, 2], [-9, 2], [2, -15]])
def test_the_exit_code_is_that_on_which_the_ranks_agree(codes: list[int]) -> None:
    assert exit_code(codes) == 2
    assert exit_code([-9]) == exit_code([-9, LOST]) == LOST


@pytest.mark.parametrize("codes", [[-9, 130], [130, -9], [-11, 130, 130], [-6, 130]])
def test_ranks_that_the_launcher_ended_for_a_lost_one_were_not_interrupted(codes: list[int]) -> None:
    assert exit_code(codes) == LOST
    assert exit_code([130, 130]) == exit_code([130, -15]) == 130, "Ctrl-C"
    assert exit_code([*codes, 4]) == 4, "why it ended"


@pytest.mark.slow
def test_ctrl_c_at_the_launcher_saves_and_ends(tmp_path: Path) -> None:
    run = Launched(tmp_path, "train.steps=500", "checkpoint.every=0")
    run.after_step(2)
    run.process.send_signal(signal.SIGINT)
    assert run.end() == 130
    found = record(tmp_path)
    assert found["status"] == "interrupted" and found["failure"] is None
    steps = run.metrics.read_text().count("\n")
    assert [c.name for c in (run.metrics.parent / "checkpoints").iterdir()] == [f"step-{steps:06d}"]
    assert run.said.read_text().count("finishing step") == 1 and "cvxrl.launch" in run.said.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_all_and_the_run_goes_on(tmp_path: Path, rank: int) -> None:
    run = Launched(tmp_path, "train.steps=500")
    run.after_step(2)
    os.kill(run.pid_of(rank), signal.SIGKILL)
    assert run.end() == LOST and len(messages(run.said.read_text())) == 1
    # A main rank that is killed can write nothing down any more, as a process by itself.
    assert record(tmp_path)["status"] == ("interrupted" if rank else "running")
    done = run.metrics.read_text().count("\n")
    again = Launched(tmp_path, f"train.steps={done + 1}", entry="--resume", ranks=2 - rank)
    assert again.end() == 0, again.said.read_text()
    assert record(tmp_path)["status"] == "finished"


@pytest.mark.slow
@pytest.mark.parametrize(("what", "code"), [("bug", 1), ("nan", 4), ("interrupt", 130), ("kill", 137), ("hang", 137)])
def test_the_launcher_ends_with_the_code_of_the_ranks(tmp_path: Path, what: str, code: int) -> None:
    run = Launched(tmp_path, trouble(what, rank=1))
    assert run.end() == code, run.said.read_text()
    status = {1: "failed", 4: "diverged", 130: "interrupted", 137: "interrupted"}[code]
    assert record(tmp_path)["status"] == status
    if what == "hang":
        assert "placement.timeout" in run.said.read_text()


@pytest.mark.slow
def test_a_full_disk_on_the_main_rank_ends_both(tmp_path: Path) -> None:
    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, 2**18))

    run = Launched(tmp_path, preexec_fn=small_files)
    assert run.end() == 2
    assert len(messages(run.said.read_text())) == 1 and "ulimit -f" in run.said.read_text()
    assert record(tmp_path)["status"] == "failed"
