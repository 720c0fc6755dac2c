"""A study as a file: what is run in which order, what is chosen, what blocks a verdict, and what the rule says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT
from made_studies import PLAN

from cvxrl.errors import UserError
from cvxrl.recipe.load import load_recipe
from cvxrl.study.cells import grids, tuning
from cvxrl.study.choices import Choice, read_choices
from cvxrl.study.directories import plan_cells
from cvxrl.study.plan import load_study


def test_it_tunes_tries_alternatives_confirms_on_fresh_seeds_and_judges(study: Any, tmp_path: Path) -> None:
    done = study("--json")
    assert done.code == 0, done.err
    first, second, third = study.trained
    assert {job.seed for job in (*first, *second)} == {100, 101} and {job.seed for job in third} == {0, 1, 2, 3}
    assert [len(first), len(second), len(third)] == [2 * (2 + 2 + 1 + 1), 2 * 2, 4 * (4 + 2)]
    document = json.loads(done.out)
    chosen = document["study"]["chosen"]
    assert {label: (c["value"], c["settings"]) for label, c in chosen.items()} == {
        "grpo@once": (1e-3, {}),
        "lco@once": (1e-3, {"objective.beta": 0.5}),
        "grpo@twice": (1e-3, {}),
        "lco@twice": (1e-3, {"objective.beta": 0.5}),
    }
    assert list(chosen["lco@once"]["scores"]) == ["0.0001", "0.001", "0.001, alternative 1"]
    assert document["study"]["verdict"] == "lco is better"
    assert {p["label"]: p["verdict"] for p in document["best"]["once"]["comparisons"]} == {"lco@once": "better"}
    assert document["best"]["twice"]["comparisons"][0]["baseline"] == "grpo@twice"
    assert {m["method"] for m in document["sweep"]["methods"]} == set(chosen)
    again = study("--json")
    assert json.loads(again.out) == document and study.trained == []  # nothing is trained or chosen twice


def test_tables_fit_and_name_the_verdict(study: Any) -> None:
    done = study()
    assert done.code == 0 and max(map(len, done.out.splitlines())) <= 80
    assert "Which one?" in done.out and "Verdict: lco is better" in done.out and "alternative 1: " in done.out


def test_regimes_may_have_a_task_each(study: Any, tmp_path: Path) -> None:
    """Rules compare within a regime; what differs between regimes is looked up side by side."""
    tasks = "  once: {set: {task.source.terms: [3, 4]}}\n  twice: {set: {task.source.terms: [5, 6]}}"
    (tmp_path / "plan.yaml").write_text(
        PLAN.replace("  once: {}\n  twice: {set: {train.inner_epochs: 2}, values: [1.0e-3]}", tasks)
    )
    done = study("--json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert document["study"]["verdict"] == "lco is better"
    assert {m["method"] for m in document["sweep"]["methods"]} == {
        f"{m}@{r}" for m in ("grpo", "lco") for r in ("once", "twice")
    }
    own = tmp_path / "outputs/mine/confirmation/once/optim.lr=0.001/lco/seed-3/run.json"
    own.write_text(own.read_text().replace("task [3, 4]", "task [9, 9]").replace("task (3, 4)", "task (9, 9)"))
    refused = study()
    assert refused.code == 2 and "another task than" in refused.err, "within a regime there is one"


def test_nothing_is_judged_before_every_run_has_ended(study: Any, tmp_path: Path) -> None:
    stopped = study(status="interrupted")
    assert stopped.code == 3 and "unfinished: 40 runs have not ended, so nothing is chosen yet" in stopped.err
    assert not (tmp_path / "outputs/mine/choices.json").exists()
    finished = study()
    assert finished.code == 0 and len(study.trained[0]) == 12 and all(job.resume for job in study.trained[0])


def test_a_confirmatory_run_that_has_not_ended_blocks_the_verdict(study: Any, tmp_path: Path) -> None:
    assert study().code == 0
    record = tmp_path / "outputs/mine/confirmation/once/optim.lr=0.001/lco/seed-3/run.json"
    record.write_text(record.read_text().replace('"finished"', '"interrupted"'))
    done = study(status="interrupted")
    assert done.code == 3 and "unfinished: 1 run has not ended" in done.err
    assert "Verdict" not in done.out and len(study.trained[0]) == 1
    assert "Verdict" in study().out


def test_a_plan_that_changed_after_its_values_were_chosen_is_refused(study: Any, tmp_path: Path) -> None:
    assert study().code == 0
    (tmp_path / "plan.yaml").write_text(PLAN.replace("failures(lco@once) == 0", "failures(lco@once) <= 1"))
    done = study()
    assert done.code == 2 and "the plan has changed since its values were chosen" in done.err


def test_what_the_plan_decides_cannot_be_given_beside_it(study: Any) -> None:
    done = study("--seeds", "0-4", "--set", "optim.lr=1", "--require", "mean(a) > 1", "--baseline", "lco")
    assert done.code == 2 and study.trained == []
    for option in ("--seeds", "--set", "--require", "--baseline"):
        assert f"{option}: is decided by the plan" in done.err


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("seeds: 100-101", "seeds: 3-5", "seed 3 was used to choose the value"),
        ("{1: 0-3, 4: 0-1}", "{4: 0-1}", "1 is among them"),
        ("{1: 0-3, 4: 0-1}", "{1: 3-0}", "runs backwards"),
        ("diff(lco@once", "diff(lco@one", "there is no lco@one"),
        ("failures(lco@once) == 0", "failures(lco@once)", "expected one of <"),
        ("recipe: math_grpo", "recipe: math_grp", "did you mean `math_grpo`"),
        ("question: Which one?", "qestion: Which one?", "did you mean `question`"),
        ("objective.beta: 0.5", "objective.betta: 0.5", "objective.betta"),
        ("{values: [1.0e-4, 1.0e-3], s", "{values: [1.234567e-4], s", "tuning.values: 0.0001234567 has more than six"),
        ("values: [1.0e-3]}", "values: [1234567]}", "regimes.twice.values: 1234567.0 has more than six digits"),
    ],
)
def test_a_wrong_plan_is_refused_before_anything_is_trained(
    old: str, new: str, words: str, study: Any, tmp_path: Path
) -> None:
    (tmp_path / "plan.yaml").write_text(PLAN.replace(old, new, 1))
    done = study()
    assert done.code == 2 and words in done.err, done.err
    assert not [job for jobs in study.trained for job in jobs if "alternative" in str(job.out)]


@pytest.mark.parametrize("name", ["small", "stability"])
def test_the_plans_that_ship_are_whole(name: str) -> None:
    file = ROOT / "recipes/plans" / f"{name}.yaml"
    plan = load_study(file)
    assert plan.name == name and file.read_text().startswith("# ")
    for cell in tuning(plan):
        assert plan_cells(plan, file, [cell], Path("nowhere"))[0][1].jobs
    with pytest.raises(UserError):
        load_recipe(file)


@pytest.mark.parametrize(
    "file", sorted((ROOT / "recipes" / "plans").glob("*.choices.json")), ids=lambda file: file.name
)
def test_choices_that_ship_belong_to_their_plan(file: Path) -> None:
    study = load_study(file.with_name(file.name.replace(".choices.json", ".yaml")))
    chosen = read_choices(file, study)
    assert chosen is not None and set(chosen) == set(study.labels)


def test_the_plan_on_the_page_is_one(tmp_path: Path) -> None:
    page = (ROOT / "docs/compare.md").read_text()
    (shown,) = [block.split("```")[0] for block in page.split("```yaml\n")[1:] if "\ngrids:" in block.split("```")[0]]
    stages = "tuning: {values: [1.0e-3], seeds: 100}\nconfirmation: {seeds: {1: 0-1}}\nregimes: {reuse: {}}\n"
    (tmp_path / "plan.yaml").write_text(f"study: 1\nname: shown\nquestion: Which?\n{stages}{shown}")
    study = load_study(tmp_path / "plan.yaml")
    chosen = {"grpo@reuse": Choice(value=1e-3, settings={}, scores={})}
    planned = plan_cells(study, tmp_path / "plan.yaml", grids(study, chosen), tmp_path)
    made = {cell.grid: plan.planned[0].recipe for cell, plan in planned}
    assert made["map"].step.kind == "line-search" and made["coins"].task.reward.noise.kind == "coin"
    assert [cell.place for cell, _ in planned] == ["0.0003", "0.003", "0.03", "x1"]
