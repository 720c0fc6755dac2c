"""What `cvxrl compare` takes over a thousand long runs: seconds, and its peak resident memory.

Run directories are written by hand as `cvxrl train` writes them (a resolved recipe, run.json, a record per step with
the metrics of a GRPO step, an evaluation every tenth), with made-up curves: methods times seeds, ten different logs per
method. Then the command runs in a process of its own, once for every kind of output, each twice; nothing is kept
between two calls but the system's cache of files.

    python benchmarks/large_logs.py                     # 10 methods x 100 seeds x 1000 steps, 0.9 GB below --folder
    python benchmarks/large_logs.py --seeds 10 --keep   # a tenth of it, left there
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cvxrl.recipe.digest import digest
from cvxrl.recipe.load import dump, load_recipe
from cvxrl.runs.directory import RunDir
from cvxrl.runs.jsonl import write_lines
from cvxrl.runs.provenance import Provenance
from cvxrl.runs.record import STREAMS, Divergence, RunRecord

METHODS = ["grpo", "lco_kld", "lco_mse", "lco_lch", "ppo", "dapo", "dr_grpo", "reinforce", "cispo", "gspo"]
EVERY = 10  # steps between evaluations
DISTINCT = 10  # logs drawn per method; further seeds hold copies of them. One in ten diverged
PROVENANCE = Provenance(commit="c0ffee", dirty_diff=None, versions={"python": "3"}, machine={"cores": "2"})
OUTPUTS = {
    "tables": [],
    "json": ["--json"],
    "html": ["--html", "page.html"],
    "gate": ["--require", "iqm(math_lco_kld) > 0", "--require", "low(diff(math_lco_kld, math_grpo)) > -1"],
}


def records(rng: np.random.Generator, steps: int, final: float) -> Iterator[dict[str, float]]:
    """Lines of metrics.jsonl, as a step of `math_grpo` writes them."""
    yield {"step": 0, **evaluation(rng, 0.34)}
    noise = rng.normal(size=(steps, 8))
    seconds = np.cumsum(0.3 + 0.02 * rng.random(steps))
    tokens = np.cumsum(2000 + (200 * rng.random(steps)).astype(int))
    for t in range(steps):
        z, step = noise[t].tolist(), t + 1
        level = 0.34 + (final - 0.34) * step / (step + steps / 10)
        reward = min(1.0, max(0.0, level + 0.04 * z[0]))
        norm = 0.3 * np.exp(0.5 * z[1])
        yield {
            "step": step,
            "reward/mean": reward,
            "reward/std": (reward * (1 - reward)) ** 0.5,
            "reward/zero_variance_groups": 0.5 + 0.01 * z[2],
            "reward/correct": reward,
            "reward/grader_errors": 0.0,
            "response/length": 18 + z[3],
            "response/truncated": 0.0,
            "rollout/groups": 16.0,
            "advantage/min": -1.5 + 0.1 * z[2],
            "advantage/max": 2.4 + 0.1 * z[3],
            "advantage/mean": 1e-9 * z[4],
            "check/ratio_deviation": 1e-6 * abs(z[4]),
            "check/forward_deviation": 1e-7 * abs(z[5]),
            "loss": 0.03 * z[6],
            "policy/entropy": 0.07 * float(np.exp(-step / steps + 0.1 * z[7])),
            "grpo/clipped": 0.0,
            "grpo/ratio": 1.0,
            "grad/norm": float(norm),
            "grad/norm_clipped": float(min(1.0, norm)),
            "optim/lr": 3e-4,
            "policy/kl": 1e-3 * float(np.exp(z[5])),
            "tokens/total": int(tokens[t]),
            "time/step_s": 0.3 + 0.01 * z[6],
            "time/collect_s": 0.14 + 0.01 * z[5],
            "time/update_s": 0.15 + 0.01 * z[4],
            "time/tokens_per_s": 6000 + 100 * z[3],
            "time/total_s": float(seconds[t]),
        } | (evaluation(rng, level) if step % EVERY == 0 else {})


def evaluation(rng: np.random.Generator, level: float) -> dict[str, float]:
    """What an evaluation of 256 x 2 answers adds to a record."""
    right = int(rng.binomial(512, min(1.0, max(0.0, level))))
    return {
        "eval/accuracy": right / 512,
        "eval/stderr": (right * (512 - right) / 512**3) ** 0.5 + 0.001,
        "eval/truncated": 0.0,
        "eval/grader_errors": 0.0,
        "time/eval_s": 1 + rng.random(),
    }


def make_run(folder: Path, method: str, number: int, seed: int, steps: int) -> None:
    """One run directory; one in ten diverged at two thirds of its steps."""
    sets = [f"train.steps={steps}", f"eval.every={EVERY}", "eval.prompts=256", "eval.samples=2"]
    recipe = load_recipe(f"math_{method}", sets, seed)
    run_dir, diverged = RunDir.of(folder, recipe), (seed + number) % DISTINCT == DISTINCT - 1
    run_dir.path.mkdir(parents=True)
    run_dir.recipe.write_text(dump(recipe))
    end = 2 * steps // 3
    record = RunRecord(
        status="diverged" if diverged else "finished",
        streams=STREAMS,
        digest=digest(recipe),
        seed=seed,
        task_fingerprint="task",
        parameters=855296,
        provenance=PROVENANCE,
        started="2026-01-01T00:00:00+00:00",
        divergence=Divergence(step=end, tensor="loss", detail="nan", last_checkpoint=None) if diverged else None,
    )
    run_dir.record.write_text(record.model_dump_json())
    if seed >= DISTINCT:
        shutil.copyfile(RunDir(run_dir.path.parent / f"seed-{seed % DISTINCT}").metrics, run_dir.metrics)
        return
    rng = np.random.default_rng([number, seed])
    found = records(rng, steps, 0.9 + 0.01 * number + 0.02 * rng.normal())
    write_lines(run_dir.metrics, (line for line in found if not diverged or line["step"] < end))


def measured(folder: Path, words: list[str]) -> dict[str, Any]:
    """Wall and processor seconds and peak resident MiB of the command `cvxrl` with these words, run in ``folder``."""
    command = [sys.executable, "-m", "cvxrl", *words]
    log = folder / "log.txt"
    with log.open("w") as out:
        began = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
    if status:
        sys.exit(f"{' '.join(command)}\n{log.read_text()[-2000:]}")
    return {
        "seconds": seconds,
        "processor_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mib": usage.ru_maxrss / 1024,
        "written_mib": sum(file.stat().st_size for file in folder.iterdir() if file.is_file()) / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--methods", type=int, default=len(METHODS), choices=range(2, len(METHODS) + 1))
    parser.add_argument("--seeds", type=int, default=100, help="runs per method")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--only", choices=OUTPUTS, action="append", help="kinds of output; may be repeated")
    parser.add_argument("--rounds", type=int, default=2, help="how often each comparison is made")
    parser.add_argument("--folder", type=Path, help="where the runs are made, or found if they are there")
    parser.add_argument("--keep", action="store_true", help="leave the runs where they are")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="cvxrl-logs-"))
    if not (folder / "runs").exists():
        for number, method in enumerate(METHODS[: arguments.methods]):
            for seed in range(arguments.seeds):
                make_run(folder / "runs", method, number, seed, arguments.steps)
    files = list((folder / "runs").glob("*/*/metrics.jsonl"))
    size = sum(file.stat().st_size for file in files) / 2**20
    print(f"{len(files)} runs, {size:.0f} MiB of records in {folder}", file=sys.stderr)
    rows = []
    for name in arguments.only or OUTPUTS:
        for call in range(1, arguments.rounds + 1):
            words = ["compare", "runs", *OUTPUTS[name], "--allow-diff"]
            rows.append({"output": name, "call": call, "load": os.getloadavg()[0], **measured(folder, words)})
            row = rows[-1]
            print(
                f"{name:8} call {call}: {row['seconds']:6.1f} s, processor {row['processor_seconds']:6.1f} s, "
                f"peak {row['peak_mib']:5.0f} MiB, wrote {row['written_mib']:.1f} MiB",
                file=sys.stderr,
            )
    if arguments.json:
        print(json.dumps({"runs": len(files), "records_mib": size, "calls": rows}))
    if not arguments.keep:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
