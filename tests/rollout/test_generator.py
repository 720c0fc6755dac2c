"""Completions: what they depend on (prompt, key, sampling, policy), and what they must not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import pytest
import torch
from helpers import quick_if, tiny
from torch import Tensor

from cvxrl.engine.trainer import Trainer
from cvxrl.policy.model import Policy
from cvxrl.rollout import choice
from cvxrl.rollout.generator import Episode, Generator, Sampling
from cvxrl.rollout.local_generator import LocalGenerator
from cvxrl.rollout.randomness import StreamKey, completion_keys, generator_for

PROMPTS = ["1+2?", "3+4+5+6?", "9+9+9?", "8+7?", "6+5+4?"]
SAMPLES = 3
WARM, GREEDY = Sampling(24, 1.0), Sampling(24, 0.0)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Trainer.build(tiny("math_grpo")).policy


def keys(count: int = len(PROMPTS), samples: int = SAMPLES, seed: int = 3) -> list[list[StreamKey]]:
    return completion_keys(seed, "sampling", 1, prompts=range(count), samples=samples)


def tokens(episodes: Sequence[Episode]) -> list[list[int]]:
    return [e.response_ids for e in episodes]


def logprobs(episodes: Sequence[Episode]) -> Tensor:
    return torch.cat([e.logprobs for e in episodes])


@pytest.mark.parametrize(
    ("engine", "rows"),
    quick_if(
        lambda engine, rows: rows == 4 or (engine, rows) == ("auto", 1),
        product(["auto", "transformers", "static"], [8, 1, 4]),
    ),
)
def test_how_many_are_decoded_at_a_time_changes_no_draw(policy: Policy, engine: str, rows: int) -> None:
    prompts = policy.encode(PROMPTS)
    whole = LocalGenerator(policy, engine).generate(prompts, keys(), WARM)  # type: ignore[arg-type]
    parts = LocalGenerator(policy, engine, rows).generate(prompts, keys(), WARM)  # type: ignore[arg-type]
    assert tokens(parts) == tokens(whole)
    assert len(set(map(tuple, tokens(whole)))) > len(PROMPTS), "several samples of a prompt differ"
    torch.testing.assert_close(logprobs(parts), logprobs(whole), rtol=0, atol=3e-5)


def test_a_completion_does_not_know_its_neighbours(policy: Policy) -> None:
    """Alone, in another order, and beside prompts that were never there before."""
    prompts, streams = policy.encode(PROMPTS), keys()
    generator = LocalGenerator(policy)
    whole = tokens(generator.generate(prompts, streams, WARM))
    for p, prompt in enumerate(prompts):
        for s in range(SAMPLES):
            assert tokens(generator.generate([prompt], [[streams[p][s]]], WARM)) == [whole[p * SAMPLES + s]]
    backwards = tokens(generator.generate(prompts[::-1], streams[::-1], WARM))
    assert backwards == [whole[p * SAMPLES + s] for p in reversed(range(len(prompts))) for s in range(SAMPLES)]
    uneven = [streams[0][2:], streams[1], streams[2][:1], streams[3][1:]]
    some = tokens(generator.generate(prompts[:4], uneven, WARM))
    assert some == [whole[2], *whole[3:6], whole[6], *whole[10:12]]


def test_another_seed_step_or_purpose_is_another_stream(policy: Policy) -> None:
    prompts, generator = policy.encode(PROMPTS), LocalGenerator(policy)
    first = tokens(generator.generate(prompts, keys(), WARM))
    assert tokens(generator.generate(prompts, keys(), WARM)) == first
    for change in ({"seed": 4}, {"purpose": "evaluation"}, {"position": (2, 0, 0)}):
        other = [[replace(key, **change) for key in streams] for streams in keys()]  # type: ignore[arg-type]
        assert tokens(generator.generate(prompts, other, WARM)) != first


def test_a_longer_limit_changes_no_token_before_it(policy: Policy) -> None:
    prompts, generator = policy.encode(PROMPTS), LocalGenerator(policy)
    short = tokens(generator.generate(prompts, keys(), Sampling(5, 1.0)))
    assert short == [response[:5] for response in tokens(generator.generate(prompts, keys(), Sampling(40, 1.0)))]


def test_greedy_decoding_needs_no_stream(policy: Policy) -> None:
    prompts, generator = policy.encode(PROMPTS), LocalGenerator(policy)
    whole = tokens(generator.generate(prompts, keys(samples=1), GREEDY))
    assert tokens(generator.generate(prompts, keys(samples=1, seed=9), GREEDY)) == whole


def test_a_stream_is_what_its_name_says() -> None:
    """Evaluations of version 0.1 drew from these streams; their numbers must come back."""
    key = StreamKey(0, "evaluation", (7, 3))
    expected = torch.rand(4, generator=generator_for(0, "evaluation", 7, 3), dtype=torch.float64)
    assert torch.equal(key.uniform(4), expected) and torch.equal(key.uniform(2), expected[:2])
    assert 0 <= key.number < 2**63
    named = {StreamKey(s, "sampling", (a, b)).number for s in range(3) for a in range(20) for b in range(20)}
    assert len(named) == 1200
    assert StreamKey(1, "sampling", (2, 3)).number != StreamKey(1, "sampling", (23,)).number


def test_an_episode_says_which_policy_made_it(policy: Policy) -> None:
    prompts, generator = policy.encode(PROMPTS), LocalGenerator(policy)
    assert {e.version for e in generator.generate(prompts, keys(), WARM)} == {0}
    generator.sync(policy, 5)
    assert {e.version for e in generator.generate(prompts, keys(), WARM)} == {5}


class Recited:
    """A generator that decodes nothing: every completion is a text, as a server somewhere else would send it."""

    def __init__(self, policy: Policy, texts: Sequence[str]) -> None:
        self.policy, self.texts, self.version = policy, texts, -1
        self.asked: list[StreamKey] = []

    def sync(self, policy: Policy, version: int) -> dict[str, float]:
        self.version = version
        return {"sync/seen": 1.0}

    def generate(
        self, prompts: Sequence[list[int]], keys: Sequence[Sequence[StreamKey]], sampling: Sampling
    ) -> list[Episode]:
        episodes = []
        for prompt, streams in zip(prompts, keys, strict=True):
            for key in streams:
                self.asked.append(key)
                ids = [*self.policy.encode([self.texts[key.position[-1] % len(self.texts)]])[0], self.policy.end_ids[0]]
                episodes.append(Episode(prompt, ids, torch.zeros(len(ids)), False, self.version))
        return episodes


def test_training_needs_no_more_than_the_protocol() -> None:
    recipe = tiny("math_grpo", "train.ratio_tolerance=1e9", "rollout.rounds=2", "eval.every=0")
    trainer = Trainer.build(recipe)
    generator: Generator = Recited(trainer.policy, ["1", "1+1=2", "22"])
    trainer = replace(trainer, generator=generator, collector=replace(trainer.collector, generator=generator))
    for step in (1, 2):
        record = trainer._step(step)
        assert record["sync/seen"] == 1, "what bringing the weights says is part of the step's record"
        assert record["response/length"] == pytest.approx((2 + 6 + 3 + 2) / 4)
    sequences = trainer.collector.collect(2).sequences
    assert sequences.versions == [1] * len(sequences)
    asked = generator.asked  # type: ignore[attr-defined]
    rounds, prompts, samples = 2, recipe.rollout.prompts, recipe.rollout.samples
    assert {key.purpose for key in asked} == {"sampling"} and {key.position[0] for key in asked} == {1, 2}
    assert len(set(asked)) == 2 * rounds * prompts * samples, "no two completions share a stream"


def test_a_decoder_is_tried_again_where_sequences_are_longer_and_left_where_it_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy, tried, passes = (
        Trainer.build(tiny("math_grpo", "rollout.max_new_tokens=8")).policy,
        [],
        choice._Trial.passes,
    )

    def watched(self: choice._Trial, policy: Policy, way: choice.Choice) -> bool:
        tried.append(longest := max(map(len, self.probe.prompts)))
        return passes(self, policy, way) and not (way is choice._PLAIN and longest > 40)

    monkeypatch.setattr(choice._Trial, "passes", watched)
    assert choice.choose(policy, "auto") is choice._PLAIN and not tried, "it was when the trainer was built"
    policy.checked.cover(4, 36)
    assert [choice.choose(policy, "auto") for _ in range(2)] == [choice._PLAIN] * 2
    assert tried == [33], "at the new length alone, and once"
    policy.checked.cover(4, 50)
    assert choice.choose(policy, "auto") is choice._OWN
