"""Fixtures of the tests of studies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_studies import PLAN, write_run

from cvxrl.comparison.plan import Job, Plan
from cvxrl.runs.record import Status


@pytest.fixture
def study(cvxrl: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs the plan with training replaced by writing runs; `trained` holds the jobs of every round.

    `status` is that of all runs, or says it of a job; `most` is the number of runs for which there is time.
    """

    def call(*arguments: str, status: Status | Callable[[Job], Status] = "finished", most: int | None = None) -> Any:
        call.trained = []  # type: ignore[attr-defined]

        def train(plan: Plan, _training: Any) -> list[object]:
            done = sum(map(len, call.trained))  # type: ignore[attr-defined]
            jobs = plan.jobs[: None if most is None else max(0, most - done)]
            call.trained.append(jobs)  # type: ignore[attr-defined]
            for job in jobs:
                write_run(job, status(job) if callable(status) else status)
            return []

        monkeypatch.setattr("cvxrl.commands.study.train_plan", train)
        return cvxrl("compare", "plan.yaml", *arguments)

    (tmp_path / "plan.yaml").write_text(PLAN)
    return call
