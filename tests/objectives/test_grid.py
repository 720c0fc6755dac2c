"""Advantage x objective x reduction are independent axes: every combination loads, or is refused with a reason."""

from __future__ import annotations

from itertools import product

import pytest
from helpers import ROOT, SMALL_POLICY, quick_if, tiny

from cvxrl.engine.trainer import Trainer
from cvxrl.errors import UserError
from cvxrl.objectives.registry import OBJECTIVES as REGISTERED
from cvxrl.recipe.advantage import AdvantageSpec
from cvxrl.recipe.base import kind_of, section_classes
from cvxrl.recipe.load import load_recipe
from cvxrl.recipe.objective import ObjectiveSpec

BASE = str(SMALL_POLICY)
PATHS = {
    "dense-logprob": {"verifier": BASE},
    "dense-dpo": {"verifier": BASE, "reference": BASE},
}
OBJECTIVES = sorted({kind_of(c) for c in section_classes(ObjectiveSpec)} - {"callable"})
ADVANTAGES = sorted({kind_of(c) for c in section_classes(AdvantageSpec)} - {"callable"})
REDUCTIONS = ["token-mean", "sequence-mean", "constant"]
OF_SEQUENCES = {"gspo", "tpo", "pmd", "rebel", "gvpo"}
OF_TOKENS = {"gae", "dense-logprob", "dense-dpo"}


def chosen(objective: str, advantage: str, reduction: str) -> tuple[str, ...]:
    paths = ", ".join(f"{key}: '{path}'" for key, path in PATHS.get(advantage, {}).items())
    return (
        f"objective={{kind: {objective}}}",
        f"advantage={{kind: {advantage}{', ' if paths else ''}{paths}}}",
        f"reduction={reduction}",
    )


def test_objective_kinds_registry_and_docs_agree() -> None:
    kinds = {kind_of(c) for c in section_classes(ObjectiveSpec)}
    assert kinds == {*REGISTERED, "callable"}
    text = (ROOT / "docs" / "method.md").read_text()
    assert not [kind for kind in kinds if f"`{kind}`" not in text]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_combination_loads_or_is_refused_with_a_reason(objective: str) -> None:
    for advantage, reduction in product(ADVANTAGES, REDUCTIONS):
        overrides = chosen(objective, advantage, reduction)
        unrewarded = objective in ("sft", "dpo", "qrm") and advantage != "group"  # the default, which is not read
        meaningless = unrewarded or (objective in OF_SEQUENCES and advantage in OF_TOKENS)
        try:
            load_recipe(ROOT / "recipes" / "math_base.yaml", overrides)
            assert not meaningless, overrides
        except UserError as refused:
            assert meaningless, overrides
            (problem,) = refused.problems
            assert problem.key.startswith("advantage") and problem.remedy
            assert ("not from rewards" if unrewarded else "one per response") in problem.message


RUN = ["lco-kld", "lco-mse", "lco-lch", "grpo", "cispo", "awr", "dro"]
RUN_BY = ["batch", "gae", "dense-logprob"]


@pytest.mark.parametrize(
    ("objective", "advantage"),
    quick_if(lambda o, a: RUN.index(o) % 3 == RUN_BY.index(a), product(RUN, RUN_BY)),
)
def test_what_loads_runs(objective: str, advantage: str) -> None:
    trainer = Trainer.build(tiny("math_base", *chosen(objective, advantage, "constant")))
    record = trainer.updater.update(trainer.collector.collect(1).sequences, 1)
    assert record["grad/norm"] > 0
