"""A field of an objective changes the loss, or the recipe that names it is refused: none is ignored in silence."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers import tiny
from pydantic import BaseModel

from cvxrl.errors import UserError
from cvxrl.objectives.batch import DenseAdvantages, TokenBatch
from cvxrl.objectives.registry import compute
from cvxrl.recipe.base import kind_of, section_classes
from cvxrl.recipe.objective import CallableObjective, ObjectiveSpec
from cvxrl.recipe.schema import Recipe

SPECS = {str(kind_of(c)): c for c in section_classes(ObjectiveSpec) if c is not CallableObjective}
# Another value of a field, where twice the default is none.
OTHER = {
    "target": "moving",
    "tilt": "linear",
    "shift": "drift-free",
    "half": False,
    "fill": -3.0,
    "linear_margin": 0.2,
    "sft_coefficient": 0.5,
}
SUPPORTS = ({"kind": "exact"}, {"kind": "top-k", "k": 3}, {"kind": "top-k-fill", "k": 3})
DENSE = "advantage={kind: dense-logprob, verifier: package:cvxrl/assets/base}"


def hard_tokens() -> TokenBatch:
    """Prompts with two responses of eight tokens each, far from the policy that sampled, likely and unlikely ones."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    count, vocab = 96, 9
    logits_NV, old_NV = 2.0 * normal(count, vocab), 3.0 * normal(count, vocab)
    actions_N = torch.randint(vocab, (count,), generator=generator)
    values_S = torch.tensor([3.0, -2.0, 0.7, -25.0, 0.3, -0.2, 1.0, -1.0, -0.4, 4.0, -2.0, -0.6], dtype=torch.float64)
    sequence_N = torch.arange(12).repeat_interleave(8)
    logprobs_N = torch.log_softmax(old_NV, -1).gather(-1, actions_N.unsqueeze(-1)).squeeze(-1)
    return TokenBatch(
        logits_NV,
        actions_N=actions_N,
        advantages_N=values_S[sequence_N],
        old_logits_NV=old_NV,
        old_logprobs_N=logprobs_N,
        reference_logprobs_N=logprobs_N - 0.3,
        group_advantages_NG=values_S.view(6, 2)[sequence_N // 2],
        sequence_N=sequence_N,
        group_S=torch.arange(6).repeat_interleave(2),
    )


def loss_of(recipe: Recipe) -> torch.Tensor:
    batch = hard_tokens()
    if recipe.advantage.credit == "verifier":
        ids_NK = torch.stack([batch.actions_N, (batch.actions_N + 1) % 9, (batch.actions_N + 4) % 9], dim=-1)
        values_NK = torch.randn(96, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        batch = TokenBatch(**{**vars(batch), "dense": DenseAdvantages(ids_NK, values_NK)})
    return compute(batch, recipe.objective).loss_N


def recipe_of(kind: str, objective: dict[str, Any], *more: str) -> Recipe:
    base = {"sft": "base_sft", "dpo": "pref_dpo", "qrm": "pref_qrm"}.get(kind, "math_grpo")
    written = "{" + ", ".join(f"{key}: {_yaml(value)}" for key, value in objective.items()) + "}"
    return tiny(base, f"objective={written}", *more)


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value).replace("'", "")


def changes(section: type[BaseModel]) -> Iterator[tuple[str, Any]]:
    """Fields of a section besides its kind, with another value each."""
    for name, field in section.model_fields.items():
        if name not in ("kind", "support"):
            default = field.default
            yield name, OTHER.get(name, default * 2 if isinstance(default, int | float) else None)


def contexts(kind: str) -> Iterator[tuple[dict[str, Any], tuple[str, ...]]]:
    """Objectives of a kind to start from, and settings beside them."""
    if not kind.startswith("lco"):
        yield {"kind": kind}, ()
        return
    for tilt in ("exponential", "linear"):
        for shift in ("none", "drift-free"):
            for support in SUPPORTS if kind == "lco-kld" else (None,):
                start = {"kind": kind, "tilt": tilt, "shift": shift, **({"support": support} if support else {})}
                yield start, ()
                yield start, (DENSE,)


@pytest.mark.parametrize("kind", SPECS)
def test_every_field_counts_or_is_refused(kind: str) -> None:
    counted = refused = 0
    for start, beside in contexts(kind):
        try:
            before = loss_of(recipe_of(kind, start, *beside))
        except UserError as error:
            assert all(p.key and p.remedy for p in error.problems)
            refused += 1
            continue
        support = start.get("support")
        tried = [({**start, name: value}, name) for name, value in changes(SPECS[kind])]
        if support:
            spec = next(
                c
                for c in section_classes(SPECS[kind].model_fields["support"].annotation)
                if kind_of(c) == support["kind"]
            )
            tried += [({**start, "support": {**support, name: value}}, name) for name, value in changes(spec)]
            tried += [({**start, "support": other}, "support") for other in SUPPORTS if other != support]
        for objective, name in tried:
            if objective == start:
                continue
            try:
                after = loss_of(recipe_of(kind, objective, *beside))
            except UserError as error:
                assert any(name in p.key or "advantage" in p.key for p in error.problems), error
                assert all(p.remedy for p in error.problems)
                refused += 1
                continue
            assert not torch.allclose(after, before, rtol=1e-9, atol=1e-12), f"{name} of {start} {beside} has no effect"
            counted += 1
    assert counted or kind in ("reinforce", "sft")
    assert refused or not kind.startswith("lco")


@pytest.mark.parametrize(
    ("name", "override", "key"),
    [
        ("math_lco_kld_dense", "objective.tilt=linear", "objective.tilt"),
        ("math_lco_kld_dense", "objective.support={kind: top-k, k: 3}", "objective.support"),
        ("math_lco_kld_dense", "objective.support={kind: top-k-fill}", "objective.support"),
        ("math_lco_kld_dense", "advantage.k=1", "advantage.k"),  # one candidate has no standard deviation
        ("math_lco_mse", "objective.linear_margin=0.01", "objective.linear_margin"),
        ("pref_dpo", "advantage.kind=rloo", "advantage"),
    ],
)
def test_what_would_be_ignored_is_refused_by_its_key(name: str, override: str, key: str) -> None:
    with pytest.raises(UserError) as caught:
        tiny(name, override)
    assert [p.key for p in caught.value.problems] == [key] and caught.value.problems[0].remedy


def test_one_completion_has_no_standard_deviation_over_a_step() -> None:
    with pytest.raises(UserError, match="one completion"):
        tiny("math_grpo", "advantage={kind: batch}", "rollout.prompts=1", "rollout.samples=1")


def test_the_equation_of_dense_advantages_is_that_of_the_candidates() -> None:
    assert "on S, 0 outside" in tiny("math_lco_kld_dense").equation
    assert "sum_i in S" in tiny("math_lco_mse", DENSE).equation
    assert "e_a" in tiny("math_lco_kld").equation
