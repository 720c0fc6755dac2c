"""A run whose completions come from a server: the numbers of a run without one, whatever happens to the server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_vllm import FakeVllm
from helpers import SilentSink, quick_if, tiny

from cvxrl.cli import app
from cvxrl.engine.session import TrainResult, run_training
from cvxrl.errors import UserError
from cvxrl.evaluation.held_out import HeldOut
from cvxrl.policy.load import load_policy
from cvxrl.policy.model import Policy
from cvxrl.recipe.digest import digest
from cvxrl.recipe.schema import Recipe
from cvxrl.rollout.generator import SamplerLost
from cvxrl.runs.directory import RunDir
from cvxrl.runs.entry import Entry
from cvxrl.runs.jsonl import read_records

SIZES = "hidden_size: 32, layers: 2, heads: 2, kv_heads: 2, head_dim: 16, intermediate_size: 48, init_std: 0.3"
SMALL = (
    f"model={{scratch: {{alphabet: '0123456789+=?', {SIZES}}}}}",
    *("rollout.prompts=2", "rollout.samples=2", "rollout.max_new_tokens=5", "train.steps=3", "optim.lr=1e-2"),
    *("eval.prompts=2", "eval.samples=1", "eval.every=2", "task.reward.noise=coin"),
)


def recipe(*changes: str) -> Recipe:
    return tiny("math_grpo", "model.path=null", *SMALL, *changes)


def train(asked: Recipe, out: Path, entry: Entry = "new") -> TrainResult:
    return run_training(asked, RunDir.of(out, asked), SilentSink(), entry)


def numbers(out: Path) -> list[dict[str, float]]:
    """Records without times and without what only one of the two samplers says."""
    records = read_records(RunDir.of(out, recipe()).metrics)
    return [{k: v for k, v in r.items() if not k.startswith(("time/", "sync/", "check/"))} for r in records]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    out = tmp_path_factory.mktemp("local")
    assert train(recipe(), out).status == "finished"
    return numbers(out)


@pytest.fixture
def server() -> Iterator[FakeVllm]:
    fake = FakeVllm(load_policy(recipe().model, torch.device("cpu")))
    yield fake
    fake.kill()


def at(server: FakeVllm, *changes: str) -> Recipe:
    return recipe(f"rollout.engine={{kind: vllm, url: '{server.url}', timeout: 60}}", *changes)


def assert_same(found: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    assert [r.keys() for r in found] == [r.keys() for r in expected]
    for mine, theirs in zip(found, expected, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-4), mine["step"]


def test_a_run_by_a_server_is_the_run_without_one(
    server: FakeVllm, whole: list[dict[str, float]], tmp_path: Path
) -> None:
    assert train(at(server), tmp_path).status == "finished"
    assert_same(numbers(tmp_path), whole)
    records = read_records(RunDir.of(tmp_path, recipe()).metrics)
    # The evaluation before step 1 and that after step 2 bring what the steps after them sample from.
    assert [r["step"] for r in records if r.get("sync/ratio_deviation", 1) < 1e-4] == [0, 2, 3]
    run = RunDir.of(tmp_path, recipe()).read_record()
    assert run.passes["sampling"] == "vLLM 0.32.0, float32"


@pytest.mark.parametrize(
    "lost",
    quick_if(
        "bringing the weights of step 2".__eq__,
        ["sampling step 2", "bringing the weights of step 2", "evaluating step 2"],
    ),
)
def test_a_run_that_loses_its_server_is_gone_on_with_on_another(
    server: FakeVllm, whole: list[dict[str, float]], tmp_path: Path, lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cvxrl.rollout.vllm.crowd.pause", lambda _: 0.01)
    # A step asks for 4 completions, an evaluation for 2, and 4 check every update.
    asked, path = {
        "sampling step 2": (2 + 4 + 4 + 4 + 1, "/inference/v1/generate"),
        "bringing the weights of step 2": (2, "/start_weight_update"),
        "evaluating step 2": (2 + 4 + 4 + 4 + 4 + 4 + 1, "/inference/v1/generate"),
    }[lost]
    count = iter(range(1000))
    server.broken[path] = lambda: (400, {"error": {"message": "gone"}}) if next(count) >= asked - 1 else None
    with pytest.raises(SamplerLost) as caught:
        train(at(server), tmp_path)
    assert len(caught.value.problems) == 1 and "gone" in caught.value.problems[0].message
    run_dir = RunDir.of(tmp_path, recipe())
    assert run_dir.read_record().status == "interrupted"
    done = 2 if lost == "evaluating step 2" else 1
    assert [path.name for path in run_dir.checkpoints.iterdir()] == [f"step-{done:06d}"]
    another = FakeVllm(Policy(deepcopy(server.policy.model), server.policy.tokenizer))
    assert train(at(another), tmp_path, "resume").status == "finished"
    another.kill()
    assert_same(numbers(tmp_path), whole)


def test_a_step_keeps_its_record_until_its_evaluation_is_made(
    tmp_path: Path, whole: list[dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the run is interrupted again while it is made."""
    evaluate, reasons = HeldOut.evaluate, [SamplerLost("gone"), KeyboardInterrupt()]

    def fails(self: HeldOut, step: int) -> Any:
        if step == 2 and reasons:
            raise reasons.pop(0)
        return evaluate(self, step)

    monkeypatch.setattr(HeldOut, "evaluate", fails)
    with pytest.raises(SamplerLost):
        train(recipe(), tmp_path)
    assert train(recipe(), tmp_path, "resume").status == "interrupted"
    assert [r["step"] for r in numbers(tmp_path)] == [0, 1, 2]
    assert train(recipe(), tmp_path, "resume").status == "finished"
    assert numbers(tmp_path) == whole


def test_a_run_begins_only_with_a_server_that_fits(server: FakeVllm, tmp_path: Path) -> None:
    server.config["weight_transfer_config"] = None
    with pytest.raises(UserError, match="takes no weights"):
        train(at(server), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_where_the_server_is_changes_no_digest(server: FakeVllm) -> None:
    elsewhere = recipe("rollout.engine={kind: vllm, url: 'http://gpu7:9', requests: 4, weights: gloo}")
    assert digest(at(server)) == digest(elsewhere) != digest(recipe())
    assert digest(recipe("rollout.engine={kind: vllm, mode: colocated, memory: 0.5}")) == digest(elsewhere)


def test_an_evaluation_by_a_server_says_what_one_here_does(
    server: FakeVllm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = recipe("train.steps=1", "eval.every=0")
    run = train(asked, tmp_path).run_dir

    def evaluated(name: str, *options: str) -> dict[str, Any]:
        app(["eval", "--ckpt", str(run), "--out", str(tmp_path / name), "--json", *options], standalone_mode=False)
        found: dict[str, Any] = json.loads(capsys.readouterr().out)["results"]
        return found

    here = evaluated("here", "--questions", "3")
    assert evaluated("there", "--questions", "3", "--engine", "vllm", "--url", server.url) == here
    assert server.label != "default"
    for options, word in (
        (("--engine", "vllm"), "--url"),
        (("--engine", "static", "--url", server.url), "samples here"),
        (("--url", "ftp://x"), "no address"),
        (("--url", "http://127.0.0.1:9"), "nobody answers"),
    ):
        with pytest.raises(UserError, match=word):
            evaluated("bad", *options)
    assert not (tmp_path / "bad").exists()
