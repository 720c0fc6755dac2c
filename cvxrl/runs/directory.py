"""A run directory: its paths, and the rules for entering an existing one."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cvxrl.errors import Problem, UserError
from cvxrl.recipe.load import differences, dump, load_recipe
from cvxrl.recipe.schema import Recipe
from cvxrl.runs.files import write_text
from cvxrl.runs.record import RunRecord

Entry = Literal["new", "resume", "overwrite"]


@dataclass(frozen=True)
class RunDir:
    """`<out>/<recipe name>/seed-<n>/` and every path in it."""

    path: Path

    @classmethod
    def of(cls, out: Path, recipe: Recipe) -> RunDir:
        """Directory of a recipe and its seed under an output folder."""
        return cls(out / recipe.name / f"seed-{recipe.seed}")

    @property
    def recipe(self) -> Path:
        """Resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def record(self) -> Path:
        """Status and provenance."""
        return self.path / "run.json"

    @property
    def metrics(self) -> Path:
        """One JSON object per step."""
        return self.path / "metrics.jsonl"

    @property
    def log(self) -> Path:
        """Traceback of a crash."""
        return self.path / "run.log"

    @property
    def policy(self) -> Path:
        """Final policy."""
        return self.path / "policy"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def curves(self) -> Path:
        """Picture of the learning curves."""
        return self.path / "report" / "curves.png"

    def evaluation(self, step: int) -> Path:
        """Counts and per-sample 0/1 of an evaluation."""
        return self.path / "evals" / f"step-{step:06d}.json"

    def samples(self, step: int) -> Path:
        """Readable completions of an evaluation."""
        return self.path / "rollouts" / f"step-{step:06d}.jsonl"

    def read_record(self) -> RunRecord:
        """Parsed run.json."""
        return RunRecord.model_validate_json(self.record.read_text(encoding="utf-8"))

    def check(self, recipe: Recipe, entry: Entry) -> None:
        """Refuse what `enter` could not do, without writing anything that stays.

        Raises:
            UserError: the directory exists, belongs to another recipe, or cannot be written.
        """
        if self.path.exists() and not self._is_run():
            if self.path.is_dir() and not any(self.path.iterdir()):
                return
            raise UserError(
                Problem("exists and is not a run directory", file=str(self.path), remedy="choose another --out")
            )
        if self._is_run() and entry == "new":
            raise UserError(
                Problem(
                    "this run exists already",
                    file=str(self.path),
                    remedy="--resume to go on, --overwrite to start again, --seed or --out for another run",
                )
            )
        if entry == "resume":
            self._check_same_recipe(recipe)
        self._check_writable()

    def enter(self, recipe: Recipe, entry: Entry) -> None:
        """Make the directory, or empty it (`overwrite`), and write the resolved recipe."""
        if entry == "overwrite" and self._is_run():
            shutil.rmtree(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.recipe, dump(recipe))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes out; the operating system frees the lock when this process ends, however it ends.

        Raises:
            UserError: another process is training here.
        """
        with (self.path / ".lock").open("a+", encoding="utf-8") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                stream.seek(0)
                holder = stream.read().strip() or "another process"
                raise UserError(
                    Problem(f"in use by {holder}", file=str(self.path), remedy="wait for it or stop it")
                ) from None
            stream.truncate(0)
            stream.write(f"process {os.getpid()} on {os.uname().nodename}")
            stream.flush()
            yield

    def _is_run(self) -> bool:
        return self.recipe.is_file() or self.record.is_file()

    def _check_same_recipe(self, recipe: Recipe) -> None:
        if not self.recipe.is_file():
            raise UserError(
                Problem("there is no run to resume", file=str(self.path), remedy="start it without --resume")
            )
        changed = differences(load_recipe(self.recipe), recipe)
        if changed:
            raise UserError(
                *(
                    Problem(f"was {old!r}, is now {new!r}", key, str(self.recipe), "resume needs the same recipe")
                    for key, old, new in changed
                )
            )

    def _check_writable(self) -> None:
        nearest = next(p for p in (self.path, *self.path.parents) if p.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
            raise UserError(Problem("cannot write here", file=str(nearest), remedy="choose another --out"))
