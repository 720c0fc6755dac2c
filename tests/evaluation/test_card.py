"""The model card: metadata that the Hub accepts, numbers with their errors; what somebody wrote is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from helpers import ROOT, SHIPPED_POLICY, SilentSink, tiny
from huggingface_hub import ModelCard

from cvxrl.engine.session import run_training
from cvxrl.evaluation.card import Card, evaluations, model_card
from cvxrl.recipe.digest import digest
from cvxrl.recipe.load import load_recipe
from cvxrl.runs.directory import RunDir


def test_a_finished_run_has_a_card_that_the_hub_reads(tmp_path: Path) -> None:
    recipe, run = tiny("math_lco_kld", SHIPPED_POLICY, "seed=3", "eval.prompts=6"), RunDir(tmp_path / "run")
    assert run_training(recipe, run, SilentSink(), "new").status == "finished"
    text = (run.policy / "README.md").read_text()
    card = ModelCard(text)
    last = json.loads(run.metrics.read_text().splitlines()[-1])
    (result,) = card.data.eval_results
    assert result.metric_value == pytest.approx(last["eval/accuracy"], abs=1e-6)
    assert card.data.license == "apache-2.0" and card.data.base_model is None
    assert {"cvxrl", "reinforcement-learning", "lco-kld"} <= set(card.data.tags)
    assert "math_lco_kld, seed 3" in text and recipe.equation in text and digest(recipe) in text
    assert f"| {last['eval/accuracy']:.3f} | {last['eval/stderr']:.3f} |" in text and "| 6 x 2 |" in text
    assert "eprint = {2603.00963}" in text and "eprint = {2402.03300}" in text
    found = text.partition("```yaml\n")[2].partition("```")[0]
    (tmp_path / "again.yaml").write_text(found)
    assert digest(load_recipe(tmp_path / "again.yaml")) == digest(recipe)
    assert str(tmp_path) not in text and model_card(run, recipe) == text, "the same bytes wherever it is written"


def stored(run: RunDir, name: str, accuracy: float, checkpoint: str, step: int = 2, **of: object) -> None:
    """An evaluation of `cvxrl eval`, from the run's own after a step."""
    record = json.loads(run.evaluation(step).read_text())
    record["step"], record["results"]["accuracy"]["value"] = None, accuracy
    record["checkpoint"] |= {"policy": checkpoint, **of}
    (run.path / "evals" / name).mkdir()
    (run.path / "evals" / name / "EVAL.json").write_text(json.dumps(record))


def test_an_evaluation_brings_the_card_up_to_date_unless_it_was_edited(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    small = ("eval.every=1", "checkpoint.final=true")
    run_training(tiny("math_grpo", *small, "train.steps=1"), run, SilentSink(), "new")
    stored(run, "when-shorter", 0.8765, "run/policy", step=1)
    recipe = tiny("math_grpo", *small, "train.steps=2")
    run_training(recipe, run, SilentSink(), "resume")
    file = run.policy / "README.md"
    assert "when-shorter" not in file.read_text(), "another policy, of the run as long as it was then"
    card = Card(run, recipe)
    stored(run, "mine", 0.4321, "run/policy")
    stored(run, "earlier", 0.9876, "run/checkpoints/step-000001")
    stored(run, "stranger", 0.8765, "other/policy", recipe=None, sha256="f" * 64)
    stored(run, "copied", 0.4321, "copy/policy", recipe=None)
    stored(run, "halved", 0.4321, "run/policy", dtype="bfloat16", sha256="f" * 64)
    card.refresh()
    text = file.read_text()
    assert "| mine | 0.432 |" in text and "0.988" not in text and "0.876" not in text
    names = [r.dataset_name for r in ModelCard(text).data.eval_results]
    assert names == ["carrying-sums (held out)", "copied", "halved", "mine"], "by the recipe, or by the weights"
    file.write_text(text + "\nBy hand.\n")
    card = Card(run, recipe)
    stored(run, "other", 0.5, "run/policy")
    card.refresh()
    assert file.read_text().endswith("By hand.\n") and "other" not in file.read_text()


def test_an_evaluation_of_version_0_1_is_told() -> None:
    run = RunDir(ROOT / "tests/fixtures/v01/runs/tiny_grpo/seed-0")
    assert [name for name, _ in evaluations(run, load_recipe(run.recipe))] == ["arithmetic (held out)", "sums"]


def test_the_base_and_its_licence_are_told_where_they_are_known(tmp_path: Path) -> None:
    def front(path: str) -> dict[str, object]:
        recipe = tiny("math_grpo", f"model.path={path}")
        return dict(yaml.safe_load(model_card(RunDir(tmp_path / "none"), recipe).split("---")[1]))

    local = tmp_path / "weights"
    local.mkdir()
    assert "base_model" not in front(str(local)) and "license" not in front(str(local))
    (local / "README.md").write_text("---\nlicense: mit\n---\n")
    assert front(str(local))["license"] == "mit"
    assert front("some-owner/some-model")["base_model"] == "some-owner/some-model"
    assert "license" not in front("some-owner/some-model"), "not known, so not claimed"
    assert "None is stored." in model_card(RunDir(tmp_path / "none"), tiny("math_grpo"))
