"""Recipes of the paper's scale: every one loads and says what it is, and a method is a few lines of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import ROOT

from cvxrl.recipe.digest import digest
from cvxrl.recipe.engine import VllmSpec
from cvxrl.recipe.lco import LcoSpec
from cvxrl.recipe.load import dump, load_recipe

PAPER = ROOT / "recipes" / "paper"
ALL = sorted(file.stem for file in PAPER.glob("*.yaml"))
MODELS = {
    "qwen25_3b": "Qwen/Qwen2.5-3B",
    "qwen25_7b": "Qwen/Qwen2.5-7B",
    "llama31_8b": "meta-llama/Llama-3.1-8B-Instruct",
}
METHODS = ("lco_kld", "lco_kld_paper", "lco_mse", "lco_lch", "grpo", "ppo", "dapo")


def test_every_method_is_there_on_every_model() -> None:
    assert sorted(f"{model}_{method}" for model in MODELS for method in METHODS) == ALL


@pytest.mark.parametrize("name", ALL)
def test_a_recipe_is_its_model_and_its_method(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(f"paper/{name}")
    model = next(model for model in MODELS if name.startswith(model))
    method = name.removeprefix(f"{model}_")
    assert recipe.name == name and recipe.model.path == MODELS[model]
    assert recipe.model.dtype == "bfloat16" and recipe.optim.master_weights
    assert recipe.train.loss == "chunked" and recipe.train.gradient_checkpointing and recipe.train.device == "cuda"
    assert isinstance(recipe.rollout.engine, VllmSpec) and recipe.placement.shard == "full"
    objective, advantage = recipe.objective, recipe.advantage.kind
    if isinstance(objective, LcoSpec):
        assert objective.kind == method.removesuffix("_paper").replace("_", "-")
        assert (objective.shift == "drift-free") == (method == "lco_kld")
        assert objective.negative_beta_scale == 1 and objective.target == "frozen" and recipe.optim.lr == 1e-5
    else:
        assert objective.kind == "grpo" and recipe.optim.lr == 1e-6
        assert (objective.clip_high == 0.28, recipe.rollout.rounds) == (method == "dapo", 3 if method == "dapo" else 1)
    assert advantage == ("gae" if method == "ppo" else "group")
    # Compared at equal cost: as many replies, used as often.
    assert (recipe.sequences_per_step, recipe.train.minibatches) == (3072, 12)
    text = (PAPER / f"{name}.yaml").read_text()
    assert f"Reduction: `{recipe.reduction}`" in text and text.count("\n") < 8
    monkeypatch.chdir(tmp_path)
    written = tmp_path / "again.yaml"
    written.write_text(dump(recipe))
    assert digest(load_recipe(written)) == digest(recipe)


def test_every_number_of_a_part_is_the_authors_ours_or_a_guess() -> None:
    for part in (PAPER / "parts").glob("*.yaml"):
        header = part.read_text()
        assert any(f"{word}:" in header or f"{word}," in header for word in ("Authors", "Guess", "Ours")), part
