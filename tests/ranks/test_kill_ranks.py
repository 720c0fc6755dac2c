"""A run on two ranks that is killed again and again, and gone on with on two ranks or on one."""

from __future__ import annotations

import os
import random
import signal
from collections import defaultdict
from itertools import cycle
from pathlib import Path
from typing import Any

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
        # Killed before its first checkpoint, it has nothing to go on from.
        saved = any((tmp_path / "math_grpo" / "seed-0" / "checkpoints").glob("step-*"))
        run = Launched(tmp_path, *RUN, entry="--resume" if saved else "--overwrite", ranks=ranks)
        run.after_step(run.steps + dice.randint(1, 2))
        run.wait(dice.uniform(0.0, 0.5))
        assert run.process.poll() is None
        os.kill(run.pid_of(dice.randrange(ranks)), signal.SIGKILL)
        assert run.end() == 137
    run = Launched(tmp_path, *RUN, entry="--resume", ranks=next(size))
    assert run.end() == 0 and record(tmp_path)["status"] == "finished"
    expected, found = records(whole), records(run.metrics)
    if len(sizes) == 1:
        assert found == expected, "the same number of ranks: bit for bit"
        return
    # Another number of ranks rounds otherwise, and 48 steps amplify that: as whole runs on two and on one show.
    straight = Launched(tmp_path / "one", *RUN, ranks=1)
    assert straight.end() == 0
    apart: defaultdict[str, float] = defaultdict(float)
    for mine, one, mixed in zip(expected, records(straight.metrics), found, strict=True):
        assert mine.keys() == one.keys() == mixed.keys()
        for key in (key for key in mine if not key.startswith("check/")):
            apart[key] = max(apart[key], abs(one[key] - mine[key]))
            assert abs(mixed[key] - mine[key]) <= max(1e-4, 10 * apart[key]), (mine["step"], key, apart[key])


def records(metrics: Path) -> list[dict[str, Any]]:
    return [without_times(record) for record in read_records(metrics)]
