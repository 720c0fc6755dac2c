"""What README, CONTRIBUTING and docs/ name is there: files, modules, tests, recipe keys, commands' options."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from additions import ADDITIONS
from helpers import ROOT

from cvxrl.recipe.base import section_classes
from cvxrl.recipe.schema import Recipe

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TESTS = "\n".join(path.read_text() for path in sorted((ROOT / "tests").rglob("test_*.py")))
# A path is from the checkout, or from `tests/`.
PLACES = (ROOT, ROOT / "tests")
# The reader's own files, and a setting of verl.
MADE_UP = {
    "mine.py",
    "trainer.test_freq",
    *(edit.path for edits in ADDITIONS.values() for edit in edits if edit.before is None),
}


def lacking(text: str) -> Iterator[str]:
    """What a page names and is not there."""
    for path in MADE_UP:
        text = text.replace(path, "")
    for path in re.findall(r"[\w./-]+\.py\b", text):
        if not any((place / path).is_file() for place in PLACES):
            yield path
    for path in re.findall(r"(?<![\w/.])(?:cvxrl|docs|benchmarks|tests|recipes)/[\w./*{},-]*[\w*/}]", text):
        if "{" not in path and not any(ROOT.glob(path.rstrip("/"))):
            yield path
    for link in re.findall(r"\]\(([\w./-]+)\)", text):
        if not any((place / link).is_file() for place in (ROOT, ROOT / "docs")):
            yield link
    for name in set(re.findall(r"\btest_\w+\b(?!\.py)", text)):
        if not re.search(rf"def {name}\w*\(", TESTS) and f"{name}.py" not in text:
            yield name
    for name in set(re.findall(r"\bcvxrl(?:\.\w+)+", text)):
        if not _resolves(name):
            yield name
    for key in set(re.findall(r"--set (?!section\.key)([\w.]+)=|`((?:rollout|train|optim|logging)\.\w+)[`:]", text)):
        if not _is_key("".join(key).split(".")):
            yield "".join(key)


def _resolves(name: str) -> bool:
    """Whether a dotted name is a module, or a name in one."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = import_module(".".join(parts[:count]))
        except ImportError:
            continue
        for part in parts[count:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


def _is_key(key: list[str]) -> bool:
    sections = [Recipe]
    for part in key:
        fields = [s.model_fields[part] for s in sections if part in s.model_fields]
        if not fields:
            return False
        sections = [inner for field in fields for inner in section_classes(field.annotation)]  # type: ignore[misc]
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_is_there(page: Path) -> None:
    assert list(lacking(page.read_text(encoding="utf-8"))) == []


def test_what_is_not_there_is_found() -> None:
    text = """`cvxrl/gone.py`, engine/test_gone.py, [page](gone.md), cvxrl.engine.gone, cvxrl.engine.loss.Lost,
    test_that_is_gone, --set optim.rate=1, `rollout.bach`, recipes/gone.yaml
    and `cvxrl/engine/loss.py`, engine/test_engine.py, [page](recipe.md), cvxrl.engine.loss.Loss, --set optim.lr=1"""
    assert set(lacking(text)) == {
        *("cvxrl/gone.py", "engine/test_gone.py", "gone.md", "cvxrl.engine.gone", "cvxrl.engine.loss.Lost"),
        *("test_that_is_gone", "optim.rate", "rollout.bach", "recipes/gone.yaml"),
    }
