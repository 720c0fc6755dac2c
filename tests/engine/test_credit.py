"""Who gets how much: critics, verifiers, dynamic sampling, preference pairs, what a rollout remembers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SilentSink, tiny
from torch import Tensor

import cvxrl.engine.loss as loss
from cvxrl.engine.session import run_training
from cvxrl.engine.trainer import Trainer
from cvxrl.errors import UserError
from cvxrl.objectives.batch import ObjectiveOutput, TokenBatch
from cvxrl.objectives.registry import compute
from cvxrl.recipe.objective import ObjectiveSpec
from cvxrl.runs.directory import RunDir

SCRATCH = {"alphabet": "0123456789+=?abc", "hidden_size": 16, "layers": 1, "heads": 2, "kv_heads": 2, "head_dim": 8}


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[TokenBatch]:
    """Every batch that an objective saw."""
    seen: list[TokenBatch] = []

    def remember(batch: TokenBatch, spec: ObjectiveSpec) -> ObjectiveOutput:
        seen.append(batch)
        return compute(batch, spec)

    monkeypatch.setattr(loss, "compute", remember)
    return seen


def entropies(logits_NV: Tensor) -> Tensor:
    return torch.distributions.Categorical(logits=logits_NV.detach()).entropy()


def test_the_target_stays_where_the_rollout_left_it(batches: list[TokenBatch]) -> None:
    trainer = Trainer.build(tiny("math_lco_kld", "train.inner_epochs=3", "optim.lr=1e-2"))
    trainer.updater.update(trainer.collector.collect(1).sequences, 1)
    first, _, last = batches
    assert first.old_logits_NV is not None and last.old_logits_NV is not None
    torch.testing.assert_close(first.old_logits_NV, first.logits_NV.detach(), rtol=1e-5, atol=1e-5)
    assert torch.equal(first.old_logits_NV, last.old_logits_NV)
    assert float((last.logits_NV.detach() - last.old_logits_NV).abs().max()) > 0.1


def test_a_moving_target_ignores_the_rollout(batches: list[TokenBatch]) -> None:
    moving = tiny("math_lco_mse", "objective.target=moving", "train.inner_epochs=2", "optim.lr=1e-2")
    trainer = Trainer.build(moving)
    trainer.updater.update(trainer.collector.collect(1).sequences, 1)
    for batch in batches:
        assert batch.advantages_N is not None
        # (z - z*)^2 is (A / b)^2 wherever the policy is, since z* starts from z itself.
        expected_N = (batch.advantages_N / 5.0).square()
        torch.testing.assert_close(compute(batch, moving.objective).loss_N.detach(), expected_N, rtol=1e-4, atol=1e-6)


def test_the_critic_starts_at_the_bare_reward_and_learns_the_mean() -> None:
    plain = ("advantage.whiten=false", "advantage.lam=1.0", "advantage.value_clip=null")
    recipe = tiny("math_ppo", *plain, "optim.lr=2e-3", "train.inner_epochs=20")
    trainer = Trainer.build(recipe)
    sequences = trainer.collector.collect(1).sequences
    assert sequences.advantages is not None and sequences.values is not None and sequences.returns is not None
    assert all(float(v.abs().max()) == 0.0 for v in sequences.values)
    rewards = [float(advantages[0]) for advantages in sequences.advantages]
    assert set(rewards) == {0.0, 1.0}
    # With lambda = gamma = 1 and no values, every token of a response gets the reward of its end.
    assert all(torch.equal(a, torch.full_like(a, r)) for a, r in zip(sequences.advantages, rewards, strict=True))
    before = sum(float((r**2).sum()) for r in sequences.returns)
    trainer.updater.update(sequences, 1)
    assert trainer.critic is not None
    values = trainer.critic.read(trainer.updater.loss.reader, sequences)
    after = sum(float(((v.cpu() - r) ** 2).sum()) for v, r in zip(values, sequences.returns, strict=True))
    assert after < 0.8 * before


def test_a_verifier_scores_candidates_by_its_own_log_probabilities() -> None:
    """The policy judging itself: candidates are its top k, and scores fall with their probability."""
    trainer = Trainer.build(tiny("math_lco_kld_dense", "advantage.center=true"))
    sequences = trainer.collector.collect(1).sequences
    assert sequences.advantages is not None and sequences.dense is not None
    reader = trainer.updater.loss.reader
    for i, dense in enumerate(sequences.dense[:4]):
        logits_TV = reader.logits(sequences.select([i]))[0]
        actions_T = torch.tensor(sequences.responses[i])
        assert (dense.ids_NK == actions_T.unsqueeze(-1)).sum(-1).eq(1).all()
        scores_TK = torch.log_softmax(logits_TV, -1).gather(-1, dense.ids_NK)
        expected_TK = (scores_TK - scores_TK.mean(-1, keepdim=True)) / scores_TK.std(-1, keepdim=True)
        torch.testing.assert_close(dense.values_NK, expected_TK, rtol=1e-3, atol=1e-3)
        sampled_T = dense.values_NK[dense.ids_NK == actions_T.unsqueeze(-1)]
        assert torch.equal(sequences.advantages[i], sampled_T)


def test_verifiers_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"advantage\.verifier") as missing:
        Trainer.build(tiny("math_lco_kld_dense", f"advantage.verifier={tmp_path / 'none'}"))
    assert "pref_qrm" in str(missing.value)
    foreign = tiny("base_sft", f"model.scratch={json.dumps(SCRATCH | {'intermediate_size': 16, 'context': 64})}")
    Trainer.build(foreign).policy.save(tmp_path)
    with pytest.raises(UserError, match="another vocabulary"):
        Trainer.build(tiny("math_lco_kld_dense", f"advantage.verifier={tmp_path}"))


def test_dpo_verifier_equal_to_its_reference_says_nothing() -> None:
    same = "package:cvxrl/assets/base"
    spec = f"{{kind: dense-dpo, verifier: '{same}', reference: '{same}', k: 3}}"
    trainer = Trainer.build(tiny("math_lco_kld_dense", f"advantage={spec}"))
    dense = trainer.collector.collect(1).sequences.dense
    assert dense is not None and all(float(d.values_NK.abs().max()) == 0.0 for d in dense)


def test_dynamic_sampling_looks_for_contrast_among_new_prompts() -> None:
    once = Trainer.build(tiny("math_dapo", "rollout.rounds=1", "rollout.samples=2")).collector.collect(1)
    trainer = Trainer.build(tiny("math_dapo", "rollout.rounds=6", "rollout.samples=2"))
    more = trainer.collector.collect(1)
    assert once.metrics["rollout/groups"] == 4 and once.metrics["reward/zero_variance_groups"] > 0
    assert 4 < more.metrics["rollout/groups"] <= 24 and more.metrics["rollout/groups"] % 4 == 0
    sequences = more.sequences
    assert sequences.group_advantages is not None
    assert all(bool(advantages_G.any()) for advantages_G in sequences.group_advantages)
    assert len({tuple(prompt) for prompt in sequences.prompts}) == 4 == len(set(sequences.groups))
    assert more.sampled_tokens > sum(sequences.lengths)


def test_the_reference_is_where_training_started(batches: list[TokenBatch]) -> None:
    recipe = tiny("math_grpo", "regularizer.kl_coefficient=0.1", "optim.lr=1e-2")
    trainer = Trainer.build(recipe)
    metrics = [trainer.updater.update(trainer.collector.collect(step).sequences, step) for step in (1, 2)]
    assert metrics[0]["policy/reference_kl"] == pytest.approx(0.0, abs=1e-6)
    assert metrics[1]["policy/reference_kl"] > 1e-3


def test_an_entropy_bonus_raises_entropy(batches: list[TokenBatch]) -> None:
    after = []
    for coefficient in (0.0, 1.0):
        overrides = (f"regularizer.entropy_coefficient={coefficient}", "train.inner_epochs=12", "optim.lr=1e-3")
        trainer = Trainer.build(tiny("math_grpo", *overrides))
        trainer.updater.update(trainer.collector.collect(1).sequences, 1)
        after.append(float(entropies(batches[-1].logits_NV).mean()))
    assert after[1] > after[0] + 0.05


def test_dpo_starts_at_log_two_and_learns_the_pairs(batches: list[TokenBatch]) -> None:
    trainer = Trainer.build(tiny("pref_dpo", "optim.lr=1e-3", "train.inner_epochs=8"))
    sequences = trainer.collector.collect(1).sequences
    assert sequences.groups[:4] == [0, 0, 1, 1]
    trainer.updater.update(sequences, 1)
    spec = trainer.recipe.objective
    first, last = (compute(batch, spec) for batch in (batches[0], batches[-1]))
    assert first.loss_N.detach().numpy() == pytest.approx(math.log(2), abs=1e-5)
    assert float(last.metrics["preference/accuracy"].min()) == 1.0
    assert float(last.loss_N.detach().max()) < math.log(2)


def test_preference_pairs_come_from_files(tmp_path: Path) -> None:
    rows = [{"q": f"{i}+2?", "good": f"{i}+2={i + 2}", "bad": f"{i}+2={i + 3}"} for i in range(1, 8)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = "prompt_field: q, answer_field: null, chosen_field: good, rejected_field: bad"
    source = f"task.source={{kind: dataset, path: {tmp_path / 'pairs.jsonl'}, {fields}}}"
    recipe = tiny("pref_qrm", source, "eval.every=0")
    trainer = Trainer.build(recipe)
    sequences = trainer.collector.collect(1).sequences
    chosen, rejected = trainer.policy.decode(sequences.responses[:2])
    number = int(chosen[0])
    assert (chosen, rejected) == (f"{number}+2={number + 2}", f"{number}+2={number + 3}")
    assert sequences.prompts[0] == sequences.prompts[1]
    assert run_training(recipe, RunDir.of(tmp_path, recipe), SilentSink(), "new").status == "finished"


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        ("pref_dpo", ("task.source={kind: reasoning-gym, dataset: gcd}",), "preference pair"),
        ("math_gspo", ("advantage={kind: gae}",), "one per response"),
        ("math_tpo", ("rollout.samples=1", "advantage={kind: reward}"), "compares the samples"),
        ("math_rebel", ("train.minibatches=8",), "stay together"),
        ("pref_dpo", ("regularizer.kl_coefficient=0.1",), "regularizer.kl_coefficient"),
        ("math_grpo", ("reading=authors-code",), "the authors' code has no `grpo`"),
        ("math_lco_kld", ("objective.shift=drift-free", "advantage={kind: gae}"), "shift: none"),
    ],
)
def test_combinations_that_mean_nothing_are_refused(name: str, overrides: tuple[str, ...], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Trainer.build(tiny(name, *overrides))


AUTHORS: dict[str, Any] = {
    "math_lco_kld": {"target": "frozen", "negative_beta_scale": 100.0},
    "math_lco_mse": {"target": "moving", "negative_beta_scale": 100.0},
    "math_lco_lch": {"target": "moving", "negative_beta_scale": 100.0},
}


@pytest.mark.parametrize("name", AUTHORS)
def test_the_authors_reading_is_spelled_out_in_fields(name: str) -> None:
    recipe = tiny(name, "reading=authors-code")
    assert recipe.advantage.kind == "reward"
    assert (recipe.task.reward.correct, recipe.task.reward.incorrect) == (1.0, -1.0)  # type: ignore[union-attr]
    assert recipe.optim.max_grad_norm is None and recipe.train.reset_optimizer
    assert {key: getattr(recipe.objective, key) for key in AUTHORS[name]} == AUTHORS[name]
    if name == "math_lco_kld":
        assert recipe.objective.support.kind == "top-k-fill" and recipe.objective.support.k == 5  # type: ignore[union-attr]
    assert recipe.objective.beta == tiny(name).objective.beta  # type: ignore[union-attr]


def test_what_is_said_beside_the_reading_beats_it() -> None:
    recipe = tiny("math_lco_kld", "reading=authors-code", "objective.negative_beta_scale=7", "advantage.kind=group")
    assert recipe.objective.negative_beta_scale == 7 and recipe.advantage.kind == "group"  # type: ignore[union-attr]
    assert recipe.train.reset_optimizer


def test_dropping_the_optimizer_state_changes_the_second_step() -> None:
    after = []
    for reset in ("false", "true"):
        trainer = Trainer.build(tiny("math_lco_kld", f"train.reset_optimizer={reset}"))
        weights = []
        for step in (1, 2):
            trainer.updater.update(trainer.collector.collect(step).sequences, step)
            weights.append(torch.cat([p.detach().flatten() for p in trainer.policy.model.parameters()]))
        after.append(weights)
    assert torch.equal(after[0][0], after[1][0]) and not torch.equal(after[0][1], after[1][1])
