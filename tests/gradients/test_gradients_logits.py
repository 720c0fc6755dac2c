"""The columns of logit space against brute-force autograd, the paper's claims, and planted defects. Float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from gradient_cases import brute_force, made_batch
from linear_cases import EVERY, label
from torch import Tensor

from cvxrl.gradients.logit_gradient import REASONS
from cvxrl.gradients.logit_space import LogitSpace, Rules, logit_space
from cvxrl.gradients.logit_spectrum import odds_extremes
from cvxrl.objectives import registry
from cvxrl.objectives.batch import ObjectiveOutput, TokenBatch
from cvxrl.objectives.lco import lco_kld, lco_mse
from cvxrl.objectives.target import target_log_probs, target_logits, tilt
from cvxrl.recipe.objective import (
    GrpoSpec,
    GspoSpec,
    LcoKldSpec,
    LcoLchSpec,
    LcoMseSpec,
    ObjectiveSpec,
    RegularizerSpec,
    ReinforceSpec,
)

YARDSTICK = LcoKldSpec(beta=0.7)
NO_VALUES = Rules(eigenvalue_tokens=0)
UNCLIPPED = GrpoSpec(clip_low=1.0, clip_high=1e30)
DENSE: list[ObjectiveSpec] = [LcoKldSpec(), LcoMseSpec(), LcoLchSpec()]


def check(batch: TokenBatch, spec: ObjectiveSpec, regularizer: RegularizerSpec | None = None) -> LogitSpace:
    """Every column that brute force can give, up to brute force's own rounding."""
    space = logit_space(batch, spec, YARDSTICK, regularizer=regularizer)
    gradient_NV, hessian_NVV = brute_force(batch, spec, regularizer)
    values_NV = torch.linalg.eigvalsh(hessian_NVV)
    # Near p = 1 the entries p - p^2 of brute force cancel: they are right to the rounding of the first derivatives.
    slack_N = 1e-13 * (1.0 + gradient_NV.norm(dim=-1)) + 1e-9 * values_NV.abs().amax(-1)
    assert bool(((space.min_eigenvalue_N - values_NV[:, 0]).abs() <= slack_N).all())
    assert bool(((space.max_eigenvalue_N - values_NV[:, -1]).abs() <= slack_N).all())
    torch.testing.assert_close(space.gradient_norm_N, gradient_NV.norm(dim=-1), rtol=1e-9, atol=1e-13)
    psd_N, nsd_N = values_NV[:, 0] >= -slack_N, values_NV[:, -1] <= slack_N
    assert bool((psd_N | ~space.psd_N).all() and (nsd_N | ~space.nsd_N).all() and space.known_N.all())
    # Brute force cannot tell a tiny eigenvalue's sign.
    least_N, most_N = space.min_eigenvalue_N, space.max_eigenvalue_N
    clear_N = ((least_N == 0) | (least_N < -slack_N)) & ((most_N == 0) | (most_N > slack_N))
    assert torch.equal(space.psd_N[clear_N], psd_N[clear_N]) and torch.equal(space.nsd_N[clear_N], nsd_N[clear_N])
    return space


@pytest.mark.parametrize("spec", EVERY, ids=label)
def test_columns_equal_brute_force(spec: ObjectiveSpec) -> None:
    check(made_batch(0), spec)


@pytest.mark.parametrize("kind", sorted(registry.OBJECTIVES))
def test_columns_equal_brute_force_on_extreme_logits(kind: str) -> None:
    spec = next(spec for spec in EVERY if spec.kind == kind)
    for seed, spread, drift in ((1, 10.0, 3.0), (2, 30.0, 10.0)):
        check(made_batch(seed, spread=spread, drift=drift), spec)


@pytest.mark.parametrize("spec", DENSE, ids=label)
def test_columns_equal_brute_force_with_dense_advantages(spec: ObjectiveSpec) -> None:
    check(made_batch(3, dense=True), spec)


@pytest.mark.parametrize("spec", [LcoKldSpec(), LcoMseSpec(), GrpoSpec(), GspoSpec()], ids=label)
def test_columns_equal_brute_force_with_a_regularizer(spec: ObjectiveSpec) -> None:
    space = check(made_batch(4), spec, RegularizerSpec(kl_coefficient=0.3, entropy_coefficient=0.2))
    assert space.structure.kind == "general"


def test_lanczos_stands_in_where_the_hessian_is_too_large() -> None:
    batch, spec = made_batch(5, vocab=40), next(s for s in EVERY if label(s) == "lco-kld-top-k")
    whole = logit_space(batch, spec, YARDSTICK, rules=Rules(lanczos_steps=40))
    short = logit_space(batch, spec, YARDSTICK, rules=Rules(lanczos_steps=24))
    assert bool((whole.eigenvalue_error_N == 0).all()) and bool((whole.min_eigenvalue_N < -1e-3).any())
    for name in ("min_eigenvalue_N", "max_eigenvalue_N"):
        error_N = (getattr(short, name) - getattr(whole, name)).abs()
        assert bool((error_N <= short.eigenvalue_error_N + 1e-12).all()) and float(error_N.max()) < 1e-4


@pytest.mark.parametrize("vocab", [2, 3, 5, 40])
def test_the_ratio_surrogate_is_indefinite_exactly_below_one_half(vocab: int) -> None:
    for seed in range(10):
        batch = made_batch(seed, vocab=vocab)
        space = logit_space(batch, UNCLIPPED, YARDSTICK, rules=NO_VALUES)
        p_N = torch.softmax(batch.logits_NV, -1)[torch.arange(len(batch.actions_N)), batch.actions_N]
        assert batch.advantages_N is not None
        if vocab == 2:
            assert not bool(space.indefinite_N.any())
            continue
        assert torch.equal(space.indefinite_N, p_N < 0.5)
        assert torch.equal(space.psd_N, (p_N >= 0.5) & (batch.advantages_N > 0))


@pytest.mark.parametrize("spec", [LcoKldSpec(beta=0.7), LcoMseSpec(beta=0.7), LcoLchSpec(beta=0.7)], ids=label)
def test_the_lco_losses_are_convex_and_never_point_away(spec: ObjectiveSpec) -> None:
    for seed in range(10):
        space = logit_space(made_batch(seed, spread=5.0, drift=4.0), spec, YARDSTICK, rules=NO_VALUES)
        assert bool(space.psd_N.all()) and not bool(space.indefinite_N.any())
        assert not bool(space.away_N.any()) and bool((space.inner_N[space.directed_N] >= 0).all())


def test_the_ratio_surrogate_points_away_on_many_tokens_with_negative_advantage() -> None:
    away, negative = [], []
    for seed in range(20):
        batch = made_batch(seed, vocab=11, drift=2.0)
        assert batch.advantages_N is not None
        space = logit_space(batch, UNCLIPPED, YARDSTICK, rules=NO_VALUES)
        away.append(space.away_N)
        negative.append(batch.advantages_N < 0)
    away_N, negative_N = torch.cat(away), torch.cat(negative)
    # docs/method.md, 1: most draws with A < 0, few with A > 0; the shares depend on the draws.
    assert away_N[negative_N].double().mean() > 5 * away_N[~negative_N].double().mean() > 0


def test_direction_is_what_its_definition_says() -> None:
    batch = made_batch(6)
    assert batch.old_logits_NV is not None and batch.advantages_N is not None
    gradient_NV, _ = brute_force(batch, GrpoSpec())
    target_NV = target_log_probs(batch.old_logits_NV, batch.actions_N, tilt(batch.advantages_N, 0.7))
    away_NV = target_NV - torch.log_softmax(batch.logits_NV, -1)
    away_NV = away_NV - away_NV.mean(-1, keepdim=True)
    space = logit_space(batch, GrpoSpec(), YARDSTICK)
    torch.testing.assert_close(space.inner_N, -(gradient_NV * away_NV).sum(-1))
    cosine_N = -(gradient_NV * away_NV).sum(-1) / gradient_NV.norm(dim=-1) / away_NV.norm(dim=-1)
    torch.testing.assert_close(space.cosine_N, cosine_N, equal_nan=True)
    far_N = 0.5 * (target_NV.exp() - torch.softmax(batch.logits_NV, -1)).abs().sum(-1)
    torch.testing.assert_close(space.distance_N, far_N)


def test_raw_logits_where_the_objective_sees_them() -> None:
    batch = made_batch(7)
    assert batch.old_logits_NV is not None and batch.advantages_N is not None
    space = logit_space(batch, LcoMseSpec(beta=0.7), YARDSTICK)
    wanted_N = target_logits(batch.old_logits_NV, batch.actions_N, tilt(batch.advantages_N, 0.7))
    distance_N = wanted_N - batch.logits_NV[torch.arange(len(wanted_N)), batch.actions_N]
    torch.testing.assert_close(space.inner_N, 2.0 * distance_N.square())
    torch.testing.assert_close(space.cosine_N, torch.ones_like(wanted_N))


def test_a_token_without_tilt_has_no_direction() -> None:
    batch = made_batch(8)
    assert batch.advantages_N is not None
    batch = replace(batch, advantages_N=batch.advantages_N * (torch.arange(len(batch.actions_N)) > 3))
    space = logit_space(batch, ReinforceSpec(), YARDSTICK)
    assert torch.equal(space.directed_N, torch.arange(len(batch.actions_N)) > 3)
    assert bool(space.cosine_N[:4].isnan().all()) and not bool((space.away_N | space.frozen_N)[:4].any())
    assert not bool(
        logit_space(replace(batch, logits_NV=batch.old_logits_NV), LcoKldSpec(), YARDSTICK).directed_N[:4].any()
    )


def one_token(advantage: float, logit: float) -> TokenBatch:
    """Three tokens; the sampled one had probability 1/3 at rollout and has another logit now."""
    old_NV = torch.zeros(1, 3, dtype=torch.float64)
    logits_NV = torch.tensor([[logit, 0.0, 0.0]], dtype=torch.float64)
    advantages_N = torch.tensor([advantage], dtype=torch.float64)
    return TokenBatch(
        logits_NV,
        actions_N=torch.tensor([0]),
        advantages_N=advantages_N,
        old_logits_NV=old_NV,
        old_logprobs_N=torch.log_softmax(old_NV, -1)[:, 0],
    )


# Target of A = 5, beta 0.7: probability 0.998; of A = -5: 0.0004.
FROZEN = [
    (GrpoSpec(), 5.0, 0.5, "clip"),  # ratio 1.35 > 1.2, target still 0.55 away
    (GrpoSpec(), 5.0, 0.1, ""),  # ratio 1.07
    (GrpoSpec(), 5.0, -9.0, "improbable"),  # the ratio itself is nearly 0
    (UNCLIPPED, -5.0, 9.0, "certain"),  # 1 - p is nearly 0
    (ReinforceSpec(), 5.0, -9.0, ""),  # no factor p: the slope stays
    (LcoKldSpec(beta=0.7), 5.0, -9.0, ""),
    (LcoKldSpec(beta=0.7), 5.0, 5.0 / 0.7, ""),  # gradient gone because the target is reached
    (LcoMseSpec(beta=0.7), -5.0, 9.0, ""),
]


@pytest.mark.parametrize(("spec", "advantage", "logit", "reason"), FROZEN)
def test_spurious_stationary_points(spec: ObjectiveSpec, advantage: float, logit: float, reason: str) -> None:
    space = logit_space(one_token(advantage, logit), spec, YARDSTICK)
    assert REASONS[int(space.reason_N)] == reason
    assert bool(space.frozen_N) == bool(reason) == bool(space.frozen_by(reason) if reason else False)


def flipped(batch: TokenBatch, spec: LcoKldSpec) -> ObjectiveOutput:
    return ObjectiveOutput(-lco_kld(batch, spec).loss_N)


def kld_attached(batch: TokenBatch, spec: LcoKldSpec) -> ObjectiveOutput:
    """The target is built on the current logits, which are not detached."""
    assert batch.advantages_N is not None
    target_NV = target_log_probs(batch.logits_NV, batch.actions_N, tilt(batch.advantages_N, spec.beta))
    return ObjectiveOutput((target_NV.exp() * (target_NV - torch.log_softmax(batch.logits_NV, -1))).sum(-1))


def mse_attached(batch: TokenBatch, spec: LcoMseSpec) -> ObjectiveOutput:
    return lco_mse(replace(batch, old_logits_NV=batch.logits_NV), spec)


def share(column_N: Tensor) -> float:
    return float(column_N.double().mean())


def test_a_flipped_sign_changes_the_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, spec = made_batch(9, drift=2.0), LcoKldSpec(beta=0.7)
    assert share(logit_space(batch, spec, YARDSTICK).psd_N) == 1.0
    monkeypatch.setitem(registry.OBJECTIVES, "lco-kld", flipped)
    space = check(batch, spec)
    assert share(space.psd_N) == 0.0 and share(space.away_N) == 1.0


def test_a_flipped_sign_of_the_surrogate_changes_the_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, reinforce = made_batch(10), registry.OBJECTIVES["reinforce"]
    before = logit_space(batch, ReinforceSpec(), YARDSTICK)
    monkeypatch.setitem(
        registry.OBJECTIVES, "reinforce", lambda batch, spec: ObjectiveOutput(-reinforce(batch, spec).loss_N)
    )
    after = check(batch, ReinforceSpec())
    assert torch.equal(after.psd_N, before.nsd_N) and torch.equal(after.inner_N, -before.inner_N)


def test_a_target_on_live_logits_changes_the_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = made_batch(11, drift=2.0)
    monkeypatch.setitem(registry.OBJECTIVES, "lco-kld", kld_attached)
    space = check(batch, LcoKldSpec(beta=0.7))
    assert space.structure.kind == "odds" and share(space.psd_N) < 0.7 and share(space.away_N) > 0.3
    monkeypatch.setitem(registry.OBJECTIVES, "lco-mse", mse_attached)
    nothing = logit_space(batch, LcoMseSpec(beta=0.7), YARDSTICK)
    far_N = nothing.distance_N >= 0.5 * nothing.old_distance_N
    assert bool((nothing.gradient_norm_N == 0).all()) and torch.equal(nothing.frozen_by("flat"), far_N)


def test_eigenvalues_of_a_drawn_part() -> None:
    batch = made_batch(12)
    whole = logit_space(batch, GrpoSpec(), YARDSTICK)
    part = logit_space(
        batch, GrpoSpec(), YARDSTICK, rules=Rules(eigenvalue_tokens=4), generator=torch.Generator().manual_seed(0)
    )
    drawn_N = ~part.min_eigenvalue_N.isnan()
    assert int(drawn_N.sum()) == 4 and torch.equal(part.min_eigenvalue_N[drawn_N], whole.min_eigenvalue_N[drawn_N])
    assert torch.equal(part.psd_N, whole.psd_N)
    with pytest.raises(ValueError, match="needs a generator"):
        logit_space(batch, GrpoSpec(), YARDSTICK, rules=Rules(eigenvalue_tokens=4))


def test_chunks_change_nothing() -> None:
    batch = made_batch(13)
    for spec in (LcoKldSpec(), LcoMseSpec(), GrpoSpec(), GspoSpec()):
        whole, small = (logit_space(batch, spec, YARDSTICK, rules=Rules(chunk_numel=n)) for n in (2**20, 11))
        for name in ("min_eigenvalue_N", "inner_N", "distance_N", "old_gradient_norm_N"):
            torch.testing.assert_close(getattr(small, name), getattr(whole, name), rtol=1e-12, atol=1e-15)


def test_single_precision_batches_are_measured_in_double() -> None:
    batch = made_batch(14)
    single = replace(batch, logits_NV=batch.logits_NV.float(), old_logits_NV=batch.old_logits_NV.float())  # type: ignore[union-attr]
    exact = replace(batch, logits_NV=single.logits_NV.double(), old_logits_NV=single.old_logits_NV.double())  # type: ignore[union-attr]
    one, two = (logit_space(b, LcoKldSpec(), YARDSTICK) for b in (single, exact))
    assert one.min_eigenvalue_N.dtype == torch.float64 and torch.equal(one.inner_N, two.inner_N)


@pytest.mark.parametrize(
    ("slope", "bend"), [(-1.0, 0.3), (-1.0, -0.3), (1.0, 0.3), (1.0, -2.0), (0.0, 1.0), (0.0, 0.0)]
)
@pytest.mark.parametrize("spread", [0.0, 1.0, 40.0])
def test_bisection_against_dense_eigenvalues(slope: float, bend: float, spread: float) -> None:
    generator = torch.Generator().manual_seed(0)
    for vocab in (2, 3, 4, 30):
        logits = spread * torch.randn(vocab, generator=generator, dtype=torch.float64)
        logits[1] = -torch.inf
        r = torch.softmax(logits, 0)
        w = -r
        w[1] = 1.0
        dense = bend * torch.outer(w, w) - slope * (torch.diag(r) - torch.outer(r, r))
        values = torch.linalg.eigvalsh(dense)
        least, most = odds_extremes(r.unsqueeze(0), torch.tensor([1]), r.new_tensor([slope]), r.new_tensor([bend]))
        torch.testing.assert_close(torch.cat([least, most]), values[[0, -1]], rtol=0, atol=1e-14)
