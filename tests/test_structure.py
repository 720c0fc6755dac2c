"""The shape of the code: imports point one way, functions and modules stay small, the unions stay complete."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from helpers import ROOT

from cvxrl.objectives.registry import OBJECTIVES
from cvxrl.recipe.base import kind_of, section_classes
from cvxrl.recipe.objective import ObjectiveSpec

PACKAGE = ROOT / "cvxrl"
MODULES = sorted(PACKAGE.rglob("*.py"))
# A room may import from itself and from rooms with a smaller number.
FLOOR = {
    "errors": 0,
    "stats": 0,
    "imports": 1,
    "recipe": 1,
    "objectives": 2,
    "tasks": 2,
    "runs": 2,
    "policy": 2,
    "advantages": 2,
    "report": 3,
    "gradients": 3,
    "rollout": 3,
    "compare": 4,
    "evaluation": 4,
    "engine": 5,
    "inspection": 6,
    "commands": 7,
    "cli": 8,
    "__main__": 9,
}


def room(module: Path) -> str:
    return module.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("module", MODULES, ids=lambda m: str(m.relative_to(PACKAGE)))
def test_imports_point_down(module: Path) -> None:
    here = room(module)
    if here == "__init__":
        return
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("cvxrl."):
            there = node.module.split(".")[1]
            assert there == here or FLOOR[there] < FLOOR[here], f"{module} imports {node.module}"


def test_gradients_are_mathematics() -> None:
    """A tighter rule than the floors: tensors, objectives and their specs, nothing that loads, samples or writes."""
    modules = [module for module in MODULES if room(module) == "gradients"]
    assert len(modules) > 5
    for module in modules:
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("cvxrl."):
                assert node.module.split(".")[1] in {"gradients", "objectives", "recipe", "stats"}, (
                    f"{module}: {node.module}"
                )


@pytest.mark.parametrize("module", MODULES, ids=lambda m: str(m.relative_to(PACKAGE)))
def test_nothing_grows_too_large(module: Path) -> None:
    text = module.read_text()
    assert text.count("\n") <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno + 1 <= 60, f"{module}: {node.name}"


def test_objective_tags_registry_and_docs_agree() -> None:
    tags = {kind_of(c) for c in section_classes(ObjectiveSpec)}
    assert tags == {*OBJECTIVES, "callable"}
    text = (ROOT / "docs" / "method.md").read_text()
    assert all(f"`{tag}`" in text for tag in tags)
