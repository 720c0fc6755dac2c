"""Sinks: each is told everything, one that raises is dropped, none of them can change a run."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import SilentSink, tiny, without_times

from cvxrl.engine.session import run_training
from cvxrl.errors import UserError
from cvxrl.recipe.base import kind_of, section_classes
from cvxrl.recipe.monitoring import SinkSpec
from cvxrl.runs.directory import RunDir
from cvxrl.runs.sink import Sinks
from cvxrl.runs.sink_kinds import SINKS, sink_openers

MODULE = '''
from cvxrl.runs.sink import NullSink

class Notes(NullSink):
    """Writes what it is told into the run directory."""
    def __init__(self, run_dir, recipe, suffix="txt"):
        self.file = run_dir / f"notes.{suffix}"
        self.told = [f"{recipe['name']} {recipe['logging']['samples']}"]
    def start(self, title, steps, done):
        self.told.append(f"start {title} {steps} {done}")
    def step(self, record):
        self.told.append(f"step {record['step']}")
    def finish(self, status, rows):
        self.file.write_text("\\n".join([*self.told, f"finish {status}"]))

class Breaks(NullSink):
    def step(self, record):
        if record["step"]:
            raise RuntimeError("the service is down")

class NeverOpens:
    def __init__(self, run_dir, recipe):
        raise OSError("no route")

class Meddles(NullSink):
    def step(self, record):
        record["loss"] = 0.0

number = 3
'''


class Told(SilentSink):
    """Remembers what is told to a person too."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []
        self.steps: list[float] = []

    def event(self, text: str) -> None:
        self.events.append(text)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of the user's, found from the working directory."""
    (tmp_path / "my_sinks.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    yield "my_sinks"
    sys.path[:] = before
    sys.modules.pop("my_sinks", None)


def records_of(run_dir: RunDir) -> list[dict[str, Any]]:
    return [without_times(json.loads(line)) for line in run_dir.metrics.read_text().splitlines()]


def sinks(*specs: str) -> str:
    return f"logging.sinks=[{', '.join(f'{{{spec}}}' for spec in specs)}]"


def test_a_second_sink_is_told_everything_and_failing_ones_change_nothing(module: str, tmp_path: Path) -> None:
    plain, watched = tiny("math_grpo"), RunDir(tmp_path / "watched")
    mine = [f"kind: callable, function: 'my_sinks:{name}'" for name in ("Notes", "Breaks", "NeverOpens", "Meddles")]
    recipe = tiny("math_grpo", sinks(f"{mine[0]}, options: {{suffix: md}}", *mine[1:], "kind: csv"))
    display = Told()
    assert run_training(recipe, watched, display, "new").status == "finished"
    bare = RunDir(tmp_path / "bare")
    run_training(plain, bare, SilentSink(), "new")
    assert records_of(bare) == records_of(watched)
    assert (bare.policy / "model.safetensors").read_bytes() == (watched.policy / "model.safetensors").read_bytes()
    told = (watched.path / "notes.md").read_text().splitlines()
    assert told == ["math_grpo 4", "start math_grpo seed 0 2 0", "step 0", "step 1", "step 2", "finish finished"]
    failures = [text for text in display.events if "left out" in text]
    assert len(failures) == 3, "each once"
    for text, why in zip(failures, ("no route", "item assignment", "the service is down"), strict=True):
        assert why in text
    assert failures[0].startswith("logging.sinks.2 failed") and "my_sinks.py, line" in failures[0]


def test_a_display_that_breaks_does_not_end_the_run(tmp_path: Path) -> None:
    class Gone(SilentSink):
        def step(self, record: Any) -> None:
            raise BrokenPipeError

        def finish(self, status: str, rows: Any) -> None:
            raise AssertionError("it was dropped")

    run_dir = RunDir(tmp_path / "run")
    assert run_training(tiny("math_grpo", sinks("kind: csv")), run_dir, Gone(), "new").status == "finished"
    assert len((run_dir.path / "metrics.csv").read_text().splitlines()) == 4


def test_ctrl_c_inside_a_sink_is_no_failure_of_the_sink() -> None:
    class Interrupted(SilentSink):
        def event(self, text: str) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Sinks(Interrupted(), {}).event("x")


def test_what_cannot_be_imported_is_refused_before_anything_is_written(module: str, tmp_path: Path) -> None:
    for name, words in (
        ("nowhere:Notes", "no module"),
        (f"{module}:Note", "did you mean `Notes`"),
        (f"{module}:number", "is not a function"),
    ):
        recipe = tiny("math_grpo", sinks("kind: csv", f"kind: callable, function: '{name}'"))
        with pytest.raises(UserError, match=words) as refused:
            run_training(recipe, RunDir(tmp_path / "run"), SilentSink(), "new")
        assert [problem.key for problem in refused.value.problems] == ["logging.sinks.1.function"]
        assert not (tmp_path / "run").exists()


def test_mistakes_in_the_list_are_told_by_their_place() -> None:
    with pytest.raises(UserError) as refused:
        tiny("math_grpo", sinks("kind: csv, file: x", "kind: cvs", "kind: callable"))
    found = {problem.key: problem.remedy for problem in refused.value.problems}
    assert found == {
        "logging.sinks.0.file": "known keys here: kind",
        "logging.sinks.1.kind": "did you mean `csv`? choose one of csv, tensorboard, trackio, wandb, callable",
        "logging.sinks.2.function": "add `function`",
    }


def test_the_table_holds_the_records_through_resume_and_new_columns(tmp_path: Path) -> None:
    class Interrupting(SilentSink):
        def step(self, record: Any) -> None:
            if record["step"] == 3:
                raise KeyboardInterrupt

    table, run_dir = tmp_path / "run" / "metrics.csv", RunDir(tmp_path / "run")
    small = ("train.steps=4", "eval.every=2", "checkpoint.every=2")
    begun = run_training(tiny("math_grpo", *small, sinks("kind: csv")), run_dir, Interrupting(), "new")
    assert begun.status == "interrupted"
    before = table.read_text()
    assert before.splitlines()[0].startswith("step,")
    table.write_text(before + "torn,li")
    looked = tiny("math_grpo", *small, "logging={gradients: 2, sinks: [{kind: csv}]}")
    assert run_training(looked, run_dir, SilentSink(), "resume").status == "finished"
    with table.open() as lines:
        rows = list(csv.DictReader(lines))
    records = [json.loads(line) for line in run_dir.metrics.read_text().splitlines()]
    assert "grad/qkv" in rows[0] and "grad/qkv" not in before
    assert [int(row["step"]) for row in rows] == [0, 1, 2, 3, 4]
    for row, record in zip(rows, records, strict=True):
        assert None not in row and None not in row.values(), "every row has every column"
        assert {k: float(v) for k, v in row.items() if v} == {k: v for k, v in record.items() if v is not None}


def test_numbers_that_are_not_finite_are_empty(tmp_path: Path) -> None:
    table = sink_openers(tiny("math_grpo", sinks("kind: csv")), tmp_path)["logging.sinks.0"]()
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "loss": null}\n')
    table.start("", 2, 0)
    table.step({"step": 1, "loss": float("nan")})
    assert (tmp_path / "metrics.csv").read_text() == "step,loss\n0,\n1,\n"


def test_every_kind_of_sink_has_its_class() -> None:
    assert {kind_of(spec) for spec in section_classes(SinkSpec)} == set(SINKS)
