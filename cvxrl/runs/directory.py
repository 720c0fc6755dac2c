"""A run directory: its paths, and the rules for entering an existing one."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cvxrl.errors import Problem, UserError
from cvxrl.recipe.digest import differences
from cvxrl.recipe.load import dump, load_recipe
from cvxrl.recipe.schema import Recipe
from cvxrl.runs.files import mend, remove_directory, write_text
from cvxrl.runs.lock import LOCK_FILE, is_held, lock, refuse_if_held
from cvxrl.runs.record import RunRecord, read_run_record
from cvxrl.runs.storage import storage_errors

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
        """Final policy, whole."""
        return self.path / "policy"

    @property
    def adapter(self) -> Path:
        """Final adapter, where one was trained."""
        return self.path / "adapter"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def curves(self) -> Path:
        """Picture of the learning curves."""
        return self.path / "report" / "curves.png"

    @property
    def diff(self) -> Path:
        """Uncommitted changes of the package's checkout when the run began; empty where there were none."""
        return self.path / "uncommitted.diff"

    def divergence(self, step: int) -> Path:
        """The batch at which a run stopped making sense, sequence by sequence."""
        return self.path / "rollouts" / f"diverged-{step:06d}.jsonl"

    def evaluation(self, step: int) -> Path:
        """Counts and per-sample 0/1 of an evaluation."""
        return self.path / "evals" / f"step-{step:06d}.json"

    def samples(self, step: int) -> Path:
        """Readable completions of an evaluation."""
        return self.path / "rollouts" / f"step-{step:06d}.jsonl"

    def read_record(self) -> RunRecord:
        """Parsed run.json.

        Raises:
            FileNotFoundError: there is none.
            UnreadableError: it is damaged, or another version of cvxrl wrote it.
        """
        return read_run_record(self.record)

    def is_finished(self) -> bool:
        """Whether a run ended here with all its steps done and its policy written."""
        return self.record.is_file() and self.policy.is_dir() and self.read_record().status == "finished"

    def is_active(self) -> bool:
        """Whether a process trains here now. A run whose status is `running` without one was killed."""
        return is_held(self.path)

    def check(self, recipe: Recipe, entry: Entry) -> None:
        """Refuse what `enter` could not do, without writing anything that stays.

        Raises:
            UserError: the directory is in use, exists, belongs to another recipe, or cannot be written.
        """
        refuse_if_held(self.path)
        self._check_entry(recipe, entry)
        self._check_writable()

    def lock(self) -> AbstractContextManager[bool]:
        """Make the directory and keep other processes out of it for the length of the block; see `lock`.

        Raises:
            UserError: another process trains here, or the directory cannot be made.
        """
        with storage_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        return lock(self.path)

    def enter(self, recipe: Recipe, entry: Entry) -> None:
        """Prepare the locked directory: mend it (`resume`), empty it (`overwrite`), write the resolved recipe.

        Raises:
            UserError: another process has changed the directory since `check`, or it cannot be written.
        """
        self._check_entry(recipe, entry)
        if entry == "resume":
            mend(self.path)
            return
        if entry == "overwrite":
            self._clear()
        write_text(self.recipe, dump(recipe))

    def _clear(self) -> None:
        """Remove a run. Killed half-way it is still one that can be resumed or overwritten: recipe.yaml goes last."""
        first, last = (self.record, self.checkpoints), (LOCK_FILE, self.recipe.name)
        with storage_errors(self.path):
            rest = [p for p in self.path.iterdir() if p.name not in last and p not in first]
            for entry in (*first, *rest, self.recipe):
                if entry.is_dir() and not entry.is_symlink():
                    remove_directory(entry)
                else:
                    entry.unlink(missing_ok=True)

    def _check_entry(self, recipe: Recipe, entry: Entry) -> None:
        if self.path.exists() and not self._is_run():
            if self.path.is_dir() and all(p.name.startswith(".") for p in self.path.iterdir()):
                if entry == "resume":
                    raise self._nothing_to_resume()
                return  # empty, but for what a killed process left
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

    def _is_run(self) -> bool:
        return self.recipe.is_file() or self.record.is_file()

    def _check_same_recipe(self, recipe: Recipe) -> None:
        if not self.recipe.is_file():
            raise self._nothing_to_resume()
        changed = differences(load_recipe(self.recipe), recipe)
        if changed:
            raise UserError(
                *(
                    Problem(f"was {old!r}, is now {new!r}", key, str(self.recipe), "resume needs the same recipe")
                    for key, old, new in changed
                )
            )

    def _nothing_to_resume(self) -> UserError:
        return UserError(Problem("there is no run to resume", file=str(self.path), remedy="start it without --resume"))

    def _check_writable(self) -> None:
        nearest = next(p for p in (self.path, *self.path.parents) if p.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
            raise UserError(Problem("cannot write here", file=str(nearest), remedy="choose another --out"))
