"""The Bernoulli form: exact on two tokens, exact in its gradient at the policy that sampled, a lower bound after it."""

from __future__ import annotations

import re
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import ROOT
from torch import Tensor

from cvxrl.errors import UserError
from cvxrl.integrations.bernoulli import bernoulli_lco
from cvxrl.integrations.sections import check_sections
from cvxrl.objectives.batch import TokenBatch
from cvxrl.objectives.registry import compute

OBJECTIVES = (
    {"kind": "lco-kld", "beta": 0.7, "negative_beta_scale": 3.0},
    {"kind": "lco-kld", "tilt": "linear"},
    {"kind": "lco-kld", "shift": "drift-free"},
    {"kind": "lco-kld", "target": "moving"},
)


def exact(logits_NV: Tensor, old_NV: Tensor, actions_N: Tensor, groups_NG: Tensor, objective: dict[str, Any]) -> Tensor:
    batch = TokenBatch(
        logits_NV=logits_NV,
        old_logits_NV=old_NV,
        actions_N=actions_N,
        advantages_N=groups_NG[:, 0],
        group_advantages_NG=groups_NG,
    )
    return compute(batch, check_sections({"objective": objective}).objective).loss_N


def form(logits_NV: Tensor, old_NV: Tensor, actions_N: Tensor, groups_NG: Tensor, objective: dict[str, Any]) -> Tensor:
    now, old = (torch.log_softmax(z, -1).gather(-1, actions_N.unsqueeze(-1)).squeeze(-1) for z in (logits_NV, old_NV))
    return bernoulli_lco(now, old, groups_NG[:, 0], objective, groups_NG)


def tokens(vocab: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    now, old = (3 * torch.randn(50, vocab, generator=generator, dtype=torch.float64) for _ in range(2))
    groups = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    actions = torch.randint(vocab, (50,), generator=generator)
    return now.requires_grad_(), old, actions, groups - groups.mean(dim=1, keepdim=True)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_on_two_tokens_it_is_the_loss(objective: dict[str, Any]) -> None:
    now, *rest = tokens(2)
    expected, found = exact(now, *rest, objective), form(now, *rest, objective)
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)
    (wanted,), (made,) = (torch.autograd.grad(loss.sum(), now) for loss in (expected, found))
    assert torch.allclose(made, wanted, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("objective", OBJECTIVES[:3], ids=str)
def test_on_more_it_has_the_gradient_of_the_first_step_and_is_a_bound_afterwards(objective: dict[str, Any]) -> None:
    now, old, *rest = tokens(7)
    start = old.clone().requires_grad_()
    expected, found = exact(start, old, *rest, objective), form(start, old, *rest, objective)
    (wanted,), (made,) = (torch.autograd.grad(loss.sum(), start) for loss in (expected, found))
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12) and torch.allclose(
        made, wanted, rtol=1e-8, atol=1e-10
    )
    later, bound = exact(now, old, *rest, objective), form(now, old, *rest, objective)
    assert bool((bound <= later + 1e-12).all()) and float((later - bound).detach().max()) > 0.1


def test_values_written_down() -> None:
    """p0 = 1/4, A = ln 3: the target's odds are 1/3 times 3, q = 1/2, and KL(1/2 || 1/4) = ln(2 / sqrt 3)."""
    log = torch.log(torch.tensor([0.25], dtype=torch.float64)).requires_grad_()
    loss = bernoulli_lco(log, log.detach(), torch.log(torch.tensor([3.0], dtype=torch.float64)))
    assert float(loss.detach()) == pytest.approx(0.14384103622589042, rel=1e-12)
    loss.sum().backward()
    assert log.grad is not None and float(log.grad) == pytest.approx(-0.5 + 0.5 * 0.25 / 0.75, rel=1e-12)


def test_probabilities_at_the_ends_stay_finite() -> None:
    logprobs = torch.tensor([0.0, -1e-30, -80.0, -3e-8]).requires_grad_()
    loss = bernoulli_lco(logprobs, torch.tensor([-1e-3, 0.0, -70.0, -5.0]), torch.tensor([1.0, -1.0, 1.0, -2.0]))
    loss.sum().backward()
    assert logprobs.grad is not None and bool(loss.isfinite().all()) and bool(logprobs.grad.isfinite().all())


@pytest.mark.parametrize("objective", ["grpo", {"kind": "lco-kld", "support": {"kind": "top-k", "k": 2}}])
def test_what_needs_logits_is_refused(objective: Any) -> None:
    with pytest.raises(UserError, match="objective"):
        bernoulli_lco(torch.zeros(1), torch.zeros(1), torch.zeros(1), objective)
    with pytest.raises(ValueError, match="shapes differ"):
        bernoulli_lco(torch.zeros(2), torch.zeros(1), torch.zeros(2))


# --- the snippets of docs/foreign.md, with stand-ins for the other programs


def snippet(program: str) -> str:
    text = (ROOT / "docs" / "foreign.md").read_text(encoding="utf-8")
    (found,) = re.findall(rf"```python\n(# {program}.*?)```", text, flags=re.DOTALL)
    return str(found)


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Modules with the few names that the snippets import, which keep what is registered."""
    kept: dict[str, Any] = {}

    def register(name: str) -> Any:
        return lambda function: kept.setdefault(name, function)

    def aggregate(loss_mat: Tensor, loss_mask: Tensor, loss_agg_mode: str, **_: Any) -> Tensor:
        return (loss_mat * loss_mask).sum() / loss_mask.sum()

    def reduce(loss: Tensor, mask: Tensor) -> Tensor:
        return (loss * mask).sum()

    for name, content in (
        ("verl.trainer.ppo.core_algos", {"register_policy_loss": register, "agg_loss": aggregate}),
        ("skyrl.backends.skyrl_train.utils.ppo_utils", {"register_policy_loss": register, "reduce_loss": reduce}),
        ("prime_rl.trainer.rl.loss", {"LossInputs": SimpleNamespace, "LossOutputs": SimpleNamespace}),
    ):
        parts = name.split(".")
        for count in range(1, len(parts) + 1):
            module = ModuleType(".".join(parts[:count]))
            vars(module).update(content if count == len(parts) else {"__path__": []})
            monkeypatch.setitem(sys.modules, module.__name__, module)
    return kept


def test_the_snippets_register_the_loss(stand_ins: dict[str, Any]) -> None:
    now, old = torch.log(torch.tensor([[0.25, 0.5]])), torch.log(torch.tensor([[0.25, 0.5]]))
    advantages, mask = torch.full((1, 2), 1.0986123), torch.tensor([[1.0, 0.0]])
    registered: dict[str, Any] = {}
    losses = {}
    for program in ("verl", "SkyRL", "prime-rl"):
        names: dict[str, Any] = {}
        exec(snippet(program), names)
        registered |= {program: stand_ins.pop("lco_bernoulli", names.get("lco_prime"))}
        if program == "SkyRL":
            divisor = names["MINI_BATCH"] * 40
    config = SimpleNamespace(global_batch_info={}, max_seq_len=40)
    losses["verl"] = registered["verl"](old, now, advantages, mask, "token-mean", config, None)[0]
    losses["SkyRL"] = registered["SkyRL"](now, old, advantages / divisor, config, mask)[0] * divisor
    inputs = SimpleNamespace(trainer_logprobs=now[0], inference_logprobs=old[0], advantages=advantages[0])
    inputs.loss_mask, inputs.loss_weights = mask[0].bool(), None
    losses["prime-rl"] = registered["prime-rl"](inputs, beta=1.0).loss
    for program, loss in losses.items():
        assert float(loss) == pytest.approx(0.1438410, rel=1e-5), program
