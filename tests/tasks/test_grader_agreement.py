"""The benchmark that counts agreement reads test cases as text, and runs none of them."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

SCRIPT = ROOT / "benchmarks" / "grader_agreement.py"
CASES = """
import pytest
raise SystemExit("never run")

@pytest.mark.parametrize("gold, pred, expected", [("$5$", "$5.0$", 1), ("$5$", "six or 6", 0), (f"{1}", "1", 1)])
def test_numbers(gold, pred, expected): ...

@pytest.mark.parametrize("gold,pred,strict,expected", [("$f(x)$", "$f(y)$", False, 1), ("$x$", "$x$", True, 0)])
def test_strict(gold, pred, strict, expected): ...

@pytest.mark.parametrize("pred", [("a",)])
def test_others(pred): ...
"""


def test_cases_are_read_and_graded(tmp_path: Path) -> None:
    pytest.importorskip("math_verify")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_some.py").write_text(CASES)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path), "--json"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    whole, boxed = json.loads(done.stdout)
    assert [(v["gold"], v["reply"], v["right"], v["ours"]) for v in whole] == [
        ("$5$", "$5.0$", True, True),
        ("$5$", "six or 6", False, False),
        ("$x$", "$x$", False, True),
    ]
    assert [v["reply"] for v in boxed] == [r"\boxed{5.0}", r"\boxed{x}"]


def test_a_folder_without_cases_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("grader_agreement", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "grader_agreement", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", ["grader_agreement", str(tmp_path)])
    with pytest.raises(SystemExit, match="no test cases below"):
        module.main()
