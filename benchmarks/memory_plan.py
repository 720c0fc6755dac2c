"""Peak memory that `cvxrl train --dry-run` foretells, against what the run then takes.

Each run is made in a fresh process that has imported the libraries first. Both numbers are what is taken beyond that:
the peak resident memory of the run less the resident memory before it.

    python benchmarks/memory_plan.py
    python benchmarks/memory_plan.py --case recipes/math_grpo.yaml --case recipes/math_ppo.yaml train.micro_batch=64
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FEW = ["train.steps=2", "optim.warmup_steps=0", "eval.every=0"]
CASES = [
    ["recipes/math_grpo.yaml"],
    ["recipes/math_ppo.yaml"],
    ["recipes/math_ppo.yaml", "train.micro_batch_tokens=4096"],
    ["recipes/math_ppo.yaml", "rollout.prompts=64"],
    ["recipes/math_lco_kld.yaml"],
    ["recipes/math_lco_kld.yaml", "train.micro_batch_tokens=8192", "rollout.batch=64"],
    ["recipes/math_lco_kld.yaml", "rollout.prompts=64"],
    ["recipes/reuse_lco_kld.yaml"],
    ["recipes/reuse_lco_kld_search.yaml"],
    ["recipes/math_grpo.yaml", "step.kind=trust-region"],
    ["recipes/math_grpo.yaml", "rollout.lag=1", "rollout.ahead=true"],
    ["recipes/smollm2_lco_kld.yaml"],
]


def status(key: str) -> int:
    """A line of this process's memory, in bytes."""
    return 1024 * int(Path("/proc/self/status").read_text().split(f"{key}:")[1].split()[0])


def import_model_class(recipe_path: str, overrides: list[str]) -> None:
    """Everything that a run will import or load at its first product, so that none of it counts as the run's."""
    import matplotlib.pyplot  # noqa: F401  # draws the figures of a run that has ended
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    import cvxrl.engine.session  # noqa: F401
    from cvxrl.policy.locate import locate
    from cvxrl.recipe.load import load_recipe
    from cvxrl.tasks import load_grader, load_task

    recipe = load_recipe(Path(recipe_path), overrides)
    load_task(recipe.task, recipe.seed).train(0)
    load_grader(recipe.task).close()
    layer = torch.nn.Linear(64, 64)
    layer(torch.zeros(64, 64)).sum().backward()
    torch.optim.AdamW(layer.parameters(), fused=True).step()
    if recipe.model.scratch is None:
        config = AutoConfig.from_pretrained(locate(recipe.model).path)
        _ = AutoModelForCausalLM._model_mapping[type(config)]


def child(case: list[str]) -> None:
    """Train, and print the peak in bytes beyond what was taken before."""
    from cvxrl.engine.session import run_training
    from cvxrl.recipe.load import load_recipe
    from cvxrl.report.display import make_sink
    from cvxrl.runs.directory import RunDir

    import_model_class(case[0], case[1:])
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    recipe = load_recipe(Path(case[0]), case[1:])
    with tempfile.TemporaryDirectory() as folder:
        run_training(recipe, RunDir.of(Path(folder), recipe), make_sink(sys.stderr), "new")
    print(json.dumps({"measured": status("VmHWM") - before, "libraries": before}))


def foretold(case: list[str]) -> int:
    """What `--dry-run` says, in bytes."""
    command = [sys.executable, "-m", "cvxrl", "train", case[0], "--dry-run", "--json"]
    for override in case[1:]:
        command += ["--set", override]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    return int(json.loads(done.stdout)["plan"]["memory_bytes"])


def compare(case: list[str]) -> dict[str, object]:
    """Both numbers of a case."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, __file__, "--child", "--case", *case]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    predicted = foretold(case)
    return {
        "recipe": Path(case[0]).stem,
        "settings": [s for s in case[1:] if s not in FEW and not s.startswith("model.path")],
        "predicted_mib": predicted / 2**20,
        "measured_mib": found["measured"] / 2**20,
        "libraries_mib": found["libraries"] / 2**20,
        "ratio": predicted / found["measured"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--case", action="append", nargs="+", help="a recipe and settings for it; may be repeated")
    parser.add_argument("--smollm2", help="directory of SmolLM2-135M-Instruct; without it that case is left out")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.case[0])
        return
    rows = []
    for case in arguments.case or CASES:
        settings = [*case[1:], *FEW]
        if Path(case[0]).stem.startswith("smollm2"):
            if not arguments.smollm2:
                continue
            settings.append(f"model.path={arguments.smollm2}")
        rows.append(compare([case[0], *settings]))
        print(f"{case[0]}: {rows[-1]['ratio']:.2f}", file=sys.stderr)
    if arguments.json:
        print(json.dumps(rows))
        return
    print(f"{'recipe':18} {'predicted':>9} {'measured':>9} {'ratio':>6}   MiB beyond the libraries")
    for row in rows:
        settings_text = " ".join(row["settings"])  # type: ignore[arg-type]
        numbers = f"{row['predicted_mib']:9.0f} {row['measured_mib']:9.0f} {row['ratio']:6.2f}"
        print(f"{row['recipe']:18} {numbers}   {settings_text}")


if __name__ == "__main__":
    main()
