"""What a recipe leaves to be understood: sections given by the name of their kind, and where paths start."""

from __future__ import annotations

from pathlib import Path

import pytest

from cvxrl.errors import UserError
from cvxrl.recipe.digest import digest
from cvxrl.recipe.load import dump, load_recipe

ROWS = '{"prompt": "1 + 1", "answer": "2"}\n'
DATA = "task: {source: {kind: dataset, path: PATH, held_out: 0}}\neval: {every: 0}\n"


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("objective=lco-kld", "objective={kind: lco-kld}"),
        ("advantage=rloo", "advantage={kind: rloo}"),
        ("optim=sgd", "optim={kind: sgd}"),
        ("task.reward=exact", "task.reward={kind: exact}"),
        ("logging.sinks=[csv]", "logging.sinks=[{kind: csv}]"),
        ("logging.sinks=csv", "logging.sinks=[{kind: csv}]"),
    ],
)
def test_a_kind_stands_for_its_section(short: str, long: str) -> None:
    assert load_recipe("math_grpo", [short]) == load_recipe("math_grpo", [long])


def test_a_kind_that_is_inherited_keeps_its_other_fields() -> None:
    recipe = load_recipe("math_grpo", ["objective={kind: grpo, clip_high: 0.5}", "objective=grpo"])
    assert recipe.objective.clip_high == 0.5  # type: ignore[union-attr]


def test_an_unknown_kind_is_told_as_one() -> None:
    with pytest.raises(UserError, match=r"objective\.kind: unknown kind `lco-kdl`\n.*did you mean `lco-kld`"):
        load_recipe("math_grpo", ["objective=lco-kdl"])


def _files(folder: Path) -> None:
    (folder / "lab/data").mkdir(parents=True)
    (folder / "lab/data/rows.jsonl").write_text(ROWS)
    (folder / "lab/base.yaml").write_text("extends: math_grpo\nname: base\n" + DATA.replace("PATH", "data/rows.jsonl"))
    (folder / "lab/deep").mkdir()
    (folder / "lab/deep/more.yaml").write_text("extends: ../base.yaml\nname: more\n")


@pytest.mark.parametrize("place", [".", "lab", "lab/deep", "elsewhere"])
def test_a_path_starts_at_the_file_that_says_it(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _files(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link.yaml").symlink_to(tmp_path / "lab/deep/more.yaml")
    monkeypatch.chdir(tmp_path / place)
    for file in (tmp_path / "lab/base.yaml", tmp_path / "lab/deep/more.yaml", tmp_path / "link.yaml"):
        source = load_recipe(file).task.source
        assert Path(source.path).samefile(tmp_path / "lab/data/rows.jsonl")  # type: ignore[union-attr]


def test_a_path_on_the_command_line_starts_at_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _files(tmp_path)
    (tmp_path / "mine.jsonl").write_text(ROWS)
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("lab/base.yaml", ["task.source.path=mine.jsonl"])
    assert recipe.task.source.path == "mine.jsonl"  # type: ignore[union-attr]


def test_a_path_that_starts_at_the_wrong_folder_is_told_with_the_right_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _files(tmp_path)
    (tmp_path / "rows.jsonl").write_text(ROWS)
    (tmp_path / "lab/wrong.yaml").write_text("extends: base.yaml\nname: w\n" + DATA.replace("PATH", "rows.jsonl"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"lab/wrong.yaml: task\.source\.path: .*\n.*write \.\./rows\.jsonl"):
        load_recipe("lab/wrong.yaml")


def test_ids_packages_and_absolute_paths_stay_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lab").mkdir()
    monkeypatch.chdir(tmp_path)
    for path in ("org/model-2.5", "gpt2", "package:cvxrl/assets/base", "/somewhere/model", "~/model"):
        (tmp_path / "lab/r.yaml").write_text(f"extends: math_grpo\nname: r\nmodel: {{path: {path}}}\n")
        assert load_recipe("lab/r.yaml").model.path == path
    (tmp_path / "lab/r.yaml").write_text("extends: math_grpo\nname: r\nmodel: {path: ./model}\n")
    assert load_recipe("lab/r.yaml").model.path == "lab/model"


def test_the_recipe_that_a_run_keeps_is_as_from_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _files(tmp_path)
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("lab/base.yaml")
    run = tmp_path / "outputs/base/seed-0"
    run.mkdir(parents=True)
    (run / "run.json").write_text("{}")
    (run / "recipe.yaml").write_text(dump(recipe))
    assert digest(load_recipe(run / "recipe.yaml")) == digest(recipe)
