"""A run directory: its paths, and the rules for entering an existing one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from cvxrl.errors import Problem, UserError
from cvxrl.recipe.amendment import amendments
from cvxrl.recipe.load import dump, load_recipe
from cvxrl.recipe.schema import Recipe
from cvxrl.runs.checkpoint import list_checkpoints, step_of
from cvxrl.runs.entry import LOCK_FILE, Entry, Found, is_held, lock, refuse_if_held, require_writable
from cvxrl.runs.files import mend, remove_directory, storage_errors, write_text
from cvxrl.runs.jsonl import read_what_is_whole
from cvxrl.runs.record import STREAMS, RunRecord, read_run_record

_WAIT = "wait for it or stop it, or choose another --out or --seed"


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
    def updates(self) -> Path:
        """One JSON object per optimizer step; there only if `logging.updates` asks for it."""
        return self.path / "updates.jsonl"

    @property
    def log(self) -> Path:
        """Traceback of a crash."""
        return self.path / "run.log"

    @property
    def grader_log(self) -> Path:
        """What processes that grade printed; there only if they did."""
        return self.path / "grader.log"

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
    def completions(self) -> Path:
        """Page of readable completions."""
        return self.path / "report" / "completions.html"

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

    def training_samples(self, step: int) -> Path:
        """Readable completions that a step trained on."""
        return self.path / "rollouts" / f"train-{step:06d}.jsonl"

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

    def is_complete(self, recipe: Recipe) -> bool:
        """Whether a run ended here with all the steps of a recipe done and recorded, and its policy written."""
        records = read_what_is_whole(self.metrics) if self.is_finished() else []
        return bool(records) and int(records[-1]["step"]) == recipe.train.steps

    def is_active(self) -> bool:
        """Whether a process trains here now. A run whose status is `running` without one was killed."""
        return is_held(self.path)

    def check(self, recipe: Recipe, entry: Entry) -> None:
        """Refuse what `enter` could not do, without writing anything that stays.

        Raises:
            UserError: the directory is in use, exists, belongs to another recipe, or cannot be written.
        """
        refuse_if_held(self.path, _WAIT)
        self._check_entry(recipe, entry)
        require_writable(self.path)

    def lock(self) -> AbstractContextManager[bool]:
        """Make the directory and keep other processes out of it for the length of the block; see `lock`.

        Raises:
            UserError: another process trains here, or the directory cannot be made.
        """
        return lock(self.path, _WAIT)

    def enter(self, recipe: Recipe, entry: Entry) -> None:
        """Prepare the locked directory: mend it (`resume`), empty it (`overwrite`), write a new run's resolved recipe.

        Raises:
            UserError: another process has changed the directory since `check`, or it cannot be written.
        """
        self._check_entry(recipe, entry)
        if entry == "resume" and self.recipe.is_file():
            mend(self.path)
            return
        if entry == "overwrite":
            self._clear()
        write_text(self.recipe, dump(recipe))

    def amend(self, recipe: Recipe) -> None:
        """Write the recipe that the run goes on with; what was exported at the end of the former one goes."""
        write_text(self.recipe, dump(recipe))
        for folder in (self.policy, self.adapter):
            if folder.is_dir():
                remove_directory(folder)

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
        is_run = self.recipe.is_file() or self.record.is_file()
        # Names with a dot are what a killed process left.
        if not is_run and self.path.exists() and not (self.path.is_dir() and not any(self._visible())):
            raise UserError(
                Problem("exists and is not a run directory", file=str(self.path), remedy="choose another --out")
            )
        found = Found(
            said="this run exists already" if is_run else None,
            resumable=self.recipe.is_file(),
            elsewhere="--seed or --out for another run",
        )
        found.require(self.path, entry)
        if entry == "resume" and is_run:
            amendments(load_recipe(self.recipe), recipe, self.saved_step, str(self.recipe))
            problems = [] if self.is_complete(recipe) else self.other_streams() or self.lost_steps()
            if problems:
                raise UserError(*problems)

    @property
    def saved_step(self) -> int:
        """Step of the newest checkpoint, whole or not; 0 without one."""
        return max(map(step_of, list_checkpoints(self.checkpoints)), default=0)

    def lost_steps(self) -> list[Problem]:
        """Why an unfinished run would have to begin again: steps were done, and no checkpoint was saved."""
        # A name with a dot is what `write_directory` was about to replace; `mend` puts it back.
        if any(self.checkpoints.glob("step-*")) or any(self.checkpoints.glob(".step-*.old")):
            return []
        done = max(self._steps_told(), default=0)
        what = f"{done} steps were done and no checkpoint was saved, so there is nothing to go on from"
        remedy = "--overwrite starts again from step 0; checkpoint.every saves on the way"
        return [Problem(what, file=str(self.path), remedy=remedy)] if done else []

    def _steps_told(self) -> Iterator[int]:
        """Steps of which some file says that they were done."""
        yield from (int(record["step"]) for record in read_what_is_whole(self.metrics))
        yield from (int(file.stem.removeprefix("step-")) for file in self.path.glob("evals/step-*.json"))
        if self.record.is_file():
            yield int(self.read_record().result.get("step") or 0)

    def other_streams(self) -> list[Problem]:
        """Why the rest of this run's completions would be drawn otherwise than the first ones; empty if they would not.

        Raises:
            UnreadableError: see `read_record`.
        """
        if not self.record.is_file():
            return []
        found = self.read_record().streams
        if found == STREAMS:
            return []
        whose = "cvxrl 0.1" if found == 1 else "another cvxrl"
        what = f"was begun by {whose}, which draws completions from other random numbers"
        return [Problem(what, "streams", str(self.record), f"finish it with {whose}, or start again with --overwrite")]

    def _visible(self) -> Iterator[Path]:
        return (p for p in self.path.iterdir() if not p.name.startswith("."))
