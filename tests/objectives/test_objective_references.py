"""Every objective against what its paper says, by hand: value and gradient, random and extreme; what shifts promise."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
from helpers import quick_if, tiny
from linear_cases import EVERY, label
from objective_references import Tokens, exact, reference
from torch import Tensor

from cvxrl.objectives.batch import DenseAdvantages, TokenBatch
from cvxrl.objectives.policy_gradient import value_loss
from cvxrl.objectives.registry import OBJECTIVES, compute, kl_estimate, regularization
from cvxrl.recipe.lco import TopKFillSupport, TopKSupport
from cvxrl.recipe.objective import (
    DpoSpec,
    Estimator,
    GspoSpec,
    LcoKldSpec,
    LcoLchSpec,
    LcoMseSpec,
    ObjectiveSpec,
    PmdSpec,
    QrmSpec,
    RegularizerSpec,
    TpoSpec,
)

# None of these numbers is 1, so that no coefficient can be forgotten.
CASES: list[ObjectiveSpec] = [
    *EVERY,
    *(
        cls(beta=0.8, negative_beta_scale=100.0, tilt=tilt, shift="drift-free")
        for cls in (LcoKldSpec, LcoMseSpec, LcoLchSpec)
        for tilt in ("exponential", "linear")
    ),
    LcoKldSpec(beta=0.6, support=TopKFillSupport(k=2, fill=-7.0, half=False)),
    GspoSpec(clip_low=0.3, clip_high=0.4),
    TpoSpec(eta=0.7),
    PmdSpec(tau=1.7),
    DpoSpec(beta=0.4),
    QrmSpec(beta=0.6, gamma=0.3, sft_coefficient=0.2),
]
DENSE: list[ObjectiveSpec] = [
    cls(beta=0.7, negative_beta_scale=scale, target=target)
    for cls in (LcoKldSpec, LcoMseSpec, LcoLchSpec)
    for scale, target in ((1.0, "frozen"), (5.0, "moving"))
]


def draw(
    dtype: torch.dtype, vocab: int = 5, lengths: tuple[int, ...] = (2, 1, 3, 1), dense: bool = False
) -> TokenBatch:
    """Two prompts with two responses each."""
    generator = torch.Generator().manual_seed(11)
    tokens = sum(lengths)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    sequence_N = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    group_S = torch.arange(len(lengths)) // 2
    advantages_S = normal(len(lengths))
    advantages_PG = advantages_S.view(-1, 2)
    ids_NK = torch.stack([torch.randperm(vocab, generator=generator)[:3] for _ in range(tokens)])
    return with_old_log_probs(
        TokenBatch(
            2 * normal(tokens, vocab),
            actions_N=torch.randint(vocab, (tokens,), generator=generator),
            advantages_N=advantages_S[sequence_N],
            # Multiples of 1/32, so that a copy in float16 (`top-k-fill`) says the same.
            old_logits_NV=torch.round(32 * 2 * normal(tokens, vocab)) / 32,
            reference_logprobs_N=-normal(tokens).abs(),
            group_advantages_NG=advantages_PG[group_S[sequence_N]],
            dense=DenseAdvantages(ids_NK, normal(tokens, 3)) if dense else None,
            sequence_N=sequence_N,
            group_S=group_S,
        )
    )


def with_old_log_probs(batch: TokenBatch) -> TokenBatch:
    old_NV = batch.require("old_logits_NV")
    log_probs_NV = torch.log_softmax(old_NV.double(), -1)
    found = log_probs_NV.gather(-1, batch.actions_N[:, None])[:, 0].to(old_NV.dtype)
    return changed(batch, old_logprobs_N=found)


def changed(batch: TokenBatch, **fields: Any) -> TokenBatch:
    return TokenBatch(**{**vars(batch), **fields})


def weights(batch: TokenBatch) -> Tensor:
    return torch.linspace(0.5, 1.5, len(batch.actions_N), dtype=batch.logits_NV.dtype)


def by_hand(batch: TokenBatch, spec: ObjectiveSpec) -> tuple[Tensor, Tensor]:
    def rows(values: Tensor) -> list[Any]:
        return [list(map(exact, row)) for row in values.tolist()]

    tokens = Tokens(
        z=rows(batch.logits_NV),
        action=batch.actions_N.tolist(),
        advantage=list(map(exact, batch.require("advantages_N").tolist())),
        z_old=rows(batch.require("old_logits_NV")),
        reference=list(map(exact, batch.require("reference_logprobs_N").tolist())),
        sequence=batch.require("sequence_N").tolist(),
        group=batch.require("group_S").tolist(),
        group_advantages=rows(batch.require("group_advantages_NG")),
        weight=list(map(exact, weights(batch).tolist())),
        candidates=[] if batch.dense is None else batch.dense.ids_NK.tolist(),
        scores=[] if batch.dense is None else rows(batch.dense.values_NK),
    )
    losses, gradients = reference(tokens, spec)
    return (
        torch.tensor(list(map(float, losses)), dtype=torch.float64),
        torch.tensor([list(map(float, row)) for row in gradients], dtype=torch.float64),
    )


def by_package(batch: TokenBatch, spec: ObjectiveSpec) -> tuple[Tensor, Tensor]:
    logits_NV = batch.logits_NV.clone().requires_grad_()
    loss_N = compute(changed(batch, logits_NV=logits_NV), spec).loss_N
    (gradient_NV,) = torch.autograd.grad((weights(batch) * loss_N).sum(), logits_NV)
    return loss_N.detach(), gradient_NV


def test_no_objective_is_left_out() -> None:
    assert {spec.kind for spec in CASES} == set(OBJECTIVES)


@pytest.mark.parametrize("dtype", [torch.float64, pytest.param(torch.float32, marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("spec", CASES, ids=label)
def test_value_and_gradient_by_hand(spec: ObjectiveSpec, dtype: torch.dtype) -> None:
    batch = draw(dtype)
    rtol, atol = (1e-9, 1e-12) if dtype == torch.float64 else (1e-4, 1e-5)
    for found, expected in zip(by_package(batch, spec), by_hand(batch, spec), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("spec", DENSE, ids=label)
def test_dense_advantages_by_hand(spec: ObjectiveSpec) -> None:
    batch = draw(torch.float64, dense=True)
    for found, expected in zip(by_package(batch, spec), by_hand(batch, spec), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def extreme(old_gap: float, gap: float, advantage: float, dtype: torch.dtype) -> TokenBatch:
    """Two tokens in the vocabulary, one in each of two responses; the sampled one stands ``gap`` above the other."""
    advantages_N = torch.tensor([advantage, -advantage], dtype=dtype)
    old_NV = torch.tensor([[old_gap, 0.0], [0.0, old_gap]], dtype=dtype)
    return with_old_log_probs(
        TokenBatch(
            torch.tensor([[gap, 0.0], [0.0, gap]], dtype=dtype),
            actions_N=torch.tensor([0, 1]),
            advantages_N=advantages_N,
            old_logits_NV=old_NV,
            reference_logprobs_N=torch.full((2,), math.log(0.5), dtype=dtype),
            group_advantages_NG=advantages_N.expand(2, 2),
            sequence_N=torch.tensor([0, 1]),
            group_S=torch.tensor([0, 0]),
        )
    )


GAPS = [(0, 0), (60, 60), (-60, -60), (60, -60), (-60, 60), (0.5, 60)]
ADVANTAGES = [0.0, 1.0, 700.0]
# Every gap and every advantage, each with a third of the others.
QUICK = {
    (*gaps, given) for (i, gaps), (j, given) in product(enumerate(GAPS), enumerate(ADVANTAGES)) if (i + j) % 3 == 0
}


@pytest.mark.parametrize(
    ("old_gap", "gap", "advantage"),
    quick_if(lambda *case: case in QUICK, [(*gaps, given) for gaps, given in product(GAPS, ADVANTAGES)]),
)
@pytest.mark.parametrize("spec", CASES, ids=label)
def test_extremes_by_hand(spec: ObjectiveSpec, old_gap: float, gap: float, advantage: float) -> None:
    """|A| / beta up to 1e3, probabilities down to 1e-26: exact in float64, finite in both precisions."""
    batch = extreme(old_gap, gap, advantage, torch.float64)
    losses, gradients = by_hand(batch, spec)
    # Below the rounding of what it is a sum of, a loss is as good as zero; and 1 - p of a ratio of e^60 is.
    atol = 1e-11 * max(1.0, advantage) + 1e-15 * float(losses.abs().max())
    for found, expected in zip(by_package(batch, spec), (losses, gradients), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=atol)
    for found in by_package(extreme(old_gap, gap, advantage, torch.float32), spec):
        assert torch.isfinite(found).all()


@pytest.mark.parametrize("spec", CASES, ids=label)
def test_all_masked_is_a_clear_error(spec: ObjectiveSpec) -> None:
    with pytest.raises(ValueError, match="no response token: every position is masked"):
        compute(
            TokenBatch(torch.empty(0, 5), actions_N=torch.empty(0, dtype=torch.long), advantages_N=torch.empty(0)), spec
        )


@pytest.mark.parametrize("off_policy", [False, True])
def test_top_k_of_the_whole_vocabulary_is_exact(off_policy: bool) -> None:
    batch = draw(torch.float64)
    if not off_policy:
        batch = changed(batch, logits_NV=batch.old_logits_NV)
    exactly = by_package(batch, LcoKldSpec(beta=0.7))
    for k in (5, 50):
        for a, b in zip(by_package(batch, LcoKldSpec(beta=0.7, support=TopKSupport(k=k))), exactly, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    fewer = by_package(batch, LcoKldSpec(beta=0.7, support=TopKSupport(k=1)))
    # One bucket cannot tell its tokens apart; on-policy they move together anyway.
    assert ((fewer[0] - exactly[0]).abs().max() > 1e-3) == off_policy


def group_average(spec: Any, advantages: list[float], probability: float) -> Tensor:
    """Mean gradient, on-policy, of the same token once under each advantage of a group, [V]."""
    group_N = torch.tensor(advantages, dtype=torch.float64)
    rest = (1 - probability) / 2
    logits_NV = torch.tensor([probability, 0.7 * rest, 1.3 * rest], dtype=torch.float64).log().expand(len(group_N), 3)
    batch = TokenBatch(
        logits_NV.clone().requires_grad_(),
        actions_N=torch.zeros(len(group_N), dtype=torch.long),
        advantages_N=group_N,
        old_logits_NV=logits_NV,
        group_advantages_NG=group_N.expand(len(group_N), len(group_N)),
    )
    (gradient_NV,) = torch.autograd.grad(compute(batch, spec).loss_N.sum(), batch.logits_NV)
    return gradient_NV.mean(0)


@pytest.mark.parametrize("target", ["frozen", "moving"])
@pytest.mark.parametrize("tilt", ["exponential", "linear"])
@pytest.mark.parametrize("cls", [LcoKldSpec, LcoMseSpec, LcoLchSpec])
@pytest.mark.parametrize("probability", [1e-6, 0.3, 0.5, 0.9, 1 - 1e-6])
def test_drift_free_means_no_drift(cls: Any, tilt: str, target: str, probability: float) -> None:
    """A token that has nothing to do with the reward meets every advantage of its group, and stays where it is."""
    advantages = [1.5, -0.5, -0.5, 0.25]  # their mean is not zero either
    spec = cls(beta=0.8, negative_beta_scale=2.0, tilt=tilt, target=target, shift="drift-free")
    assert float(group_average(spec, advantages, probability).abs().max()) < 1e-9
    unshifted = spec.model_copy(update={"shift": "none"})
    control = float(group_average(unshifted, advantages, probability).abs().max())
    # Near p0 = 0 and 1 the KLD's pull itself has the size of p0 (1 - p0).
    assert control > 1e-2 * (probability * (1 - probability) if cls is LcoKldSpec else 1.0)


def test_zero_mean_advantages_drift_without_the_shift() -> None:
    """Jensen: near p0 = 1 the average weight of +1 and -1 is 1 - cosh(1)."""
    drift = group_average(LcoKldSpec(beta=1.0), [1.0, -1.0], 1 - 1e-6)
    shifted = group_average(LcoKldSpec(beta=1.0, shift="drift-free"), [1.0, -1.0], 1 - 1e-6)
    linear = group_average(LcoKldSpec(beta=1.0, tilt="linear", linear_margin=1e-9), [1e-3, -1e-3], 0.5)
    assert float(drift[0]) == pytest.approx((math.cosh(1.0) - 1) * 1e-6, rel=1e-3)  # positive: descent lowers z_a
    assert float(shifted.abs().max()) < 1e-9 * 1e-6 and float(linear.abs().max()) < 1e-15


LN3 = math.log(3.0)


def authors(name: str, beta: float) -> ObjectiveSpec:
    """The objective that `reading: authors-code` makes of a recipe."""
    return tiny(name, "reading=authors-code", f"objective.beta={beta}").objective


def one_token(spec: ObjectiveSpec, z: list[float], old: list[float], action: int, reward: float) -> float:
    tensor = {"dtype": torch.float64}
    batch = TokenBatch(
        torch.tensor([z], **tensor),  # type: ignore[arg-type]
        actions_N=torch.tensor([action]),
        advantages_N=torch.tensor([reward], **tensor),  # type: ignore[arg-type]
        old_logits_NV=torch.tensor([old], **tensor),  # type: ignore[arg-type]
    )
    return float(compute(batch, spec).loss_N)


# Seven tokens; the five likeliest old logits are 0, and the current policy is uniform. With beta = 1 / ln 3 a right
# answer triples a token's odds, a wrong one divides them by 3^(1/100).
OLD, NOW = [0.0, 0.0, -1.0, 0.0, 0.0, -1.0, 0.0], [0.0] * 7
SHRUNK = 3.0**-0.01


@pytest.mark.parametrize(
    ("name", "action", "reward", "expected"),
    [
        # pi* = (3, 1, 1, 1, 1) / 7 on the five: 3/7 ln(7 * 3/7) + 4/7 ln(7 * 1/7).
        ("math_lco_kld", 0, 1.0, 3 / 7 * LN3),
        (
            "math_lco_kld",
            0,
            -1.0,
            (SHRUNK * math.log(7 * SHRUNK / (4 + SHRUNK)) + 4 * math.log(7 / (4 + SHRUNK))) / (4 + SHRUNK),
        ),
        # A sampled token outside the five stays at exp(-100), however well it was rewarded: uniform over the five.
        ("math_lco_kld", 2, 1.0, math.log(7 / 5)),
        # No advantage is no target of pi_old: the loss is not 0 even on-policy.
        ("math_lco_kld", 0, 0.0, math.log(7 / 5)),
        # The target moves with the policy, so the distance is the tilt itself.
        ("math_lco_mse", 0, 1.0, LN3**2),
        ("math_lco_mse", 2, -1.0, (LN3 / 100) ** 2),
        # cosh(ln 3) = (3 + 1/3) / 2 = 5/3.
        ("math_lco_lch", 0, 1.0, math.log(5 / 3)),
        ("math_lco_lch", 2, -1.0, math.log(math.cosh(LN3 / 100))),
    ],
)
def test_authors_code_by_hand(name: str, action: int, reward: float, expected: float) -> None:
    spec = authors(name, 1 / LN3)
    assert one_token(spec, NOW, OLD, action, reward) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    moved = [0.5, 0.1, 0.3, 0.9, -0.2, 0.0, 0.4]
    elsewhere = one_token(spec, moved, OLD, action, reward)
    assert (elsewhere == pytest.approx(expected, rel=1e-9)) == (name != "math_lco_kld")


def test_authors_code_stores_old_logits_in_half_precision() -> None:
    """0.1 becomes 0.0999755859375 in float16, so a target built on it is not quite the old policy."""
    half = 0.0999755859375
    five, current = [half, 0.0, 0.0, 0.0, 0.0], [0.1, 0.0, 0.0, 0.0, 0.0]
    total, now = sum(map(math.exp, five)), sum(map(math.exp, current))
    expected = sum(
        math.exp(x) / total * (x - math.log(total) - y + math.log(now)) for x, y in zip(five, current, strict=True)
    )
    found = one_token(authors("math_lco_kld", 1.0), current, current, 0, 0.0)
    assert found == pytest.approx(expected, rel=1e-3) and found > 0


LN2 = math.log(2.0)


@pytest.mark.parametrize(
    ("estimator", "expected", "slope"),
    [("k1", LN2, 1.0), ("k2", LN2**2 / 2, LN2), ("k3", 0.5 - 1 + LN2, 1 - 0.5)],
)
def test_kl_estimators_by_hand(estimator: Estimator, expected: float, slope: float) -> None:
    """The policy says 1/2 where the reference said 1/4: log ratio ln 2."""
    log_ratio_N = torch.tensor([LN2], dtype=torch.float64, requires_grad=True)
    value_N = kl_estimate(log_ratio_N, estimator)
    assert value_N.item() == pytest.approx(expected, rel=1e-12)
    assert float(torch.autograd.grad(value_N.sum(), log_ratio_N)[0]) == pytest.approx(slope, rel=1e-12)
    logits_NV = torch.tensor([[0.0, 0.0]], dtype=torch.float64)
    reference_N = torch.tensor([math.log(0.25)], dtype=torch.float64)
    batch = TokenBatch(logits_NV, actions_N=torch.tensor([0]), reference_logprobs_N=reference_N)
    extra_N, _ = regularization(batch, RegularizerSpec(kl_coefficient=3.0, kl_estimator=estimator))
    assert float(extra_N) == pytest.approx(3.0 * expected, rel=1e-12)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_unbiased_kl_estimators_average_to_the_kl(estimator: Estimator) -> None:
    p, q = torch.tensor([0.6, 0.3, 0.1]).double(), torch.tensor([0.2, 0.5, 0.3]).double()
    assert float((p * kl_estimate((p / q).log(), estimator)).sum()) == pytest.approx(float((p * (p / q).log()).sum()))


def test_entropy_is_added_to_the_reward() -> None:
    logits_NV = torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64)
    extra_N, _ = regularization(
        TokenBatch(logits_NV, actions_N=torch.tensor([0])), RegularizerSpec(entropy_coefficient=2.0)
    )
    assert float(extra_N) == pytest.approx(-2.0 * (0.75 * math.log(4 / 3) + 0.25 * math.log(4)), rel=1e-12)


def test_value_loss_by_hand() -> None:
    """Old value 0, return 1: at 0.5 the clipped value is 0.2, whose error is the larger; at -0.1 nothing is clipped."""
    values_N, old_N, returns_N = (
        torch.tensor(x, dtype=torch.float64) for x in ([0.5, -0.1, 3.0], [0.0] * 3, [1.0] * 3)
    )
    assert value_loss(values_N, old_N, returns_N, None).tolist() == pytest.approx([0.125, 0.605, 2.0])
    assert value_loss(values_N, old_N, returns_N, 0.2).tolist() == pytest.approx([0.32, 0.605, 2.0])
