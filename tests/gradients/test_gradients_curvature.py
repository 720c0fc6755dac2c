"""Hessian-vector products, Lanczos, trace and critical sharpness against dense Hessians of a tiny policy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
import torch
from helpers import new_model
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from cvxrl.gradients.curvature import (
    HessianProduct,
    critical_sharpness,
    double_differentiable,
    extreme_eigenvalues,
    hutchinson_trace,
)
from cvxrl.gradients.lanczos import lanczos
from cvxrl.policy.forward import packed_rows
from cvxrl.policy.rows import whole_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# transformers computes norms and attention weights in float32 whatever the model's precision.
ROUNDING = 3e-6


@pytest.fixture(scope="module")
def policy() -> PreTrainedModel:
    config = dict(
        vocab_size=6,
        hidden_size=4,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=2,
        intermediate_size=4,
        max_position_embeddings=16,
        initializer_range=0.5,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return new_model("Qwen3", **config).double().eval()


def losses(policy: PreTrainedModel) -> list[Callable[[], Tensor]]:
    """Two micro-batches of REINFORCE with advantages of both signs: an indefinite Hessian."""

    def loss(ids: list[list[int]], advantage: float) -> Callable[[], Tensor]:
        tokens = torch.tensor(ids)

        def value() -> Tensor:
            logprobs = torch.log_softmax(policy(input_ids=tokens).logits[:, :-1], -1)
            return -advantage * logprobs.gather(-1, tokens[:, 1:, None]).mean()

        return value

    return [loss([[2, 3, 4, 5], [5, 4, 3, 1]], 1.0), loss([[2, 2, 5, 1]], -0.7)]


@pytest.fixture(scope="module")
def dense(policy: PreTrainedModel) -> Iterator[tuple[HessianProduct, Tensor]]:
    parameters = list(policy.parameters())
    with double_differentiable(policy):
        total = sum((loss() for loss in losses(policy)), torch.zeros((), dtype=torch.float64))
        gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(total, parameters, create_graph=True)])
        rows = [
            torch.cat([row.reshape(-1) for row in torch.autograd.grad(entry, parameters, retain_graph=True)])
            for entry in gradient
        ]
        hessian = torch.stack(rows)
        yield HessianProduct(losses(policy), parameters), 0.5 * (hessian + hessian.T)


@pytest.mark.parametrize("path", [packed_rows, whole_rows])
def test_products_through_the_training_pass_are_differences_of_gradients(policy: PreTrainedModel, path: Any) -> None:
    prompts, responses = [[2, 3], [2, 3], [4]], [[3, 4, 5], [5], [2, 2, 1]]
    parameters = list(policy.parameters())

    def loss() -> Tensor:
        return policy.lm_head(path(policy, prompts, responses)).logsumexp(-1).square().mean()

    def moved(vector: Tensor) -> Tensor:
        """The gradient, and the parameters where they were."""
        before = parameters_to_vector(parameters).detach()
        with torch.no_grad():
            vector_to_parameters(before + vector, parameters)
        gradient = parameters_to_vector(torch.autograd.grad(loss(), parameters))
        with torch.no_grad():
            vector_to_parameters(before, parameters)
        return gradient

    product = HessianProduct([loss], parameters)
    vector = product.random(torch.Generator().manual_seed(0))
    step = 1e-3
    with double_differentiable(policy):
        slope = (moved(step * vector) - moved(-step * vector)) / (2 * step)
        found = product.times(vector)
    torch.testing.assert_close(found, slope, rtol=0, atol=2e-3 * float(slope.abs().max()))


def test_an_operation_without_a_second_derivative_is_refused() -> None:
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return 3 * grad * ctx.saved_tensors[0].square()

    x = torch.ones(2, requires_grad=True)
    hessian = HessianProduct([lambda: Cube.apply(x).square().sum()], [x])
    with pytest.raises(RuntimeError, match="second derivative"):
        hessian.times(torch.ones(2))


def test_products_are_those_of_the_dense_hessian(dense: tuple[HessianProduct, Tensor]) -> None:
    product, hessian = dense
    vector = product.random(torch.Generator().manual_seed(0))
    torch.testing.assert_close(product.times(vector), hessian @ vector, rtol=0, atol=ROUNDING)


def test_lanczos_finds_the_extreme_eigenvalues(dense: tuple[HessianProduct, Tensor]) -> None:
    product, hessian = dense
    values = torch.linalg.eigvalsh(hessian)
    calls: list[tuple[int, int]] = []
    found = extreme_eigenvalues(
        product, torch.Generator().manual_seed(1), steps=40, progress=lambda done, of: calls.append((done, of))
    )
    assert float(values[0]) < -0.1 < 0.1 < float(values[-1])
    assert found.smallest == pytest.approx(float(values[0]), abs=ROUNDING)
    assert found.largest == pytest.approx(float(values[-1]), abs=ROUNDING)
    assert calls[-1] == (40, 40) and len(calls) == found.products == 40


def test_the_residual_bounds_the_error_of_a_short_run(dense: tuple[HessianProduct, Tensor]) -> None:
    product, hessian = dense
    values = torch.linalg.eigvalsh(hessian)
    for steps in (3, 6, 12):
        found = extreme_eigenvalues(product, torch.Generator().manual_seed(2), steps=steps)
        assert float((values - found.largest).abs().min()) <= found.largest_error + ROUNDING
        assert float((values - found.smallest).abs().min()) <= found.smallest_error + ROUNDING
        assert values[0] - ROUNDING <= found.smallest <= found.largest <= values[-1] + ROUNDING


def test_eigenvalues_of_a_large_operator_lie_within_their_error() -> None:
    diagonal_1D = torch.linspace(-1.0, 1.0, 2**21).unsqueeze(0)
    diagonal_1D[0, 77] = 32.341
    start_1D = torch.randn(1, 2**21, generator=torch.Generator().manual_seed(0))
    found = lanczos(lambda v: diagonal_1D * v, start_1D, 8, torch.Generator())
    largest, error = float(found.values_CM[0, -1]), float(found.residuals_CM[0, -1])
    assert abs(largest - 32.341) <= error < 3e-4


def test_the_error_holds_what_the_rounding_of_products_does() -> None:
    """Products that are rounded coarsely, so that the Krylov space alone would claim to be exact."""
    generator = torch.Generator().manual_seed(0)
    diagonal_1D = torch.linspace(-1.0, 1.0, 200, dtype=torch.float64).unsqueeze(0)
    diagonal_1D[0, 0] = 5.0

    def times(v_1D: Tensor) -> Tensor:
        return diagonal_1D * v_1D * (1.0 + 1e-4 * torch.randn(v_1D.shape, generator=generator, dtype=torch.float64))

    start_1D = torch.ones_like(diagonal_1D)
    found = lanczos(times, start_1D, 20, torch.Generator())
    assert 1e-6 < abs(float(found.values_CM[0, -1]) - 5.0) <= float(found.residuals_CM[0, -1]) < 1e-2


def test_an_exhausted_krylov_space_misses_nothing() -> None:
    diagonal = torch.tensor([[5.0, 5.0, -2.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    start = torch.zeros_like(diagonal)
    start[:, 3] = 1.0  # an eigenvector: the Krylov space is one line
    found = lanczos(lambda v: diagonal * v, start, 6, torch.Generator().manual_seed(0))
    torch.testing.assert_close(found.values_CM, diagonal.sort(-1).values, rtol=0, atol=1e-12)


def test_the_trace_within_its_error(dense: tuple[HessianProduct, Tensor]) -> None:
    _, hessian = dense
    at = torch.zeros(hessian.shape[0], dtype=torch.float64, requires_grad=True)
    product = HessianProduct([lambda: 0.5 * at @ hessian @ at], [at])  # the same Hessian, but cheap
    found = hutchinson_trace(product, torch.Generator().manual_seed(3), samples=200)
    assert abs(found.value - float(hessian.trace())) < 3.0 * found.standard_error
    # Known for signs: the variance is twice the sum of squares off the diagonal.
    known = math.sqrt(2.0 * float((hessian - hessian.diagonal().diag()).square().sum()) / 200)
    assert found.standard_error == pytest.approx(known, rel=0.3)
    with pytest.raises(ValueError, match="at least 2"):
        hutchinson_trace(product, torch.Generator(), samples=1)


def test_attention_is_switched_and_switched_back(policy: PreTrainedModel) -> None:
    policy.set_attn_implementation("flex_attention")
    with pytest.raises(RuntimeError, match="stop"), double_differentiable(policy):
        assert policy.config._attn_implementation == "eager"
        raise RuntimeError("stop")
    assert policy.config._attn_implementation == "flex_attention"
    policy.set_attn_implementation("sdpa")
    with double_differentiable(policy):
        assert policy.config._attn_implementation == "sdpa"


def test_critical_sharpness_of_a_quadratic_is_its_curvature() -> None:
    for curvature in (1e-3, 1.0, 50.0, 1e4):
        # Along its gradient g: loss(step) = c/2 (1 - step c)^2 with loss(0) = c/2.
        found = critical_sharpness(lambda step, c=curvature: 0.5 * c * (1.0 - step * c) ** 2, evaluations=40)  # type: ignore[misc]
        assert found.value == pytest.approx(curvature, rel=1e-4)
        assert found.low < 2.0 / curvature <= found.high and found.evaluations == 40


def test_critical_sharpness_of_the_policy(policy: PreTrainedModel, dense: tuple[HessianProduct, Tensor]) -> None:
    parameters = list(policy.parameters())
    value = losses(policy)[0]
    gradients = torch.autograd.grad(value(), parameters)

    @torch.no_grad()
    def loss_at(step: float) -> float:
        held = [p.clone() for p in parameters]
        for p, g in zip(parameters, gradients, strict=True):
            p.sub_(g, alpha=step)
        loss = float(value())
        for p, before in zip(parameters, held, strict=True):
            p.copy_(before)
        return loss

    found = critical_sharpness(loss_at, evaluations=12)
    assert found.evaluations == 12 and found.low > 0 and found.high < math.inf
    assert loss_at(found.low) < found.start <= loss_at(found.high)
    assert 2.0 / found.high <= found.value <= 2.0 / found.low


def test_critical_sharpness_at_its_limits() -> None:
    up = critical_sharpness(lambda step: step, evaluations=5)
    assert up.value == math.inf and up.low == 0.0 and up.evaluations == 5
    down = critical_sharpness(lambda step: -step, evaluations=5)
    assert down.high == math.inf and down.value == 2.0 / down.low
    overflow = critical_sharpness(lambda step: math.nan if step > 3.0 else -step, evaluations=20)
    assert overflow.high == pytest.approx(3.0, rel=1e-3)
    with pytest.raises(ValueError, match="at least 3"):
        critical_sharpness(lambda step: step, evaluations=2)
    with pytest.raises(ValueError, match="start is nan"):
        critical_sharpness(lambda step: math.nan)
