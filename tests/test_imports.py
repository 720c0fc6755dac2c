"""What importing costs and how it is written. The direction of imports is checked in test_structure.py."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib

import pytest
from helpers import ROOT

PACKAGE = ROOT / "cvxrl"
HEAVY = {"torch", "transformers", "datasets", "numpy", "matplotlib", "reasoning_gym", "math_verify"}


def hidden_imports(source: str) -> list[str]:
    """Imports of our own code written in a way that the check of their direction would not see."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [f"import {a.name}" for a in node.names if a.name.split(".")[0] == "cvxrl"]
        elif isinstance(node, ast.ImportFrom) and node.level:
            found.append(f"from {'.' * node.level}{node.module or ''} import ...")
        elif isinstance(node, ast.ImportFrom) and node.module == "cvxrl":
            found += [f"from cvxrl import {a.name}" for a in node.names if a.name != "__version__"]
    return found


@pytest.mark.parametrize(
    "source", ["import cvxrl.cli", "from . import cli", "from ..cli import app", "from cvxrl import cli"]
)
def test_hidden_imports_are_found(source: str) -> None:
    assert len(hidden_imports(source)) == 1


@pytest.mark.parametrize("source", ["import torch", "from cvxrl import __version__", "from cvxrl.cli import app"])
def test_plain_imports_are_not(source: str) -> None:
    assert not hidden_imports(source)


def test_our_own_code_is_imported_in_one_form() -> None:
    hidden = {str(path.relative_to(ROOT)): hidden_imports(path.read_text()) for path in PACKAGE.rglob("*.py")}
    assert len(hidden) > 40
    assert not {path: found for path, found in hidden.items() if found}


# Standard modules that Windows lacks.
POSIX = {"fcntl", "resource", "termios", "tty", "pty", "pwd", "grp", "syslog"}


def unguarded_posix(source: str) -> list[str]:
    """Imports of modules that Windows lacks: outside of a function, or without a way on where there is none."""
    tree = ast.parse(source)
    inside = {n for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    guarded = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.Try) and any("ImportError" in ast.dump(h.type) for h in block.handlers if h.type)
        for statement in block.body
        for node in ast.walk(statement)
    }
    found = []
    for node in ast.walk(tree):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [name for name in names if name in POSIX and not (node in inside and node in guarded)]
    return found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import fcntl", ["fcntl"]),
        ("from resource import getrlimit", ["resource"]),
        ("try:\n    import fcntl\nexcept ImportError:\n    fcntl = None", ["fcntl"]),
        ("def f():\n    import resource", ["resource"]),
        ("def f():\n    try:\n        import resource\n    except (ImportError, OSError):\n        return", []),
    ],
)
def test_the_check_for_portability_finds(source: str, found: list[str]) -> None:
    assert unguarded_posix(source) == found


def test_the_package_can_be_imported_where_there_is_no_posix() -> None:
    texts = {str(path.relative_to(ROOT)): path.read_text() for path in PACKAGE.rglob("*.py")}
    named = {path: text for path, text in texts.items() if re.search(rf"\b({'|'.join(POSIX)})\b", text)}
    assert named, "the rest need not be parsed"
    found = {path: unguarded_posix(text) for path, text in named.items()}
    assert not {path: names for path, names in found.items() if names}


def loaded(code: str) -> set[str]:
    """Heavy libraries in memory after running ``code`` in a fresh interpreter."""
    probe = f"import sys\n{code}\nprint('loaded:', *({HEAVY!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split()[1:])


def modules(folder: str) -> list[str]:
    """Dotted names of the modules in a room."""
    files = sorted((PACKAGE / folder).rglob("*.py"))
    return [".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for f in files]


def test_every_recipe_module_is_light() -> None:
    names = [*modules("recipe"), "cvxrl.errors"]
    assert len(names) > 5
    assert loaded("import " + ", ".join(names)) == set()


def test_help_is_light() -> None:
    code = (
        "import cvxrl.cli, typer.testing\n"
        "shown = typer.testing.CliRunner().invoke(cvxrl.cli.app, ['train', '--help'])\n"
        "assert shown.exit_code == 0, shown.output"
    )
    assert loaded(code) == set()


def test_the_probe_sees_a_heavy_library() -> None:
    assert loaded("import cvxrl.report.curves") >= {"matplotlib", "numpy"}


@pytest.mark.slow
def test_training_starts_without_a_plotting_library_and_with_its_libraries_out_of_the_collectors_sight() -> None:
    code = (
        "import gc\n"
        "from cvxrl.imports import loading_libraries\n"
        "with loading_libraries():\n"
        "    import cvxrl.engine.session\n"
        "    assert not gc.isenabled()\n"
        "assert gc.isenabled() and gc.get_freeze_count() > 100_000 > len(gc.get_objects())\n"
        "frozen = gc.get_freeze_count()\n"
        "with loading_libraries():\n"
        "    waste = [[]]\n"
        "    waste.append(waste)\n"
        "assert gc.isenabled() and gc.get_freeze_count() <= frozen, 'only what lives for good is frozen'"
    )
    assert {"torch", "transformers"} <= loaded(code) <= HEAVY - {"matplotlib", "datasets", "math_verify"}


def test_the_embedded_policy_is_small_and_in_the_package() -> None:
    folder = PACKAGE / "assets" / "base"
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 5_000_000


def test_dependencies_are_bounded_below_and_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {line.split("==")[0].lower().replace("_", "-") for line in lines if line and not line.startswith("#")}
    # Those of another environment, with versions of torch and transformers of its own, are bounded on both sides.
    here = [items for name, items in project["optional-dependencies"].items() if not name.startswith("vllm")]
    extras = [item for items in here for item in items if "cvxrl[" not in item]
    for requirement in [*project["dependencies"], *extras]:
        name, bound = requirement.split(">=")
        assert bound and name.split("[")[0].lower().replace("_", "-") in pins, requirement
    assert "torch==2.13.0" in lines


def test_the_readme_holds_the_two_commands() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert "pip install -c constraints.txt -e . && cvxrl train recipes/math_grpo.yaml" in lines
    assert 'pip install -c constraints.txt -e ".[test]" && pytest' in lines
