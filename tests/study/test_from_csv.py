"""A study from its CSV alone, and a study of which cells are missing."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from made_studies import PLAN, write_run

from cvxrl.comparison.plan import Job
from cvxrl.recipe.digest import digest
from cvxrl.recipe.load import load_recipe
from cvxrl.study.cells import Cell
from cvxrl.study.choices import write_choices
from cvxrl.study.collected import Found, choose_from, collect
from cvxrl.study.directories import plan_cells, read_cells
from cvxrl.study.plan import load_study
from cvxrl.study.runs_csv import to_csv

# Four methods' worth of cells in a second: a diverging cell, a grid of values, and a control at the chosen value.
SMALL = (
    PLAN.replace("  twice: {set: {train.inner_epochs: 2}, values: [1.0e-3]}\n", "")
    .replace("seeds: 100-101", "seeds: 100-101, by: mean")
    .replace(
        "rules:",
        """grids:
  map: {methods: [grpo], values: [1.0e-4, 3.0e-3], seeds: 0-1}
  noisy: {methods: [lco], multiples: [1], seeds: 0-1}
rules:""",
    )
)


def some_diverge(job: Job) -> Any:
    return "diverged" if "=0.004" in job.out.name and "grpo" in job.path.parts else "finished"


def document(text: str) -> Any:
    """Without the one thing that differs: where a run was read."""
    return json.loads(text.replace("outputs/mine/", ""))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a plan, all of its runs, and their CSV."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "plan.yaml").write_text(SMALL)
    study = load_study(folder / "plan.yaml")

    def find(cells: Sequence[Cell]) -> Found:
        planned = plan_cells(study, folder / "plan.yaml", cells, folder / "outputs")
        for _, plan in planned:
            for job in plan.jobs:
                write_run(job, some_diverge(job))
        return read_cells(planned)

    chosen, whole = choose_from(study, find)
    assert whole
    write_choices(folder / "outputs/mine/choices.json", study, chosen)
    (folder / "runs.csv").write_text(to_csv(study, collect(study, chosen, find).every, folder / "outputs/mine"))
    return folder


@pytest.fixture
def whole(made: Path, study: Any, tmp_path: Path) -> Path:
    """The same in the folder of a test, without the runs."""
    for name in ("plan.yaml", "runs.csv"):
        shutil.copy(made / name, tmp_path)
    return made


def rows(tmp_path: Path) -> list[dict[str, str]]:
    csv.field_size_limit(2**31 - 1)
    with (tmp_path / "runs.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def write(tmp_path: Path, changed: list[dict[str, str]]) -> None:
    with (tmp_path / "runs.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(changed[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(changed)


def test_every_number_comes_back_bit_for_bit_without_the_runs(whole: Path, study: Any, tmp_path: Path) -> None:
    shutil.copytree(whole / "outputs", tmp_path / "outputs")
    from_runs = study("--md", "runs.md", "--json", "--csv", "of_runs.csv", "--tex", "runs.tex")
    assert from_runs.code == 0 and study.trained == [], from_runs.err
    before = (tmp_path / "of_runs.csv").read_bytes()
    assert before == (tmp_path / "runs.csv").read_bytes()
    shutil.rmtree(tmp_path / "outputs")
    again = study("--from", "runs.csv", "--json", "--csv", "again.csv", "--md", "csv.md", "--tex", "csv.tex")
    assert again.code == 0, again.err
    assert document(again.out) == document(from_runs.out)
    assert study.trained == [] and not (tmp_path / "outputs").exists()
    assert (tmp_path / "again.csv").read_bytes() == before
    pages = [(tmp_path / name).read_text().split("```\n", 2)[2] for name in ("runs.md", "csv.md")]
    papers = [(tmp_path / name).read_text().partition("\n")[2] for name in ("runs.tex", "csv.tex")]
    assert papers[0] == papers[1] and "once, at the chosen optim.lr: Final" in papers[0]
    assert papers[0].count(r"\begin{table}") == 1, "of the only regime"
    assert pages[0] == pages[1] and "### Verdict: lco is better" in pages[0] and "Which one?" in pages[0]


def test_a_row_per_run_of_all_stages(whole: Path, tmp_path: Path) -> None:
    found = rows(tmp_path)
    stages = [row["stage"] for row in found]
    assert {stage: stages.count(stage) for stage in stages} == {"tuning": 10, "confirmation": 12, "grids": 6}
    row = next(r for r in found if (r["stage"], r["method"], r["seed"]) == ("confirmation", "lco", "2"))
    assert row["value"] == "0.001" and row["multiple"] == "1.0" and row["settings"] == '{"objective.beta":0.5}'
    assert float(row["score"]) == pytest.approx(0.97) and float(row["error"]) == 0.03 and row["failures"] == ""
    curve = json.loads(row["evaluations"])
    assert curve["step"] == [0, 1, 2] and curve["eval/accuracy"][0] == 0.2 and curve["policy/entropy"][0] is None
    assert row["recipe.optim.lr"] == "0.001" and row["recipe.objective.kind"] == "lco-kld"
    assert row["commit"] == "c0ffee" and row["path"] == "confirmation/once/optim.lr=0.001/lco/seed-2"
    recipe = load_recipe(whole / "outputs/mine" / row["path"] / "recipe.yaml")
    assert row["digest"] == digest(recipe)
    broken = [r for r in found if r["status"] == "diverged"]
    assert [r["failures"] for r in broken] == ["diverged"] * 2 and {r["score"] for r in broken} == {"0.0"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": "7"}, "not the recipe's seed and optim.lr"),
        ({"value": "0.002"}, "not the recipe's seed and optim.lr"),
        ({"recipe.train.steps": "3"}, "have not the digest"),
        ({"status": "fine"}, "there is no status `fine`"),
        ({"evaluations": "{"}, "line 2: Expecting"),
        ({"regime": "twice"}, "not in the plan"),
        ({"stage": "grids", "grid": "map"}, "not in the plan"),
    ],
)
def test_a_row_that_was_changed_is_refused(
    change: dict[str, str], words: str, whole: Path, study: Any, tmp_path: Path
) -> None:
    found = rows(tmp_path)
    found[0] |= change
    write(tmp_path, found)
    done = study("--from", "runs.csv", "--partial")
    assert done.code == 2 and words in done.err, done.err


def test_what_is_no_csv_of_a_study_and_rows_told_twice(whole: Path, study: Any, tmp_path: Path) -> None:
    found = rows(tmp_path)
    write(tmp_path, [*found, found[3]])
    assert "line 30: is the same run as line 5" in study("--from", "runs.csv").err
    (tmp_path / "runs.csv").write_text("a,b\n1,2\n")
    done = study("--from", "runs.csv")
    assert done.code == 2 and "is no CSV of a study: it has no column stage" in done.err
    assert study("--from", "nowhere.csv").code == 2


def test_a_byte_order_mark_is_passed_over(whole: Path, study: Any, tmp_path: Path) -> None:
    file = tmp_path / "runs.csv"
    file.write_text(file.read_text(encoding="utf-8"), encoding="utf-8-sig")
    done = study("--from", "runs.csv")
    assert done.code == 0, done.err


def test_missing_rows_are_no_verdict_unless_asked_for(whole: Path, study: Any, tmp_path: Path) -> None:
    found = rows(tmp_path)
    kept = [r for r in found if not (r["stage"] == "confirmation" and r["method"] == "lco" and r["seed"] in "13")]
    write(tmp_path, [r for r in kept if r["grid"] != "map"])
    done = study("--from", "runs.csv")
    assert done.code == 2 and "7 runs have not ended" in done.err and "--partial" in done.err
    partial = study("--from", "runs.csv", "--partial", "--json")
    assert partial.code == 0, partial.err
    told = json.loads(partial.out)["study"]
    assert told["missing"] == [
        {"stage": "confirmation", "cell": "lco@once", "at": "x1", "seeds": [1, 3]},
        {"stage": "confirmation", "cell": "lco@once", "at": "x4", "seeds": [1]},
        {"stage": "grids", "cell": "grpo@once@map", "at": "0.0001", "seeds": [0, 1]},
        {"stage": "grids", "cell": "grpo@once@map", "at": "0.003", "seeds": [0, 1]},
    ]
    shown = study("--from", "runs.csv", "--partial").out
    assert "x1: seeds 1, 3" in shown and "0.003: not run" in shown and "4 of 6" not in shown


def test_a_rule_that_speaks_of_a_cell_that_was_not_run_cannot_be_told(whole: Path, study: Any, tmp_path: Path) -> None:
    rules = SMALL[SMALL.index("rules:") :]
    untold = (
        "rules:\n  - verdict: it is false\n"
        "    when: ['mean(grpo@once) > 1', 'mean(grpo@once@map[optim.lr=0.003]) > 0']\n"
        "  - verdict: not known\n    when: ['mean(grpo@once) > 0', 'headroom(lco@once, grpo@once) > 1']\n"
    )
    (tmp_path / "plan.yaml").write_text(SMALL.replace(rules, untold + rules.removeprefix("rules:\n")))
    found = rows(tmp_path)
    write(tmp_path, [r for r in found if r["grid"] != "map" and (r["method"], r["multiple"]) != ("grpo", "4.0")])
    done = study("--from", "runs.csv", "--partial")
    # The first rule is false whatever the missing cells hold; the second may hold, so nothing after it can be told.
    assert "Verdict: cannot be told" in done.out and "not run" in done.out
    held = json.loads(study("--from", "runs.csv", "--partial", "--json").out)["study"]["rules"]
    assert [r["unfinished"] for r in held[0]["requirements"]] == [[], ["grpo@once@map[optim.lr=0.003]"]]
    assert held[1]["requirements"][1]["unfinished"] == ["grpo@once"] and held[2]["requirements"][0]["met"]


def test_the_choices_of_a_file_hold_and_others_are_named(whole: Path, study: Any, tmp_path: Path) -> None:
    file = tmp_path / "chosen.json"
    shutil.copy(whole / "outputs/mine/choices.json", file)
    every = rows(tmp_path)
    write(tmp_path, [r for r in every if r["stage"] != "tuning"])
    assert "runs of the tuning stage are missing" in study("--from", "runs.csv").err
    assert study("--from", "runs.csv", "--choices", "chosen.json").code == 0
    for reads in (("--from", "runs.csv"), ("--partial",)):
        absent = study(*reads, "--choices", "chosn.json", "--stage", "tuning")
        assert absent.code == 2 and "chosn.json: --choices: no such file" in absent.err
        assert f"--stage: trains a stage, where {reads[0]} trains nothing" in absent.err
    both = study("--from", "runs.csv", "--dry-run")
    assert both.code == 2 and "--dry-run: says what training takes, where --from reads runs" in both.err
    write(tmp_path, [r for r in every if r["stage"] != "confirmation"])
    file.write_text(
        file.read_text().replace('"value":0.001', '"value":0.0001', 1).replace('"value": 0.001', '"value": 0.0001', 1)
    )
    other = study("--from", "runs.csv", "--choices", "chosen.json", "--partial")
    assert "warning: grpo@once: 0.0001 was chosen, these runs would choose 0.001" in other.err


def test_run_directories_are_judged_in_part_without_training(whole: Path, study: Any, tmp_path: Path) -> None:
    runs = tmp_path / "outputs/mine"
    shutil.copytree(whole / "outputs/mine", runs)
    shutil.rmtree(runs / "grids")
    shutil.rmtree(runs / "confirmation/once/optim.lr=0.001/lco/seed-2")
    record = runs / "confirmation/once/optim.lr=0.001/lco/seed-1/run.json"
    record.write_text(record.read_text().replace('"finished"', '"interrupted"'))
    done = study("--partial")
    assert done.code == 0 and study.trained == [] and "x1: seeds 1, 2" in done.out and "x1: not run" in done.out
    shutil.rmtree(runs / "confirmation")
    early = study("--partial", "--csv", "tuned.csv")
    assert early.code == 3 and "no run has ended that the rules" in early.err and study.trained == []
    assert "x4: not run" in early.out and "largest" not in early.out  # two values have no middle
    assert (tmp_path / "tuned.csv").read_text().count("\ntuning,") == 10
