"""Objectives from hidden states, in chunks, against the same objectives on full logits."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from helpers import quick_if
from linear_cases import (
    EVERY,
    HEADS,
    LCO,
    NUM_TOKENS,
    VOCAB,
    WIDTH,
    Leaves,
    batch_of,
    cast,
    full_loss,
    label,
    leaves,
    weights,
    without_low_rank,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cvxrl.objectives.batch import TokenBatch
from cvxrl.objectives.linear import Frozen, HiddenBatch, LinearHead, linear_objective
from cvxrl.objectives.linear.sweep import default_chunk, project_
from cvxrl.objectives.registry import OBJECTIVES, compute
from cvxrl.recipe.objective import (
    GrpoSpec,
    GspoSpec,
    LcoKldSpec,
    LcoLchSpec,
    LcoMseSpec,
    ObjectiveSpec,
    ReinforceSpec,
    SftSpec,
)

CHUNKS = [1, 3, 4, NUM_TOKENS, 1000, None]
DENSE: list[ObjectiveSpec] = [LcoKldSpec(beta=0.7), LcoMseSpec(beta=0.7), LcoLchSpec(beta=0.7, target="moving")]


def gradients(loss: Tensor, now: Leaves) -> list[Tensor]:
    return list(torch.autograd.grad(loss, now.all, allow_unused=True, materialize_grads=True))


def assert_equal_to_full(spec: ObjectiveSpec, chunk: int | None, dtype: torch.dtype, head: str, **how: Any) -> None:
    now, old = leaves(1), leaves(2)
    reference_N = full_loss(batch_of(now, old, spec, **how, **HEADS[head]), now, old, spec, **HEADS[head])
    expected = [reference_N, *gradients((weights() * reference_N).sum(), now)]
    mine, theirs = cast(now, dtype), cast(old, dtype)
    batch = batch_of(mine, theirs, spec, **how, **HEADS[head])
    found = linear_objective(batch, spec, weights(), chunk_tokens=chunk)
    loss = (weights() * found.loss_N.double()).sum()
    torch.testing.assert_close(found.loss.double(), loss, rtol=1e-9 if dtype == torch.float64 else 1e-5, atol=1e-12)
    rtol, atol = (1e-9, 1e-12) if dtype == torch.float64 else (1e-4, 1e-5)
    for got, want in zip([found.loss_N, *gradients(found.loss, mine)], expected, strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), want, rtol=rtol, atol=atol)


def test_every_objective_of_the_registry_is_among_the_cases() -> None:
    assert {spec.kind for spec in EVERY} == set(OBJECTIVES)


@pytest.mark.parametrize("chunk", quick_if(lambda chunk: chunk in (4, None), CHUNKS))
@pytest.mark.parametrize("spec", EVERY, ids=label)
def test_equal_to_full_logits_in_any_chunks(spec: ObjectiveSpec, chunk: int | None) -> None:
    assert_equal_to_full(spec, chunk, torch.float64, "plain")


@pytest.mark.parametrize(
    ("head", "on_policy"),
    quick_if(lambda *case: case in (("softcapped", False), ("scaled", True)), product(HEADS, (False, True))),
)
@pytest.mark.parametrize("spec", EVERY, ids=label)
def test_equal_for_any_head(spec: ObjectiveSpec, on_policy: bool, head: str) -> None:
    assert_equal_to_full(spec, 3, torch.float64, head, on_policy=on_policy)


@pytest.mark.parametrize("on_policy", [False, True], ids=["off-policy", "on-policy"])
@pytest.mark.parametrize("spec", DENSE, ids=label)
def test_equal_with_dense_advantages(spec: ObjectiveSpec, on_policy: bool) -> None:
    assert_equal_to_full(spec, 3, torch.float64, "softcapped", on_policy=on_policy, dense=True)


@pytest.mark.parametrize("spec", EVERY, ids=label)
def test_equal_in_single_precision(spec: ObjectiveSpec) -> None:
    assert_equal_to_full(spec, 4, torch.float32, "softcapped")


@pytest.mark.parametrize("spec", [LcoKldSpec(), LcoMseSpec(), GrpoSpec(), GspoSpec()], ids=label)
def test_gradcheck(spec: ObjectiveSpec) -> None:
    now, old = leaves(1, spread=0.5), leaves(2, spread=0.5)

    def loss(*tensors: Tensor) -> Tensor:
        batch = batch_of(Leaves(*tensors), old, spec, **HEADS["softcapped"])
        return linear_objective(batch, spec, weights(), chunk_tokens=3).loss

    assert torch.autograd.gradcheck(loss, now.all, fast_mode=True)


@pytest.mark.parametrize("spec", LCO, ids=label)
def test_closed_form_is_the_general_form_on_policy(spec: ObjectiveSpec) -> None:
    """The same batch once as on-policy, once against a frozen policy that happens to be the current one."""
    now = leaves(1)
    closed = linear_objective(batch_of(now, now, spec, on_policy=True), spec, weights(), chunk_tokens=3)
    general = linear_objective(batch_of(now, now, spec), spec, weights(), chunk_tokens=3)
    torch.testing.assert_close(closed.loss_N, general.loss_N, rtol=1e-9, atol=1e-12)
    assert closed.logprobs_N is None or general.logprobs_N is not None
    for mine, theirs in zip(gradients(closed.loss, now), gradients(general.loss, now), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("spec", [LcoMseSpec(), LcoLchSpec()], ids=label)
def test_gathered_rows_are_bit_identical_over_chunk_sizes(spec: ObjectiveSpec) -> None:
    now, old = cast(leaves(1), torch.float32), cast(leaves(2), torch.float32)
    seen = []
    for chunk in CHUNKS:
        found = linear_objective(batch_of(now, old, spec), spec, weights(), chunk_tokens=chunk)
        seen.append([found.loss, found.loss_N, *gradients(found.loss, now)])
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))


@pytest.mark.parametrize("spec", [LcoKldSpec(), LcoKldSpec(target="moving"), GrpoSpec(), GspoSpec()], ids=label)
def test_losses_are_bit_identical_over_chunk_sizes_where_products_are_exact(spec: ObjectiveSpec) -> None:
    """Small integers: no matrix product rounds, in whatever order it sums, so what is left is one row's own order."""
    now, old = (Leaves(*((2 * t).round().detach().requires_grad_() for t in leaves(seed).all)) for seed in (1, 2))
    found = [linear_objective(batch_of(now, old, spec), spec, weights(), chunk_tokens=c) for c in CHUNKS]
    for other in found[1:]:
        assert torch.equal(other.loss, found[0].loss) and torch.equal(other.loss_N, found[0].loss_N)
        assert torch.equal(other.entropy_N, found[0].entropy_N)  # type: ignore[arg-type]


@pytest.mark.parametrize("spec", [LcoKldSpec(), LcoMseSpec(), ReinforceSpec(), GspoSpec()], ids=label)
def test_tied_embeddings_collect_both_gradients(spec: ObjectiveSpec) -> None:
    now, old = leaves(1), leaves(2)
    mixed_NN = torch.randn(NUM_TOKENS, VOCAB, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    tied = replace(now, hidden_NH=torch.tanh(mixed_NN @ now.weight_VH))
    expected = (weights() * full_loss(batch_of(tied, old, spec), tied, old, spec)).sum()
    found = linear_objective(batch_of(tied, old, spec), spec, weights(), chunk_tokens=4).loss
    want, got = (torch.autograd.grad(loss, now.weight_VH, retain_graph=True)[0] for loss in (expected, found))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_only_what_trains_gets_a_gradient() -> None:
    """A frozen matrix under a trained adapter, as LoRA trains it: no [V, H] gradient is formed."""
    now, old, spec = leaves(1), leaves(2), LcoKldSpec()
    now.weight_VH.requires_grad_(False)
    batch = batch_of(now, old, spec)
    with Shapes() as shapes:
        linear_objective(batch, spec, weights(), chunk_tokens=4).loss.backward()
    assert now.weight_VH.grad is None and now.up_VR.grad is not None and now.down_RH.grad is not None
    assert (VOCAB, WIDTH) not in shapes.seen


def test_second_backward_pass_repeats_the_first() -> None:
    now, spec = leaves(1), GrpoSpec()
    loss = linear_objective(batch_of(now, leaves(2), spec), spec, weights(), chunk_tokens=4).loss
    (3.0 * loss).backward(retain_graph=True)
    once = [t.grad.clone() for t in now.all if t.grad is not None]
    (3.0 * loss).backward()
    twice = [t.grad for t in now.all if t.grad is not None]
    assert len(once) == 5
    for a, b in zip(once, twice, strict=True):
        torch.testing.assert_close(b, 2.0 * a, rtol=1e-12, atol=0)


def test_no_gradient_is_computed_where_none_is_wanted() -> None:
    spec = GrpoSpec()
    batch = batch_of(leaves(1), leaves(2), spec)
    with torch.no_grad(), Shapes() as shapes:
        found = linear_objective(batch, spec, weights(), chunk_tokens=4)
    assert not found.loss.requires_grad
    assert (VOCAB, WIDTH) not in shapes.seen


class Shapes(TorchDispatchMode):
    """Every shape that any operation returns, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for item in out if isinstance(out, tuple | list) else [out]:
            # A view of a parameter is no new memory, nor a product.
            if isinstance(item, Tensor) and not func.is_view:
                self.seen.add(tuple(item.shape))
        return out


def shapes_of(spec: ObjectiveSpec, *, plain: bool = False, **how: Any) -> set[tuple[int, ...]]:
    now, old = leaves(1), leaves(2)
    now, old = (replace(x, bias_V=torch.zeros(0, dtype=torch.float64, requires_grad=True)) for x in (now, old))
    head, old_head = LinearHead(now.weight_VH), LinearHead(old.weight_VH)
    batch = replace(batch_of(leaves(1), leaves(2), spec, **how), hidden_NH=now.hidden_NH, head=head)
    batch = replace(batch, frozen=None if batch.frozen is None else Frozen(old.hidden_NH, old_head))
    with Shapes() as shapes:
        if plain:
            (now.hidden_NH @ now.weight_VH.T).sum().backward()
        else:
            linear_objective(batch, spec, weights(), chunk_tokens=3).loss.backward()
    return shapes.seen


@pytest.mark.parametrize("on_policy", [False, True], ids=["off-policy", "on-policy"])
@pytest.mark.parametrize("dense", [False, True], ids=["sampled", "dense"])
@pytest.mark.parametrize("spec", [LcoMseSpec(), LcoLchSpec(), LcoMseSpec(shift="drift-free")], ids=label)
def test_gathered_objectives_never_project(spec: ObjectiveSpec, dense: bool, on_policy: bool) -> None:
    """Nothing as wide as the vocabulary is made but the gradient of the output matrix."""
    seen = shapes_of(spec, dense=dense, on_policy=on_policy)
    assert {shape for shape in seen if VOCAB in shape} == {(VOCAB, WIDTH)}


def test_linear_tilt_never_projects_if_the_old_odds_are_known() -> None:
    now, old, spec = leaves(1), leaves(2), LcoMseSpec(tilt="linear")
    batch = batch_of(now, old, spec)
    found = linear_objective(batch, spec, weights())
    old_NV = torch.log_softmax(old.logits(), -1).detach()
    p_N = old_NV.gather(-1, batch.actions_N.unsqueeze(-1)).squeeze(-1).exp()
    known = replace(batch, old_log_odds_N=torch.logit(p_N))
    with Shapes() as shapes:
        again = linear_objective(known, spec, weights())
    torch.testing.assert_close(again.loss_N, found.loss_N, rtol=1e-9, atol=1e-12)
    assert not any(VOCAB in shape[1:] for shape in shapes.seen)


def test_the_probe_sees_projections() -> None:
    assert (NUM_TOKENS, VOCAB) in shapes_of(GrpoSpec(), plain=True)
    assert (3, VOCAB) in shapes_of(GrpoSpec())


@pytest.mark.parametrize("on_policy", [False, True], ids=["off-policy", "on-policy"])
@pytest.mark.parametrize("spec", EVERY, ids=label)
def test_no_tensor_of_all_tokens_and_the_vocabulary(spec: ObjectiveSpec, on_policy: bool) -> None:
    seen = shapes_of(spec, on_policy=on_policy)
    assert max(math.prod(shape) for shape in seen) < NUM_TOKENS * VOCAB


@pytest.mark.parametrize("spec", [LcoKldSpec(), GrpoSpec(), LcoMseSpec(), GspoSpec()], ids=label)
def test_half_precision_inputs_accumulate_in_single(spec: ObjectiveSpec) -> None:
    """Against float64 on the same rounded numbers: the loss has fp32's digits, the gradients bf16's."""
    now, old = (cast(leaves(seed), torch.bfloat16) for seed in (1, 2))
    exact, before = cast(now, torch.float64), cast(old, torch.float64)
    batch = without_low_rank(batch_of(now, old, spec))
    assert batch.advantages_N is not None and batch.old_logprobs_N is not None
    same = {"advantages_N": batch.advantages_N.double(), "old_logprobs_N": batch.old_logprobs_N.double()}
    wide = replace(without_low_rank(batch_of(exact, before, spec)), **same)
    found, expected = (linear_objective(b, spec, weights(), chunk_tokens=3) for b in (batch, wide))
    assert found.loss_N.dtype == torch.float32
    torch.testing.assert_close(found.loss_N.double(), expected.loss_N, rtol=1e-4, atol=1e-5)
    for a, b in zip(gradients(found.loss, now), gradients(expected.loss, exact), strict=True):
        assert a.dtype == torch.bfloat16
        torch.testing.assert_close(a.double(), b, rtol=2**-8, atol=1e-5)


def test_many_half_precision_gradients_add_up() -> None:
    """1024 equal terms: a bf16 sum of them stops growing at 256 of them."""
    hidden_NH = torch.ones(1024, 1, dtype=torch.bfloat16)
    weight_VH = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    actions_N = torch.zeros(1024, dtype=torch.long)
    batch = HiddenBatch(
        hidden_NH, LinearHead(weight_VH), actions_N=actions_N, advantages_N=torch.ones(1024), on_policy=True
    )
    for spec, slope in ((ReinforceSpec(), -0.5), (LcoMseSpec(), -2.0)):
        weight_VH.grad = None
        linear_objective(batch, spec, torch.ones(1024), chunk_tokens=2).loss.backward()
        assert weight_VH.grad is not None
        assert float(weight_VH.grad[0, 0]) == 1024 * slope


def test_matrix_of_half_precision_is_converted_block_by_block() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(n, 3, generator=generator).bfloat16() for n in (2, 20000))
    out = torch.full((2, 20000), torch.nan)
    project_(out, [left], [right], None)
    torch.testing.assert_close(out, left.float() @ right.float().T)


EXTREME: list[ObjectiveSpec] = [
    *(
        kind(beta=1e-3, target=target)
        for kind in (LcoKldSpec, LcoMseSpec, LcoLchSpec)
        for target in ("frozen", "moving")
    ),
    LcoKldSpec(tilt="linear"),
    GrpoSpec(),
    GspoSpec(),
    ReinforceSpec(),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("vocab", [2, 5])
@pytest.mark.parametrize("gap", [-200.0, -50.0, 0.0, 50.0, 200.0])
@pytest.mark.parametrize("spec", EXTREME, ids=label)
def test_extreme_probabilities_stay_finite_and_exact(
    spec: ObjectiveSpec, gap: float, vocab: int, dtype: torch.dtype
) -> None:
    """One token whose sampled logit stands ``gap`` above the others, |A| / beta = 1e3 for LCO."""
    for advantage in (1.0, -1.0):
        logits_V = torch.zeros(vocab, dtype=dtype)
        logits_V[0] = gap
        weight_VH = logits_V.unsqueeze(-1).requires_grad_()
        hidden_NH = torch.ones(1, 1, dtype=dtype)
        old = Frozen(hidden_NH, LinearHead(torch.zeros(vocab, 1, dtype=dtype)))
        advantages_N = torch.tensor([advantage], dtype=dtype)
        given = {"old_logprobs_N": torch.tensor([-math.log(vocab)], dtype=dtype), "sequence_N": torch.tensor([0])}
        batch = HiddenBatch(
            hidden_NH,
            LinearHead(weight_VH),
            actions_N=torch.tensor([0]),
            advantages_N=advantages_N,
            frozen=old,
            group_S=torch.tensor([0]),
            **given,
        )
        found = linear_objective(batch, spec, torch.ones(1, dtype=dtype))
        (mine,) = torch.autograd.grad(found.loss, weight_VH)
        exact_NV = weight_VH.detach().double().T.requires_grad_()
        tokens = TokenBatch(
            exact_NV,
            actions_N=batch.actions_N,
            advantages_N=advantages_N.double(),
            old_logits_NV=torch.zeros_like(exact_NV),
            **given,
        )
        loss_N = compute(tokens, spec).loss_N
        (theirs,) = torch.autograd.grad(loss_N.sum(), exact_NV)
        assert mine.isfinite().all() and found.loss.isfinite()
        rtol, atol = (1e-9, 1e-12) if dtype == torch.float64 else (1e-4, 1e-5)
        torch.testing.assert_close(found.loss_N.double(), loss_N, rtol=rtol, atol=atol)
        torch.testing.assert_close(mine.double(), theirs.T, rtol=rtol, atol=atol)


def test_the_smaller_probability_keeps_its_digits() -> None:
    """Where p_a = 1 - 1e-30 a difference of probabilities is 0; the true slope of -log p_a is not."""
    weight_VH = torch.tensor([[70.0], [0.0]], dtype=torch.float64, requires_grad=True)
    batch = HiddenBatch(torch.ones(1, 1, dtype=torch.float64), LinearHead(weight_VH), actions_N=torch.tensor([0]))
    (grad,) = torch.autograd.grad(linear_objective(batch, SftSpec(), torch.ones(1)).loss, weight_VH)
    small = math.exp(-70.0)
    torch.testing.assert_close(grad.squeeze(-1), torch.tensor([-small, small], dtype=torch.float64), rtol=1e-9, atol=0)


def test_mistakes_are_refused() -> None:
    now, spec = leaves(1), LcoKldSpec()
    batch = batch_of(now, leaves(2), spec)
    with pytest.raises(ValueError, match="no response token"):
        linear_objective(replace(batch, hidden_NH=torch.zeros(0, WIDTH)), spec, weights())
    with pytest.raises(ValueError, match="hidden states must have shape"):
        linear_objective(replace(batch, hidden_NH=now.hidden_NH[:, :2]), spec, weights())
    with pytest.raises(ValueError, match="on_policy"):
        linear_objective(replace(batch, frozen=None), spec, weights())
    with pytest.raises(ValueError, match="the frozen policy must say"):
        short = Frozen(now.hidden_NH[:3], now.head())
        linear_objective(replace(batch, frozen=short), spec, weights())
    with pytest.raises(ValueError, match="weights_N"):
        linear_objective(batch, spec, weights()[:3])
    for kind in (LcoKldSpec, LcoMseSpec):
        with pytest.raises(ValueError, match="chunk_tokens"):
            linear_objective(batch, kind(), weights(), chunk_tokens=0)
    with pytest.raises(ValueError, match="old_logprobs_N"):
        linear_objective(replace(batch, old_logprobs_N=None), GrpoSpec(), weights())
    with pytest.raises(ValueError, match="sequence_N"):
        linear_objective(replace(batch, sequence_N=None), GspoSpec(), weights())


def test_default_chunk_keeps_its_buffer_small() -> None:
    for buffers in (1, 2, 3):
        assert 0.9 < buffers * default_chunk(151_936, buffers=buffers) * 151_936 * 4 / (160 * 2**20) <= 1
    assert default_chunk(10**9) == 16
