"""The shape of the code: imports point one way, functions and modules stay small."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from helpers import ROOT

PACKAGE = ROOT / "cvxrl"
# A room (a package, or a module beside them) may import from itself and from rooms with a smaller number. The package's
# own `__init__` offers what users import, from any room.
FLOOR = {
    "errors": 0,
    "ranks": 0,
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
    "comparison": 4,
    "evaluation": 4,
    "engine": 5,
    "study": 5,
    "inspection": 6,
    "integrations": 6,
    "api": 7,
    "commands": 7,
    "cli": 8,
    "launch": 8,
    "serve": 8,
    "__main__": 9,
}
# Tighter than its floor: tensors, objectives and their specs, nothing that loads, samples or writes.
GRADIENTS = {"gradients", "objectives", "recipe", "stats"}


def room(module: Path) -> str:
    return module.relative_to(PACKAGE).parts[0].removesuffix(".py")


@cache
def trees() -> list[tuple[Path, str, ast.Module]]:
    """Every module of the package with its text, parsed."""
    texts = ((module, module.read_text()) for module in sorted(PACKAGE.rglob("*.py")))
    return [(module, text, ast.parse(text)) for module, text in texts]


def imported_rooms(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Rooms from which a module imports, each with the module's name; test_imports.py knows no other form."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("cvxrl."):
            yield node.module.split(".")[1], node.module


def against_the_floors(module: Path, tree: ast.Module) -> list[str]:
    """The imports of one module that point up, or sideways into another room."""
    here = room(module)
    if here == "__init__":
        return []
    may = GRADIENTS if here == "gradients" else {here, *(there for there in FLOOR if FLOOR[there] < FLOOR[here])}
    return [f"{module.relative_to(ROOT)} imports {name}" for there, name in imported_rooms(tree) if there not in may]


def too_large(module: Path, text: str, tree: ast.Module) -> list[str]:
    """The module if it has more than 300 lines, and its functions of more than 60."""
    lines = text.count("\n")
    found = [f"{module.relative_to(ROOT)} has {lines} lines"] if lines > 300 else []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            found += [f"{module.relative_to(ROOT)}: {node.name} has {lines} lines"] if lines > 60 else []
    return found


def test_imports_point_down() -> None:
    rooms = {room(module) for module in PACKAGE.rglob("*.py")}
    assert {*FLOOR, "__init__"} == rooms, "FLOOR names every room, and no other"
    assert all(there == "gradients" or FLOOR[there] < FLOOR["gradients"] for there in GRADIENTS)
    up = PACKAGE / "recipe" / "x.py", ast.parse("from cvxrl.stats.a import b\nfrom cvxrl.tasks.base import Source")
    assert against_the_floors(*up) == ["cvxrl/recipe/x.py imports cvxrl.tasks.base"]
    loads = PACKAGE / "gradients" / "x.py", ast.parse("from cvxrl.policy.load import load_policy")
    assert len(against_the_floors(*loads)) == 1
    found = [line for module, _, tree in trees() for line in against_the_floors(module, tree)]
    assert not found, "\n".join(found)


def test_nothing_grows_too_large() -> None:
    long = "def f():\n" + "    x = 1\n" * 60 + "\n" * 240
    assert len(too_large(PACKAGE / "x.py", long, ast.parse(long))) == 2
    found = [line for module, text, tree in trees() for line in too_large(module, text, tree)]
    assert not found, "\n".join(found)
