"""What run.json says at the start, after a resume, and at the end of a session."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from cvxrl.engine.divergence import DivergedError
from cvxrl.engine.identity import Identity, identify, require_same
from cvxrl.engine.trainer import Trainer
from cvxrl.evaluation.machine import provenance_of
from cvxrl.recipe.digest import digest, neutral_differences
from cvxrl.recipe.load import load_recipe
from cvxrl.runs.checkpoint import best_checkpoint, list_checkpoints
from cvxrl.runs.directory import Entry, RunDir
from cvxrl.runs.files import finite, write_json
from cvxrl.runs.provenance import Provenance, changes
from cvxrl.runs.record import Divergence, Resumption, RunRecord, Status
from cvxrl.runs.secrets import redact
from cvxrl.runs.storage import StorageError

_FAILURE_LENGTH = 500


def opening_record(trainer: Trainer, run_dir: RunDir, entry: Entry) -> RunRecord:
    """Record of a session that is about to train; a resumed run keeps what its first session wrote.

    Raises:
        UserError: the run was made from another data set, policy or tokenizer; or its record is damaged.
    """
    identity, provenance = identify(trainer.policy, trainer.task), provenance_of(trainer.policy)
    if entry != "resume" or not run_dir.record.is_file():  # killed before it wrote one
        return _first(trainer, identity, provenance)
    before = run_dir.read_record()
    require_same(before, identity)
    settings = neutral_differences(load_recipe(run_dir.recipe), trainer.recipe)
    changed = {f"recipe: {key}": (str(then), str(now_)) for key, then, now_ in settings}
    session = Resumption(at=now(), step=0, changed=changes(before.provenance, provenance) | changed)
    return before.model_copy(
        update={
            "status": "running",
            "ended": None,
            "resumed": [*before.resumed, session],
            "divergence": None,
            "failure": None,
        }
    )


def resumed_at(record: RunRecord, step: int) -> RunRecord:
    """The same record, its newest session beginning after ``step``."""
    *earlier, last = record.resumed
    return record.model_copy(update={"resumed": [*earlier, last.model_copy(update={"step": step})]})


def close_record(
    run_dir: RunDir,
    record: RunRecord,
    status: Status,
    records: Sequence[Mapping[str, float]],
    divergence: Divergence | None = None,
) -> RunRecord:
    """Write how the run ended.

    Raises:
        StorageError: the disk is full; run.json still says `running`.
    """
    best = best_checkpoint(list_checkpoints(run_dir.checkpoints), accuracies(records))
    closed = record.model_copy(
        update={
            "status": status,
            "ended": now(),
            "result": finite(last_values(records)),
            "best_checkpoint": None if best is None else f"checkpoints/{best.name}",
            "divergence": divergence,
        }
    )
    write_json(run_dir.record, closed.model_dump())
    return closed


def record_failure(run_dir: RunDir, record: RunRecord, error: BaseException) -> None:
    """Write why the run failed, unless the disk that failed it is the one to write to."""
    text = redact(f"{type(error).__name__}: {error}")[:_FAILURE_LENGTH]
    failed = record.model_copy(update={"status": "failed", "ended": now(), "failure": text})
    with contextlib.suppress(StorageError):
        write_json(run_dir.record, failed.model_dump())


def describe_divergence(error: DivergedError, step: int, run_dir: RunDir) -> Divergence:
    """Where the run stopped making sense; ``step`` is the one that could not be finished."""
    kept = list_checkpoints(run_dir.checkpoints)
    return Divergence(
        step=step,
        tensor=error.tensor,
        detail=error.detail,
        last_checkpoint=f"checkpoints/{kept[-1].name}" if kept else None,
        sequences=list(error.sequences),
        prompts=list(error.prompts),
    )


def accuracies(records: Sequence[Mapping[str, float]]) -> dict[int, float]:
    """Held-out accuracy by step."""
    return {int(r["step"]): r["eval/accuracy"] for r in records if r.get("eval/accuracy") is not None}


def last_values(records: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Last value of every metric, evaluations included, which not every step has."""
    merged: dict[str, float] = {}
    for record in records:
        merged |= record
    return merged


def now() -> str:
    """UTC time, ISO 8601. For people only: nothing is ever computed from it, so a clock may jump."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _first(trainer: Trainer, identity: Identity, provenance: Provenance) -> RunRecord:
    return RunRecord(
        status="running",
        digest=digest(trainer.recipe),
        seed=trainer.recipe.seed,
        task_fingerprint=identity.task,
        parameters=sum(p.numel() for p in trainer.policy.model.parameters()),
        model_hash=identity.model,
        tokenizer_hash=identity.tokenizer,
        model_revision=identity.revision,
        provenance=provenance,
        started=now(),
    )
