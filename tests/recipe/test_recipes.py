"""Every shipped recipe: parses without torch, and two small steps run and write what they promise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, SilentSink, tiny

from cvxrl.engine.session import run_training
from cvxrl.recipe.digest import digest
from cvxrl.recipe.load import dump, load_recipe
from cvxrl.recipe.reference import reference
from cvxrl.runs.directory import RunDir

ALL = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
RUNNABLE = [name for name in ALL if not name.startswith("smollm2")]


@pytest.mark.parametrize("name", ALL)
def test_recipe_round_trips(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml")
    assert recipe.name == name
    header = [line for line in (ROOT / "recipes" / f"{name}.yaml").read_text().splitlines()[:2] if line[:2] == "# "]
    assert len(header) == 2, "a recipe's header says what it is and what to expect"
    monkeypatch.chdir(tmp_path)  # paths of a dumped recipe start at the working folder
    written = tmp_path / "again.yaml"
    written.write_text(dump(recipe))
    assert digest(load_recipe(written)) == digest(recipe)


@pytest.mark.parametrize("name", [name for name in ALL if name != "math_base"])
def test_a_header_says_which_reduction_and_whose(name: str) -> None:
    path = ROOT / "recipes" / f"{name}.yaml"
    header = " ".join(line[2:] for line in path.read_text().splitlines() if line.startswith("# "))
    assert f"Reduction: `{load_recipe(path).reduction}`" in header
    # What the paper averages over, where the recipe does otherwise.
    other = {"math_grpo": "paper's is `sequence-mean`", "math_rloo": "`constant`", "math_reinforce": "`constant`"}
    assert other.get(name, "") in header


@pytest.mark.figures
@pytest.mark.parametrize("name", RUNNABLE)
def test_two_steps(name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    recipe = tiny(name)
    run_dir = RunDir.of(tmp_path, recipe)
    assert run_training(recipe, run_dir, SilentSink(), "new").status == "finished"
    records = [json.loads(line) for line in run_dir.metrics.read_text().splitlines()]
    assert [r["step"] for r in records] == [0, 1, 2]
    assert records[-1]["grad/norm"] > 0 and records[-1]["grad/norm_clipped"] <= 1.0
    assert run_dir.curves.stat().st_size > 10_000
    questions = json.loads(run_dir.evaluation(2).read_text())["questions"]
    assert len(questions) == 4 and all(len(question["correct"]) == 2 for question in questions)
    model = AutoModelForCausalLM.from_pretrained(run_dir.policy)
    assert AutoTokenizer.from_pretrained(run_dir.policy).eos_token_id == model.config.eos_token_id


def test_loading_every_recipe_never_imports_torch() -> None:
    code = (
        "import sys; from pathlib import Path; from cvxrl.recipe.load import load_recipe; import cvxrl.cli\n"
        "[load_recipe(p) for p in Path('recipes').glob('*.yaml')]\n"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules), sorted(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_reference_page_is_current() -> None:
    assert (ROOT / "docs" / "recipe.md").read_text() == reference()
