"""The folder of an evaluation: settings.json, samples.jsonl as they come, and EVAL.json at the end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from cvxrl.errors import Problem, UserError
from cvxrl.evaluation.record import SCHEMA_VERSION, EvalRecord, Sample, Settings, StepRecord01
from cvxrl.recipe.digest import leaves
from cvxrl.runs.entry import Entry, Found, lock, refuse_if_held, require_same, require_writable
from cvxrl.runs.files import storage_errors, write_json
from cvxrl.runs.jsonl import append_lines, read_lines, write_lines

_Model = TypeVar("_Model", bound=BaseModel)
_SAME = "resume needs the same settings, of which only --samples may grow; --overwrite starts again"
_WAIT = "another process is evaluating here: wait for it or stop it, or choose another --out"
# What may differ when an evaluation is resumed: names of places, and more samples than before.
_FREE = ("checkpoint.path", "checkpoint.policy", "sampling.samples")


@dataclass(frozen=True)
class EvalDir:
    """Paths of an evaluation, and the rules for entering an existing one."""

    path: Path

    @property
    def record(self) -> Path:
        """All verdicts and numbers; there only when the evaluation is finished."""
        return self.path / "EVAL.json"

    @property
    def settings(self) -> Path:
        """What was asked, written before the first completion."""
        return self.path / "settings.json"

    @property
    def samples(self) -> Path:
        """Every completion, appended as they come."""
        return self.path / "samples.jsonl"

    @property
    def page(self) -> Path:
        """Completions to read."""
        return self.path / "completions.html"

    def check(self, entry: Entry) -> None:
        """Refuse what `enter` could not do, without writing anything that stays.

        Raises:
            UserError: the folder is in use or cannot be written, there is an evaluation already, or none to resume.
        """
        refuse_if_held(self.path, _WAIT)
        self._check_entry(entry)
        require_writable(self.path)

    def lock(self) -> AbstractContextManager[bool]:
        """Make the folder and keep other processes out of it for the length of the block; see `lock`.

        Raises:
            UserError: another process is evaluating here, or the folder cannot be made.
        """
        return lock(self.path, _WAIT)

    def enter(self, settings: Settings, entry: Entry) -> list[Sample]:
        """Write the settings into the locked folder; return the completions of an earlier session, or remove them.

        Raises:
            UserError: another process has changed the folder since `check`, the earlier settings differ, or its files
                are damaged or cannot be written.
        """
        self._check_entry(entry)
        done: list[Sample] = []
        if entry == "resume" and self.settings.is_file():
            self._check_same(settings)
            done = read_samples(self.samples)
        else:
            with storage_errors(self.path):
                for file in (self.record, self.samples, self.page):
                    file.unlink(missing_ok=True)
        write_json(self.settings, settings.model_dump(mode="json"))
        # The torn last line of a crash must not stay in front of what is appended.
        write_lines(self.samples, (s.stored() for s in done))
        return done

    def append(self, samples: Sequence[Sample]) -> None:
        """Add completions and hand them to the operating system.

        Raises:
            StorageError: the disk is full.
        """
        append_lines(self.samples, (s.stored() for s in samples))

    def _check_entry(self, entry: Entry) -> None:
        said = None
        if self.record.exists():
            said = "holds a finished evaluation"
        elif self.settings.exists() or self.samples.exists():
            said = "holds an unfinished evaluation"
        found = Found(said, resumable=self.settings.is_file(), elsewhere="--out for another folder")
        found.require(self.path, entry)

    def _check_same(self, settings: Settings) -> None:
        before = _read(self.settings, Settings)
        if before.schema_version != SCHEMA_VERSION:
            what = "was begun by cvxrl 0.1, which took the policy's digest in another way"
            raise UserError(Problem(what, file=str(self.settings), remedy="--overwrite starts again"))
        then = dict(leaves(before.model_dump(mode="json")))
        now = dict(leaves(settings.model_dump(mode="json")))
        samples = "sampling.samples"
        changed = [
            (key, then.get(key), now.get(key))
            for key in sorted({*then, *now})
            if then.get(key) != now.get(key) and (key not in _FREE or (key == samples and now[key] < then[key]))
        ]
        require_same(changed, self.settings, _SAME)


def read_record(path: Path) -> EvalRecord:
    """Read EVAL.json, or evals/step-*.json of a run; what version 0.1 did not write into the latter is unknown.

    Raises:
        UserError: it is missing, not JSON, or not such a record.
    """
    if _is_of_version_0_1(path):
        return _read(path, StepRecord01).record()
    return _read(path, EvalRecord)


def read_samples(path: Path) -> list[Sample]:
    """Read samples.jsonl; a last line torn by a crash is left out.

    Raises:
        UserError: another line is damaged.
    """
    return read_lines(path, Sample.model_validate_json, "--overwrite starts again")


def _is_of_version_0_1(path: Path) -> bool:
    """Whether it is an evaluation during training as version 0.1 wrote it: no layout version, verdicts at the top."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and "schema_version" not in values and {"step", "correct"} <= values.keys()


def _read(path: Path, kind: type[_Model]) -> _Model:
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else f"cannot read: {error.strerror}"
        raise UserError(Problem(reason, file=str(path), remedy="give the EVAL.json that cvxrl eval wrote")) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(
            Problem(
                f"cannot be read as an evaluation: {first['msg'].removeprefix('Value error, ')}",
                where,
                str(path),
                "give the EVAL.json that cvxrl eval wrote, or evaluate again with --overwrite",
            )
        ) from None
