"""`rollout.old_logprobs: sampler`: ratios to what came with the tokens, and no pass over the rollout for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import tiny

from cvxrl.engine.loss import Loss
from cvxrl.engine.readers import Reader
from cvxrl.engine.records import summary_rows
from cvxrl.engine.sequences import Sequences, token_batch
from cvxrl.engine.trainer import Trainer
from cvxrl.errors import UserError
from cvxrl.inspection.rollouts import rollout_key
from cvxrl.runs.directory import RunDir

TWICE = ("train.inner_epochs=2", "train.minibatches=1", "logging.kl_sequences=0")
SAMPLER = "rollout.old_logprobs=sampler"


def collected(trainer: Trainer) -> Sequences:
    return trainer.collector.collect(1).sequences


@pytest.mark.parametrize("more", [(), ("train.loss=chunked",), ("model.lora={rank: 2}",)])
def test_no_pass_is_made_and_training_is_the_same_up_to_rounding(
    more: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    read = Reader.log_probs
    for kind in ("trainer", "sampler"):
        passes: list[int] = []

        def counted(self: Reader, sequences: Sequences, passes: list[int] = passes) -> list[torch.Tensor]:
            passes.append(len(sequences))
            return read(self, sequences)

        trainer = Trainer.build(tiny("math_grpo", *TWICE, f"rollout.old_logprobs={kind}", *more))
        sequences = collected(trainer)
        monkeypatch.setattr(Reader, "log_probs", counted)
        metrics = trainer.updater.update(sequences, 1)
        monkeypatch.setattr(Reader, "log_probs", read)
        found[kind] = metrics
        assert passes == ([len(sequences)] if kind == "trainer" else [])
    assert found["sampler"] == pytest.approx(found["trainer"], rel=1e-3, abs=1e-5)


def test_the_ratio_is_to_what_the_sampler_said() -> None:
    """A sampler that overstates every token by a tenth of a nat makes ratios of exp(-0.1)."""
    trainer = Trainer.build(tiny("math_grpo", *TWICE, SAMPLER))
    sequences = collected(trainer)
    assert sequences.sampled_logprobs is not None
    louder = replace(sequences, sampled_logprobs=[said + 0.1 for said in sequences.sampled_logprobs])
    loss: Loss = trainer.updater.loss
    remembered = loss.remember(louder, off_policy=True)
    assert remembered.moved
    with torch.no_grad():
        outputs = loss.reader.outputs(remembered)
        batch = token_batch(outputs.logits_NV, remembered)
        now_N = torch.log_softmax(outputs.logits_NV, -1).gather(1, batch.actions_N[:, None])[:, 0]
    assert batch.old_logprobs_N is not None and batch.old_logprobs_N.dtype == torch.float32
    torch.testing.assert_close(now_N - batch.old_logprobs_N, torch.full_like(now_N, -0.1), rtol=0, atol=1e-5)


def test_with_a_lag_they_are_those_of_the_policy_that_sampled() -> None:
    recipe = tiny("math_grpo", "rollout.lag=1", SAMPLER, "optim.lr=1e-2")
    trainer = Trainer.build(recipe)
    first = collected(trainer)
    trainer.updater.update(first, 1)
    late = trainer.collector.collect(2).sequences
    assert late.old_logprobs is not None and late.sampled_logprobs is not None
    assert all(map(torch.equal, late.old_logprobs, late.sampled_logprobs))
    now = torch.cat(trainer.updater.loss.reader.log_probs(late))
    assert float((now - torch.cat(late.old_logprobs)).abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("name", "changes", "key"),
    [
        ("math_grpo", [], "rollout.old_logprobs: with one optimizer step"),
        ("math_lco_kld", TWICE, "rollout.old_logprobs: the target of `lco-kld`"),
        ("math_reinforce", TWICE, "rollout.old_logprobs: the loss of `reinforce` has no ratio"),
        ("math_grpo", [*TWICE, "rollout.mismatch.kind=log"], "rollout.mismatch: `log` compares"),
        ("math_grpo", [*TWICE, "rollout.mismatch.kind=correct"], "rollout.mismatch: `correct` compares"),
        ("pref_dpo", [], "rollout.old_logprobs: `dpo` learns from preferences"),
        ("base_sft", [], "rollout.old_logprobs: `sft` learns from demonstrations"),
    ],
)
def test_where_it_cannot_be_or_does_nothing_it_is_refused(name: str, changes: list[str], key: str) -> None:
    with pytest.raises(UserError) as raised:
        tiny(name, *changes, SAMPLER)
    assert key in str(raised.value)
    assert len(raised.value.problems) == 1


def test_a_search_needs_the_whole_step() -> None:
    with pytest.raises(UserError, match=r"logging\.idle_groups: step\.kind: trust-region"):
        tiny("math_grpo", "step.kind=trust-region", "logging.idle_groups=false")


def test_rollouts_of_a_checkpoint_are_the_same_whoever_tells_old_probabilities() -> None:
    recipes = (tiny("math_grpo", "train.minibatches=2", *more) for more in ((), (SAMPLER,)))
    plain, sampler = (rollout_key(recipe, 1, "", "", "") for recipe in recipes)
    assert plain == sampler


def test_the_summary_leaves_out_what_no_step_of_an_end_has(tmp_path: Path) -> None:
    base = {"reward/mean": 0.5, "tokens/total": 9, "time/total_s": 1.0}
    records = [{"step": 1, **base}, {"step": 2, **base, "policy/entropy": 0.25}]
    rows = {row[0]: row[1:] for row in summary_rows(records, RunDir(tmp_path), tiny("math_grpo"), None)}
    assert rows["entropy (nats)"] == ("", "0.250")
    assert "loss" not in rows
