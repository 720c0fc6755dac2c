"""Training takes the steps that version 0.1 took, bit for bit, where completions are drawn from the same numbers."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from typing import Any

import pytest

from .cases import CASES, QUICK
from .draws import Draws
from .record import RECORDING, Trajectory, machine, trajectory

# What may differ from the recording, and why: `case/metric` -> reason; both may hold wildcards. Instead of a metric,
# `policy` and `adapter` stand for the final weights, `step` for which steps there are.
CHANGED: dict[str, str] = {
    "eval-greedy/policy/kl": "rollout.batch=3 decodes three completions at a time; in version 0.1 it was a whole "
    "prompt of four, so the sampler's log-probabilities are rounded otherwise",
    "bfloat16*/grad/norm*": "the norm of bf16 gradients keeps its digits; 0.1 rounded it to bf16, three of them",
    "adafactor-master/grad/norm*": "likewise",
    "*/check/forward_deviation": "a new metric: the trainer against the model's own forward pass",
}

RECORDED: dict[str, Any] = json.loads(RECORDING.read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def few_are_read_again() -> None:
    """All are, as when they were recorded."""


@pytest.fixture(scope="module")
def same_bits() -> None:
    here, there = machine(), RECORDED["machine"]
    if here != there:
        pytest.skip(f"last bits depend on torch and on the processor: recorded with {there}, this is {here}")


@pytest.mark.usefixtures("same_bits")
@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in CASES])
def test_the_recorded_steps_are_taken(name: str) -> None:
    recorded, replayed = RECORDED["cases"][name]["fixed_draws"], trajectory(CASES[name], fixed_draws=True)
    found = differences(name, recorded, replayed)
    assert not found, "\n".join(found)


def differences(name: str, recorded: Trajectory, replayed: Trajectory) -> list[str]:
    """A line for every number and digest that differs, earliest step first, but for those of `CHANGED`."""
    found: list[tuple[str, str]] = []
    steps = [[record["step"] for record in each["records"]] for each in (recorded, replayed)]
    if steps[0] != steps[1]:
        found.append(("step", f"was {steps[0]}, is {steps[1]}"))
    for before, now in zip(recorded["records"], replayed["records"], strict=False):
        for key in sorted({*before, *now} - {"step"}):
            if before.get(key, "absent") != now.get(key, "absent"):
                text = f"step {before['step']}: was {before.get(key, 'absent')!r}, is {now.get(key, 'absent')!r}"
                found.append((key, text))
    for key in ("policy", "adapter"):
        if recorded.get(key) != replayed.get(key):
            found.append((key, f"was {recorded.get(key)}, is {replayed.get(key)}"))
    return [f"{name}/{key}: {text}" for key, text in found if not _is_allowed(f"{name}/{key}")]


def _is_allowed(place: str) -> bool:
    return any(fnmatchcase(place, pattern) for pattern in CHANGED)


def test_the_recording_and_the_cases_agree() -> None:
    assert list(RECORDED["cases"]) == list(CASES)
    for name, case in CASES.items():
        recorded = RECORDED["cases"][name]
        assert recorded["sampled"] == case.sampled == ("own_draws" in recorded)
    assert set(QUICK) <= set(CASES)
    assert all(any(fnmatchcase(f"{name}/", f"{p.split('/')[0]}/") for name in CASES) for p in CHANGED), "stale pattern"


def test_recorded_runs_learn_and_differ() -> None:
    """A recording of policies that never move would be replayed by anything."""
    finals = [case["fixed_draws"]["policy"] for case in RECORDED["cases"].values()]
    assert len(set(finals)) > 0.8 * len(finals)
    for name, case in RECORDED["cases"].items():
        records = case["fixed_draws"]["records"]
        assert any(record.get("grad/norm", 0) > 1e-3 for record in records), name
        assert len(records) == 3 + ("reward/mean" in records[-1] or "eval/accuracy" in records[-1])


def test_the_smallest_difference_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: Trajectory = {
        "records": [{"step": 1, "loss": 0.1, "gone": 1.0}, {"step": 2, "loss": None}],
        "policy": "a",
    }
    replayed: Trajectory = {"records": [{"step": 1, "loss": 0.1, "new": 1.0}], "policy": "b", "adapter": "c"}
    assert differences("x", recorded, recorded) == []
    keys = ["step", "gone", "new", "policy", "adapter"]
    assert [line.split(":")[0] for line in differences("x", recorded, replayed)] == [f"x/{key}" for key in keys]
    replayed["records"][0]["loss"] = 0.10000000000000002
    assert "x/loss: step 1: was 0.1, is 0.10000000000000002" in differences("x", recorded, replayed)
    monkeypatch.setitem(CHANGED, "x/*o*", "a test")
    assert [line.split(":")[0] for line in differences("x", recorded, replayed)] == ["x/step", "x/new", "x/adapter"]


def test_draws_belong_to_the_prompt_not_to_the_batch() -> None:
    together, apart = Draws(), Draws()
    rows = together.rows([[1, 2], [1, 2], [3]])
    first, other, again = apart.rows([[1, 2]]), apart.rows([[3]]), apart.rows([[1, 2]])
    for position in (5, 0):
        assert rows(position).tolist() == [*first(position), *again(position), *other(position)]
    assert len({float(x) for position in range(9) for x in rows(position)}) == 27
    assert all(0 <= x < 1 for x in rows(3))
