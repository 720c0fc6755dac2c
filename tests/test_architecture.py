"""docs/architecture.md shows the package as it is: its diagram, and the files of a step."""

from __future__ import annotations

import importlib.util
import re
from typing import Any

import pytest
from helpers import ROOT
from PIL import Image

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
MOST_FILES = 32


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("architecture", ROOT / "docs" / "architecture.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_diagram_is_of_these_imports(script: Any) -> None:
    with Image.open(script.FIGURE) as figure:
        shown = figure.info.get("Description")
    assert shown == script.fingerprint(), "draw it anew: python docs/architecture.py"


def test_an_arrow_is_left_out_only_for_a_longer_way(script: Any) -> None:
    every = {("a", "b"), ("b", "c"), ("a", "c"), ("a", "d"), ("c", "d"), ("e", "d")}
    assert script.direct(every) == {("a", "b"), ("b", "c"), ("c", "d"), ("e", "d")}


def test_a_step_runs_through_the_files_that_the_page_names(script: Any) -> None:
    table = PAGE.split("## A step's way")[1].split("\n## ")[0]
    named = re.findall(r"^\| `cvxrl/([\w/]+\.py)` \|", table, re.MULTILINE)
    walked = list(script.walk())
    assert sorted(named) == sorted(walked)
    assert len(walked) <= MOST_FILES and f"That is {len(walked)} files" in table
