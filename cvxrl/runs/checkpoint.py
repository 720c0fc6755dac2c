"""Checkpoints: whole or absent, with a checksum per file."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from cvxrl.errors import Problem
from cvxrl.runs.files import remove_directory, write_directory, write_json
from cvxrl.runs.record import SCHEMA_VERSION, UnreadableError, check_version

_MANIFEST = "checksums.json"
_NAME = re.compile(r"step-(\d{6,})")


def save_checkpoint(folder: Path, step: int, fill: Callable[[Path], None]) -> Path:
    """Write `step-<n>` through ``fill``, with a manifest of checksums.

    Raises:
        StorageError: the disk is full; the checkpoints that were there still are.
    """
    target = folder / checkpoint_name(step)

    def fill_and_sum(directory: Path) -> None:
        fill(directory)
        files = sorted(p for p in directory.rglob("*") if p.is_file())
        sums = {str(p.relative_to(directory)): _sha256(p) for p in files}
        write_json(directory / _MANIFEST, {"schema_version": SCHEMA_VERSION, "files": sums})

    write_directory(target, fill_and_sum)
    return target


def prune(folder: Path, keep: int, protected: Collection[Path] = ()) -> None:
    """Remove all but the newest ``keep`` checkpoints and the ``protected`` ones."""
    for old in list_checkpoints(folder)[:-keep]:
        if old not in protected:
            remove_directory(old)


def best_checkpoint(checkpoints: Iterable[Path], accuracy: Mapping[int, float]) -> Path | None:
    """Checkpoint with the highest held-out accuracy, the earliest of equals; None if no step of theirs was evaluated.

    Args:
        checkpoints: candidates.
        accuracy: `eval/accuracy` by step.
    """
    rated = [c for c in checkpoints if accuracy.get(step_of(c)) is not None]
    return max(rated, key=lambda c: (accuracy[step_of(c)], -step_of(c)), default=None)


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    return sorted((p for p in folder.glob("step-*") if _NAME.fullmatch(p.name)), key=step_of)


def checkpoint_name(step: int) -> str:
    """Name of the checkpoint that is taken after ``step``."""
    return f"step-{step:06d}"


def step_of(checkpoint: Path) -> int:
    """Step after which a checkpoint was taken."""
    return int(checkpoint.name.removeprefix("step-"))


def newest_whole(checkpoints: Iterable[Path]) -> tuple[Path | None, list[UnreadableError]]:
    """Newest checkpoint that passes `verify_checkpoint`, and what is wrong with the newer ones.

    Args:
        checkpoints: oldest first.
    """
    refused: list[UnreadableError] = []
    for path in reversed(list(checkpoints)):
        try:
            verify_checkpoint(path)
        except UnreadableError as error:
            refused.append(error)
        else:
            return path, refused
    return None, refused


def verify_checkpoint(path: Path) -> None:
    """Compare every file with its checksum.

    Raises:
        UnreadableError: another version of cvxrl wrote it, or a file is missing or differs.
    """
    try:
        manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise _damaged(path, _MANIFEST) from None
    check_version(manifest, path)
    expected = manifest.get("files")
    if not isinstance(expected, dict):
        raise _damaged(path, _MANIFEST)
    for name, digest in expected.items():
        file = path / name
        try:
            whole = file.is_file() and _sha256(file) == digest
        except OSError:
            whole = False
        if not whole:
            raise _damaged(path, name)


def _damaged(path: Path, name: str) -> UnreadableError:
    return UnreadableError(
        Problem(f"the checkpoint is damaged: `{name}`", file=str(path), remedy="delete it to use an older one")
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
