"""What run.json says at the start, after a resume and at the end of a session, and the table of a run's numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cvxrl.engine.divergence import DivergedError
from cvxrl.engine.self_check import SelfCheckError
from cvxrl.engine.trainer import Trainer
from cvxrl.errors import Problem, UserError
from cvxrl.evaluation.evaluator import provenance_of
from cvxrl.evaluation.held_out import HeldOut
from cvxrl.policy.identity import hash_tokenizer, hash_weights
from cvxrl.policy.model import Policy
from cvxrl.ranks import RankLostError
from cvxrl.recipe.digest import differences, digest, neutral_differences
from cvxrl.recipe.load import load_recipe
from cvxrl.recipe.schema import Recipe
from cvxrl.report.completions import run_page
from cvxrl.report.format import NO_ERROR, fixed, is_known, with_error
from cvxrl.rollout.generator import SamplerLost
from cvxrl.runs.checkpoint import best_checkpoint, list_checkpoints
from cvxrl.runs.directory import RunDir
from cvxrl.runs.entry import Entry
from cvxrl.runs.files import StorageError, finite, storage_errors, write_json, write_text
from cvxrl.runs.jsonl import read_records
from cvxrl.runs.provenance import Provenance, changes
from cvxrl.runs.record import STREAMS, Divergence, Resumption, RunRecord, Status
from cvxrl.runs.secrets import redact
from cvxrl.runs.sink import Row, Sinks
from cvxrl.tasks import Task

_FAILURE_LENGTH = 500
_SHOWN = 12  # hexadecimal digits of a digest that a message repeats
# Averaging the first and last steps keeps one lucky batch from being the headline.
_WINDOW = 10


@dataclass(frozen=True)
class Identity:
    """Digests of what training starts from.

    Attributes:
        task: the examples.
        model: every parameter and buffer, before the first step.
        tokenizer: vocabulary, rules and chat template.
        revision: commit of a policy from the Hub, or None.
    """

    task: str
    model: str
    tokenizer: str
    revision: str | None


def identify(policy: Policy, task: Task) -> Identity:
    """Digests of a policy that has not been trained yet, and of its task."""
    revision = getattr(policy.model.config, "_commit_hash", None)
    return Identity(task.fingerprint, hash_weights(policy.model), hash_tokenizer(policy.tokenizer), revision)


def require_same_origin(record: RunRecord, now: Identity) -> None:
    """Refuse to resume on other data or another model.

    Raises:
        UserError: one problem for each part that changed.
    """
    revision = f"; its commit was {record.model_revision}, is now {now.revision}" if record.model_revision else ""
    parts = (
        ("the data set", "task.source", record.task_fingerprint, now.task, ""),
        ("the policy's initial weights", "model", record.model_hash, now.model, revision),
        ("the tokenizer", "model", record.tokenizer_hash, now.tokenizer, ""),
    )
    problems = [
        Problem(
            f"{what} changed since the run began: digest was {then[:_SHOWN]}, is now {found[:_SHOWN]}{more}",
            key,
            remedy="restore what the run began with, or start anew with --overwrite or another --out",
        )
        for what, key, then, found, more in parts
        if then is not None and then != found
    ]
    if problems:
        raise UserError(*problems)


def opening_record(trainer: Trainer, run_dir: RunDir, entry: Entry) -> RunRecord:
    """Record of a session that is about to train; a resumed run keeps what its first session wrote.

    Raises:
        UserError: the run was made from another data set, policy or tokenizer; or its record is damaged.
    """
    identity, provenance = identify(trainer.policy, trainer.task), provenance_of(trainer.policy)
    if entry != "resume" or not run_dir.record.is_file():  # killed before it wrote one
        return _first(trainer, identity, provenance)
    before = run_dir.read_record()
    require_same_origin(before, identity)
    then = load_recipe(run_dir.recipe)
    settings = [*differences(then, trainer.recipe), *neutral_differences(then, trainer.recipe)]
    changed = {f"recipe: {key}": (str(old), str(new)) for key, old, new in settings}
    session = Resumption(at=now(), step=0, changed=changes(before.provenance, provenance) | changed)
    return before.model_copy(
        update={
            "status": "running",
            "digest": digest(trainer.recipe),
            "ended": None,
            "resumed": [*before.resumed, session],
            "divergence": None,
            "failure": None,
        }
    )


def resumed_at(record: RunRecord, step: int, lost: str | None) -> RunRecord:
    """The same record, its newest session beginning after ``step`` with what was ``lost`` of the records."""
    *earlier, last = record.resumed
    return record.model_copy(update={"resumed": [*earlier, last.model_copy(update={"step": step, "lost": lost})]})


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
    """Write why the run failed, or which check interrupted it, unless the disk that failed is the one to write to."""
    text = redact(f"{type(error).__name__}: {error}")[:_FAILURE_LENGTH]
    status = "interrupted" if isinstance(error, SelfCheckError | SamplerLost | RankLostError) else "failed"
    failed = record.model_copy(update={"status": status, "ended": now(), "failure": text})
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
        sequences=error.positions,
        prompts=error.prompts,
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


def summary_rows(
    records: Sequence[Mapping[str, float]], run_dir: RunDir, recipe: Recipe, held_out: HeldOut | None
) -> list[Row]:
    """Rows (name, start, end): accuracy with its standard error and n, and averages over the first and last steps."""
    rows: list[Row] = []
    evaluated = [r for r in records if r.get("eval/accuracy") is not None]
    if evaluated:
        name = f"held-out accuracy, {held_out.size}" if held_out else "held-out accuracy"
        if not is_known(evaluated[-1].get("eval/stderr")):
            name += f"; {NO_ERROR}"
        rows.append((name, _accuracy(evaluated[0]), _accuracy(evaluated[-1])))
    steps = [r for r in records if r["step"] > 0]
    window = min(_WINDOW, max(1, len(steps) // 2))
    for key, name, form in (
        ("reward/mean", "training reward", ".3f"),
        ("loss", "loss", ".3g"),
        ("policy/entropy", "entropy (nats)", ".3f"),
        ("policy/kl", "KL per step (nats)", ".2e"),
        ("grad/norm", "gradient norm before clipping", ".3g"),
        ("response/length", "response length (tokens)", ".1f"),
    ):
        if any(r.get(key) is not None for r in steps):
            ends = (_mean(part, key) for part in (steps[:window], steps[-window:]))
            first, last = ("" if value is None else format(value, form) for value in ends)
            rows.append((name, first, last))
    for key, name in (("reward/grader_errors", "in training"), ("eval/grader_errors", "held-out")):
        shares = [r[key] for r in records if r.get(key) is not None]
        if any(shares):
            rows.append((f"grader errors {name}, up to {fixed(max(shares))}", fixed(shares[0]), fixed(shares[-1])))
    if steps:
        last_step = steps[-1]
        rows.append(("tokens trained on", "", f"{int(last_step['tokens/total']):,}"))
        rows.append(("training time (s)", "", f"{last_step['time/total_s']:.0f}"))
    rows.append(("run directory", "", str(run_dir.path)))
    return rows


def _first(trainer: Trainer, identity: Identity, provenance: Provenance) -> RunRecord:
    return RunRecord(
        status="running",
        streams=STREAMS,
        digest=digest(trainer.recipe),
        seed=trainer.recipe.seed,
        task_fingerprint=identity.task,
        parameters=sum(p.numel() for p in trainer.policy.model.parameters()),
        model_hash=identity.model,
        tokenizer_hash=identity.tokenizer,
        model_revision=identity.revision,
        provenance=provenance,
        started=now(),
        passes=trainer.passes,
    )


def _accuracy(record: Mapping[str, float]) -> str:
    return with_error(record["eval/accuracy"], record.get("eval/stderr"))


def _mean(records: Sequence[Mapping[str, float]], key: str) -> float | None:
    values = [r[key] for r in records if r.get(key) is not None]
    return sum(values) / len(values) if values else None


def write_report(run_dir: RunDir, recipe: Recipe, sinks: Sinks) -> None:
    """Draw the curves of what there is, and write the page of its completions; the curves go to the sinks too."""
    name = f"{recipe.name}, seed {recipe.seed}"
    if page := run_page(run_dir.path, f"Completions of {name}"):
        write_text(run_dir.completions, page)
    records = read_records(run_dir.metrics)
    if records:
        from cvxrl.report.curves import plot_curves  # the first step need not wait for a plotting library

        with storage_errors(run_dir.curves):
            plot_curves(records, run_dir.curves, name)
        sinks.figure("learning curves", run_dir.curves)
