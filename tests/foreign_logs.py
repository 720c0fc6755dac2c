"""Logs as other programs write them, small, with every number known."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def write_trl(
    folder: Path,
    accuracy: Sequence[float],
    *,
    seed: int | None = None,
    planned: int | None = None,
    rate: float = 1e-3,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """An output folder of TRL, with an evaluation at every step and a checkpoint at the last one."""
    history: list[dict[str, Any]] = []
    for step, value in enumerate(accuracy):
        if step:
            history.append(
                {"step": step, "epoch": 0.1, "loss": 0.1, "reward": value, "grad_norm": 1.0, "entropy": 0.5, "kl": 0.0}
            )
            history[-1] |= {"step_time": 2.0, "learning_rate": rate, "clip_ratio/region_mean": 0.0} | dict(extra or {})
        history.append({"step": step, "epoch": 0.1, "eval_rewards/accuracy_reward/mean": value, "eval_loss": 0.0})
    last = len(accuracy) - 1
    history.append({"step": last, "train_loss": 9.0, "train_runtime": 1.0})
    state = {"global_step": last, "max_steps": last if planned is None else planned, "log_history": history}
    checkpoint = folder / f"checkpoint-{last}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    if seed is not None:
        import torch

        torch.save(Arguments(seed, rate), checkpoint / "training_args.bin")
    return folder


class Arguments:
    """Stands for a trainer's arguments."""

    def __init__(self, seed: int, rate: float) -> None:
        self.output_dir, self.data_seed, self.seed, self.learning_rate = "seed", None, seed, rate
        self.loss_type = "dapo"


def write_lines(file: Path, records: Sequence[Mapping[str, Any]]) -> Path:
    """A file of JSON lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def write_verl(file: Path, accuracy: Sequence[float]) -> Path:
    """verl's `file` logger."""
    records = []
    for step, value in enumerate(accuracy):
        data = {"val-core/sums/acc/mean@4": value, "training/global_step": step}
        data |= {"critic/score/mean": value, "actor/grad_norm": 1.0, "actor/entropy": 0.5} if step else {}
        records.append({"step": step, "data": data})
    return write_lines(file, records)


def write_prime(folder: Path, accuracy: Sequence[float]) -> Path:
    """prime-rl's `metrics.jsonl`: several lines a step, a late evaluation among them."""
    records: list[dict[str, Any]] = []
    for step, value in enumerate(accuracy):
        records.append({"step": step, "time": 1.0 + step, "optim/grad_norm": 1.0, "entropy/all/mean": 0.5})
        records.append({"step": step, "time": 1.1 + step, "train/sums/all/solver/reward/mean": value})
    for step, value in enumerate(accuracy):
        late = {"eval/sums/all/solver/avg@4": value, "eval/sums/effective/solver/pass@1": value}
        records.append({"step": step, "time": 9.0, **late})
    write_lines(folder / "metrics.jsonl", records)
    return folder


def write_tinker(folder: Path, accuracy: Sequence[float], seed: int) -> Path:
    """tinker-cookbook's `metrics.jsonl` and `config.json`."""
    records = [
        {"step": step, "progress/batch": step, "env/all/reward/total": v, "test/env/all/correct": v, "optim/lr": 1e-4}
        for step, v in enumerate(accuracy)
    ]
    write_lines(folder / "metrics.jsonl", records)
    (folder / "config.json").write_text(json.dumps({"seed": seed, "learning_rate": 1e-4}))
    return folder


def write_trackio_table(file: Path, runs: Mapping[str, Sequence[float]]) -> Path:
    """A database with trackio's tables, as its documentation has them."""
    import sqlite3
    from contextlib import closing

    file.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(file)) as database, database:
        database.execute(
            "CREATE TABLE metrics (id INTEGER PRIMARY KEY, run_id TEXT, timestamp TEXT, run_name TEXT, step INTEGER, "
            "metrics TEXT)"
        )
        database.execute("CREATE TABLE configs (id INTEGER PRIMARY KEY, run_id TEXT, run_name TEXT, config TEXT)")
        for name, accuracy in runs.items():
            config = json.dumps({"seed": int(name[-1]), "learning_rate": 1e-3})
            database.execute(
                "INSERT INTO configs (run_id, run_name, config) VALUES (?, ?, ?)", (f"id{name}", name, config)
            )
            for step, value in enumerate(accuracy):
                row = (f"id{name}", "now", name, step, json.dumps({"eval/accuracy": value, "loss": "NaN"}))
                query = "INSERT INTO metrics (run_id, timestamp, run_name, step, metrics) VALUES (?, ?, ?, ?, ?)"
                database.execute(query, row)
    return file


def write_chart(file: Path, runs: Mapping[str, Sequence[float]], metric: str = "eval/accuracy") -> Path:
    """A chart of W&B exported as CSV."""
    columns = [f"{name} - {metric}{end}" for name in runs for end in ("", "__MIN", "__MAX")]
    lines = [",".join(f'"{c}"' for c in ("Step", *columns))]
    for step in range(max(map(len, runs.values()))):
        values = [str(curve[step]) if step < len(curve) else "" for curve in runs.values() for _ in range(3)]
        lines.append(",".join([str(step), *values]))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n")
    return file
