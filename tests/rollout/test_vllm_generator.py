"""Completions by a vLLM server: the same as asked for here, from the weights that were sent, whatever happens to it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_vllm import FakeVllm, hang
from helpers import quick_if
from thread_world import Meeting, ThreadWorld, together

from cvxrl.engine.world import SingleProcess
from cvxrl.errors import UserError
from cvxrl.policy.adapter import add_adapter
from cvxrl.policy.load import load_policy
from cvxrl.policy.model import Policy
from cvxrl.recipe.engine import VllmSpec
from cvxrl.recipe.model import LoraSpec, ModelSpec, ScratchSpec
from cvxrl.rollout.generator import Generator, SamplerLost, Sampling
from cvxrl.rollout.local_generator import LocalGenerator
from cvxrl.rollout.randomness import completion_keys
from cvxrl.rollout.vllm.generator import VllmGenerator
from cvxrl.rollout.vllm.open import open_generator
from cvxrl.rollout.vllm.weights import stored_weights

HOW = Sampling(6, 1.0)
KINDS = ("embed_tokens.weight", "norm.weight", "q_proj.weight", "down_proj.weight")


SCRATCH = ScratchSpec(
    alphabet="0123456789+=?",
    hidden_size=32,
    layers=2,
    heads=2,
    kv_heads=2,
    head_dim=16,
    intermediate_size=48,
    init_std=0.3,
)


@pytest.fixture(scope="module")
def loaded() -> Policy:
    return load_policy(ModelSpec(scratch=SCRATCH), torch.device("cpu"))


@pytest.fixture
def policy(loaded: Policy) -> Policy:
    return Policy(deepcopy(loaded.model), loaded.tokenizer)


@pytest.fixture
def server(loaded: Policy) -> Iterator[FakeVllm]:
    fake = FakeVllm(Policy(deepcopy(loaded.model), loaded.tokenizer))
    yield fake
    fake.kill()


def opened(server: FakeVllm, policy: Policy, **fields: Any) -> VllmGenerator:
    spec = VllmSpec.model_validate({"url": server.url, "timeout": 60.0} | fields)
    return open_generator(spec, policy, SingleProcess())


def moved(policy: Policy, ends: str = "weight", size: float = 0.05) -> None:
    """Change the tensors whose names end so."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if name.endswith(ends):
                parameter += size * torch.randn(parameter.shape, generator=generator)


def asked(generator: Generator, policy: Policy, how: Sampling = HOW, seed: int = 3) -> list[tuple[list[int], bool]]:
    prompts = policy.encode(["1+2?", "3+4+5+6?"])
    keys = completion_keys(seed, "sampling", 1, prompts=range(2), samples=2)
    return [(e.response_ids, e.truncated) for e in generator.generate(prompts, keys, how)]


@pytest.mark.parametrize("how", [HOW, Sampling(6, 0.0), Sampling(6, 0.7, 0.8)])
def test_completions_are_those_of_their_keys(server: FakeVllm, policy: Policy, how: Sampling) -> None:
    moved(policy)
    generator = opened(server, policy)
    found = generator.sync(policy, 4)
    assert found["sync/ratio_deviation"] < 1e-4
    local = LocalGenerator(policy)
    assert asked(generator, policy, how) == asked(local, policy, how)
    episodes = generator.generate(policy.encode(["9+9?"]), completion_keys(0, "s", prompts=[0], samples=2), how)
    mine = local.generate(policy.encode(["9+9?"]), completion_keys(0, "s", prompts=[0], samples=2), how)
    assert {e.version for e in episodes} == {4}
    for theirs, ours in zip(episodes, mine, strict=True):
        torch.testing.assert_close(theirs.logprobs, ours.logprobs, atol=1e-5, rtol=0)


def test_an_update_goes_through_the_whole_life_cycle_once(server: FakeVllm, policy: Policy) -> None:
    generator = opened(server, policy)
    server.asked.clear()
    generator.sync(policy, 1)
    steps = ["/pause", "/start_weight_update", "/update_weights", "/finish_weight_update", "/reset_prefix_cache"]
    assert [path for path in server.asked if path in steps or path == "/resume"] == [*steps, "/resume"]
    server.asked.clear()
    assert generator.sync(policy, 1) == {} and server.asked == ["/weight_info"], "this version is there"
    generator.sync(policy, 2)
    assert "/init_weight_transfer_engine" not in server.asked, "the workers were met before"


@pytest.mark.parametrize("kind", quick_if(KINDS[-1].__eq__, KINDS))
def test_old_weights_in_one_place_are_found_at_the_update_that_leaves_them(
    server: FakeVllm, policy: Policy, kind: str
) -> None:
    generator = opened(server, policy)
    generator.sync(policy, 0)
    server.forgotten = (kind,)
    moved(policy, kind)
    with pytest.raises(SamplerLost, match="other probabilities than the weights that it was sent"):
        generator.sync(policy, 1)
    server.forgotten = ()
    generator = opened(server, policy)
    assert generator.sync(policy, 1)["sync/ratio_deviation"] < 1e-4, "sent whole, the same weights are fine"


def test_weights_come_from_files_too(server: FakeVllm, policy: Policy, tmp_path: Path) -> None:
    moved(policy)
    generator = opened(server, policy, weights="directory", directory=str(tmp_path))
    generator.sync(policy, 1)
    assert asked(generator, policy) == asked(LocalGenerator(policy), policy)
    assert not list(tmp_path.iterdir()), "the files are gone"


def test_an_adapter_is_merged(server: FakeVllm, loaded: Policy) -> None:
    pytest.importorskip("peft")
    policy = Policy(deepcopy(loaded.model), loaded.tokenizer)
    add_adapter(policy.model, LoraSpec(rank=2), 0)
    moved(policy, "lora_B.default.weight", 0.3)
    assert stored_weights(policy).keys() == stored_weights(loaded).keys()
    generator = opened(server, policy)
    assert generator.sync(policy, 1)["sync/ratio_deviation"] < 1e-4
    assert asked(generator, policy) == asked(LocalGenerator(policy), policy)


def test_tied_tensors_are_sent_once(loaded: Policy) -> None:
    names = set(stored_weights(loaded))
    assert "model.embed_tokens.weight" in names and "lm_head.weight" not in names
    assert {t.dtype for t in stored_weights(loaded, torch.bfloat16).values()} == {torch.bfloat16}


def test_a_restarted_server_gets_the_weights_again_before_anything_is_used(server: FakeVllm, policy: Policy) -> None:
    moved(policy)
    generator = opened(server, policy)
    generator.sync(policy, 1)
    expected = asked(LocalGenerator(policy), policy)
    server.restart()
    assert asked(generator, policy) == expected
    server.kill()
    back = threading.Timer(0.5, server.restart)
    back.start()
    assert asked(generator, policy, seed=3) == expected, "gone, and back while it is asked"
    back.join()
    server.kill()
    back = threading.Timer(0.5, server.restart)
    back.start()
    assert generator.sync(policy, 2)["sync/ratio_deviation"] < 1e-4, "gone, and back while it is sent the weights"
    back.join()


def test_a_server_that_another_run_uses_too_is_told_apart(server: FakeVllm, policy: Policy) -> None:
    generator = opened(server, policy)
    generator.sync(policy, 0)
    server.broken["/weight_info"] = lambda: setattr(server, "label", "theirs-0")
    real = server._complete
    server._complete = lambda body: setattr(server, "label", "theirs-0") or real(body)  # type: ignore[method-assign]
    with pytest.raises(SamplerLost, match="no two runs can share a server"):
        asked(generator, policy)


def test_an_update_that_was_left_in_the_middle_is_begun_again(server: FakeVllm, policy: Policy) -> None:
    generator = opened(server, policy)
    server.updating = True
    generator.sync(policy, 0)
    failing = iter([(500, {"error": {"message": "broken pipe"}})])
    moved(policy)
    server.broken["/finish_weight_update"] = lambda: next(failing, None)
    generator.sync(policy, 1)
    assert asked(generator, policy) == asked(LocalGenerator(policy), policy)


@pytest.mark.parametrize("trouble", quick_if(("killed", "hung").__contains__, ["killed", "hung", "garbage", "failing"]))
def test_a_lost_server_ends_in_one_message_within_the_time_limit(
    server: FakeVllm, policy: Policy, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cvxrl.rollout.vllm.crowd.pause", lambda _: 0.01)
    generator = opened(server, policy)
    generator.sync(policy, 0)
    server_ = generator.place
    server_.http = replace(server_.http, timeout=0.4)  # type: ignore[attr-defined]
    if trouble == "killed":
        server.kill()
    else:
        answers = {"hung": hang, "garbage": lambda: (200, b"<html>"), "failing": lambda: (500, {"error": "dead"})}
        server.broken["/inference/v1/generate"] = answers[trouble]  # type: ignore[assignment]
    with pytest.raises(SamplerLost) as caught:
        asked(generator, policy)
    (problem,) = caught.value.problems
    assert problem.key == "rollout.engine" and server.url in problem.message and "--resume" in problem.remedy


def test_what_does_not_fit_into_the_servers_context_is_refused(server: FakeVllm, policy: Policy) -> None:
    server.config["model_config"]["max_model_len"] = 12
    generator = opened(server, policy)
    with pytest.raises(UserError, match="takes 12") as caught:
        asked(generator, policy)
    assert not isinstance(caught.value, SamplerLost)


def test_a_rank_that_brings_no_weights_waits_for_the_one_that_does(server: FakeVllm, policy: Policy) -> None:
    moved(policy)
    main = opened(server, policy)
    main.sync(policy, 7)
    follower = replace(main, brings=False, name=main.name, version=7)
    follower.policy, follower.sent = policy, main.sent
    server.restart()
    bringing = threading.Timer(0.3, lambda: (setattr(main, "sent", None), main._bring()))
    bringing.start()
    assert asked(follower, policy) == asked(LocalGenerator(policy), policy)
    bringing.join()
    server.restart()
    with pytest.raises(SamplerLost, match="nobody brought"):
        asked(replace(follower, timeout=0.1, name=main.name, version=7), policy)


def test_the_first_rank_brings_the_weights_and_all_ask(server: FakeVllm, policy: Policy) -> None:
    """Also where bringing them fails: it fails in all of them, so that none waits for the others."""
    moved(policy)
    meeting, expected = Meeting(2), asked(LocalGenerator(policy), policy)
    spec = VllmSpec(url=server.url, timeout=60.0)

    def rank(number: int) -> tuple[Any, bool]:
        mine = Policy(deepcopy(policy.model), policy.tokenizer)
        generator = open_generator(spec, mine, ThreadWorld(number, meeting))
        generator.sync(mine, 1)
        found = asked(generator, mine)
        server.broken["/start_weight_update"] = lambda: (400, {"error": {"message": "no"}})
        try:
            generator.sync(mine, 2)
        except SamplerLost as lost:
            return found, lost.everywhere
        return found, False

    assert together([lambda: rank(0), lambda: rank(1)]) == [(expected, True)] * 2
    assert server.asked.count("/update_weights") == 1


def wrong(server: FakeVllm, policy: Policy, **fields: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        opened(server, policy, **fields)
    assert all(problem.remedy for problem in caught.value.problems)
    return [problem.message for problem in caught.value.problems]


def test_everything_that_is_wrong_with_a_server_is_told_at_once(server: FakeVllm, policy: Policy) -> None:
    server.config["weight_transfer_config"] = None
    server.config["model_config"] |= {"logprobs_mode": "raw_logprobs", "dtype": "torch.bfloat16"}
    server.broken["/inference/v1/generate"] = lambda: (403, {"error": {"message": "disabled"}})
    messages = wrong(server, policy)
    assert len(messages) == 4
    assert "--weight-transfer-config" in messages[0] and "raw_logprobs" in messages[1]
    assert "token ids: HTTP 403: disabled" in messages[2]
    assert "bfloat16" in messages[3] and "float32" in messages[3]


def test_another_model_is_refused_with_what_else_is_wrong(server: FakeVllm, policy: Policy) -> None:
    server.shape["vocab_size"] = 99
    server.config["model_config"] |= {"dtype": "torch.bfloat16"}
    messages = wrong(server, policy)
    assert len(messages) == 2 and "bfloat16" in messages[0] and "another model than the policy" in messages[1]
    assert "please check" not in messages[1]


def test_a_place_without_a_server_for_us_is_refused(server: FakeVllm, policy: Policy, tmp_path: Path) -> None:
    assert "started for weights by `cvxrl`" in wrong(server, policy, weights="nccl")[0]
    server.broken["/server_info"] = lambda: (404, {"detail": "Not Found"})
    assert "VLLM_SERVER_DEV_MODE" in wrong(server, policy)[0]
    server.version = "0.33.1"
    assert "0.33.1" in wrong(server, policy)[0]
    server.broken["/version"] = lambda: (200, b"[1, 2]")
    assert "no vLLM server" in wrong(server, policy)[0]
    server.broken["/version"] = lambda: (404, {"detail": "Not Found"})
    assert "no vLLM server" in wrong(server, policy)[0]
    server.kill()
    assert "nobody answers" in wrong(server, policy)[0]


def test_workers_that_cannot_reach_us_are_found_before_a_run(server: FakeVllm, policy: Policy) -> None:
    server.broken["/init_weight_transfer_engine"] = lambda: (500, {"error": {"message": "no route to host"}})
    assert "no route to host" in wrong(server, policy, timeout=0.5)[0]
