"""What sinks of experiment trackers share: names, the id that is gone on with, what a resume sends again."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from cvxrl.recipe.digest import digest
from cvxrl.recipe.schema import Recipe
from cvxrl.runs.directory import RunDir
from cvxrl.runs.jsonl import read_lines, read_what_is_whole
from cvxrl.runs.record import RunRecord
from cvxrl.runs.sink import NullSink, Row

Values = dict[str, float]
Samples = Sequence[Mapping[str, object]]
SAMPLES = "samples"


class Dashboard(NullSink):
    """A run on a dashboard: every step once, whatever became of the sessions before.

    The checkpoint decides what has happened. What a dashboard holds of later steps, which are going to be done again,
    is taken back where it can be; what it lacks of earlier ones, because the process was killed before it was sent, is
    sent again from metrics.jsonl and rollouts/. The step of the checkpoint itself always is, since a run that is made
    longer loses the evaluation of its former end.
    """

    kind: str

    def __init__(self, recipe: Recipe, run_dir: Path) -> None:
        """Nothing is opened before the start."""
        super().__init__(run_dir, recipe.model_dump(mode="json"))
        self.run, self.digest = RunDir(run_dir), digest(recipe)
        self.method, self.seed = recipe.name, recipe.seed
        self.last = 0
        self._rows: dict[int, Samples] = {}

    def open(self, kept: int) -> Container[int]:
        """Begin, or go on with what earlier sessions sent.

        Args:
            kept: last step that stays as it is; -1 for none.

        Returns:
            Steps that are there already.
        """
        raise NotImplementedError

    def log(self, step: int, values: Values, rows: Samples | None) -> None:
        """Send a step: finite values, and completions where it was evaluated."""
        raise NotImplementedError

    def image(self, name: str, file: Path) -> None:
        """Send a PNG."""
        raise NotImplementedError

    def close(self, status: str, result: Mapping[str, Any]) -> None:
        """Send how it ended, and wait until all has been sent."""
        raise NotImplementedError

    def start(self, title: str, steps: int, done: int) -> None:
        """Open, and send again what is missing."""
        self.last = done
        held = self.open(done - 1)
        for record in read_what_is_whole(self.run.metrics) if done else []:
            step = int(record["step"])
            if step <= done and step not in held:
                self._rows[step] = read_lines(self.run.samples(step), json.loads, "")
                self.step(record)
        self.caught_up()

    def caught_up(self) -> None:
        """All steps before those of this session have been sent."""

    def samples(self, step: int, rows: Samples) -> None:
        """Keep them for the record of the step."""
        self._rows[step] = rows

    def step(self, record: Mapping[str, float]) -> None:
        """Send it with its completions."""
        self.last = int(record["step"])
        values = {key: v for key, v in record.items() if key != "step" and v is not None and v - v == 0}
        self.log(self.last, values, self._rows.pop(self.last, None) or None)

    def figure(self, name: str, file: Path) -> None:
        """Send it."""
        self.image(name, file)

    def finish(self, status: str, rows: Sequence[Row]) -> None:
        """Send status and final numbers, as run.json has them."""
        self.close(status, self._result(status))

    @property
    def default_name(self) -> str:
        """Name of the run where the recipe gives none."""
        return f"{self.method}-seed-{self.seed}"

    @property
    def config(self) -> dict[str, Any]:
        """The resolved recipe, its digest, and what a dashboard filters by."""
        return {**self.recipe, "method": self.method, "digest": self.digest, "run_directory": str(self.run.path)}

    def state(self) -> dict[str, Any]:
        """What earlier sessions noted beside run.json; empty at first."""
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(self._state_file.read_text(encoding="utf-8"))
            return found if isinstance(found, dict) else {}
        return {}

    def note_state(self, **state: Any) -> None:
        """Note it, whole or not at all; not forced to the disk, since a reader doubts it where it is missing."""
        self._state_file.parent.mkdir(exist_ok=True)
        beside = self._state_file.with_name(f".{self._state_file.name}.tmp")
        beside.write_text(json.dumps(state), encoding="utf-8")
        beside.replace(self._state_file)

    def own_id(self, length: int) -> str:
        """Id of the run on the dashboard, the same in every session, new after --overwrite."""
        found = self.state().get("id")
        if not isinstance(found, str):
            found = uuid.uuid4().hex[:length]
            self.note_state(id=found)
        return found

    @property
    def _state_file(self) -> Path:
        return self.run.path / "dashboards" / f"{self.kind}.json"

    def _result(self, status: str) -> dict[str, Any]:
        found: dict[str, Any] = {"status": status}
        with contextlib.suppress(OSError, ValueError):
            record: RunRecord = self.run.read_record()
            found |= record.result
            if record.divergence is not None:
                found["divergence"] = f"step {record.divergence.step}: {record.divergence.detail}"
            if record.best_checkpoint is not None:
                found["best_checkpoint"] = record.best_checkpoint
        return found


def table(rows: Samples) -> tuple[list[str], list[list[Any]]]:
    """Columns and cells; what a row lacks is None."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return columns, [[row.get(column) for column in columns] for row in rows]


def to_markdown(rows: Samples) -> str:
    """The same as Markdown."""
    columns, cells = table(rows)
    lines = [columns, ["---"] * len(columns), *([_cell(value) for value in line] for line in cells)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    return "" if value is None else str(value).replace("|", "\\|").replace("\n", "<br>")
