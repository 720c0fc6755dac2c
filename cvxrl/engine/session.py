"""One run of the trainer inside its run directory: everything that is written down."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch

from cvxrl.engine.divergence import DivergedError
from cvxrl.engine.evaluate import Evaluation
from cvxrl.engine.signals import StopRequest
from cvxrl.engine.state import Position, load_state, save_state
from cvxrl.engine.summary import summary_rows
from cvxrl.engine.trainer import Hooks, Record, Trainer
from cvxrl.recipe.load import digest
from cvxrl.recipe.schema import Recipe
from cvxrl.report.curves import plot_curves
from cvxrl.runs.checkpoint import list_checkpoints, save_checkpoint, verify_checkpoint
from cvxrl.runs.directory import Entry, RunDir
from cvxrl.runs.files import finite, write_directory, write_json, write_text
from cvxrl.runs.metrics import append_record, forget_after, read_records
from cvxrl.runs.provenance import collect_provenance
from cvxrl.runs.record import Divergence, RunRecord, Status
from cvxrl.runs.sink import Sink


@dataclass
class Session:
    """A trainer, its run directory and the display; the trainer's hooks write here."""

    trainer: Trainer
    run_dir: RunDir
    sink: Sink
    records: list[Record] = field(default_factory=list)

    def record(self, record: Record) -> None:
        """Append to metrics.jsonl and show."""
        append_record(self.run_dir.metrics, record)
        self.records.append(record)
        self.sink.step(record)

    def evaluation(self, step: int, result: Evaluation) -> None:
        """Store per-sample 0/1 and a few readable completions."""
        recipe = self.trainer.recipe
        write_json(
            self.run_dir.evaluation(step),
            {
                "step": step,
                "accuracy": result.accuracy,
                "stderr": result.standard_error,
                "prompts": result.correct_PG.shape[0],
                "samples": result.correct_PG.shape[1],
                "temperature": recipe.eval.temperature,
                "truncated": result.truncated,
                "grader_errors": result.errors,
                "correct": result.correct_PG.int().tolist(),
            },
        )
        if recipe.logging.samples:
            shown = result.samples[: recipe.logging.samples]
            text = "".join(json.dumps(finite(sample), ensure_ascii=False) + "\n" for sample in shown)
            write_text(self.run_dir.samples(step), text)

    def checkpoint(self, position: Position) -> None:
        """Save policy, optimizer and position."""
        trainer = self.trainer
        fill = partial(
            save_state,
            policy=trainer.policy,
            critic=trainer.critic,
            optimizer=trainer.optimizer,
            position=position,
        )
        save_checkpoint(self.run_dir.checkpoints, position.step, trainer.recipe.checkpoint.keep, fill)

    def restore(self) -> None:
        """Go back to the newest checkpoint and forget records after it; without one, start from the beginning."""
        found = list_checkpoints(self.run_dir.checkpoints)
        if found:
            verify_checkpoint(found[-1])
            self.trainer.position = load_state(
                found[-1], self.trainer.policy, self.trainer.critic, self.trainer.optimizer
            )
        # Step 0 is the evaluation before training, which is done again when there is no checkpoint.
        forget_after(self.run_dir.metrics, self.trainer.position.step if found else -1)
        self.records = read_records(self.run_dir.metrics)

    def hooks(self) -> Hooks:
        """What the trainer calls."""
        return Hooks(self.record, self.evaluation, self.checkpoint)


@dataclass(frozen=True)
class TrainResult:
    """How a run ended, and its final numbers."""

    status: Status
    run_dir: Path
    result: Mapping[str, float]
    divergence: Divergence | None = None


def run_training(recipe: Recipe, run_dir: RunDir, sink: Sink, entry: Entry) -> TrainResult:
    """Train a recipe in a run directory.

    Nothing is written before the policy and the task are loaded and the first prompts fit.

    Raises:
        UserError: the input cannot be used.
    """
    run_dir.check(recipe, entry)
    trainer = Trainer.build(recipe)
    session = Session(trainer, run_dir, sink)
    if entry != "resume":
        run_dir.enter(recipe, entry)
    with run_dir.lock(), StopRequest() as stop:
        if entry == "resume":
            session.restore()
        record = _new_record(recipe, trainer, run_dir, entry)
        write_json(run_dir.record, record.model_dump())
        sink.start(f"{recipe.name} seed {recipe.seed}", recipe.train.steps, trainer.position.step)
        try:
            done = trainer.run(session.hooks(), stop)
        except DivergedError as error:
            return _close(session, record, "diverged", error)
        except KeyboardInterrupt:
            return _close(session, record, "interrupted")
        except BaseException:
            write_json(run_dir.record, record.model_copy(update={"status": "failed", "ended": _now()}).model_dump())
            raise
        finally:
            trainer.grader.close()
        if not done:
            return _close(session, record, "interrupted")
        write_directory(run_dir.policy, trainer.policy.save)
        return _close(session, record, "finished")


def _close(session: Session, record: RunRecord, status: Status, error: DivergedError | None = None) -> TrainResult:
    """Write the final record, draw the curves and show the summary."""
    run_dir, trainer = session.run_dir, session.trainer
    divergence = None
    if error is not None:
        kept = list_checkpoints(run_dir.checkpoints)
        divergence = Divergence(
            step=trainer.position.step + 1,
            tensor=error.tensor,
            detail=error.detail,
            last_checkpoint=f"checkpoints/{kept[-1].name}" if kept else None,
        )
        session.sink.event(f"diverged at step {divergence.step}: {error}")
    result = _last_values(session.records)
    closed = record.model_copy(
        update={"status": status, "ended": _now(), "result": finite(result), "divergence": divergence}
    )
    write_json(run_dir.record, closed.model_dump())
    if session.records:
        plot_curves(session.records, run_dir.curves, f"{trainer.recipe.name}, seed {trainer.recipe.seed}")
    session.sink.finish(status, summary_rows(session.records, run_dir, trainer.recipe))
    return TrainResult(status, run_dir.path, result, divergence)


def _last_values(records: list[Record]) -> dict[str, float]:
    """Last value of every metric, evaluations included, which not every step has."""
    merged: dict[str, float] = {}
    for record in records:
        merged |= record
    return merged


def _new_record(recipe: Recipe, trainer: Trainer, run_dir: RunDir, entry: Entry) -> RunRecord:
    started = run_dir.read_record().started if entry == "resume" and run_dir.record.is_file() else _now()
    device = trainer.policy.device
    return RunRecord(
        status="running",
        digest=digest(recipe),
        seed=recipe.seed,
        task_fingerprint=trainer.task.fingerprint,
        parameters=sum(p.numel() for p in trainer.policy.model.parameters()),
        provenance=collect_provenance(torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"),
        started=started,
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
