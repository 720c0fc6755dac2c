"""What a run writes down while it trains, and goes on from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from cvxrl.engine.guards import Guards, GuardStop, require_silent
from cvxrl.engine.lag import LaggedCollector, Waiting
from cvxrl.engine.records import accuracies
from cvxrl.engine.recovery import Recovery, recover_records, without_former_end, without_unfinished
from cvxrl.engine.state import Position, load_state, load_waiting, save_state
from cvxrl.engine.trainer import Hooks, Record, Trainer
from cvxrl.engine.world import from_main
from cvxrl.errors import UserError
from cvxrl.evaluation.card import write_card
from cvxrl.evaluation.held_out import Evaluation
from cvxrl.recipe.load import load_recipe
from cvxrl.runs.checkpoint import best_checkpoint, list_checkpoints, newest_whole, prune, save_checkpoint, step_of
from cvxrl.runs.directory import RunDir
from cvxrl.runs.files import finite, write_json
from cvxrl.runs.jsonl import (
    append_record,
    keep_lines,
    last_contiguous_step,
    read_what_is_whole,
    replace_last,
    sync_records,
    write_lines,
)
from cvxrl.runs.sink import Sinks


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
        """Append to metrics.jsonl, in the place of what was unfinished of the same step, show, and ask the guards.

        Raises:
            GuardStop: a guard of the recipe ends the run.
        """
        unfinished = self.trainer.unfinished
        if unfinished is not None and unfinished["step"] == record["step"]:
            replace_last(self.run_dir.metrics, record)
        else:
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
        updates = [self.run_dir.updates] if self.trainer.recipe.logging.updates else []
        for written in (self.run_dir.metrics, *updates):
            sync_records(written)
        save_checkpoint(self.run_dir.checkpoints, position.step, partial(self.save_share, position, waiting))
        self.prune()

    def save_policy(self, directory: Path) -> None:
        """Write the policy with its model card, once the last evaluation is stored."""
        self.trainer.policy.save(directory)
        write_card(self.run_dir, directory, self.trainer.recipe)

    def save_share(self, position: Position, waiting: Waiting | None, directory: Path | None = None) -> None:
        """This process's share of a checkpoint: all of it, or of a sharded policy its shards.

        Args:
            position: how far the run has come.
            waiting: rollouts that later steps train on.
            directory: where the main process writes; the others hear of it.
        """
        trainer = self.trainer
        if trainer.policy.sharding is not None:
            directory = from_main(trainer.world, directory)
        if directory is not None:
            parts = (trainer.policy, trainer.critic, trainer.optimizer, position, waiting)
            save_state(directory, *parts, is_main=trainer.world.is_main)

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
        then = load_recipe(run_dir.recipe)
        records, end = without_former_end(recovery.records, then, recipe)
        records, self.trainer.unfinished = without_unfinished(records, then, recipe)
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
        unfinished = self.trainer.unfinished
        write_lines(run_dir.metrics, records if unfinished is None else [*records, unfinished])
        keep_lines(run_dir.updates, self.trainer.position.step)
        return recovery.lost

    def load(self) -> bool:
        """Load the newest whole checkpoint, the main process's choice, in all; False where there is none.

        Nothing is written.

        Raises:
            UserError: there are checkpoints, but none of them can be used.
        """
        trainer = self.trainer
        found = from_main(trainer.world, self._newest() if trainer.world.is_main else None)
        if found is not None:
            trainer.position = load_state(found, trainer.policy, trainer.critic, trainer.optimizer)
            if isinstance(trainer.collector, LaggedCollector):
                trainer.collector.restore(load_waiting(found, trainer.policy.device))
        return found is not None

    def _newest(self) -> Path | None:
        """One whose steps are all recorded comes first: from there the rest is done again and nothing is lost."""
        checkpoints = list_checkpoints(self.run_dir.checkpoints)
        recorded = last_contiguous_step(read_what_is_whole(self.run_dir.metrics))
        found, refused = newest_whole(c for c in checkpoints if step_of(c) <= recorded)
        if found is None:
            found, refused = newest_whole(checkpoints)
        if found is None and refused:
            raise UserError(*(problem for error in refused for problem in error.problems))
        for error in refused:
            self.sink.event(f"passed over: {error.problems[0].file}: {error.problems[0].message}")
        return found

    def rollouts(self, step: int, shown: Sequence[dict[str, Any]]) -> None:
        """Store readable completions that a step trains on."""
        write_lines(self.run_dir.training_samples(step), shown)

    def hooks(self) -> Hooks:
        """What the trainer calls."""
        return Hooks(self.record, self.evaluation, self.checkpoint, self.update, self.rollouts)
