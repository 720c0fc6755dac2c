"""A saved optimizer state under a recipe that was changed: its moments hold, its settings are the recipe's."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from cvxrl.engine.optimizer import build_optimizer
from cvxrl.inspection.saved import load_saved, why_not
from cvxrl.recipe.training import OptimSpec

SPEC: TypeAdapter[OptimSpec] = TypeAdapter(OptimSpec)
SETTINGS = {
    "adamw": ({"weight_decay": 0.3}, {"betas": [0.5, 0.6]}, {"eps": 1e-3}),
    "sgd": ({"weight_decay": 0.3}, {"momentum": 0.7}, {"momentum": 0.7, "nesterov": True}),
    "adafactor": ({"weight_decay": 0.3}, {"clip_threshold": 3.0}),
}


def spec_of(kind: str, **fields: Any) -> OptimSpec:
    return SPEC.validate_python({"kind": kind, "lr": 0.1, **fields})


def layer(dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2).to(dtype)


def state_of(spec: OptimSpec, module: nn.Module) -> dict[str, Any]:
    return build_optimizer([module], spec).state_dict()


def settings_of(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def moved(optimizer: torch.optim.Optimizer, module: nn.Module) -> list[Tensor]:
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    optimizer.step()
    return [p.detach().clone() for p in module.parameters()]


@pytest.mark.parametrize(("kind", "changed"), [(kind, one) for kind, ways in SETTINGS.items() for one in ways])
def test_the_settings_are_the_recipe_s(kind: str, changed: dict[str, Any]) -> None:
    optimizer = build_optimizer([layer()], spec_of(kind, **changed))
    before = settings_of(optimizer)
    load_saved(optimizer, state_of(spec_of(kind), layer()))
    assert settings_of(optimizer) == before


def test_a_state_under_its_own_settings_goes_on_bit_for_bit() -> None:
    spec, module = spec_of("adamw"), layer()
    optimizer = build_optimizer([module], spec)
    moved(optimizer, module)
    state, other = copy.deepcopy(optimizer.state_dict()), layer()
    other.load_state_dict(module.state_dict())
    again = build_optimizer([other], spec)
    load_saved(again, state)
    assert all(torch.equal(a, b) for a, b in zip(moved(optimizer, module), moved(again, other), strict=True))


def test_what_the_last_line_search_found_is_kept() -> None:
    spec = spec_of("adamw")
    state = state_of(spec, layer())
    for group in state["param_groups"]:
        group |= {"last_share": 0.25, "steps_since_search": 2}
    optimizer = build_optimizer([layer()], spec)
    load_saved(optimizer, state)
    assert [(g["last_share"], g["steps_since_search"]) for g in optimizer.param_groups] == [(0.25, 2)] * 2


@pytest.mark.parametrize("kind", SETTINGS)
def test_a_state_of_another_kind_is_not_gone_on_from(kind: str) -> None:
    spec, module = spec_of(kind), layer()
    state = state_of(spec, module)
    assert why_not(state, [module], spec) is None
    for other in SETTINGS.keys() - {kind}:
        why = why_not(state, [module], spec_of(other))
        assert why is not None and kind in why and other in why


def test_a_state_of_other_parameters_or_without_copies_is_not_gone_on_from() -> None:
    spec, module = spec_of("adamw"), layer(torch.bfloat16)
    state = state_of(spec, module)
    assert "other parameters" in str(why_not(state, [module, layer()], spec))
    assert why_not(state, [module], spec) is None
    assert "fp32 copies" in str(why_not(state, [module], spec_of("adamw", master_weights=True)))
