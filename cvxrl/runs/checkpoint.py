"""Checkpoints: whole or absent, with a checksum per file."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from cvxrl.errors import Problem, UserError
from cvxrl.runs.files import write_directory, write_json

_MANIFEST = "checksums.json"


def save_checkpoint(folder: Path, step: int, keep: int, fill: Callable[[Path], None]) -> Path:
    """Write `step-<n>` through ``fill``, then remove all but the newest ``keep``."""
    target = folder / f"step-{step:06d}"

    def fill_and_sum(directory: Path) -> None:
        fill(directory)
        write_json(directory / _MANIFEST, {p.name: _sha256(p) for p in sorted(directory.iterdir())})

    write_directory(target, fill_and_sum)
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    return sorted(folder.glob("step-*")) if folder.is_dir() else []


def verify_checkpoint(path: Path) -> None:
    """Compare every file with its checksum.

    Raises:
        UserError: a file is missing or differs.
    """
    try:
        expected: dict[str, str] = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        expected = {_MANIFEST: ""}
    for name, digest in expected.items():
        file = path / name
        if not file.is_file() or _sha256(file) != digest:
            raise UserError(
                Problem(f"the checkpoint is damaged: `{name}`", file=str(path), remedy="delete it to use an older one")
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
