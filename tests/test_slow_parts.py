"""The slow set is run in parts, each by a command of CONTRIBUTING.md: every slow test is in one of them, and in one."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from helpers import ROOT

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PARTS = [shlex.split(line)[3:] for line in re.findall(r"^pytest -m slow tests/.+$", PAGE, re.MULTILINE)]
IGNORED = "--ignore="
# As a mark of a test, of a module, or of one case of many.
MARK = re.compile(r"\bmark\.slow\b|\bquick_if\(")


def within(name: str, path: str) -> bool:
    """Whether a test, or a file, is below a path."""
    return name == path or name.startswith((f"{path}/", f"{path}::", f"{path}["))


def parts_of(name: str, parts: Sequence[Sequence[str]]) -> list[int]:
    """Numbers of the parts that run a test."""
    found = []
    for number, words in enumerate(parts):
        ignored = [word.removeprefix(IGNORED) for word in words if word.startswith(IGNORED)]
        named = [word for word in words if not word.startswith("-")]
        if any(within(name, path) for path in named) and not any(within(name, path) for path in ignored):
            found.append(number)
    return found


def test_every_slow_test_is_in_one_part(slow_tests: list[str]) -> None:
    files = [path for path in (ROOT / "tests").rglob("test_*.py") if MARK.search(path.read_text(encoding="utf-8"))]
    names = [*slow_tests, *(str(path.relative_to(ROOT)) for path in files)]
    assert len(files) > 30
    assert {name: found for name in names if len(found := parts_of(name, PARTS)) != 1} == {}


def test_every_part_is_there_and_is_run_by_nothing_but_its_paths() -> None:
    assert len(PARTS) > 3
    for words in PARTS:
        for word in words:
            assert (ROOT / word.removeprefix(IGNORED)).exists(), word


def test_a_test_in_no_part_or_in_two_is_found() -> None:
    parts = [["tests/a", "--ignore=tests/a/test_y.py"], ["tests/a/test_y.py", "tests/test_x.py"], ["tests/a/test_z.py"]]
    found = {
        "tests/a/test_x.py::test_it[1]": [0],
        "tests/a/test_y.py::test_it": [1],
        "tests/test_x.py::test_it": [1],
        "tests/a/test_z.py::test_it": [0, 2],
        "tests/ab/test_x.py::test_it": [],
        "tests/test_x.pyc": [],
    }
    assert {name: parts_of(name, parts) for name in found} == found
