"""Objectives against hand-computed values, closed forms, autograd and the paper's claims, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cvxrl.objectives.batch import DenseAdvantages, TokenBatch
from cvxrl.objectives.linear import HiddenBatch, LinearHead
from cvxrl.objectives.reduce import sequence_weights
from cvxrl.objectives.registry import compute
from cvxrl.objectives.target import target_log_probs, target_logits, tilt, tilted_probability
from cvxrl.recipe.objective import (
    GrpoSpec,
    LcoKldSpec,
    LcoLchSpec,
    LcoMseSpec,
    ObjectiveSpec,
    QrmSpec,
    ReinforceSpec,
    SftSpec,
)

LCO: list[ObjectiveSpec] = [LcoKldSpec(beta=0.7), LcoMseSpec(beta=0.7), LcoLchSpec(beta=0.7)]
EVERY: list[ObjectiveSpec] = [*LCO, GrpoSpec(), ReinforceSpec(), SftSpec()]


def kind(spec: ObjectiveSpec) -> str:
    return spec.kind


def draw_batch(generator: torch.Generator, tokens: int = 6, vocab: int = 5, spread: float = 2.0) -> TokenBatch:
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    old_NV = spread * normal(tokens, vocab)
    actions_N = torch.randint(vocab, (tokens,), generator=generator)
    return TokenBatch(
        logits_NV=spread * normal(tokens, vocab),
        actions_N=actions_N,
        advantages_N=normal(tokens),
        old_logits_NV=old_NV,
        old_logprobs_N=torch.log_softmax(old_NV, -1)[torch.arange(tokens), actions_N],
    )


def loss_of(batch: TokenBatch, spec: ObjectiveSpec) -> Callable[[Tensor], Tensor]:
    def loss(logits_NV: Tensor) -> Tensor:
        moved = TokenBatch(
            logits_NV,
            actions_N=batch.actions_N,
            advantages_N=batch.advantages_N,
            old_logits_NV=batch.old_logits_NV,
            old_logprobs_N=batch.old_logprobs_N,
        )
        return compute(moved, spec).loss_N

    return loss


def gradient(batch: TokenBatch, spec: ObjectiveSpec) -> Tensor:
    logits = batch.logits_NV.detach().clone().requires_grad_()
    (grad,) = torch.autograd.grad(loss_of(batch, spec)(logits).sum(), logits)
    return grad


def one_token(spec: ObjectiveSpec, advantage: float, logits: list[float], old: list[float], action: int) -> float:
    old_NV = torch.tensor([old], dtype=torch.float64)
    batch = TokenBatch(
        torch.tensor([logits], dtype=torch.float64),
        actions_N=torch.tensor([action]),
        advantages_N=torch.tensor([advantage], dtype=torch.float64),
        old_logits_NV=old_NV,
        old_logprobs_N=torch.log_softmax(old_NV, -1)[:, action],
    )
    return float(compute(batch, spec).loss_N)


# By hand: the old policy is (1/2, 1/2) with logits 0; the current one is (3/4, 1/4) with logits (ln 3, 0).
LN3 = math.log(3.0)
HAND = [
    # pi* = sigmoid(A / beta) = 3/4 on token 0: already there.
    (LcoKldSpec(beta=1.0), LN3, 0, 0.0),
    # A < 0: pi*(0) = 1/4; KL((1/4, 3/4) || (3/4, 1/4)) = 1/4 ln(1/3) + 3/4 ln 3 = ln(3) / 2.
    (LcoKldSpec(beta=1.0), -LN3, 0, LN3 / 2),
    # Scale 2 halves the tilt and beta 1/2 doubles it again.
    (LcoKldSpec(beta=0.5, negative_beta_scale=2.0), -LN3, 0, LN3 / 2),
    # z*_0 = 0 + 2 / 2 = 1: (ln 3 - 1)^2.
    (LcoMseSpec(beta=2.0), 2.0, 0, (LN3 - 1.0) ** 2),
    # z*_1 = 0 - 3 / (1 * 3) = -1: (0 + 1)^2.
    (LcoMseSpec(beta=1.0, negative_beta_scale=3.0), -3.0, 1, 1.0),
    # Same distance in log cosh.
    (LcoLchSpec(beta=1.0, negative_beta_scale=3.0), -3.0, 1, math.log(math.cosh(1.0))),
    # r = (3/4) / (1/2) = 1.5; A > 0 is clipped at 1.2: -1.2 * 2.
    (GrpoSpec(clip_low=0.2, clip_high=0.2), 2.0, 0, -2.4),
    # A < 0 is not clipped above: +1.5 * 2.
    (GrpoSpec(clip_low=0.2, clip_high=0.2), -2.0, 0, 3.0),
    # r = 1/2 on token 1: A > 0 not clipped below, A < 0 clipped at 0.8.
    (GrpoSpec(clip_low=0.2, clip_high=0.2), 2.0, 1, -1.0),
    (GrpoSpec(clip_low=0.2, clip_high=0.2), -2.0, 1, 1.6),
    (GrpoSpec(clip_low=0.2, clip_high=0.6), 2.0, 0, -3.0),
    (ReinforceSpec(), 2.0, 1, 2.0 * math.log(4.0)),
    (ReinforceSpec(), -2.0, 1, -2.0 * math.log(4.0)),
    (SftSpec(), 7.0, 1, math.log(4.0)),
]


@pytest.mark.parametrize(("spec", "advantage", "action", "expected"), HAND)
def test_hand_computed_values(spec: ObjectiveSpec, advantage: float, action: int, expected: float) -> None:
    assert one_token(spec, advantage, [LN3, 0.0], [0.0, 0.0], action) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("spec", EVERY, ids=kind)
def test_gradcheck(spec: ObjectiveSpec) -> None:
    batch = draw_batch(torch.Generator().manual_seed(0), spread=0.5)
    assert torch.autograd.gradcheck(loss_of(batch, spec), batch.logits_NV.clone().requires_grad_())


@pytest.mark.parametrize("beta", [0.3, 1.0, 4.0])
def test_target_is_the_numerical_optimum(beta: float) -> None:
    """Newton-free check: maximise E_pi[A] - beta KL(pi || pi_old) from scratch with L-BFGS."""
    batch = draw_batch(torch.Generator().manual_seed(1), tokens=4)
    assert batch.old_logits_NV is not None and batch.advantages_N is not None
    target = target_log_probs(batch.old_logits_NV, batch.actions_N, tilt(batch.advantages_N, beta))
    old = torch.log_softmax(batch.old_logits_NV, -1)
    z = torch.zeros_like(old, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [z], max_iter=500, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        log_pi = torch.log_softmax(z, -1)
        assert batch.advantages_N is not None
        gain = log_pi.exp()[torch.arange(4), batch.actions_N] * batch.advantages_N
        value = -(gain - beta * (log_pi.exp() * (log_pi - old)).sum(-1)).sum()
        value.backward()
        return value

    optimizer.step(objective)
    torch.testing.assert_close(torch.log_softmax(z.detach(), -1).exp(), target.exp(), rtol=0, atol=1e-6)


def test_closed_form_of_the_tilted_probability() -> None:
    batch = draw_batch(torch.Generator().manual_seed(2), tokens=50)
    assert batch.old_logits_NV is not None and batch.advantages_N is not None and batch.old_logprobs_N is not None
    moved = tilt(batch.advantages_N, 0.5, 3.0)
    whole = target_log_probs(batch.old_logits_NV, batch.actions_N, moved).exp()
    q = tilted_probability(batch.old_logprobs_N, moved)
    torch.testing.assert_close(whole[torch.arange(50), batch.actions_N], q, rtol=1e-10, atol=0)


def test_on_policy_kld_gradient_is_a_bounded_policy_gradient() -> None:
    batch = draw_batch(torch.Generator().manual_seed(3), tokens=40)
    assert batch.old_logits_NV is not None and batch.old_logprobs_N is not None and batch.advantages_N is not None
    on_policy = TokenBatch(
        batch.old_logits_NV,
        actions_N=batch.actions_N,
        advantages_N=batch.advantages_N,
        old_logits_NV=batch.old_logits_NV,
        old_logprobs_N=batch.old_logprobs_N,
    )
    grad = gradient(on_policy, LcoKldSpec(beta=1.0))
    p0 = batch.old_logprobs_N.exp()
    w = (tilted_probability(batch.old_logprobs_N, batch.advantages_N) - p0) / (1 - p0)
    one_hot = torch.nn.functional.one_hot(batch.actions_N, 5).double()
    torch.testing.assert_close(
        grad, w[:, None] * (torch.softmax(batch.old_logits_NV, -1) - one_hot), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("spec", LCO, ids=kind)
def test_loss_and_gradient_vanish_exactly_at_the_target(spec: ObjectiveSpec) -> None:
    batch = draw_batch(torch.Generator().manual_seed(4))
    assert batch.old_logits_NV is not None and batch.advantages_N is not None
    moved = tilt(batch.advantages_N, 0.7)
    at_target = batch.old_logits_NV.scatter_add(1, batch.actions_N[:, None], moved[:, None])
    assert torch.equal(
        at_target.gather(1, batch.actions_N[:, None])[:, 0], target_logits(batch.old_logits_NV, batch.actions_N, moved)
    )
    there = TokenBatch(
        at_target,
        actions_N=batch.actions_N,
        advantages_N=batch.advantages_N,
        old_logits_NV=batch.old_logits_NV,
        old_logprobs_N=batch.old_logprobs_N,
    )
    assert compute(there, spec).loss_N.abs().max() < 1e-14
    assert gradient(there, spec).abs().max() < 1e-14
    assert compute(batch, spec).loss_N.min() > 0


def hessians(batch: TokenBatch, spec: ObjectiveSpec) -> Tensor:
    loss = loss_of(batch, spec)
    full = torch.autograd.functional.hessian(lambda z: loss(z).sum(), batch.logits_NV)
    index = torch.arange(batch.logits_NV.shape[0])
    return full[index, :, index, :]


def directionality(batch: TokenBatch, spec: ObjectiveSpec) -> Tensor:
    """<-grad, z* - z> per token, with z* aligned to the logits' own constant where the loss cannot see it."""
    assert batch.old_logits_NV is not None and batch.advantages_N is not None
    target = batch.old_logits_NV.scatter_add(1, batch.actions_N[:, None], tilt(batch.advantages_N, 0.7)[:, None])
    return -(gradient(batch, spec) * (target - batch.logits_NV)).sum(-1)


@pytest.mark.parametrize("spread", [0.5, 3.0, 20.0])
@pytest.mark.parametrize("spec", LCO, ids=kind)
def test_lco_is_convex_in_the_logits_and_points_at_its_target(spec: ObjectiveSpec, spread: float) -> None:
    batch = draw_batch(torch.Generator().manual_seed(5), tokens=60, vocab=11, spread=spread)
    assert torch.linalg.eigvalsh(hessians(batch, spec)).min() > -1e-10
    loss = compute(batch, spec).loss_N
    assert (directionality(batch, spec) >= loss - 1e-9 * (1 + loss)).all()


def test_the_clipped_surrogate_is_neither() -> None:
    """Negative control of the test above."""
    unclipped = GrpoSpec(clip_low=1.0, clip_high=1e9)
    batch = draw_batch(torch.Generator().manual_seed(5), tokens=200, vocab=11, spread=1.0)
    lowest = torch.linalg.eigvalsh(hessians(batch, unclipped)).amin(-1)
    highest = torch.linalg.eigvalsh(hessians(batch, unclipped)).amax(-1)
    probability = torch.softmax(batch.logits_NV, -1)[torch.arange(200), batch.actions_N]
    indefinite = (lowest < -1e-9) & (highest > 1e-9)
    assert torch.equal(indefinite, probability < 0.5)
    assert batch.advantages_N is not None
    away = directionality(batch, unclipped) < 0
    assert away[batch.advantages_N < 0].double().mean() > 0.5
    assert not away.all()


def test_kld_ignores_a_constant_and_mse_does_not() -> None:
    batch = draw_batch(torch.Generator().manual_seed(6))
    shifted = TokenBatch(
        batch.logits_NV + 3.0,
        actions_N=batch.actions_N,
        advantages_N=batch.advantages_N,
        old_logits_NV=batch.old_logits_NV,
        old_logprobs_N=batch.old_logprobs_N,
    )
    torch.testing.assert_close(compute(batch, LCO[0]).loss_N, compute(shifted, LCO[0]).loss_N)
    assert (compute(batch, LCO[1]).loss_N - compute(shifted, LCO[1]).loss_N).abs().min() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spec", EVERY, ids=kind)
@pytest.mark.parametrize("advantage", [-1e3, -1.0, 0.0, 1.0, 1e3])
@pytest.mark.parametrize("gap", [0.0, 60.0, -60.0])
def test_extremes_stay_finite(spec: ObjectiveSpec, dtype: torch.dtype, advantage: float, gap: float) -> None:
    """Sampled probability near 0, 1/2 and 1, at |A| / beta up to about 1e3, with two tokens."""
    old = torch.tensor([[gap, 0.0]], dtype=dtype)
    logits = torch.tensor([[gap / 2, 0.0]], dtype=dtype, requires_grad=True)
    batch = TokenBatch(
        logits,
        actions_N=torch.tensor([0]),
        advantages_N=torch.tensor([advantage], dtype=dtype),
        old_logits_NV=old,
        old_logprobs_N=torch.log_softmax(old, -1)[:, 0],
    )
    loss = compute(batch, spec).loss_N
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    assert torch.isfinite(loss).all() and torch.isfinite(grad).all()


def test_grpo_reports_the_tokens_its_clip_stops() -> None:
    batch = draw_batch(torch.Generator().manual_seed(7), tokens=300, spread=0.4)
    stopped = compute(batch, GrpoSpec()).metrics["grpo/clipped"].bool()
    assert 0 < stopped.sum() < 300
    assert torch.equal(gradient(batch, GrpoSpec()).abs().sum(-1) == 0, stopped)


def test_some_rows_of_the_tokens() -> None:
    """Every field that has a row per token is cut to the same rows; sequences only make sense whole."""
    ids_NK = torch.arange(18).view(6, 3)
    fields = {name: torch.arange(6.0) + i for i, name in enumerate(("advantages_N", "old_logprobs_N"))}
    tokens = TokenBatch(
        torch.zeros(6, 20),
        actions_N=torch.arange(6),
        reference_logprobs_N=-torch.arange(6.0),
        group_advantages_NG=torch.arange(12.0).view(6, 2),
        dense=DenseAdvantages(ids_NK, -ids_NK.double()),
        sequence_N=torch.tensor([0, 0, 0, 1, 1, 1]),
        group_S=torch.tensor([0, 0]),
        **fields,
    )
    part = tokens.rows(slice(2, 4))
    assert part.actions_N.tolist() == [2, 3] and part.require("reference_logprobs_N").tolist() == [-2, -3]
    assert part.require("advantages_N").tolist() == [2, 3] and part.require("old_logprobs_N").tolist() == [3, 4]
    assert part.require("group_advantages_NG").tolist() == [[4, 5], [6, 7]]
    assert part.dense is not None and part.dense.ids_NK.tolist() == [[6, 7, 8], [9, 10, 11]]
    assert part.dense.values_NK.tolist() == (-part.dense.ids_NK).tolist()
    assert part.sequence_N is None and part.group_S is None
    whole = tokens.rows(slice(None))
    assert whole.sequence_N is tokens.sequence_N and whole.group_S is tokens.group_S


def test_shapes_that_would_broadcast_are_refused() -> None:
    batch = draw_batch(torch.Generator())
    with pytest.raises(ValueError, match="actions_N"):
        TokenBatch(batch.logits_NV, actions_N=batch.actions_N[:1])
    with pytest.raises(ValueError, match="old_logits_NV"):
        replace(batch, old_logits_NV=batch.logits_NV[:1])
    with pytest.raises(ValueError, match="old_log_odds_N"):
        HiddenBatch(batch.logits_NV, LinearHead(torch.eye(5)), actions_N=batch.actions_N, old_log_odds_N=torch.zeros(1))
    with pytest.raises(ValueError, match="advantages_N"):
        TokenBatch(batch.logits_NV, actions_N=batch.actions_N, advantages_N=torch.ones(1))
    with pytest.raises(ValueError, match="no response token"):
        TokenBatch(torch.empty(0, 5), actions_N=torch.empty(0, dtype=torch.long))
    with pytest.raises(ValueError, match="old_logits_NV"):
        compute(TokenBatch(batch.logits_NV, actions_N=batch.actions_N, advantages_N=batch.advantages_N), LcoKldSpec())


def test_qrm_weighs_pairs_alike_which_is_the_authors_mean_for_one_pair_alone() -> None:
    """Their cross-entropy is a mean over the chosen tokens of a batch (docs/method.md, 2)."""
    chosen, rejected = [2, 3, 7], [4, 2, 5]
    for pairs in (1, 3):
        lengths = [n for pair in zip(chosen[:pairs], rejected[:pairs], strict=True) for n in pair]
        sequence_N = torch.arange(2 * pairs).repeat_interleave(torch.tensor(lengths))
        logits_NV = 3.0 * torch.randn(sum(lengths), 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        actions_N = torch.arange(sum(lengths)) % 5
        batch = TokenBatch(
            logits_NV, actions_N=actions_N, sequence_N=sequence_N, group_S=torch.arange(pairs).repeat_interleave(2)
        )
        spec = QrmSpec()
        weights_S = sequence_weights(torch.tensor(lengths), "sequence-mean", 9)
        ours = float((weights_S[sequence_N] * compute(batch, spec).loss_N).sum())
        logprobs_N = torch.log_softmax(logits_NV, -1).gather(-1, actions_N.unsqueeze(-1)).squeeze(-1)
        means = [float(logprobs_N[sequence_N == s].mean()) for s in range(2 * pairs)]
        margins = [spec.beta * (means[2 * p] - means[2 * p + 1]) - spec.gamma for p in range(pairs)]
        ranking = sum(math.log1p(math.exp(-m)) for m in margins) / pairs
        by_pair = ranking - sum(means[0::2]) / pairs
        by_token = ranking - float(logprobs_N[sequence_N % 2 == 0].mean())
        assert ours == pytest.approx(by_pair, rel=1e-12)
        assert (by_token == pytest.approx(by_pair, rel=1e-9)) == (pairs == 1)
    assert "With one pair per" in str(QrmSpec.__doc__)
