"""Recipes by their names: found anywhere, listed with what they are, and refused with the nearest one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT

from cvxrl.comparison.sources import discover
from cvxrl.errors import UserError
from cvxrl.evaluation.source import find_task
from cvxrl.inspection.objectives import select_objectives
from cvxrl.recipe.load import load_recipe
from cvxrl.recipe.shipped import find_recipe, headline, shipped_recipes


def test_the_recipes_of_the_checkout_are_those_that_ship() -> None:
    folder = ROOT / "recipes"
    assert set(shipped_recipes().values()) == {*folder.glob("*.yaml"), *(folder / "paper").glob("*.yaml")}
    assert find_recipe("math_grpo") == folder / "math_grpo.yaml"


def test_a_recipe_of_the_paper_s_scale_is_found_with_its_folder_and_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = ROOT / "recipes" / "paper" / "qwen25_3b_grpo.yaml"
    monkeypatch.chdir(tmp_path)
    for given in ("paper/qwen25_3b_grpo", "qwen25_3b_grpo"):
        assert find_recipe(given) == file and load_recipe(given).name == "qwen25_3b_grpo"
        assert discover([given]).recipes == [file]
        assert find_task(given, None).name == "qwen25_3b_grpo"
        mine = tmp_path / "mine.yaml"
        mine.write_text(f"extends: {given}\nname: mine\n")
        assert load_recipe(mine).model.path == "Qwen/Qwen2.5-3B"
    for wrong in ("paper/qwen25_3b_grp", "paper/math_grpo"):
        with pytest.raises(UserError, match=f"there is no recipe `{wrong}`"):
            load_recipe(wrong)


def test_a_path_stays_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for given in ("math_grpo.yaml", "folder/math_grpo", Path("math_grpo.yml")):
        assert find_recipe(given) == Path(given)
    (tmp_path / "smoke").write_text("name: mine\n")
    assert find_recipe("smoke") == Path("smoke"), "a file that exists"


def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(UserError, match="did you mean `math_grpo`") as refused:
        load_recipe("math_grp")
    assert all(name in str(refused.value) for name in shipped_recipes())


def test_extends_takes_a_name_and_prefers_the_file_beside(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("extends: math_ppo\nname: mine\n")
    assert load_recipe(mine).advantage.kind == "gae"
    (tmp_path / "math_ppo").write_text("extends: math_rloo\n")
    assert load_recipe(mine).advantage.kind == "rloo"
    mine.write_text("extends: math_pp\nname: mine\n")
    with pytest.raises(UserError, match=r"extends: no such file.*\n.*did you mean `math_ppo`"):
        load_recipe(mine)


def test_every_command_takes_a_name() -> None:
    assert find_task("math_grpo", None).name == "math_grpo"
    assert discover(["math_grpo", "math_ppo"]).recipes == [shipped_recipes()[n] for n in ("math_grpo", "math_ppo")]
    entered = select_objectives(["grpo", "math_lco_mse"], load_recipe("math_grpo"), False)
    assert [contestant.recipe.objective.kind for contestant in entered] == ["grpo", "lco-mse"]


def test_help_and_list_show_what_there_is_in_80_columns(cvxrl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    every = shipped_recipes()
    few = {name: file for name, file in every.items() if file.parent.name != "paper"}
    for shown, recipes in ((cvxrl("train", "--help"), few), (cvxrl("train", "--list"), every)):
        assert shown.code == 0
        lines = shown.out.splitlines()
        assert max(map(len, lines)) <= 80
        for name, file in recipes.items():
            assert headline(file) and any(line.split() == [name, *headline(file).split()] for line in lines), name
    kinds = {line.split()[0] for line in lines if line.startswith("   ")}
    assert {"lco-kld", "grpo", "qrm", "group", "gae", "dense-dpo"} <= kinds
