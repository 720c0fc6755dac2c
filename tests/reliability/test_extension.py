"""A run that is made longer is the run that was that long from the start; what would change its past is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SilentSink, tiny

from cvxrl.engine import session
from cvxrl.errors import UserError
from cvxrl.policy.load import load_policy
from cvxrl.recipe.amendment import amendments
from cvxrl.recipe.model import ModelSpec
from cvxrl.runs.directory import RunDir
from reliability.test_resume import OBJECTIVE_CASES, SCRATCH, STATE_CASES, outcome, recipe_of, train

CONSTANT = {"optim": {"lr": 0.01}}
SHORT, LONG = 3, 5  # step 3 is evaluated as the last one of the short run only, since `eval.every` is 2
EXTENDED: dict[str, dict[str, Any]] = {
    "value head and adapter": {**STATE_CASES["adapter and value head"]},
    **STATE_CASES,
    **OBJECTIVE_CASES,
}
QUICK = ("value head and adapter",)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    load_policy(ModelSpec.model_validate({"scratch": SCRATCH}), torch.device("cpu"), seed=1).save(folder)
    return folder


def recipes(case: dict[str, Any], policy: Path, folder: Path, **more: Any) -> list[Any]:
    """The short run's and the long one's."""
    lengths = ({"train": {"steps": n, "minibatches": 2}, "checkpoint": {"every": 0}} for n in (SHORT, LONG))
    return [recipe_of({**case, **CONSTANT, **more, **length}, policy, folder) for length in lengths]


def assert_same(whole: RunDir, extended: RunDir) -> None:
    """Metrics, weights, evaluations, completions; an evaluation names the recipe that the run had at its time."""
    (expected, files), (found, others) = outcome(whole), outcome(extended)
    assert found == expected and [r["step"] for r in found] == list(range(LONG + 1))
    for kept in (files, others):
        for name in [n for n in kept if n.endswith(".json")]:
            values = json.loads(kept[name])
            values["checkpoint"].pop("recipe")
            kept[name] = json.dumps(values).encode()
    assert others.keys() == files.keys() and not [n for n in files if files[n] != others[n]]


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in EXTENDED if n not in QUICK)]
)
def test_a_longer_run_is_the_same_bit_for_bit(name: str, policy: Path, tmp_path: Path) -> None:
    short, long = recipes(EXTENDED[name], policy, tmp_path)
    whole, extended = RunDir.of(tmp_path / "whole", long), RunDir.of(tmp_path / "extended", short)
    train(long, whole, "new")
    train(short, extended, "new")
    before = json.loads(extended.record.read_text())
    train(short, extended, "resume")  # finished already
    assert json.loads(extended.record.read_text()) == before
    train(long, extended, "resume")
    assert_same(whole, extended)
    assert extended.recipe.read_bytes() == whole.recipe.read_bytes()
    after, other = (json.loads(run.record.read_text()) for run in (extended, whole))
    assert after["digest"] == other["digest"] and after["status"] == "finished"
    (resumed,) = after["resumed"]
    assert resumed["step"] == SHORT and resumed["changed"] == {"recipe: train.steps": [str(SHORT), str(LONG)]}


def test_an_unfinished_run_is_made_longer_or_shorter(policy: Path, tmp_path: Path) -> None:
    short, long = recipes({}, policy, tmp_path)
    whole, extended = RunDir.of(tmp_path / "whole", long), RunDir.of(tmp_path / "extended", long)
    train(long, whole, "new")

    class Interrupting(SilentSink):
        def step(self, record: Any) -> None:
            if record["step"] == 2:
                raise KeyboardInterrupt

    for entry, recipe in (("new", long), ("resume", short)):  # without a checkpoint
        with pytest.raises(UserError) if entry == "resume" else pytest.MonkeyPatch.context():
            session.run_training(recipe, extended, Interrupting(), entry)  # type: ignore[arg-type]
    train(short, extended, "overwrite")
    train(long, extended, "resume")
    assert_same(whole, extended)
    with pytest.raises(UserError, match="step 5 is done"):
        train(short, extended, "resume")


def test_what_leaves_the_past_alone_may_change_and_the_rest_is_named() -> None:
    then = tiny("math_grpo", "train.steps=100")
    for text in ("train.steps=120", "eval.every=7", "guards.kl={above: 1.0}", "train.ratio_tolerance=0.1"):
        changed = amendments(then, tiny("math_grpo", "train.steps=100", text), 100, "x")
        assert changed and all(key.startswith(text.partition("=")[0]) for key, _, _ in changed)
    assert amendments(then, tiny("math_grpo", "train.steps=100", "checkpoint.every=7"), 100, "x") == []
    past = (
        "optim.lr=0.1",
        "rollout.prompts=2",
        "eval.samples=3",
        "objective.clip_low=0.1",
        "task.source.forget_carry=0.5",
    )
    with pytest.raises(UserError) as caught:
        amendments(then, tiny("math_grpo", "train.steps=120", *past), 100, "recipe.yaml")
    assert {p.key for p in caught.value.problems} == {text.partition("=")[0] for text in past}
    assert all(p.file == "recipe.yaml" and "is now" in p.message and p.remedy for p in caught.value.problems)


@pytest.mark.parametrize(
    ("schedule", "done", "words"),
    [
        (("optim.schedule=cosine",), 50, "optim.schedule: cosine"),
        (("optim.schedule=linear", "optim.warmup_steps=10"), 50, "optim.schedule: linear"),
        (("optim.schedule=linear", "optim.warmup_steps=60"), 50, None),  # within the warm-up
        (("optim.schedule=cosine", "optim.final_lr_fraction=1"), 50, None),  # a cosine that never falls
        (("optim.schedule=constant", "optim.warmup_steps=10"), 50, None),
        ((), 120, "step 120 is done"),
    ],
)
def test_a_schedule_that_depends_on_the_number_of_steps(
    schedule: tuple[str, ...], done: int, words: str | None
) -> None:
    then, now = (tiny("math_grpo", f"train.steps={steps}", *schedule) for steps in (200, 110))
    if words is None:
        assert [key for key, _, _ in amendments(then, now, done, "x")] == ["train.steps"]
        return
    with pytest.raises(UserError) as caught:
        amendments(then, now, done, "x")
    (problem,) = caught.value.problems
    assert problem.key == "train.steps" and words in problem.message and problem.remedy


def test_a_guard_that_would_have_ended_the_past_is_refused(policy: Path, tmp_path: Path) -> None:
    (short, long) = recipes({}, policy, tmp_path)
    run_dir = RunDir.of(tmp_path / "run", short)
    train(short, run_dir, "new")
    kept = {file: file.read_bytes() for file in run_dir.path.rglob("*") if file.is_file() and file.name != ".lock"}
    _, guarded = recipes({}, policy, tmp_path, guards={"kl": {"above": 1e-12, "action": "stop"}})
    with pytest.raises(UserError, match=r"guards.kl: would have stopped the run at step 1"):
        train(guarded, run_dir, "resume")
    assert kept == {file: file.read_bytes() for file in kept}
    train(long, run_dir, "resume")
