"""Run commands as a plain install would: with the package's own requirements, theirs, and nothing else to import.

As a script: `python plain_install.py FILE`, a JSON file with `dependencies` and `commands` (argument lists of `cvxrl`).
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]


def dependencies() -> list[str]:
    """What the checkout's pyproject.toml requires, extras left out."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return list(project["dependencies"])


def required(texts: Iterable[str]) -> set[str]:
    """Names of the distributions that requirements bring along, with what those require in turn.

    What no installed distribution has (another platform's, another python's) is left out.
    """
    found: set[tuple[str, str]] = set()
    waiting = [Requirement(text) for text in texts]
    while waiting:
        wanted = waiting.pop()
        for extra in ("", *wanted.extras):
            key = (canonicalize_name(wanted.name), extra)
            if key in found:
                continue
            try:
                theirs = importlib.metadata.requires(wanted.name) or []
            except importlib.metadata.PackageNotFoundError:
                break
            found.add(key)
            for each in map(Requirement, theirs):
                if each.marker is None or each.marker.evaluate({"extra": extra}):
                    waiting.append(each)
    return {name for name, _ in found}


class PlainFinder:
    """The path finder, blind to modules and metadata of all distributions but some."""

    def __init__(self, kept: set[str]) -> None:
        owners = importlib.metadata.packages_distributions()
        self.kept = {*kept, "cvxrl"}
        self.hidden = {
            module for module, names in owners.items() if not self.kept & {canonicalize_name(name) for name in names}
        }

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        hidden = name.partition(".")[0] in self.hidden
        return None if hidden else PathFinder.find_spec(name, path, target)

    def find_distributions(self, context: Any) -> Iterator[importlib.metadata.Distribution]:
        for found in PathFinder.find_distributions(context):
            if canonicalize_name(found.metadata["Name"]) in self.kept:
                yield found

    def invalidate_caches(self) -> None:
        PathFinder.invalidate_caches()


def main(file: Path) -> None:
    """Take the place of the path finder, then run the commands; the first that fails ends it."""
    asked = json.loads(file.read_text())
    kept = required(asked["dependencies"])
    sys.path.remove(str(ROOT / "tests"))
    sys.meta_path = [PlainFinder(kept) if finder is PathFinder else finder for finder in sys.meta_path]
    from cvxrl.cli import main as cvxrl

    for words in asked["commands"]:
        sys.argv = ["cvxrl", *words]
        try:
            cvxrl()
        except SystemExit as end:
            if end.code:
                raise
    from transformers import AutoModelForCausalLM

    for policy in asked["policies"]:
        print(type(AutoModelForCausalLM.from_pretrained(policy)).__name__)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
