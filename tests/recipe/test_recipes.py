"""Every shipped recipe: parses without torch, and two small steps run and write what they promise."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, SHIPPED_POLICY, SilentSink, tiny

from cvxrl.engine.plan import describe
from cvxrl.engine.session import run_training
from cvxrl.recipe.digest import digest
from cvxrl.recipe.load import dump, load_recipe
from cvxrl.recipe.reference import reference
from cvxrl.runs.directory import RunDir

ALL = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
# The same engine as the recipe that they extend, with other numbers; loaded and planned here, run where there is time.
VARIED = ("reuse_", "stale_", "sgd_", "flip_", "coin_", "authors_", "paper_")
# One of each way through the engine; the others differ from these in their loss, which has tests of its own.
QUICK = ("math_grpo", "math_ppo", "math_lco_kld_dense", "pref_dpo", "base_sft")
DRAWN = "math_grpo"  # which takes longer than the run
RUNNABLE = [
    pytest.param(
        name,
        marks=[
            *([] if name in QUICK else [pytest.mark.slow]),
            *([] if name in QUICK and name != DRAWN else [pytest.mark.figures]),
        ],
    )
    for name in ALL
    if not name.startswith("smollm2")
]


@pytest.mark.parametrize("name", ALL)
def test_recipe_round_trips(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml")
    assert recipe.name == name
    header = [line for line in (ROOT / "recipes" / f"{name}.yaml").read_text().splitlines()[:2] if line[:2] == "# "]
    assert len(header) == 2, "a recipe's header says what it is and what to expect"
    assert "EXPECT" not in (ROOT / "recipes" / f"{name}.yaml").read_text(), "what to expect is not written yet"
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


@pytest.mark.parametrize("name", [name for name in ALL if name.startswith(VARIED)])
def test_a_regime_is_what_its_name_says_and_can_be_planned(name: str) -> None:
    recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml")
    plan, train, noise = describe(recipe), recipe.train, recipe.task.reward.noise
    updates, regime = train.inner_epochs * train.minibatches, name.split("_")[0]
    assert plan.memory_bytes and plan.optimizer_steps == updates * train.steps
    assert (noise.kind if noise.kind != "none" else regime) == regime
    assert (updates >= 64 and recipe.rollout.lag > 0) == (regime == "stale")
    assert (recipe.optim.kind == "sgd") == (regime == "sgd")
    match regime:
        case "reuse" | "sgd":
            assert (train.inner_epochs, train.minibatches) == (4, 4)
        case "authors":
            assert updates == recipe.sequences_per_step == 1536 and recipe.optim.max_grad_norm is None
            assert train.reset_optimizer and (recipe.task.reward.correct, recipe.task.reward.incorrect) == (1.0, -1.0)  # type: ignore[union-attr]
        case "paper":
            assert (recipe.sequences_per_step, updates, train.steps) == (6, 100, 1) and recipe.logging.updates


@pytest.mark.parametrize("name", RUNNABLE)
def test_two_steps(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    changes = ["train.minibatches=2"] if name.startswith(VARIED) else []
    if name == "paper_gradnorm":  # two prompts, cooled: the small policy would say the same to each every time
        changes.append(SHIPPED_POLICY)
    recipe = tiny(name, *changes)
    run_dir = RunDir.of(tmp_path, recipe)
    assert run_training(recipe, run_dir, SilentSink(), "new").status == "finished"
    records = [json.loads(line) for line in run_dir.metrics.read_text().splitlines()]
    assert [r["step"] for r in records] == [0, 1, 2]
    assert records[-1]["grad/norm"] > 0 and records[-1]["grad/norm_clipped"] <= (recipe.optim.max_grad_norm or math.inf)
    if request.node.get_closest_marker("figures"):
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
