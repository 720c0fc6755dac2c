"""`import cvxrl` in Python: docs/notebook.md works as it is printed, and mistakes are told as elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from helpers import ROOT, SMALL_POLICY

import cvxrl

PAGE = ROOT / "docs" / "notebook.md"
# What makes the page's runs small; all else is as printed.
SHOWN = '"eval.prompts": 8}'
SMALL = f'"eval.prompts": 8, "rollout.samples": 4, "rollout.max_new_tokens": 16, "model.path": "{SMALL_POLICY}"}}'


def test_the_page_runs_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text(encoding="utf-8")
    assert text.count(SHOWN) == 1
    blocks = re.findall(r"^```python\n(.*?)^```", text.replace(SHOWN, SMALL), flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == 3
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    run = names["run"]
    assert isinstance(run, cvxrl.TrainedRun) and run.status == "finished" and run.policy.is_dir()
    assert [step for step, _ in run.series("loss")] == [1, 2] and run.accuracy == run.metrics[-1]["eval/accuracy"]
    ten_lines = re.search(r"write_text\('''\n(.*?)'''\)", blocks[2], flags=re.DOTALL)
    assert ten_lines is not None and len(ten_lines[1].splitlines()) <= 10


CELL = f"""
import cvxrl
def plain(batch):
    chosen = batch.logits_NV.log_softmax(-1).gather(-1, batch.actions_N[:, None])[:, 0]
    return -batch.advantages_N * chosen
small = {{'train.steps': 1, 'rollout.prompts': 2, 'optim.warmup_steps': 0, 'eval.every': 0}}
small |= {{'rollout.samples': 2, 'rollout.max_new_tokens': 8, 'model.path': '{SMALL_POLICY}'}}
mine = {{'kind': 'callable', 'function': '__main__:plain'}}
assert cvxrl.train('math_grpo', small | {{'objective': mine}}).status == 'finished'
"""


def test_a_function_of_the_notebook_itself_trains_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In this process, which has loaded the libraries."""
    monkeypatch.chdir(tmp_path)
    notebook = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", notebook)
    exec(CELL, notebook.__dict__)
    assert tuple(capfd.readouterr()) == ("", "")


@pytest.mark.slow
def test_a_notebook_s_own_process_says_nothing_either(tmp_path: Path) -> None:
    (tmp_path / "cell.py").write_text(CELL)
    done = subprocess.run(
        [sys.executable, "cell.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_importing_costs_no_library() -> None:
    heavy = "{'torch', 'transformers', 'numpy', 'pydantic', 'typer', 'rich'}"
    code = f"import sys, cvxrl; cvxrl.train; cvxrl.compare; assert not {heavy} & sys.modules.keys(), sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_what_is_offered_is_typed_and_listed() -> None:
    assert set(dir(cvxrl)) >= {"load_recipe", "train", "evaluate", "compare", "inspect", "UserError"}
    assert all(callable(getattr(cvxrl, name)) for name in cvxrl.__all__ if name != "__version__")
    assert (ROOT / "cvxrl" / "py.typed").is_file()
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = cvxrl.nothing_of_the_kind


def test_rooms_do_not_hide_functions() -> None:
    """The rooms of the package have other names than its functions, so importing one cannot hide the other."""
    import importlib

    for folder in (ROOT / "cvxrl").iterdir():
        if (folder / "__init__.py").is_file():
            assert folder.name not in cvxrl.__all__
            importlib.import_module(f"cvxrl.{folder.name}")
    assert callable(cvxrl.compare) and callable(cvxrl.inspect)


def test_mistakes_are_user_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(cvxrl.UserError) as caught:
        cvxrl.load_recipe("math_grpo", {"optim.lrr": 1e-3, "train.steps": -1})
    assert {problem.key for problem in caught.value.problems} == {"optim.lrr", "train.steps"}
    with pytest.raises(cvxrl.UserError, match="did you mean `math_grpo`"):
        cvxrl.train("math_grppo")
    with pytest.raises(cvxrl.UserError, match="did you mean `samples`"):
        cvxrl.evaluate("package:cvxrl/assets/base", task="arithmetic", sampels=3)
    with pytest.raises(cvxrl.UserError) as caught:
        cvxrl.inspect("./nowhere", updates=0, lanczos=1, promts=2)
    assert {problem.key for problem in caught.value.problems} == {"updates", "lanczos", "promts"}
    with pytest.raises(cvxrl.UserError, match="choose one of them"):
        cvxrl.train("math_grpo", resume=True, overwrite=True)
    with pytest.raises(cvxrl.UserError, match="give them to load_recipe"):
        cvxrl.train(cvxrl.load_recipe("math_grpo"), seed=3)
    with pytest.raises(cvxrl.UserError, match="nothing matches"):
        cvxrl.compare("nowhere/*")
    for name, what in (("math_grpo.yaml", "is a recipe"), ("plans/small.yaml", "is the plan of a study")):
        with pytest.raises(cvxrl.UserError, match=what):
            cvxrl.compare(ROOT / "recipes" / name)
    with pytest.raises(cvxrl.UserError, match="no such"):
        cvxrl.inspect("./nowhere")
    assert not list(tmp_path.iterdir())
