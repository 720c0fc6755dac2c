"""What `cvxrl inspect-grads` takes over many checkpoints of the embedded policy: seconds, and its peak resident memory.

A run of `math_grpo` that keeps every checkpoint is trained first (or found in --folder); then its checkpoints are
inspected by a process of its own, with the default objectives and parts: rollouts are sampled, nothing is read from an
earlier inspection.

    python benchmarks/large_inspection.py                        # 20 checkpoints
    python benchmarks/large_inspection.py --checkpoints 5 --folder runs --words=--objectives --words=grpo
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from large_logs import measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--recipe", default="math_grpo")
    parser.add_argument("--checkpoints", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the run is trained, or found if it is there; stays")
    parser.add_argument("--words", action="append", default=[], help="further words of the command; may be repeated")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="cvxrl-inspection-"))
    folder.mkdir(parents=True, exist_ok=True)
    run = folder / arguments.recipe / "seed-0"
    steps = list(range(1, arguments.checkpoints + 1))
    if not run.exists():
        sets = [f"train.steps={steps[-1]}", f"checkpoint.keep={steps[-1]}", "checkpoint.every=1", "eval.every=0"]
        trained = measured(folder, ["train", arguments.recipe, "--out", ".", *(w for s in sets for w in ("--set", s))])
        print(f"trained in {trained['seconds']:.1f} s", file=sys.stderr)
    rows = []
    for call in range(1, arguments.rounds + 1):
        where = folder.resolve() / "inspection"
        shutil.rmtree(where, ignore_errors=True)
        named = ["--step", ",".join(map(str, steps)), "--out", str(where)]
        words = ["inspect-grads", str(run.resolve()), *named, *arguments.words]
        rows.append({"checkpoints": len(steps), "call": call, "load": os.getloadavg()[0], **measured(folder, words)})
        row = rows[-1]
        print(
            f"{len(steps)} checkpoints, call {call}: {row['seconds']:6.1f} s, processor "
            f"{row['processor_seconds']:6.1f} s, peak {row['peak_mib']:5.0f} MiB, load {row['load']:.1f}",
            file=sys.stderr,
        )
    if arguments.json:
        print(json.dumps(rows))
    if arguments.folder is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
