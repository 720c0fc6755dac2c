"""A sampler that is not the policy: measured, corrected, or the end of the run."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import tiny
from torch import Tensor

from cvxrl.engine.mismatch import against_sampler
from cvxrl.engine.self_check import SelfCheckError
from cvxrl.engine.trainer import Trainer
from cvxrl.errors import UserError
from cvxrl.recipe.digest import digest

FAST = ("eval.every=0", "rollout.prompts=2", "rollout.samples=3", "rollout.max_new_tokens=6", "advantage=reward")
FAST += ("task.reward.noise=coin",)  # so short, no reply is right


def built(name: str, *changes: str) -> Trainer:
    return Trainer.build(tiny(name, *FAST, *changes))


def off(trainer: Trainer, factor: float = 3.0) -> Any:
    """A rollout whose sampler said that every other token was so many times less likely than the trainer says."""
    sequences = trainer.collector.collect(1).sequences
    said = trainer.updater.loss.reader.log_probs(sequences)
    shifts = [math.log(factor) * (torch.arange(len(part)) % 2) for part in said]
    return replace(sequences, sampled_logprobs=[part - shift for part, shift in zip(said, shifts, strict=True)])


def gradient(trainer: Trainer, sequences: Any) -> Tensor:
    loss, model = trainer.updater.loss, trainer.policy.model
    model.zero_grad()
    loss.backward(loss.weigh(sequences))
    return torch.cat([p.grad.flatten().clone() for p in model.parameters() if p.grad is not None])


def test_the_weights_are_the_capped_ratios_and_are_logged() -> None:
    trainer = built("math_grpo", "rollout.mismatch={kind: correct, cap: 2.0}")
    sequences = off(trainer)
    corrected, told = against_sampler(trainer.updater.loss, sequences)
    assert corrected.corrections is not None
    odd = torch.cat([torch.arange(length) % 2 for length in sequences.lengths]).bool()
    torch.testing.assert_close(torch.cat(corrected.corrections), torch.where(odd, 2.0, 1.0), atol=1e-5, rtol=0)
    share = float(odd.double().mean())
    expected = {
        "mismatch/ratio_mean": 1 + 2 * share,
        "mismatch/ratio_max": 3.0,
        "mismatch/outside": share,
        "mismatch/kl": share * (3 - 1 - math.log(3)),
    }
    assert told == pytest.approx(expected, abs=1e-5)
    whole = trainer.updater.loss.weigh(corrected)
    unweighed = trainer.updater.loss.weigh(sequences).per_token(torch.device("cpu"))
    torch.testing.assert_close(whole.per_token(torch.device("cpu")), unweighed * torch.cat(corrected.corrections))


@pytest.mark.parametrize("name", ["math_lco_kld", pytest.param("math_gspo", marks=pytest.mark.slow)])
def test_the_gradient_is_weighted_whatever_the_passes(name: str) -> None:
    """By micro-batches, in chunks, and by the sum over responses of each one's own gradient times its weight."""
    spec = "rollout.mismatch={kind: correct, cap: null, level: sequence}"
    trainer = built(name, spec)
    loss = trainer.updater.loss
    plain = off(trainer)
    sequences, _ = against_sampler(loss, plain)
    whole = gradient(trainer, sequences)
    weighed, total = loss.weigh(plain), torch.zeros_like(whole)
    for i in range(len(plain)):
        trainer.policy.model.zero_grad()
        loss.backward(weighed.select([i]))
        grads = torch.cat([p.grad.flatten() for p in trainer.policy.model.parameters() if p.grad is not None])
        total += 3.0 ** (len(plain.responses[i]) // 2) * grads
    torch.testing.assert_close(whole, total, atol=1e-5, rtol=1e-4)
    for changes in (("train.micro_batch=2",), ("train.loss=chunked", "train.micro_batch=3")):
        torch.testing.assert_close(gradient(built(name, spec, *changes), sequences), whole, atol=1e-5, rtol=1e-4)


def test_at_a_ratio_of_one_nothing_changes() -> None:
    """Bit for bit, with what the sampler said set to what the trainer says; and under a line search, twice."""
    found = []
    for kind in ("stop", "log", "correct"):
        trainer = built("math_lco_kld", f"rollout.mismatch={kind}", "step=line-search", "optim.lr=1e-2")
        sequences, _ = against_sampler(trainer.updater.loss, off(trainer, 1.0))
        metrics = trainer.updater.update(sequences, 1)
        found.append((metrics, [p.detach().clone() for p in trainer.policy.model.parameters()]))
    for metrics, weights in found[1:]:
        assert metrics == found[0][0]
        assert all(map(torch.equal, weights, found[0][1]))


def test_a_wrong_sampler_ends_the_run_unless_it_is_logged_or_corrected(monkeypatch: pytest.MonkeyPatch) -> None:
    collect = type(built("math_grpo").collector).collect

    def wrong(by: float) -> None:
        def collected(self: Any, step: int) -> Any:
            experience = collect(self, step)
            for said in experience.sequences.sampled_logprobs or []:
                said.add_(by)
            return experience

        monkeypatch.setattr("cvxrl.engine.collectors.RolloutCollector.collect", collected)

    wrong(0.5)
    with pytest.raises(SelfCheckError, match=r"rollout\.mismatch: correct"):
        built("math_grpo")._step(1)
    for changes in ((), ("rollout.lag=1",)):
        record = built("math_grpo", "rollout.mismatch=correct", *changes)._step(1)
        assert record["mismatch/ratio_mean"] == pytest.approx(math.exp(-0.5), rel=1e-3)
        assert record["check/ratio_deviation"] > 0.3 and record["mismatch/outside"] == 0
    assert "mismatch/outside" not in built("math_grpo", "rollout.mismatch=log")._step(1)
    wrong(math.nan)
    with pytest.raises(SelfCheckError, match="no probability"):
        built("math_grpo", "rollout.mismatch=correct")._step(1)


def test_what_cannot_be_weighted_is_refused_and_the_default_is_no_field() -> None:
    with pytest.raises(UserError, match=r"rollout\.mismatch\.level.*whole responses"):
        tiny("math_gspo", "rollout.mismatch=correct")
    with pytest.raises(UserError, match=r"rollout\.mismatch.*learns from demonstrations, not samples"):
        tiny("base_sft", "rollout.mismatch=correct")
    plain, named, other = tiny("math_grpo"), *(tiny("math_grpo", f"rollout.mismatch={k}") for k in ("stop", "log"))
    assert digest(plain) == digest(named) != digest(other)
