"""Where a policy's files are, without loading them (and without importing torch)."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from cvxrl.errors import Problem, UserError
from cvxrl.recipe.model import ModelSpec

PACKAGE_PREFIX = "package:"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class Location:
    """A directory or Hub id, and the GGUF file inside it if there is one."""

    path: str
    gguf_file: str | None
    is_local: bool


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds a LoRA adapter instead of a whole policy."""
    return (directory / ADAPTER_CONFIG).is_file()


def locate(spec: ModelSpec) -> Location:
    """Resolve `model.path` to a local directory or a Hub id.

    Raises:
        UserError: a package is not installed, or a local path does not exist.
    """
    assert spec.path is not None, "a scratch policy has no location"
    path = _package_path(spec.path) if spec.path.startswith(PACKAGE_PREFIX) else Path(os.path.expanduser(spec.path))
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(_missing(spec.path, "no such file"))
        return Location(str(path.parent), path.name, True)
    if path.is_dir():
        return Location(str(path), spec.gguf_file, True)
    if _looks_local(spec.path):
        raise UserError(_missing(spec.path, "no such directory"))
    return Location(spec.path, spec.gguf_file, False)


def _package_path(path: str) -> Path:
    """Turn `package:NAME/FILE` into a file of the installed package NAME."""
    name, _, inside = path.removeprefix(PACKAGE_PREFIX).partition("/")
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        found = None
    if found is None or not found.submodule_search_locations:
        remedy = "install the package that ships this policy, or check the name after `package:`"
        raise UserError(Problem(f"there is no installed package `{name}`", "model.path", remedy=remedy))
    root = Path(next(iter(found.submodule_search_locations))).resolve()
    target = (root / inside).resolve()
    if not target.is_relative_to(root):
        raise UserError(_missing(path, "the path leaves the package"))
    if not target.exists():
        raise UserError(_missing(path, f"package `{name}` has no file `{inside}`"))
    return target


def _looks_local(path: str) -> bool:
    """A Hub id is `name` or `owner/name`; anything else can only be meant as a path."""
    return path.startswith((".", "/", "~")) or path.count("/") > 1 or path.endswith("/")


def _missing(path: str, why: str) -> Problem:
    return Problem(
        f"cannot find the policy `{path}`: {why}",
        "model.path",
        remedy="give a Hugging Face directory, a Hub id, or package:NAME/DIR",
    )
