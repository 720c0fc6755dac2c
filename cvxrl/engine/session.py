"""One run of the trainer inside its run directory: everything that is written down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cvxrl.engine.bookkeeping import Session
from cvxrl.engine.divergence import DivergedError, describe_batch
from cvxrl.engine.guards import Guards, GuardStop
from cvxrl.engine.records import (
    close_record,
    describe_divergence,
    last_values,
    opening_record,
    record_failure,
    resumed_at,
    summary_rows,
    write_report,
)
from cvxrl.engine.trainer import Hooks, Trainer
from cvxrl.engine.world import SingleProcess, World, from_main
from cvxrl.policy.ways import SLOW
from cvxrl.recipe.digest import differences
from cvxrl.recipe.load import load_recipe
from cvxrl.recipe.schema import Recipe
from cvxrl.recipe.task import MadeSource, space
from cvxrl.report.stop import StopRequest
from cvxrl.runs.directory import RunDir
from cvxrl.runs.entry import Entry
from cvxrl.runs.files import write_directory, write_json, write_text
from cvxrl.runs.jsonl import (
    read_records,
    write_lines,
)
from cvxrl.runs.provenance import uncommitted_changes
from cvxrl.runs.record import Divergence, RunRecord, Status
from cvxrl.runs.secrets import redact, refuse_secrets
from cvxrl.runs.sink import Sink, Sinks
from cvxrl.runs.sink_kinds import sink_openers


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
    world = world or SingleProcess()
    with world.agreed():
        sinks = Sinks(sink, sink_openers(recipe, run_dir.path))
        if not from_main(world, world.is_main and _is_to_train(recipe, run_dir, sinks, entry)):
            return TrainResult("finished", run_dir.path, run_dir.read_record().result if world.is_main else {})
        trainer = Trainer.build(recipe, world)
        session = Session(trainer, run_dir, sinks, Guards(recipe.guards))
        try:
            return _lead(session, entry, go_on) if world.is_main else _follow(session, entry)
        finally:
            trainer.grader.close()


def _is_to_train(recipe: Recipe, run_dir: RunDir, sink: Sink, entry: Entry) -> bool:
    """Whether there is anything left to do.

    Raises:
        UserError: the directory cannot be entered, or the recipe holds a secret.
    """
    run_dir.check(recipe, entry)
    refuse_secrets(recipe)
    if entry == "resume" and not run_dir.recipe.is_file():
        sink.event(f"there is nothing in {run_dir.path} to resume: the run begins")
    if entry == "resume" and run_dir.is_complete(recipe):
        sink.event(f"finished already: {run_dir.path}")
        return False
    return True


def _lead(session: Session, entry: Entry, go_on: str) -> TrainResult:
    """Train as the process that writes."""
    with session.run_dir.lock() as held, StopRequest(go_on) as stop:
        if not held:
            what = "this file system has no locks: take care that no second process trains in this directory"
            session.sink.event(what)
        session.run_dir.enter(session.trainer.recipe, entry)
        return _train(session, stop, entry)


def _train(session: Session, stop: StopRequest, entry: Entry) -> TrainResult:
    trainer, run_dir, recipe = session.trainer, session.run_dir, session.trainer.recipe
    with trainer.policy.whole():
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
        with trainer.world.agreed():
            done = trainer.run(session.hooks(), stop)
            with trainer.policy.whole():
                if done:
                    # A process killed after its last checkpoint has not done so.
                    session.prune()
                    if recipe.model.lora is not None:
                        write_directory(run_dir.adapter, trainer.policy.save_adapter)
                    write_directory(run_dir.policy, session.save_policy)
            trainer.world.gather(None)  # the others wait for the last file
    except DivergedError as error:
        return _diverged(session, record, error)
    except KeyboardInterrupt:
        return _close(session, record, "interrupted")  # asked for at once, so without the seconds that curves take
    except BaseException as error:
        record_failure(run_dir, record, error)
        session.sink.abandon("failed")
        raise
    write_report(run_dir, recipe, session.sink)
    return _close(session, record, "finished" if done else "interrupted")


def _follow(session: Session, entry: Entry) -> TrainResult:
    """Train as one of several processes that is not the one that writes."""
    trainer, run_dir = session.trainer, session.run_dir
    with trainer.policy.whole():
        pass  # while the main process takes its digest
    if entry == "resume":
        session.load()
    trainer.grader.attend(lambda _: None, None)
    silent = Hooks(lambda _: None, lambda *_: None, session.save_share, lambda _: None)
    try:
        with trainer.world.agreed(), StopRequest() as stop:
            done = trainer.run(silent, stop)
            with trainer.policy.whole():
                pass  # and while it writes the policy
            trainer.world.gather(None)
    except DivergedError:
        return TrainResult("diverged", run_dir.path, {})
    except KeyboardInterrupt:
        return TrainResult("interrupted", run_dir.path, {})
    return TrainResult("finished" if done else "interrupted", run_dir.path, {})


def _diverged(session: Session, record: RunRecord, error: DivergedError) -> TrainResult:
    """Keep what the step was computed from, then close."""
    step = error.step if isinstance(error, GuardStop) else session.trainer.position.step + 1
    divergence = describe_divergence(error, step, session.run_dir)
    session.sink.event(f"diverged at step {step}: {error}")
    if error.sequences is not None:
        write_lines(session.run_dir.divergence(step), describe_batch(error, session.trainer.policy))
    write_report(session.run_dir, session.trainer.recipe, session.sink)
    return _close(session, record, "diverged", divergence)


def _close(session: Session, record: RunRecord, status: Status, divergence: Divergence | None = None) -> TrainResult:
    """Write the final record, after everything else: once it says `finished`, nothing is missing. Show the summary."""
    trainer, run_dir, recipe = session.trainer, session.run_dir, session.trainer.recipe
    records = read_records(run_dir.metrics)
    close_record(run_dir, record, status, records, divergence)
    session.sink.finish(status, summary_rows(records, run_dir, recipe, trainer.held_out))
    return TrainResult(status, run_dir.path, last_values(records), divergence)
