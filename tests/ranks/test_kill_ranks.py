"""A run on two ranks that is killed again and again, and gone on with on two ranks or on one."""

from __future__ import annotations

import os
import random
import signal
from itertools import cycle
from pathlib import Path

import pytest
from helpers import without_times

from cvxrl.runs.jsonl import read_records
from ranks.launched import Launched, record

STEPS, KILLS = 24, 10
RUN = (f"train.steps={STEPS}", "checkpoint.every=1", "rollout.lag=1", "train.minibatches=2")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = Launched(tmp_path_factory.mktemp("whole"), *RUN)
    assert run.end() == 0
    return run.metrics


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("sizes", [(2,), (2, 1)])
def test_a_run_killed_at_random_is_the_whole_run(tmp_path: Path, whole: Path, sizes: tuple[int, ...]) -> None:
    dice, size = random.Random(len(sizes)), cycle(sizes)
    for _ in range(KILLS):
        ranks = next(size)
        run = Launched(tmp_path, *RUN, entry="--resume", ranks=ranks)
        run.after_step(run.steps + dice.randint(1, 2))
        run.wait(dice.uniform(0.0, 0.5))
        assert run.process.poll() is None
        os.kill(run.pid_of(dice.randrange(ranks)), signal.SIGKILL)
        assert run.end() == 137
    run = Launched(tmp_path, *RUN, entry="--resume", ranks=next(size))
    assert run.end() == 0 and record(tmp_path)["status"] == "finished"
    expected, found = ([without_times(r) for r in read_records(path)] for path in (whole, run.metrics))
    if len(sizes) == 1:
        assert found == expected, "the same number of ranks: bit for bit"
        return
    for mine, theirs in zip(expected, found, strict=True):
        rounded = {key: value for key, value in mine.items() if not key.startswith("check/")}
        assert {key: theirs[key] for key in rounded} == pytest.approx(rounded, rel=1e-3, abs=1e-4)
