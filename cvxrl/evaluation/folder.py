"""The folder of an evaluation: settings.json, samples.jsonl as they come, and EVAL.json at the end."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from cvxrl.errors import Problem, UserError
from cvxrl.evaluation.record import EvalRecord, Settings
from cvxrl.recipe.digest import leaves
from cvxrl.runs.files import finite, write_json

_Model = TypeVar("_Model", bound=BaseModel)
Entry = Literal["new", "resume", "overwrite"]
# What may differ when an evaluation is resumed: names of places, and more samples than before.
_SAME = "resume needs the same settings; --overwrite starts again"
_FREE = ("checkpoint.path", "checkpoint.policy", "sampling.samples")


class Sample(BaseModel):
    """A line of samples.jsonl: one completion and its verdicts; fields as in `Answer`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    question: int
    sample: int
    id: str
    prompt: str
    completion: str
    answer: str
    extracted: str | None
    correct: bool
    reward: float | None
    error: str | None
    truncated: bool
    strict: bool
    tokens: int
    seconds: float


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

    def check(self, entry: Entry) -> None:
        """Refuse what `enter` could not do, without writing anything.

        Raises:
            UserError: there is an evaluation already, or none to resume, or the folder cannot be written.
        """
        nearest = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
            raise UserError(Problem("cannot write here", file=str(nearest), remedy="choose another --out"))
        there = self.record.exists() or self.settings.exists() or self.samples.exists()
        if there and entry == "new":
            state = "finished" if self.record.exists() else "unfinished"
            raise UserError(
                Problem(
                    f"holds {'a' if state == 'finished' else 'an'} {state} evaluation",
                    file=str(self.path),
                    remedy="--resume to go on, --overwrite to start again, --out for another folder",
                )
            )
        if entry == "resume" and not self.settings.is_file():
            raise UserError(
                Problem("there is no evaluation to resume", file=str(self.path), remedy="start it without --resume")
            )

    def enter(self, settings: Settings, entry: Entry) -> list[Sample]:
        """Write the settings; return the completions of an earlier session (`resume`) or remove them.

        Raises:
            UserError: the earlier settings differ, or its files are damaged.
        """
        done: list[Sample] = []
        if entry == "resume":
            self._check_same(settings)
            done = read_samples(self.samples)
        else:
            for file in (self.record, self.samples):
                file.unlink(missing_ok=True)
        write_json(self.settings, settings.model_dump(mode="json"))
        # The torn last line of a crash must not stay in front of what is appended.
        lines = (json.dumps(s.model_dump(), ensure_ascii=False) + "\n" for s in done)
        self.samples.write_text("".join(lines), encoding="utf-8")
        return done

    def append(self, samples: Sequence[Sample]) -> None:
        """Add completions and hand them to the operating system."""
        with self.samples.open("a", encoding="utf-8") as stream:
            for sample in samples:
                stream.write(json.dumps(finite(sample.model_dump()), ensure_ascii=False) + "\n")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes out until this one leaves or ends.

        Raises:
            UserError: another process is evaluating here.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("a", encoding="utf-8") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(
                    Problem("another process is evaluating here", file=str(self.path), remedy="wait, or stop it")
                ) from None
            yield

    def _check_same(self, settings: Settings) -> None:
        before = dict(leaves(_read(self.settings, Settings).model_dump(mode="json")))
        now = dict(leaves(settings.model_dump(mode="json")))
        problems = [
            Problem(f"was {before.get(key)!r}, is now {now.get(key)!r}", key, str(self.settings), _SAME)
            for key in sorted({*before, *now})
            if before.get(key) != now.get(key) and key not in _FREE
        ]
        if settings.sampling.samples < before["sampling.samples"]:
            message = f"was {before['sampling.samples']}, is now {settings.sampling.samples}"
            problems.append(Problem(message, "sampling.samples", str(self.settings), "--samples may only grow"))
        if problems:
            raise UserError(*problems)


def read_record(path: Path) -> EvalRecord:
    """Read EVAL.json.

    Raises:
        UserError: it is missing, not JSON, or not such a record.
    """
    return _read(path, EvalRecord)


def read_samples(path: Path) -> list[Sample]:
    """Read samples.jsonl; a last line torn by a crash is left out.

    Raises:
        UserError: another line is damaged.
    """
    if not path.is_file() or path.stat().st_size == 0:
        return []
    # Not splitlines(): a completion may hold any of the other characters that it takes for the end of a line.
    lines = path.read_text(encoding="utf-8", errors="replace").removesuffix("\n").split("\n")
    samples = []
    for number, line in enumerate(lines, start=1):
        try:
            samples.append(Sample.model_validate_json(line))
        except ValidationError:
            if number < len(lines):
                raise UserError(
                    Problem(f"line {number} is damaged", file=str(path), remedy="--overwrite starts again")
                ) from None
    return samples


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
