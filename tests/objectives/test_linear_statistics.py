"""Log-probabilities, log-odds, entropies and KLs from hidden states against their definitions on full logits."""

from __future__ import annotations

import math

import pytest
import torch
from linear_cases import HEADS, NUM_TOKENS, VOCAB, Leaves, cast, leaves
from torch import Tensor

from cvxrl.objectives.linear import Frozen, LinearHead, gathered_logits, linear_statistics

ACTIONS_N = torch.randint(VOCAB, (NUM_TOKENS,), generator=torch.Generator().manual_seed(4))


def defined(logits_NV: Tensor) -> dict[str, Tensor]:
    probs_NV = torch.softmax(logits_NV, dim=-1)
    p_N = probs_NV[torch.arange(NUM_TOKENS), ACTIONS_N]
    entropy_N = -(probs_NV * probs_NV.log()).sum(dim=-1)
    return {"logprobs_N": p_N.log(), "log_odds_N": torch.logit(p_N), "entropy_N": entropy_N}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("chunk", [1, 3, 1000, None])
@pytest.mark.parametrize("name", ["logprobs_N", "log_odds_N", "entropy_N"])
def test_values_and_gradients(name: str, chunk: int | None, dtype: torch.dtype) -> None:
    exact = leaves(1)
    now = cast(exact, dtype)
    slopes_N = torch.linspace(-1.0, 2.0, NUM_TOKENS, dtype=torch.float64)
    want_N = defined(exact.logits(**HEADS["softcapped"]))[name]
    head = now.head(**HEADS["softcapped"])
    got_N = getattr(linear_statistics(now.hidden_NH, head, ACTIONS_N, chunk_tokens=chunk), name)
    expected = [want_N, *torch.autograd.grad((slopes_N * want_N).sum(), exact.all)]
    found = [got_N, *torch.autograd.grad((slopes_N * got_N).sum(), now.all)]
    rtol, atol = (1e-9, 1e-12) if dtype == torch.float64 else (1e-4, 1e-5)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=rtol, atol=atol)


def test_gradcheck_of_everything_at_once() -> None:
    now = leaves(1, spread=0.5)

    def outputs(*tensors: Tensor) -> tuple[Tensor, ...]:
        head = Leaves(*tensors).head(**HEADS["softcapped"])
        found = linear_statistics(tensors[0], head, ACTIONS_N, chunk_tokens=4)
        return found.logprobs_N, found.log_odds_N, found.entropy_N

    assert torch.autograd.gradcheck(outputs, now.all, fast_mode=True)


@pytest.mark.parametrize("chunk", [1, 4, None])
def test_kl_to_and_from_a_frozen_policy(chunk: int | None) -> None:
    now, old = leaves(1), leaves(2)
    found = linear_statistics(
        now.hidden_NH, now.head(), ACTIONS_N, frozen=Frozen(old.hidden_NH, old.head()), chunk_tokens=chunk
    )
    log_p, log_q = (torch.log_softmax(leaf.logits().detach(), dim=-1) for leaf in (now, old))
    assert found.kl_to_frozen_N is not None and found.kl_from_frozen_N is not None
    torch.testing.assert_close(found.kl_to_frozen_N, (log_p.exp() * (log_p - log_q)).sum(-1), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.kl_from_frozen_N, (log_q.exp() * (log_q - log_p)).sum(-1), rtol=1e-9, atol=1e-12)
    assert not found.kl_to_frozen_N.requires_grad
    torch.testing.assert_close(found.logprobs_N, defined(now.logits())["logprobs_N"], rtol=1e-9, atol=1e-12)


def test_by_hand() -> None:
    """Logits (ln 3, 0): p = 3/4, odds 3, H = ln 4 - 3/4 ln 3; KL to and from uniform: ln 2 - H and -1/2 ln 3/4."""
    weight_VH = torch.tensor([[math.log(3.0)], [0.0]], dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.float64)
    uniform = Frozen(one, LinearHead(torch.zeros(2, 1, dtype=torch.float64)))
    found = linear_statistics(one, LinearHead(weight_VH), torch.tensor([0]), frozen=uniform)
    entropy = math.log(4.0) - 0.75 * math.log(3.0)
    assert float(found.logprobs_N) == pytest.approx(math.log(0.75), rel=1e-12)
    assert float(found.log_odds_N) == pytest.approx(math.log(3.0), rel=1e-12)
    assert float(found.entropy_N) == pytest.approx(entropy, rel=1e-12)
    assert found.kl_to_frozen_N is not None and found.kl_from_frozen_N is not None
    assert float(found.kl_to_frozen_N) == pytest.approx(math.log(2.0) - entropy, rel=1e-12)
    assert float(found.kl_from_frozen_N) == pytest.approx(-0.5 * math.log(0.75), rel=1e-12)


@pytest.mark.parametrize("gap", [-1000.0, -100.0, 100.0, 1000.0])
def test_certain_tokens_stay_finite(gap: float) -> None:
    """One logit stands ``gap`` above nine others in fp32: exact entropies, and no gradient that is not a number."""
    logits_V = torch.zeros(10)
    logits_V[0] = gap
    weight_VH = (logits_V + 5000.0).unsqueeze(-1).requires_grad_()
    found = linear_statistics(torch.ones(1, 1), LinearHead(weight_VH), torch.tensor([0]))
    (found.logprobs_N + found.entropy_N).sum().backward()
    assert float(found.log_odds_N.detach()) == pytest.approx(gap - math.log(9.0), rel=1e-5)
    assert float(found.entropy_N.detach()) == pytest.approx(0.0 if gap > 0 else math.log(9.0), abs=1e-6)
    assert weight_VH.grad is not None and bool(weight_VH.grad.isfinite().all())
    want = torch.full((10,), -1 / 9)
    want[0] = 1.0
    torch.testing.assert_close(weight_VH.grad.squeeze(-1), want if gap < 0 else torch.zeros(10), rtol=1e-5, atol=1e-6)


def test_gathered_logits_are_those_of_the_full_projection() -> None:
    now = leaves(1)
    ids_NK = torch.randint(VOCAB, (NUM_TOKENS, 3), generator=torch.Generator().manual_seed(5))
    for name, constants in HEADS.items():
        got = gathered_logits(now.hidden_NH, now.head(**constants), ids_NK, chunk_tokens=3)
        torch.testing.assert_close(got, now.logits(**constants).gather(-1, ids_NK), rtol=1e-12, atol=1e-12, msg=name)
    single = gathered_logits(now.hidden_NH, now.head(), ids_NK[:, 0])
    torch.testing.assert_close(single, now.logits().gather(-1, ids_NK)[:, 0], rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="ids must have shape"):
        gathered_logits(now.hidden_NH, now.head(), ids_NK[:2])


def test_gathered_logits_gradcheck_with_repeated_ids() -> None:
    now = leaves(1, spread=0.5)
    ids_NK = torch.tensor([[3, 3, 0]]).expand(NUM_TOKENS, -1)

    def outputs(*tensors: Tensor) -> Tensor:
        return gathered_logits(tensors[0], Leaves(*tensors).head(**HEADS["softcapped"]), ids_NK, chunk_tokens=4)

    assert torch.autograd.gradcheck(outputs, now.all, fast_mode=True)
