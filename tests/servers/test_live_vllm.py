"""A real vLLM server: what a stand-in without weights of its own cannot show. Minutes; needs CVXRL_VLLM_ENV.

With the policy that ships: vLLM on a CPU has no attention for heads as narrow as those of the small one.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SHIPPED_POLICY, SilentSink, tiny, without_times
from ranks.launched import Launched

from cvxrl.engine.session import run_training
from cvxrl.engine.world import SingleProcess
from cvxrl.errors import UserError
from cvxrl.policy.load import load_policy
from cvxrl.policy.model import Policy
from cvxrl.recipe.engine import VllmSpec
from cvxrl.recipe.schema import Recipe
from cvxrl.rollout.generator import SamplerLost, Sampling
from cvxrl.rollout.local_generator import LocalGenerator
from cvxrl.rollout.randomness import completion_keys
from cvxrl.rollout.vllm.generator import VllmGenerator
from cvxrl.rollout.vllm.open import open_generator
from cvxrl.runs.directory import RunDir
from cvxrl.runs.jsonl import read_records
from servers.live import MISSING, PYTHON, LiveServer, is_there

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_there(), reason=MISSING),
    pytest.mark.timeout(3600),
    pytest.mark.xdist_group("vllm"),
]
KINDS = ("embed_tokens.weight", "lm_head.weight", "norm.weight", "q_proj.weight", "o_proj.weight", "down_proj.weight")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with LiveServer("math_grpo", tmp_path_factory.mktemp("server") / "log.txt") as live:
        yield live


def fresh() -> Policy:
    return load_policy(tiny("math_grpo", SHIPPED_POLICY).model, torch.device("cpu"))


def opened(server: LiveServer, policy: Policy, **fields: Any) -> VllmGenerator:
    spec = VllmSpec.model_validate({"url": server.url, "timeout": 300.0} | fields)
    return open_generator(spec, policy, SingleProcess())


def moved(policy: Policy, ends: str, size: float = 0.05) -> bool:
    generator = torch.Generator().manual_seed(1)
    found = [p for name, p in policy.model.named_parameters() if name.endswith(ends)]
    with torch.no_grad():
        for parameter in found:
            parameter += size * torch.randn(parameter.shape, generator=generator)
    return bool(found)


@pytest.mark.parametrize("weights", ["gloo", "directory"])
def test_every_kind_of_weight_is_new_after_every_update(server: LiveServer, weights: str, tmp_path: Path) -> None:
    """The embedded policy's output layer is tied to its embeddings: on a CPU, vLLM by itself would leave it old."""
    policy = fresh()
    generator = opened(server, policy, weights=weights, directory=str(tmp_path) if weights == "directory" else None)
    deviations = [generator.sync(policy, 0)["sync/ratio_deviation"]]
    for version, kind in enumerate(KINDS, start=1):
        if moved(policy, kind):
            deviations.append(generator.sync(policy, version)["sync/ratio_deviation"])
    print("ratio after every update", [f"{d:.1e}" for d in deviations])
    assert len(deviations) == len(KINDS) and max(deviations) < 1e-4, "a tied output layer is no tensor of its own"


def test_an_output_layer_of_its_own_is_new_too(tmp_path: Path) -> None:
    policy = fresh()
    policy.model.lm_head.weight = torch.nn.Parameter(policy.model.lm_head.weight.detach().clone())
    policy.model.config.tie_word_embeddings = False
    policy.save(tmp_path / "untied")
    untied = load_policy(tiny("math_grpo", f"model.path={tmp_path / 'untied'}").model, torch.device("cpu"))
    with LiveServer(str(tmp_path / "untied"), tmp_path / "log.txt") as live:
        generator = opened(live, untied)
        generator.sync(untied, 0)
        for version, kind in enumerate(("lm_head.weight", "embed_tokens.weight"), start=1):
            assert moved(untied, kind)
            assert generator.sync(untied, version)["sync/ratio_deviation"] < 1e-4


def test_the_check_sees_a_stale_output_layer(server: LiveServer, tmp_path: Path) -> None:
    """VLLM's own reload from files leaves it as it was; if this fails, the cure is no longer needed."""
    policy = fresh()
    generator = opened(server, policy)
    generator.sync(policy, 0)
    moved(policy, "embed_tokens.weight")
    policy.save(tmp_path / "policy")
    where = {"weights_path": str(tmp_path / "policy")}
    generator.place.http.post("/collective_rpc", {"method": "reload_weights", "kwargs": where})  # type: ignore[attr-defined]
    generator.place.http.post("/reset_prefix_cache")  # type: ignore[attr-defined]
    with pytest.raises(SamplerLost, match="other probabilities"):
        generator.check.require(policy, 1, "vLLM", generator._complete)
    assert generator.sync(policy, 1)["sync/ratio_deviation"] < 1e-4


def test_completions_depend_on_their_keys_alone(server: LiveServer) -> None:
    policy = fresh()
    generator = opened(server, policy)
    generator.sync(policy, 3)
    prompts = policy.encode([f"{i}+{i + 3}?" for i in range(40)])
    keys, how = completion_keys(0, "sampling", 1, prompts=range(40), samples=16), Sampling(24, 1.0)
    many = generator.generate(prompts, keys, how)
    assert len(many) == 640 and {e.version for e in many} == {3}
    for p, s in ((0, 0), (7, 3), (39, 15)):
        (alone,) = generator.generate([prompts[p]], [[keys[p][s]]], how)
        assert alone.response_ids == many[p * 16 + s].response_ids
    ended = [e for e in many if not e.truncated]
    assert ended and all(e.response_ids[-1] in policy.end_ids for e in ended)
    one = [streams[:1] for streams in keys]
    greedy, local = Sampling(24, 0.0), LocalGenerator(policy)
    mine, theirs = local.generate(prompts, one, greedy), generator.generate(prompts, one, greedy)
    assert [e.response_ids for e in theirs] == [e.response_ids for e in mine]
    torch.testing.assert_close(theirs[0].logprobs, mine[0].logprobs, atol=1e-4, rtol=0)
    cool = generator.generate(prompts[:4], keys[:4], Sampling(24, 0.7, 0.9))
    assert all(torch.isfinite(e.logprobs).all() for e in cool)


def test_another_model_is_refused(server: LiveServer) -> None:
    wide = "{alphabet: '0123456789+=?', hidden_size: 64, layers: 2, heads: 2, kv_heads: 2}"
    other = load_policy(tiny("math_grpo", "model.path=null", f"model.scratch={wide}").model, torch.device("cpu"))
    with pytest.raises(UserError, match=r"another model than the policy, .*hidden_size"):
        opened(server, other)


def at(server: LiveServer, *changes: str) -> Recipe:
    engine = f"rollout.engine={{kind: vllm, url: '{server.url}', timeout: 600}}"
    return tiny("math_grpo", SHIPPED_POLICY, "train.steps=4", "eval.every=2", "eval.prompts=16", engine, *changes)


def test_a_server_that_is_killed_and_restarted_in_a_run(server: LiveServer, tmp_path: Path) -> None:
    recipe = at(server)

    class Killing(SilentSink):
        def step(self, record: Any) -> None:
            super().step(record)
            if record["step"] == 2:
                server.kill()
                threading.Thread(target=server.start).start()

    start, sink = time.monotonic(), Killing()
    assert run_training(recipe, RunDir.of(tmp_path, recipe), sink, "new").status == "finished"
    print(f"4 steps, the server killed and restarted after the second: {time.monotonic() - start:.0f} s")
    deviations = [r["sync/ratio_deviation"] for r in sink.records if "sync/ratio_deviation" in r]
    print("ratio after every update", [f"{d:.1e}" for d in deviations])
    assert len(deviations) >= 4 and max(deviations) < 1e-4
    assert [r["step"] for r in read_records(RunDir.of(tmp_path, recipe).metrics)] == [0, 1, 2, 3, 4]


def test_two_ranks_share_a_server(server: LiveServer, tmp_path: Path) -> None:
    """The same completions as one process asks for: what is drawn depends on the keys alone."""
    engine = f"rollout.engine={{kind: vllm, url: '{server.url}', timeout: 600}}"
    found = []
    for ranks in (1, 2):
        run = Launched(
            tmp_path / str(ranks), SHIPPED_POLICY, engine, "placement.timeout=600", "eval.every=3", ranks=ranks
        )
        assert run.end() == 0, run.said.read_text()
        found.append([without_times(record) for record in read_records(run.metrics)])
    assert sum("sync/ratio_deviation" in record for record in found[1]) >= 3
    for one, two in zip(*found, strict=True):
        assert two.get("sync/ratio_deviation", 0.0) < 1e-4
        for key in {"reward/mean", "tokens/total", "eval/accuracy"} & one.keys():
            assert one[key] == pytest.approx(two[key]), key
        if one["step"]:
            assert two["loss"] == pytest.approx(one["loss"], rel=1e-3, abs=1e-5)


def test_colocated_in_one_process(tmp_path: Path) -> None:
    """In vLLM's environment, since it has to be in the process that trains."""
    code = f"""
import sys
sys.path[:0] = {[str(Path(__file__).parents[1])]!r}
from helpers import SilentSink, tiny
from cvxrl.engine.session import run_training
from cvxrl.runs.directory import RunDir
from pathlib import Path
recipe = tiny("math_grpo", {SHIPPED_POLICY!r}, "rollout.engine={{kind: vllm, mode: colocated, memory: 0.1}}")
sink = SilentSink()
result = run_training(recipe, RunDir.of(Path({str(tmp_path)!r}), recipe), sink, "new")
print("DONE", result.status, max(r["sync/ratio_deviation"] for r in sink.records if "sync/ratio_deviation" in r))
"""
    done = subprocess.run([str(PYTHON), "-c", code], capture_output=True, text=True, timeout=1800, cwd="/")
    said = [line for line in done.stdout.splitlines() if "DONE" in line]
    assert said, done.stdout[-2000:] + done.stderr[-3000:]
    _, status, deviation = said[0][said[0].index("DONE") :].split()
    assert status == "finished" and float(deviation) < 1e-4
