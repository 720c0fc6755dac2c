"""Norms, inner products and the noise scale of gradients, against hand-made and known values."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cvxrl.gradients.gram import (
    MIN_MINIBATCHES,
    Gram,
    NoiseScale,
    cosines,
    mean_pairwise_cosine,
    noise_scale,
    norm_shares,
    sign_split,
)
from cvxrl.gradients.parameters import layer_of, module_of, norms, update_ratio

NAMES = {
    "model.embed_tokens.weight": (None, "embedding"),
    "model.layers.0.self_attn.q_proj.weight": (0, "q"),
    "model.layers.11.self_attn.k_proj.bias": (11, "k"),
    "model.layers.1.self_attn.v_proj.lora_A.default.weight": (1, "v"),
    "model.layers.1.self_attn.o_proj.weight": (1, "o"),
    "model.layers.0.self_attn.q_norm.weight": (0, "norm"),
    "model.layers.0.mlp.gate_proj.weight": (0, "gate"),
    "model.layers.0.mlp.up_proj.weight": (0, "up"),
    "model.layers.0.mlp.down_proj.weight": (0, "down"),
    "model.layers.0.input_layernorm.weight": (0, "norm"),
    "model.norm.weight": (None, "norm"),
    "lm_head.weight": (None, "head"),
    "transformer.h.3.attn.c_attn.weight": (3, "qkv"),
    "transformer.h.3.attn.c_proj.weight": (3, "o"),
    "transformer.h.3.mlp.c_proj.weight": (3, "down"),
    "transformer.h.3.ln_1.weight": (3, "norm"),
    "value_head.weight": (None, "other"),
}


@pytest.mark.parametrize("name", NAMES)
def test_names_say_layer_and_module(name: str) -> None:
    assert (layer_of(name), module_of(name)) == NAMES[name]


def test_norms_by_hand() -> None:
    found = norms(
        {
            "model.layers.0.self_attn.q_proj.weight": torch.tensor([[3.0, 0.0], [0.0, 4.0]]),  # 5
            "model.layers.1.self_attn.q_proj.weight": torch.tensor([12.0]),
            "model.layers.1.self_attn.k_proj.weight": torch.tensor([1.0]),
            "lm_head.weight": torch.tensor([84.0]),
        }
    )
    assert found.by_layer == pytest.approx({0: 5.0, 1: math.sqrt(145.0)})
    assert found.by_module == pytest.approx({"q": 13.0, "k": 1.0, "head": 84.0})
    assert found.total == pytest.approx(math.sqrt(170.0 + 84.0**2))
    assert found.attention_mean == pytest.approx((5.0 + 12.0 + 1.0) / 3.0)
    assert math.isnan(norms({"lm_head.weight": torch.ones(2)}).attention_mean)


def test_norms_of_half_precision_do_not_overflow() -> None:
    assert norms({"w": torch.full((10_000,), 300.0, dtype=torch.float16)}).total == pytest.approx(30_000.0)


def test_update_ratio_by_hand() -> None:
    update = {"lm_head.weight": torch.tensor([0.3, 0.4]), "a.lora_B.weight": torch.tensor([1.0])}
    weights = {
        "lm_head.weight": torch.tensor([5.0, 0.0]),
        "a.lora_B.weight": torch.tensor([0.0]),
        "not.moved": torch.ones(9),
    }
    total, by_module = update_ratio(update, weights)
    assert total == pytest.approx(math.sqrt(1.25) / 5.0)
    assert by_module["head"] == pytest.approx(0.1) and by_module["other"] == math.inf


def vectors(rows_KD: Tensor) -> list[dict[str, Tensor]]:
    return [{"a": row[:7].view(7, 1), "b": row[7:]} for row in rows_KD]


def gram(rows_KD: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    collected = Gram(dtype)
    for i, gradient in enumerate(vectors(rows_KD)):
        assert collected.add(gradient) == i
    collected.clear()
    return collected.matrix()


def test_inner_products_and_cosines() -> None:
    rows_KD = torch.randn(5, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(gram(rows_KD), rows_KD @ rows_KD.T)
    units_KD = rows_KD / rows_KD.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(cosines(gram(rows_KD)), units_KD @ units_KD.T)
    upper = (units_KD @ units_KD.T)[torch.triu(torch.ones(5, 5), diagonal=1).bool()]
    assert mean_pairwise_cosine(gram(rows_KD)) == pytest.approx(float(upper.mean()))
    torch.testing.assert_close(gram(rows_KD, torch.bfloat16), rows_KD @ rows_KD.T, rtol=0.01, atol=0.05)


def test_gradients_are_copied_and_must_match() -> None:
    collected, gradient = Gram(), {"a": torch.ones(3)}
    collected.add(gradient)
    gradient["a"].zero_()
    collected.add({"a": torch.ones(3)})
    assert collected.matrix().tolist() == [[3.0, 3.0], [3.0, 3.0]]
    with pytest.raises(ValueError, match="parameters differ"):
        collected.add({"b": torch.ones(3)})


def test_a_gradient_of_rounding_is_in_no_mean_cosine() -> None:
    rows_KD = torch.zeros(5, 40, dtype=torch.float64)
    rows_KD[0, 0], rows_KD[1, :2], rows_KD[2, 9] = 3.0, torch.tensor([3.0, 4.0]), 1e-8
    rows_KD[4, 0] = -2e-8
    assert mean_pairwise_cosine(gram(rows_KD)) == pytest.approx(0.6)
    assert mean_pairwise_cosine(gram(rows_KD[1:])) is None  # one gradient has no other to agree with
    assert mean_pairwise_cosine(torch.zeros(3, 3)) is None
    assert mean_pairwise_cosine(torch.ones(1, 1)) is None


def test_sign_split_by_hand() -> None:
    split = sign_split(gram(torch.tensor([[3.0] + 9 * [0.0], [-1.0, *(8 * [0.0]), 0.0]], dtype=torch.float64)))
    assert (split.positive, split.negative, split.cosine) == pytest.approx((3.0, 1.0, -1.0))
    assert split.negative_mass == pytest.approx(0.25) and split.cancelled == pytest.approx(0.5)
    assert norm_shares(torch.diag(torch.tensor([9.0, 1.0]))).tolist() == pytest.approx([0.75, 0.25])


SIGMA_D = torch.linspace(0.2, 2.0, 60, dtype=torch.float64)


def draw_scale(
    generator: torch.Generator, minibatches: int, batch_size: int, signal: float, level: float
) -> NoiseScale:
    """Minibatch means of per-example gradients G + Sigma^(1/2) x, straight from their distribution."""
    noise_KD = torch.randn(minibatches, len(SIGMA_D), generator=generator, dtype=torch.float64)
    rows_KD = math.sqrt(signal / len(SIGMA_D)) + noise_KD * (SIGMA_D / batch_size).sqrt()
    return noise_scale(rows_KD @ rows_KD.T, batch_size, level=level)


def test_the_noise_scale_of_a_known_problem() -> None:
    found = draw_scale(torch.Generator().manual_seed(0), 32, 16, signal=2.0, level=0.9)
    known = float(SIGMA_D.sum()) / 2.0
    assert found.low < known < found.high < 2.0 * known
    assert found.noise == pytest.approx(float(SIGMA_D.sum()), rel=0.1) and found.signal == pytest.approx(2.0, rel=0.3)
    assert found.value == pytest.approx(found.noise / found.signal) and found.snr == pytest.approx(16 / found.value)


def test_it_equals_the_formula_of_two_batch_sizes() -> None:
    rows_KD = torch.randn(6, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.5
    small, large = 10.0, 60.0
    g_small, g_large = float(rows_KD.square().sum(-1).mean()), float(rows_KD.mean(0).square().sum())
    found = noise_scale(rows_KD @ rows_KD.T, small)
    assert found.signal == pytest.approx((large * g_large - small * g_small) / (large - small))
    assert found.noise == pytest.approx((g_small - g_large) / (1.0 / small - 1.0 / large))


def coverage(minibatches: int, signal: float, trials: int) -> tuple[float, NoiseScale]:
    generator = torch.Generator().manual_seed(minibatches)
    known = float(SIGMA_D.sum()) / signal
    drawn = [draw_scale(generator, minibatches, 16, signal, 0.9) for _ in range(trials)]
    return sum(found.low <= known <= found.high for found in drawn) / trials, drawn[0]


@pytest.mark.parametrize(
    ("minibatches", "signal"), [(MIN_MINIBATCHES, 0.3), (MIN_MINIBATCHES, 20.0), (8, 2.0), (32, 2.0)]
)
def test_the_interval_covers_what_it_says(minibatches: int, signal: float) -> None:
    covered, _ = coverage(minibatches, signal, trials=200)
    # Three standard errors of 200 trials are 0.06; the jackknife errs to the wide side.
    assert covered >= 0.84


def test_a_signal_lost_in_noise_has_no_upper_end() -> None:
    found = draw_scale(torch.Generator().manual_seed(2), 8, 16, signal=1e-9, level=0.9)
    assert found.high == math.inf and found.low > 16


def test_too_few_minibatches_are_refused() -> None:
    with pytest.raises(ValueError, match=f"at least {MIN_MINIBATCHES} minibatches, got 3"):
        noise_scale(torch.eye(3), 16)
