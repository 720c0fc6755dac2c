"""One run of the trainer inside its run directory: everything that is written down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cvxrl.engine.divergence import DivergedError, describe_batch
from cvxrl.engine.guards import Guards, GuardStop, require_silent
from cvxrl.engine.lag import LaggedCollector, Waiting
from cvxrl.engine.records import (
    accuracies,
    close_record,
    describe_divergence,
    draw_curves,
    last_values,
    opening_record,
    record_failure,
    resumed_at,
    summary_rows,
)
from cvxrl.engine.recovery import Recovery, recover_records, without_former_end
from cvxrl.engine.state import Position, load_state, load_waiting, save_state
from cvxrl.engine.trainer import Hooks, Record, Trainer
from cvxrl.engine.world import World
from cvxrl.errors import UserError
from cvxrl.evaluation.held_out import Evaluation
from cvxrl.policy.ways import SLOW
from cvxrl.recipe.digest import differences
from cvxrl.recipe.load import load_recipe
from cvxrl.recipe.schema import Recipe
from cvxrl.recipe.task import MadeSource, space
from cvxrl.report.stop import StopRequest
from cvxrl.runs.checkpoint import best_checkpoint, list_checkpoints, newest_whole, prune, save_checkpoint, step_of
from cvxrl.runs.directory import RunDir
from cvxrl.runs.entry import Entry
from cvxrl.runs.files import finite, write_directory, write_json, write_text
from cvxrl.runs.jsonl import (
    append_record,
    keep_lines,
    last_contiguous_step,
    read_records,
    read_what_is_whole,
    sync_records,
    write_lines,
)
from cvxrl.runs.provenance import uncommitted_changes
from cvxrl.runs.record import Divergence, RunRecord, Status
from cvxrl.runs.secrets import redact, refuse_secrets
from cvxrl.runs.sink import Sink, Sinks
from cvxrl.runs.sink_kinds import sink_openers


@dataclass
class Session:
    """A trainer, its run directory and the display; the trainer's hooks write here.

    Records are on the disk alone: what a session remembers of them does not grow with the steps, or a long run would.
    """

    trainer: Trainer
    run_dir: RunDir
    sink: Sinks
    guards: Guards
    accuracies: dict[int, float] = field(default_factory=dict)

    def record(self, record: Record) -> None:
        """Append to metrics.jsonl, show, and ask the guards.

        Raises:
            GuardStop: a guard of the recipe ends the run.
        """
        append_record(self.run_dir.metrics, record)
        self.accuracies |= accuracies([record])
        self.sink.step(record)
        for fired in self.guards.see(finite(record)):
            if fired.stop:
                raise GuardStop(int(record["step"]), fired.name, fired.detail)
            if fired.first:
                self.sink.event(f"step {int(record['step'])}: {fired.name}: {fired.detail}")

    def evaluation(self, step: int, result: Evaluation) -> None:
        """Store every verdict and a few readable completions."""
        write_json(self.run_dir.evaluation(step), result.record.model_dump(mode="json"))
        shown = result.samples[: self.trainer.recipe.logging.samples]
        if shown:
            rows = [sample.readable() for sample in shown]
            write_lines(self.run_dir.samples(step), rows)
            self.sink.samples(step, rows)

    def checkpoint(self, position: Position, waiting: Waiting | None) -> None:
        """Save all that the run goes on from, after the records that lead there; remove what is not to be kept.

        Args:
            position: how far it has come.
            waiting: rollouts that later steps train on.
        """
        trainer = self.trainer
        parts = (trainer.policy, trainer.critic, trainer.optimizer, position, waiting)
        for written in (self.run_dir.metrics, *([self.run_dir.updates] if trainer.recipe.logging.updates else [])):
            sync_records(written)
        save_checkpoint(self.run_dir.checkpoints, position.step, lambda directory: save_state(directory, *parts))
        self.prune()

    def update(self, record: Record) -> None:
        """Append to updates.jsonl."""
        append_record(self.run_dir.updates, record)

    def prune(self) -> None:
        """Remove checkpoints that are not to be kept."""
        spec, folder = self.trainer.recipe.checkpoint, self.run_dir.checkpoints
        best = best_checkpoint(list_checkpoints(folder), self.accuracies) if spec.best else None
        prune(folder, spec.keep, [] if best is None else [best])

    def restore(self) -> str | None:
        """Go back to the newest whole checkpoint, with the records that lead to it; without one, to the beginning.

        Returns:
            What of the records is lost, in words; None if nothing is.

        Raises:
            UserError: there are checkpoints, but none of them can be used; or a guard of the recipe would have stopped
                the run earlier. Nothing is written then.
        """
        run_dir, recipe = self.run_dir, self.trainer.recipe
        # Step 0 is the evaluation before training, which is done again when there is no checkpoint.
        recovery = recover_records(run_dir, self.trainer.position) if self.load() else Recovery([], None)
        records, end = without_former_end(recovery.records, load_recipe(run_dir.recipe), recipe)
        self.accuracies = accuracies(records)
        for record in records:
            fired = self.guards.see(finite(record))
            if recovery.lost is None:  # else steps in a row are not what they were
                require_silent(fired, int(record["step"]))
        if recovery.lost is not None:
            self.sink.event(f"{recovery.lost}; what else they held is lost")
        if end is not None:
            self.sink.event(f"the evaluation of step {end} was of the end of a shorter run and is left out")
            for file in (run_dir.evaluation(end), run_dir.samples(end)):
                file.unlink(missing_ok=True)
        write_lines(run_dir.metrics, records)
        keep_lines(run_dir.updates, self.trainer.position.step)
        return recovery.lost

    def load(self) -> bool:
        """Load the newest whole checkpoint; False where there is none. Nothing is written.

        One whose steps are all recorded comes first, since from there the rest is done again and nothing is lost.

        Raises:
            UserError: there are checkpoints, but none of them can be used.
        """
        checkpoints = list_checkpoints(self.run_dir.checkpoints)
        recorded = last_contiguous_step(read_what_is_whole(self.run_dir.metrics))
        found, refused = newest_whole(c for c in checkpoints if step_of(c) <= recorded)
        if found is None:
            found, refused = newest_whole(checkpoints)
        if found is None and refused:
            raise UserError(*(problem for error in refused for problem in error.problems))
        for error in refused:
            self.sink.event(f"passed over: {error.problems[0].file}: {error.problems[0].message}")
        if found is not None:
            trainer = self.trainer
            trainer.position = load_state(found, trainer.policy, trainer.critic, trainer.optimizer)
            if isinstance(trainer.collector, LaggedCollector):
                trainer.collector.restore(load_waiting(found, trainer.policy.device))
        return found is not None

    def hooks(self) -> Hooks:
        """What the trainer calls."""
        return Hooks(self.record, self.evaluation, self.checkpoint, self.update)


@dataclass(frozen=True)
class TrainResult:
    """How a run ended, and its final numbers."""

    status: Status
    run_dir: Path
    result: Mapping[str, float]
    divergence: Divergence | None = None


def run_training(
    recipe: Recipe, run_dir: RunDir, sink: Sink, entry: Entry, go_on: str = "", world: World | None = None
) -> TrainResult:
    """Train a recipe in a run directory.

    Nothing is written before the policy and the task are loaded and the first prompts fit; and only by the main one of
    several processes.

    Args:
        recipe: what to train.
        run_dir: where.
        sink: is told how it goes.
        entry: what to do with a run that is there.
        go_on: how an interrupted run is gone on with, told when Ctrl-C is pressed; without it, nothing is said.
        world: the processes that train together; None is this one alone.

    Raises:
        UserError: the input cannot be used, another process trains here, or the disk is full.
    """
    run_dir.check(recipe, entry)
    refuse_secrets(recipe)
    sinks = Sinks(sink, sink_openers(recipe, run_dir.path))
    if entry == "resume" and not run_dir.recipe.is_file():
        sinks.event(f"there is nothing in {run_dir.path} to resume: the run begins")
    if entry == "resume" and run_dir.is_complete(recipe):
        sinks.event(f"finished already: {run_dir.path}")
        return TrainResult("finished", run_dir.path, run_dir.read_record().result)
    trainer = Trainer.build(recipe, world)
    session = Session(trainer, run_dir, sinks, Guards(recipe.guards))
    try:
        if not trainer.world.is_main:
            return _follow(session, entry)
        with run_dir.lock() as held, StopRequest(go_on) as stop:
            if not held:
                sinks.event("this file system has no locks: take care that no second process trains in this directory")
            run_dir.enter(recipe, entry)
            return _train(session, stop, entry)
    finally:
        trainer.grader.close()


def _train(session: Session, stop: StopRequest, entry: Entry) -> TrainResult:
    trainer, run_dir, recipe = session.trainer, session.run_dir, session.trainer.recipe
    record = opening_record(trainer, run_dir, entry)
    lost = session.restore() if entry == "resume" else None
    if record.resumed:
        record = resumed_at(record, trainer.position.step, lost)
    else:
        if trainer.position.step:
            session.sink.event("run.json was missing: what the run began with could not be checked")
        write_text(run_dir.diff, redact(uncommitted_changes()))
    write_json(run_dir.record, record.model_dump())
    if entry == "resume" and differences(load_recipe(run_dir.recipe), recipe):
        run_dir.amend(recipe)  # after run.json: killed in between, it is a run of the former recipe that goes on
    session.sink.start(f"{recipe.name} seed {recipe.seed}", recipe.train.steps, trainer.position.step)
    for part, words in record.passes.items():
        if words.startswith(SLOW):
            session.sink.event(f"{part}: {words}")
    if isinstance(source := recipe.task.source, MadeSource):
        session.sink.event(f"task: {space(source):,} different prompts, {source.held_out:.0%} of them held out")
    notes = [*recipe.notes, *([trainer.held_out.fewer] if trainer.held_out and trainer.held_out.fewer else [])]
    for note in notes:
        session.sink.event(f"note: {note}")
    trainer.grader.attend(session.sink.event, run_dir.grader_log)
    try:
        done = trainer.run(session.hooks(), stop)
        if done:
            # A process killed after its last checkpoint has not done so.
            session.prune()
            if recipe.model.lora is not None:
                write_directory(run_dir.adapter, trainer.policy.save_adapter)
            write_directory(run_dir.policy, trainer.policy.save)
    except DivergedError as error:
        return _diverged(session, record, error)
    except KeyboardInterrupt:
        return _close(session, record, "interrupted")  # asked for at once, so without the seconds that curves take
    except BaseException as error:
        record_failure(run_dir, record, error)
        session.sink.abandon("failed")
        raise
    draw_curves(run_dir, recipe, session.sink)
    return _close(session, record, "finished" if done else "interrupted")


def _follow(session: Session, entry: Entry) -> TrainResult:
    """Train as one of several processes that is not the one that writes."""
    trainer, run_dir = session.trainer, session.run_dir
    if entry == "resume":
        session.load()
    trainer.grader.attend(lambda _: None, None)
    silent = Hooks(lambda _: None, lambda *_: None, lambda *_: None, lambda _: None)
    try:
        with StopRequest() as stop:
            done = trainer.run(silent, stop)
    except DivergedError:
        return TrainResult("diverged", run_dir.path, {})
    return TrainResult("finished" if done else "interrupted", run_dir.path, {})


def _diverged(session: Session, record: RunRecord, error: DivergedError) -> TrainResult:
    """Keep what the step was computed from, then close."""
    step = error.step if isinstance(error, GuardStop) else session.trainer.position.step + 1
    divergence = describe_divergence(error, step, session.run_dir)
    session.sink.event(f"diverged at step {step}: {error}")
    if error.sequences is not None:
        write_lines(session.run_dir.divergence(step), describe_batch(error, session.trainer.policy))
    draw_curves(session.run_dir, session.trainer.recipe, session.sink)
    return _close(session, record, "diverged", divergence)


def _close(session: Session, record: RunRecord, status: Status, divergence: Divergence | None = None) -> TrainResult:
    """Write the final record, after everything else: once it says `finished`, nothing is missing. Show the summary."""
    trainer, run_dir, recipe = session.trainer, session.run_dir, session.trainer.recipe
    records = read_records(run_dir.metrics)
    close_record(run_dir, record, status, records, divergence)
    session.sink.finish(status, summary_rows(records, run_dir, recipe, trainer.held_out))
    return TrainResult(status, run_dir.path, last_values(records), divergence)
