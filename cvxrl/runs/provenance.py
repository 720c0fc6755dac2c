"""Where a number came from: code, versions, machine. Nothing from the environment, which may hold secrets."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

from pydantic import BaseModel

from cvxrl.ranks import this_rank

_PACKAGES = (
    "cvxrl",
    "torch",
    "transformers",
    "datasets",
    "tokenizers",
    "numpy",
    "pydantic",
    "math-verify",
    "reasoning-gym",
)


class Provenance(BaseModel):
    """Code state, versions and machine of a run.

    Attributes:
        commit: git commit of the package's checkout, or None outside one.
        dirty_diff: SHA-256 of the uncommitted changes, or None if there are none.
        versions: installed versions of python and the packages that matter.
        machine: processor architecture, core count, operating system and GPU names; of several ranks, their number.
    """

    commit: str | None
    dirty_diff: str | None
    versions: dict[str, str]
    machine: dict[str, str]


def collect_provenance(devices: str, threads: int) -> Provenance:
    """Look at the checkout, the installed packages and the machine.

    Args:
        devices: what the run computes on, e.g. `cpu` or a GPU's name.
        threads: processor threads that a sum is split over.
    """
    commit = _git("rev-parse", "HEAD")
    diff = uncommitted_changes() if commit else None
    rank = this_rank()
    return Provenance(
        commit=commit,
        dirty_diff=hashlib.sha256(diff.encode()).hexdigest() if diff else None,
        versions={"python": platform.python_version(), **_versions()},
        machine={
            "system": platform.system(),
            "architecture": platform.machine(),
            "cores": str(os.cpu_count()),
            "device": devices,
            "threads": str(threads),
            **({"ranks": str(rank.size)} if rank is not None and rank.size > 1 else {}),
        },
    )


def changes(then: Provenance, now: Provenance) -> dict[str, tuple[str | None, str | None]]:
    """What differs between two sessions of a run: name -> (then, now). Any of it can change the last bits of a sum."""
    left, right = _flat(then), _flat(now)
    names = sorted({*left, *right})
    return {name: (left.get(name), right.get(name)) for name in names if left.get(name) != right.get(name)}


def _flat(provenance: Provenance) -> dict[str, str | None]:
    code = {"commit": provenance.commit, "uncommitted changes": provenance.dirty_diff}
    return {**code, **provenance.versions, **provenance.machine}


def uncommitted_changes() -> str:
    """Diff of the package's checkout against its last commit; empty outside a checkout."""
    return _git("diff", "HEAD") or ""


@cache
def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _git(*arguments: str) -> str | None:
    """Output of a git command in the package's checkout; None where there is no git or no checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
