"""Adding to the package touches the files that docs/architecture.md names, and works; done in a copy."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from additions import ADDITIONS
from helpers import ROOT, TINY

# Tests of the copy that meet what was added, those that were written for it among them.
MEETING = (
    "tests/test_added.py",
    "tests/objectives/test_grid.py::test_objective_kinds_registry_and_docs_agree",
    "tests/test_advantages.py::test_hand_computed",
    "tests/objectives/test_objective_references.py::test_no_objective_is_left_out",
    "tests/objectives/test_objective_references.py::test_value_and_gradient_by_hand",
    "tests/objectives/test_linear_objectives.py::test_equal_for_any_head",
    "tests/runs/test_sinks.py::test_a_counting_sink",
    "tests/runs/test_sinks.py::test_every_kind_of_sink_has_its_class",
    "tests/comparison/test_compare_page.py::test_seeds_are_counted",
    "tests/comparison/test_compare_page.py::test_every_figure_is_in_the_documentation",
    "tests/tasks/test_tasks.py::test_counting_up",
    "tests/tasks/test_tasks.py::test_every_kind_of_source_is_found_by_its_name",
    "tests/recipe/test_recipes.py",
)
WORDS = "bounded or sign or added or agree or left_out or hand_computed or counting or counted or every_ or current"
# One run with everything, and a comparison that shows it.
ADDED = f"""
import json
from pathlib import Path
from typing import Any

ALL = ("advantage={{kind: sign}}", "task.source={{kind: counting-up}}", "logging.sinks=[{{kind: count}}]", *{TINY!r})


def test_all_of_it_at_once(cvxrl: Any) -> None:
    sets = [part for text in ALL for part in ("--set", text)]
    assert cvxrl("train", "math_bounded", "--out", "outputs", *sets).code == 0
    (run,) = Path("outputs").glob("*/seed-0")
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert (run / "steps.txt").read_text() == "3" == str(len(records))
    assert all("bounded/size" in record for record in records[1:])
    assert {{record["advantage/max"] for record in records[1:]}} <= {{0.0, 1.0}}
    assert "an interval needs 2" in cvxrl("compare", "outputs", "--figures", "figures").err
    assert Path("figures", "seeds.png").is_file()
"""


def test_the_page_names_the_files_that_are_touched() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page.split("## Where to add")[1].split("\n## ")[0]
    rows = {row[1]: row for row in re.findall(r"^(\| ([^|]+?) \| (\d+) \+ (\d+) \|.*)$", table, re.MULTILINE)}
    assert set(rows) == set(ADDITIONS)
    for what, edits in ADDITIONS.items():
        line, _, files, tests = rows[what]
        touched = {edit.path for edit in edits}
        assert set(re.findall(r"`([\w/]+\.\w+)`", line)) == touched, what
        of_tests = {path for path in touched if path.startswith("tests/")}
        assert (int(files), int(tests)) == (len(touched - of_tests), len(of_tests)), what


@pytest.mark.parametrize("what", ADDITIONS)
def test_every_addition_has_its_place(what: str) -> None:
    texts: dict[str, str | None] = {}
    for edit in ADDITIONS[what]:
        file = ROOT / edit.path
        before = texts.get(edit.path, file.read_text(encoding="utf-8") if file.exists() else None)
        texts[edit.path] = edit.applied(before)
    for path, text in texts.items():
        if path.endswith(".py"):
            ast.parse(text or "")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout with everything added."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("cvxrl", "docs", "recipes", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "v01", "figures/*.png"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    for edits in ADDITIONS.values():
        for edit in edits:
            edit.apply(copy)
    (copy / "tests" / "test_added.py").write_text(ADDED, encoding="utf-8")
    (copy / "docs" / "recipe.md").write_text(run(copy, "-m", "cvxrl.recipe.reference"), encoding="utf-8")
    return copy


def run(checkout: Path, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=checkout, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_what_is_added_works_and_is_tested(checkout: Path) -> None:
    said = run(
        checkout,
        "-m",
        "pytest",
        *("-n", "0", "-p", "no:cacheprovider", "-m", "slow or not slow", "-k"),
        WORDS,
        *MEETING,
    )
    assert "passed" in said and "skipped" not in said
