"""run.json: what a run was and how it ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from cvxrl.errors import Problem, UserError
from cvxrl.runs.provenance import Provenance

SCHEMA_VERSION = 1
# How completions get their random numbers. 1, in version 0.1: a batch shares a stream. 2: every completion has its own.
STREAMS = 2
# What version 0.1 recorded as divergent when sampler and trainer disagreed.
_CHECK = "on-policy ratio"
_AGAIN = "restore the file, or start the run again with --overwrite"
Status = Literal["running", "finished", "diverged", "interrupted", "failed"]


class Divergence(BaseModel):
    """Why and where a run diverged.

    Attributes:
        step: step that could not be finished.
        tensor: what was not finite, or the guard that stopped the run.
        detail: how it was found.
        last_checkpoint: last good checkpoint, relative to the run directory, or None.
        sequences: positions within the step's experience of the sequences it was computed from; empty if it was
            found outside of a batch.
        prompts: ids of the task's examples that these sequences belong to.
    """

    step: int
    tensor: str
    detail: str
    last_checkpoint: str | None
    sequences: list[int] = []
    prompts: list[str] = []


class Resumption(BaseModel):
    """A later session of the same run.

    Attributes:
        at: UTC time, ISO 8601.
        step: last step that the earlier sessions had finished and saved.
        changed: what differs from the first session's provenance, and which settings of the recipe that cannot change
            a result: name -> (then, now). Settings that changed what the steps after ``step`` are, such as
            `recipe: train.steps`, are among them.
        lost: what of the records could not be brought back, in words; None where all was there.
    """

    at: str
    step: int
    changed: dict[str, tuple[str | None, str | None]]
    lost: str | None = None


class RunRecord(BaseModel):
    """Contents of run.json.

    Attributes:
        schema_version: version of this layout.
        status: how the run stands.
        streams: how completions get their random numbers, see `STREAMS`; version 0.1 did not write it.
        digest: SHA-256 of the resolved recipe, see `cvxrl.recipe.digest`.
        seed: training seed.
        task_fingerprint: digest of the training data.
        parameters: number of parameters of the policy.
        model_hash: digest of the weights that training started from.
        tokenizer_hash: digest of the tokenizer.
        model_revision: commit of a policy from the Hub, or None.
        provenance: code, versions and machine of the first session.
        started, ended: UTC times, ISO 8601.
        resumed: later sessions.
        result: final numbers, e.g. `eval/accuracy`.
        best_checkpoint: the one with the highest held-out accuracy, relative to the run directory, or None.
        divergence: set when the status is `diverged`.
        failure: why, in one line, when the status is `failed`, or a check of the package itself or the loss of a rank
            interrupted the run.
        passes: how logits are computed, in words: in the `update`, and in `sampling` where the policy samples.
    """

    model_config = ConfigDict(extra="forbid")

    schema_version: int = SCHEMA_VERSION
    status: Status
    streams: int = 1
    digest: str
    seed: int
    task_fingerprint: str
    parameters: int
    model_hash: str | None = None
    tokenizer_hash: str | None = None
    model_revision: str | None = None
    provenance: Provenance
    started: str
    ended: str | None = None
    resumed: list[Resumption] = []
    result: dict[str, Any] = {}
    best_checkpoint: str | None = None
    divergence: Divergence | None = None
    failure: str | None = None
    passes: dict[str, str] = {}


class UnreadableError(UserError, ValueError):
    """A file of a run is damaged, or has a layout that this version does not read."""


def read_run_record(path: Path) -> RunRecord:
    """Parse a run.json.

    Raises:
        FileNotFoundError: there is none.
        UnreadableError: it is damaged, or another version of cvxrl wrote it.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UnreadableError(Problem(f"is damaged: {_one_line(error)}", file=str(path), remedy=_AGAIN)) from None
    check_version(values, path)
    try:
        return _without_failed_check(RunRecord.model_validate(values))
    except ValidationError as error:
        first = error.errors()[0]
        message, key = f"is damaged: {first['msg']}", ".".join(map(str, first["loc"]))
        raise UnreadableError(Problem(message, key, str(path), _AGAIN)) from None


def _without_failed_check(record: RunRecord) -> RunRecord:
    """A run that did not pass a check of the package itself is unfinished; version 0.1 said that it diverged."""
    divergence = record.divergence
    if divergence is None or divergence.tensor != _CHECK:
        return record
    return record.model_copy(
        update={"status": "interrupted", "divergence": None, "failure": f"{_CHECK}: {divergence.detail}"}
    )


def check_version(values: Any, path: Path) -> None:
    """Refuse what another version of the layout wrote.

    Raises:
        UnreadableError: `schema_version` in ``values`` is missing or not ours.
    """
    version = values.get("schema_version") if isinstance(values, dict) else None
    if version == SCHEMA_VERSION:
        return
    newer = isinstance(version, int) and version > SCHEMA_VERSION
    found = "without a layout version" if version is None else f"layout {version!r}"
    raise UnreadableError(
        Problem(
            f"was written by {'a newer' if newer else 'another'} cvxrl ({found}; this one reads {SCHEMA_VERSION})",
            file=str(path),
            remedy="upgrade cvxrl" if newer else "use the version named in run.json, or start the run again",
        )
    )


def _one_line(error: Exception) -> str:
    return str(error).splitlines()[0]
