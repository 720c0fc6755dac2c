"""Objectives and advantages that are functions of the user's: as good as ours, and refused with the function's name."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SMALL_POLICY, SilentSink, tiny, without_times

from cvxrl.advantages import compute_advantages
from cvxrl.engine.session import run_training
from cvxrl.errors import UserError
from cvxrl.objectives.batch import TokenBatch
from cvxrl.objectives.registry import compute
from cvxrl.recipe.advantage import CallableAdvantage, GroupCenteredAdvantage
from cvxrl.recipe.digest import digest
from cvxrl.recipe.load import dump, load_recipe
from cvxrl.recipe.objective import CallableObjective
from cvxrl.runs.directory import RunDir

MODULE = """
import torch
from cvxrl.objectives.batch import ObjectiveOutput
from cvxrl.objectives.registry import compute
from cvxrl.recipe.objective import GrpoSpec, RebelSpec

def clipped(batch, clip=0.2):
    logprobs = batch.logits_NV.log_softmax(-1).gather(-1, batch.actions_N[:, None])[:, 0]
    ratio = (logprobs - batch.old_logprobs_N).exp()
    return -torch.minimum(ratio * batch.advantages_N, ratio.clamp(1 - clip, 1 + clip) * batch.advantages_N)

def with_metrics(batch):
    loss = clipped(batch)
    return ObjectiveOutput(loss, {"mine/advantage": batch.advantages_N.abs()})

def of_groups(batch):
    assert len(batch.group_S) % 4 == 0
    return compute(batch, RebelSpec())

def mean_of(batch):
    return clipped(batch).mean()

def number(batch):
    return 1.0

def frozen(batch):
    return batch.logits_NV.detach().sum(-1)

def fails(batch):
    raise ZeroDivisionError("mine")

def odd_metric(batch):
    return ObjectiveOutput(clipped(batch), {"mine/x": torch.zeros(())})

def centred(rewards, scale=1.0):
    return scale * (rewards - rewards.mean(dim=1, keepdim=True))

def per_prompt(rewards):
    return rewards.mean(dim=1)

def listed(rewards):
    return rewards.tolist()

def meddles(rewards):
    return rewards.fill_(7.0) - 7.0
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module of the user's, found from the working directory."""
    (tmp_path / "my_maths.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    yield
    sys.path[:] = before
    sys.modules.pop("my_maths", None)


def objective(name: str, more: str = "") -> str:
    return f"objective={{kind: callable, function: 'my_maths:{name}'{more}}}"


def records(name: str, *overrides: str, seed: int = 0) -> list[dict[str, float]]:
    recipe, run_dir = tiny("math_grpo", "eval.every=0", *overrides), RunDir(Path(name))
    assert run_training(recipe, run_dir, SilentSink(), "new").status == "finished"
    return [without_times(json.loads(line)) for line in run_dir.metrics.read_text().splitlines()]


TWICE = ("train.inner_epochs=2", "train.minibatches=2")


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("objective={kind: grpo, clip_low: 0.1, clip_high: 0.1}", objective("clipped", ", options: {clip: 0.1}")),
        ("objective={kind: rebel}", objective("of_groups", ", coupling: group, needs: [old_logprobs]")),
    ],
)
def test_a_function_trains_as_the_same_objective_of_ours(ours: str, theirs: str) -> None:
    left, right = records("ours", *TWICE, ours), records("theirs", *TWICE, theirs)
    assert left[-1]["grad/norm"] > 0
    for one, two in zip(left, right, strict=True):
        shared = one.keys() & two.keys() - {"check/ratio_deviation"}
        assert {"loss", "grad/norm"} <= shared or one["step"] == 0
        assert {k: two[k] for k in shared} == pytest.approx({k: one[k] for k in shared}, rel=1e-4, abs=1e-7)


def test_metrics_of_a_function_are_logged() -> None:
    assert records("run", objective("with_metrics"))[-1]["mine/advantage"] >= 0


def test_an_advantage_by_a_function_is_that_of_ours() -> None:
    mine = "advantage={kind: callable, function: 'my_maths:centred', needs_group: true}"
    assert records("theirs", mine) == records("ours", "advantage={kind: group-centered}")
    rewards_PG = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.5]])
    spec = CallableAdvantage(function="my_maths:centred", options={"scale": 2.0})
    torch.testing.assert_close(
        compute_advantages(rewards_PG, spec), 2 * compute_advantages(rewards_PG, GroupCenteredAdvantage())
    )
    assert compute_advantages(rewards_PG, CallableAdvantage(function="my_maths:meddles")).abs().sum() == 0
    assert rewards_PG[0, 0] == 1.0, "the rewards that are logged stay what they were"


def made_batch() -> TokenBatch:
    return TokenBatch(
        torch.zeros(3, 5, requires_grad=True),
        actions_N=torch.tensor([0, 1, 2]),
        advantages_N=torch.ones(3),
        old_logprobs_N=torch.zeros(3),
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mean_of", r"the loss of `my_maths:mean_of` has shape \(\)"),
        ("number", "the loss of `my_maths:number` is float"),
        ("frozen", "does not depend on batch.logits_NV"),
        ("odd_metric", r"the metric `mine/x` of `my_maths:odd_metric` has shape \(\)"),
        ("clippd", "did you mean `clipped`"),
    ],
)
def test_a_wrong_return_is_told_by_the_function(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as refused:
        compute(made_batch(), CallableObjective(function=f"my_maths:{name}"))
    assert [problem.key for problem in refused.value.problems] == ["objective.function"]
    assert refused.value.problems[0].remedy


def test_what_a_function_raises_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError, match="mine") as raised:
        compute(made_batch(), CallableObjective(function="my_maths:fails"))
    assert raised.traceback[-1].path.name == "my_maths.py"


@pytest.mark.parametrize(("name", "words"), [("per_prompt", r"returned shape \(2,\)"), ("listed", "returned list")])
def test_advantages_of_another_shape_are_refused(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        compute_advantages(torch.ones(2, 3), CallableAdvantage(function=f"my_maths:{name}"))


def test_functions_that_are_not_there_are_told_together_before_anything_is_written(cvxrl: Any) -> None:
    functions = (objective("nothing"), "advantage={kind: callable, function: 'no_such_module:f'}")
    done = cvxrl("train", "math_grpo", *(part for text in functions for part in ("--set", text)))
    assert done.code == 2 and done.err.count("error:") == 2
    assert "objective.function: `my_maths` has no `nothing`" in done.err and "no module `no_such_module`" in done.err
    assert not Path("outputs").exists()


def test_a_function_of_all_logits_is_refused_in_chunks() -> None:
    with pytest.raises(UserError, match=r"train\.loss.*\n.*full-logits"):
        tiny("math_grpo", objective("clipped"), "train.loss=chunked")
    with pytest.raises(UserError, match=r"rollout\.samples is 1"):
        tiny("math_grpo", objective("of_groups", ", coupling: group"), "advantage.kind=reward", "rollout.samples=1")


def test_a_recipe_of_functions_is_written_and_read_back_the_same(tmp_path: Path) -> None:
    recipe = tiny("math_grpo", objective("clipped", ", needs: [old_logprobs, old_logits, group_advantages]"))
    (tmp_path / "recipe.yaml").write_text(dump(recipe))
    assert recipe.model_dump(mode="json")["objective"]["needs"] == ["group_advantages", "old_logits", "old_logprobs"]
    assert digest(load_recipe(tmp_path / "recipe.yaml")) == digest(recipe)


def test_inspection_and_comparison_take_functions(cvxrl: Any, forked: None) -> None:
    small = ["rollout.prompts=4", "rollout.samples=2", "eval.prompts=2", "eval.every=1", "train.steps=1"]
    small += ["rollout.max_new_tokens=12", "eval.samples=1", f"model.path={SMALL_POLICY}"]
    sets = [part for text in small for part in ("--set", text)]
    Path("mine.yaml").write_text(
        "extends: math_grpo\nname: mine\n"
        "objective: {kind: callable, function: 'my_maths:clipped', needs: [old_logprobs]}\n"
    )
    compared = cvxrl("compare", "math_grpo", "mine.yaml", *sets, "--seeds", "0-1", "--json")
    assert compared.code == 0, compared.err
    assert [method["label"] for method in json.loads(compared.out)["methods"]] == ["math_grpo", "mine"]
    seen = cvxrl(
        "inspect-grads",
        "outputs/mine/seed-0",
        "--objectives",
        "my_maths:clipped,grpo,my_maths:with_metrics",
        "--parts",
        "logits,gradients",
        "--json",
    )
    assert seen.code == 0, seen.err
    found = json.loads(seen.out)["snapshots"][0]["objectives"]
    assert [entry["label"] for entry in found] == ["my_maths:clipped", "grpo", "my_maths:with_metrics"]
    missing = cvxrl("inspect-grads", "outputs/mine/seed-0", "--objectives", "my_maths:x,my_maths:y", "--json")
    assert missing.code == 2 and missing.err.count("objective.function") == 2
