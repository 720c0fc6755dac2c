"""A run stopped after any of its steps and resumed is the run that was never stopped, bit for bit.

Every objective, and everything that carries state from step to step, on policies so small that it costs little.
The run is stopped between two steps here; test_kill.py stops it anywhere.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import SilentSink, quick_if, without_times
from safetensors.torch import load_file

from cvxrl.engine import session
from cvxrl.engine.process import settle_algorithms
from cvxrl.engine.step_control import Accepted
from cvxrl.engine.trial import Trial
from cvxrl.errors import UserError
from cvxrl.objectives.registry import OBJECTIVES
from cvxrl.policy.load import load_policy
from cvxrl.recipe.load import load_recipe
from cvxrl.recipe.model import ModelSpec
from cvxrl.recipe.schema import Recipe
from cvxrl.runs.directory import RunDir
from cvxrl.runs.jsonl import read_records
from reliability.harness import reseal, unfinish

STEPS = 3
SCRATCH = {"alphabet": "0123456789+=?", "hidden_size": 16, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 8}
SHARED: dict[str, Any] = {
    "name": "small",
    "task": {
        "source": {"kind": "arithmetic", "terms": [2, 3], "corrupt": 0.2},
        "extract": {"kind": "none"},
        "reward": {"kind": "callable", "function": "reliability.rewards:by_chance", "isolated": False},
    },
    "rollout": {"prompts": 2, "samples": 4, "max_new_tokens": 8},
    "optim": {"lr": 0.01, "schedule": "cosine", "warmup_steps": 2},
    "train": {"steps": STEPS, "inner_epochs": 2, "minibatches": 2},
    "eval": {"every": 2, "prompts": 2, "samples": 2},
    "checkpoint": {"every": 1, "keep": STEPS},
}
LORA = {"model.lora": {"rank": 2, "dropout": 0.3}}
# Whole steps are too long then, so that the share that the next search starts from is a state to lose.
FAR = {"optim.lr": 1.0, "logging": {"updates": True}}
OBJECTIVE_CASES: dict[str, dict[str, Any]] = {tag: {"objective": {"kind": tag}} for tag in OBJECTIVES}
STATE_CASES: dict[str, dict[str, Any]] = {
    "value head": {"advantage": {"kind": "gae"}},
    "dense-logprob": {"advantage": {"kind": "dense-logprob", "verifier": "HERE"}, "objective": {"kind": "lco-kld"}},
    "dense-dpo": {
        "advantage": {"kind": "dense-dpo", "verifier": "HERE", "reference": "package:cvxrl/assets/base"},
        "objective": {"kind": "lco-mse"},
    },
    "adapter with dropout": {**LORA, "objective": {"kind": "lco-kld"}},
    "adapter and its reference": {**LORA, "regularizer.kl_coefficient": 0.1},
    "adapter and value head": {**LORA, "advantage": {"kind": "gae"}},
    "adapter in bf16 passes": {**LORA, "train.precision": "bf16", "objective": {"kind": "lco-lch"}},
    "adapter of preferences": {**LORA, "objective": {"kind": "dpo"}},
    "reference and entropy": {"regularizer": {"kl_coefficient": 0.1, "entropy_coefficient": 0.01}},
    "bf16 passes": {"train.precision": "bf16", "objective": {"kind": "lco-kld"}},
    "bf16 weights": {"model.dtype": "bfloat16", "objective": {"kind": "lco-kld"}},
    "linear schedule": {"optim": {"schedule": "linear", "final_lr_fraction": 0.1, "weight_decay": 0.1}},
    "constant schedule": {"optim": {"schedule": "constant", "warmup_steps": 0, "max_grad_norm": None}},
    "one update a step": {"train": {"steps": STEPS}, "objective": {"kind": "lco-kld"}},
    "optimizer dropped": {"train.reset_optimizer": True},
    "dynamic sampling": {"rollout.rounds": 3},
    "micro-batches": {"train.micro_batch": 2},
    "moving target": {"objective": {"kind": "lco-lch", "target": "moving"}},
    "drift-free": {"objective": {"kind": "lco-kld", "shift": "drift-free", "support": {"kind": "top-k", "k": 3}}},
    "authors' code": {"reading": "authors-code", "objective": {"kind": "lco-kld"}, "advantage": {"kind": "reward"}},
    "guards": {"guards": {"entropy": {"below": 1e-9}, "reward": {"window": 2, "drop": 5.0}}},
    "gradients looked at": {"logging": {"gradients": 1, "updates": True}},
    "scratch": {"model": {"scratch": SCRATCH}},
    "earlier policies": {"rollout.lag": 2, "advantage": {"kind": "gae"}, "objective": {"kind": "lco-kld"}},
    "earlier adapters in chunks": {**LORA, "rollout.lag": 1, "train.loss": "chunked", "objective": {"kind": "lco-kld"}},
    "earlier policies and a verifier": {
        "rollout.lag": 1,
        "advantage": {"kind": "dense-logprob", "verifier": "HERE"},
        "objective": {"kind": "lco-kld"},
    },
    "line search": {**FAR, "step": {"kind": "line-search"}, "objective": {"kind": "lco-kld"}},
    "line search over earlier adapters": {
        **LORA,
        **FAR,
        "rollout.lag": 1,
        "step": {"kind": "line-search"},
        "objective": {"kind": "lco-mse"},
    },
    "trust region and value head": {**FAR, "step": {"kind": "trust-region"}, "advantage": {"kind": "gae"}},
    "coin-flip rewards": {"task": {**SHARED["task"], "reward": {"kind": "exact", "noise": "coin"}}},
}

# A verifier's rows, and what guards remember; a critic, an adapter with dropout, what waits of earlier policies and the
# share that a search starts from are in the run of which a part is lost.
QUICK = ("dense-dpo", "guards")
MUCH = {**LORA, **FAR, "advantage": {"kind": "gae"}, "rollout.lag": 1, "step": {"kind": "trust-region"}}
# No loss has a state of its own.
QUICK_OBJECTIVES = ("lco-kld",)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small policy on disk."""
    folder = tmp_path_factory.mktemp("policy")
    load_policy(ModelSpec.model_validate({"scratch": SCRATCH}), torch.device("cpu"), seed=1).save(folder)
    return folder


def recipe_of(case: dict[str, Any], policy: Path, folder: Path) -> Recipe:
    """The shared recipe, a case laid over it; dotted keys reach into a section, others replace it."""
    values = {**SHARED, "model": {"path": str(policy)}}
    for key, value in case.items():
        section, _, name = key.partition(".")
        values[section] = {**values.get(section, {}), name: value} if name else value
    text = yaml.safe_dump(values).replace("HERE", str(policy))
    (folder / "recipe.yaml").write_text(text)
    return load_recipe(folder / "recipe.yaml")


def train(recipe: Recipe, run_dir: RunDir, entry: str) -> None:
    result = session.run_training(recipe, run_dir, SilentSink(), entry)  # type: ignore[arg-type]
    assert result.status == "finished"


def stopped_after(step: int, run_dir: RunDir, out: Path, recipe: Recipe) -> RunDir:
    """A copy of a finished run as it was when it was stopped after ``step``."""
    copy = RunDir.of(out, recipe)
    shutil.copytree(run_dir.path, copy.path)
    for later in range(step + 1, STEPS + 1):
        shutil.rmtree(copy.checkpoints / f"step-{later:06d}")
    shutil.rmtree(copy.adapter, ignore_errors=True)
    unfinish(copy.path)
    return copy


def outcome(run_dir: RunDir) -> tuple[list[dict[str, float]], dict[str, bytes]]:
    """Metrics without timings, and all bytes of the final weights and evaluations."""
    weights = {
        f"{file.parent.name} {name}": tensor.view(torch.uint8).numpy().tobytes()
        for file in run_dir.path.glob("*/*.safetensors")
        for name, tensor in load_file(file).items()
    }
    files = [*run_dir.path.glob("evals/*"), *run_dir.path.glob("rollouts/*"), *run_dir.path.glob("updates.jsonl")]
    kept = {file.name: file.read_bytes() for file in files}
    return [without_times(r) for r in read_records(run_dir.metrics)], weights | kept


def check(case: dict[str, Any], policy: Path, folder: Path) -> None:
    recipe = recipe_of(case, policy, folder)
    whole = RunDir.of(folder / "whole", recipe)
    train(recipe, whole, "new")
    expected = outcome(whole)
    assert [r["step"] for r in expected[0]] == [0, *range(1, STEPS + 1)]
    assert all(r["grad/norm"] > 0 for r in expected[0][1:]), "nothing was learned, so nothing is compared"
    for step in range(1, STEPS):
        resumed = stopped_after(step, whole, folder / str(step), recipe)
        train(recipe, resumed, "resume")
        found = outcome(resumed)
        assert found[0] == expected[0], f"metrics after step {step}"
        assert found[1].keys() == expected[1].keys()
        assert not [name for name in found[1] if found[1][name] != expected[1][name]], f"after step {step}"


@pytest.mark.parametrize("tag", quick_if(QUICK_OBJECTIVES.__contains__, OBJECTIVE_CASES))
def test_every_objective(tag: str, policy: Path, tmp_path: Path) -> None:
    check(OBJECTIVE_CASES[tag], policy, tmp_path)


@pytest.mark.parametrize("name", quick_if(QUICK.__contains__, STATE_CASES))
def test_everything_that_carries_state(name: str, policy: Path, tmp_path: Path) -> None:
    check(STATE_CASES[name], policy, tmp_path)


@pytest.fixture(scope="module")
def much(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, RunDir]:
    """A run that carries much from step to step. Read only."""
    folder = tmp_path_factory.mktemp("much")
    recipe = recipe_of(MUCH, policy, folder)
    whole = RunDir.of(folder / "whole", recipe)
    train(recipe, whole, "new")
    return recipe, whole


@pytest.mark.parametrize("part", ["nothing", "optimizer", "critic", "adapter", "waiting rollouts", "share"])
def test_the_comparison_sees_a_lost_part(part: str, much: tuple[Recipe, RunDir], tmp_path: Path) -> None:
    """Negative control: a checkpoint that forgot something leads elsewhere, and one that forgot nothing does not."""
    recipe, whole = much
    copy = stopped_after(2, whole, tmp_path / "copy", recipe)
    checkpoint = copy.checkpoints / "step-000002"
    if part == "adapter":
        shutil.copy(copy.checkpoints / "step-000001" / "adapter_model.safetensors", checkpoint)
    elif part == "waiting rollouts":
        (state,) = torch.load(checkpoint / "waiting.pt")
        state["waiting"] = torch.load(copy.checkpoints / "step-000001" / "waiting.pt")[0]["waiting"]
        torch.save([state], checkpoint / "waiting.pt")
    elif part != "nothing":
        state = torch.load(checkpoint / "trainer.pt")
        if part == "optimizer":
            state["optimizer"]["state"] = {}
        elif part == "share":
            assert state["optimizer"]["param_groups"][0].pop("last_share") < 0.5
        else:
            state["critic"] = {name: 0 * value for name, value in state["critic"].items()}
        torch.save(state, checkpoint / "trainer.pt")
    reseal(checkpoint)
    train(recipe, copy, "resume")
    assert (outcome(copy) == outcome(whole)) == (part == "nothing")


class Stop(Exception):
    """As the power going out."""


@pytest.mark.parametrize("lag", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_run_that_ends_within_a_search_of_its_inner_epochs(
    lag: int, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second epoch of step 2, at a share that was tried and not accepted: all of the step is taken again."""
    case = {**STATE_CASES["line search"], "rollout.lag": lag}
    recipe = recipe_of(case, policy, tmp_path)
    whole, again = RunDir.of(tmp_path / "whole", recipe), RunDir.of(tmp_path / "again", recipe)
    train(recipe, whole, "new")
    assert any(0 < update["step/share"] < 1 for update in read_records(whole.updates))
    searches = []

    def stop(self: Trial, at: Callable[[float], float], *rest: Any) -> Accepted:
        searches.append(at(1.0))
        if len(searches) == 7:
            raise Stop
        return unbroken(self, at, *rest)

    unbroken = Trial._search
    with monkeypatch.context() as broken, pytest.raises(Stop):
        broken.setattr(Trial, "_search", stop)
        train(recipe, again, "new")
    written = [(update["step"], update["update"]) for update in read_records(again.updates)]
    assert written == [(1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2)]
    train(recipe, again, "resume")
    assert outcome(again) == outcome(whole)


def test_deterministic_algorithms_are_asked_for_on_cuda_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU, only that they are asked for."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    asked: list[bool] = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda mode, warn_only: asked.append(mode))
    settle_algorithms(torch.device("cpu"), True)
    assert not asked and "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    settle_algorithms(torch.device("cuda"), True)
    assert asked == [True] and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    settle_algorithms(torch.device("cuda"), False)
    assert asked == [True, False]
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")


def test_a_run_of_version_0_1_is_not_gone_on_with_under_other_random_numbers(policy: Path, tmp_path: Path) -> None:
    recipe = recipe_of({}, policy, tmp_path)
    whole = RunDir.of(tmp_path / "whole", recipe)
    train(recipe, whole, "new")
    record = json.loads(whole.record.read_text())
    assert record.pop("streams") == 2
    whole.record.write_text(json.dumps(record))
    train(recipe, whole, "resume")  # finished: nothing is drawn
    stopped = stopped_after(2, whole, tmp_path / "stopped", recipe)
    before = {path: path.read_bytes() for path in stopped.path.rglob("*") if path.is_file()}
    with pytest.raises(UserError) as caught:
        stopped.check(recipe, "resume")
    assert all(word in str(caught.value) for word in ("cvxrl 0.1", "--overwrite", "run.json"))
    assert before == {path: path.read_bytes() for path in stopped.path.rglob("*") if path.is_file()}
    train(recipe, stopped, "overwrite")
    assert json.loads(stopped.record.read_text())["streams"] == 2
