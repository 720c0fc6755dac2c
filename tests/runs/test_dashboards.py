"""Dashboards, by their own libraries: every step once through kills and resumes, completions, figures, the recipe."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dashboard_readers import Row, read_tensorboard, read_trackio, read_wandb, trackio_config, wandb_records
from helpers import SilentSink, tiny

from cvxrl.engine.session import run_training
from cvxrl.errors import UserError
from cvxrl.recipe.digest import digest
from cvxrl.recipe.monitoring import TrackioSink
from cvxrl.runs.dashboard import Dashboard, to_markdown
from cvxrl.runs.directory import RunDir
from cvxrl.runs.sink_kinds import sink_openers
from cvxrl.runs.trackio_sink import TrackioRun

READERS: dict[str, Callable[[Path], list[Row]]] = {
    "tensorboard": read_tensorboard,
    "trackio": read_trackio,
    "wandb": read_wandb,
}


@pytest.fixture(autouse=True)
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything stays here: no network, no database of the user's."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_DIR", raising=False)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))


@pytest.fixture(params=list(READERS))
def kind(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    library = pytest.importorskip(request.param, reason=f"needs cvxrl[{request.param}]")
    if request.param == "trackio":  # which looks at the environment only once
        for module in ("utils", "sqlite_storage"):
            monkeypatch.setattr(getattr(library, module), "TRACKIO_DIR", tmp_path / "trackio")
    return str(request.param)


def opened(kind: str, run_dir: Path) -> Any:
    return sink_openers(tiny("math_grpo", f"logging.sinks=[{kind}]"), run_dir)["logging.sinks.0"]()


def line(step: int, session: int) -> dict[str, Any]:
    return {"step": step, "loss": step + session / 4, "reward/mean": 0.5}


class Session:
    """A session of a run that writes its records, as the engine does, and tells a dashboard."""

    def __init__(self, kind: str, run_dir: Path, number: int, done: int) -> None:
        self.run, self.number = RunDir(run_dir), number
        run_dir.mkdir(exist_ok=True)
        kept = self.run.metrics.read_text().splitlines(keepends=True)[: done + 1] if done else []
        self.run.metrics.write_text("".join(kept))
        self.sink = opened(kind, run_dir)
        self.sink.start("a run", 8, done)

    def step(self, step: int, told: bool = True) -> None:
        record = line(step, self.number)
        rows = [{"id": f"{step}", "prompt": "1|2\n+3", "completion": f"{self.number}", "correct": True}]
        if step % 2 == 0:
            self.run.samples(step).parent.mkdir(exist_ok=True)
            self.run.samples(step).write_text(json.dumps(rows[0]) + "\n")
        with self.run.metrics.open("a") as stream:
            stream.write(json.dumps(record) + "\n")
        if told:
            if step % 2 == 0:
                self.sink.samples(step, rows)
            self.sink.step(record)

    def finish(self) -> None:
        self.sink.finish("finished", [])


def scalars(rows: list[Row], key: str) -> list[tuple[int, float]]:
    return sorted((step, row[key]) for step, row in rows if key in row)


@pytest.mark.parametrize("sent", [6, 2])  # all, or the last ones still waited when the process was killed
def test_no_step_is_doubled_or_missing_after_a_kill_between_checkpoints(kind: str, sent: int, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    first = Session(kind, run_dir, 0, 0)
    for step in range(7):
        first.step(step, told=step <= sent)
    first.finish() if kind != "tensorboard" else settle(first)
    time.sleep(1.0 if kind == "wandb" else 0)  # whose directories are named by the second
    second = Session(kind, run_dir, 1, 4)  # the checkpoint is of step 4: 5 and 6 are done again
    for step in range(5, 9):
        second.step(step)
    second.finish()
    rows = READERS[kind](run_dir)
    assert scalars(rows, "loss") == [(s, s + (0.25 if s > 4 else 0)) for s in range(9)]
    assert scalars(rows, "reward/mean") == [(s, 0.5) for s in range(9)]
    assert sorted(step for step, row in rows if any(key.startswith("samples") for key in row)) == [0, 2, 4, 6, 8]


def settle(session: Session) -> None:
    """Wait until all is written, as a process would be killed then: nothing is closed."""
    reached = threading.Event()
    session.sink._put(lambda _: reached.set())
    assert reached.wait(60)


def test_a_run_without_a_checkpoint_begins_again(kind: str, tmp_path: Path) -> None:
    first = Session(kind, tmp_path / "run", 0, 0)
    for step in range(3):
        first.step(step)
    first.finish()
    time.sleep(1.0 if kind == "wandb" else 0)
    second = Session(kind, tmp_path / "run", 1, 0)
    second.step(0)
    second.step(1)
    second.finish()
    assert scalars(READERS[kind](tmp_path / "run"), "loss") == [(0, 0.25), (1, 1.25)]


@pytest.mark.figures
def test_a_real_run_sends_all_that_there_is_to_see(kind: str, tmp_path: Path) -> None:
    class Stops(SilentSink):
        def step(self, record: Any) -> None:
            if record["step"] == 3:
                raise KeyboardInterrupt

    recipe = tiny("math_grpo", "train.steps=4", "checkpoint.every=2", f"logging.sinks=[csv, {kind}]", "seed=3")
    run_dir = RunDir(tmp_path / "run")
    assert run_training(recipe, run_dir, Stops(), "new").status == "interrupted"
    display = SilentSink()
    events: list[str] = []
    display.event = events.append  # type: ignore[method-assign]
    assert run_training(recipe, run_dir, display, "resume").status == "finished"
    assert not [text for text in events if "left out" in text]
    rows = READERS[kind](run_dir.path)
    records = [json.loads(text) for text in run_dir.metrics.read_text().splitlines()]
    told = [(record["step"], key) for record in records for key, v in record.items() if key != "step" and v is not None]
    sent = Counter((step, key) for step, row in rows for key in row)
    assert {pair: sent[pair] for pair in told} == dict.fromkeys(told, 1)
    for step, row in rows:
        for key, value in row.items():
            if (step, key) in told:
                assert value == pytest.approx({r["step"]: r for r in records}[step][key], rel=1e-6)
    names = {key for _, row in rows for key in row}
    assert any(name.startswith("learning curves") for name in names)
    if kind == "tensorboard":
        by_tag = {key: row[key] for _, row in rows for key in row}
        assert by_tag["learning curves"] == run_dir.curves.read_bytes()
        assert "lco" in "".join(by_tag["recipe/text_summary"]) or "grpo" in "".join(by_tag["recipe/text_summary"])
        assert "finished" in "".join(by_tag["summary/text_summary"])
    elif kind == "trackio":
        config = trackio_config(run_dir.path)
        assert (config["method"], config["seed"], config["digest"]) == ("math_grpo", 3, digest(recipe))
        assert config["rollout"]["samples"] == 4 and config["_Group"] == "math_grpo"
    else:
        found = list(wandb_records(run_dir.path))
        run = next(r.run for r in found if r.WhichOneof("record_type") == "run")
        config = {item.key: json.loads(item.value_json) for item in run.config.update}
        assert set(run.tags) == {"math_grpo", "seed-3"} and run.run_group == "math_grpo"
        assert (config["method"], config["seed"], config["digest"]) == ("math_grpo", 3, digest(recipe))
        summary = [i for r in found if r.WhichOneof("record_type") == "summary" for i in r.summary.update]
        assert '"finished"' in {item.value_json for item in summary}


def test_starting_again_begins_another_run(tmp_path: Path) -> None:
    recipe, run_dir = tiny("math_grpo"), RunDir(tmp_path / "run")
    ids = []
    for entry in ("new", "resume", "overwrite"):
        run_dir.enter(recipe, entry)  # type: ignore[arg-type]
        ids.append(TrackioRun(TrackioSink(), recipe, run_dir.path).own_id(32))
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize("name", list(READERS))
def test_a_missing_package_is_told_with_the_command(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    recipe = tiny("math_grpo", f"logging.sinks=[csv, {name}]")
    with pytest.raises(UserError) as refused:
        run_training(recipe, RunDir(tmp_path / "run"), SilentSink(), "new")
    (problem,) = refused.value.problems
    assert (problem.key, problem.remedy) == ("logging.sinks.1", f'pip install "cvxrl[{name}]"')
    assert not (tmp_path / "run").exists()


def test_all_mistakes_are_told_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    with pytest.raises(UserError) as refused:
        sink_openers(tiny("math_grpo", "logging.sinks=[wandb, csv, trackio, csv]"), tmp_path)
    keys = [problem.key for problem in refused.value.problems]
    assert keys == ["logging.sinks.0", "logging.sinks.2", "logging.sinks.3"]


def test_sinks_are_no_part_of_the_digest() -> None:
    with_sinks = tiny("math_grpo", "logging.sinks=[tensorboard, trackio, {kind: wandb, project: mine}]")
    assert digest(with_sinks) == digest(tiny("math_grpo"))


def test_a_table_of_completions_survives_what_markdown_means_otherwise() -> None:
    text = to_markdown([{"a": "1|2\n3", "b": None}, {"a": True, "c": 0.5}])
    assert text == "| a | b | c |\n| --- | --- | --- |\n| 1\\|2<br>3 |  |  |\n| True |  | 0.5 |"


def test_a_damaged_note_of_earlier_sessions_is_as_good_as_none(tmp_path: Path) -> None:
    class Plain(Dashboard):
        kind = "plain"

    sink = Plain(tiny("math_grpo"), tmp_path)
    own = sink.own_id(8)
    assert sink.own_id(8) == own == json.loads((tmp_path / "dashboards" / "plain.json").read_text())["id"]
    (tmp_path / "dashboards" / "plain.json").write_text('{"id": ')
    assert sink.state() == {} and sink.own_id(8) != own
