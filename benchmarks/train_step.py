"""Time and memory of a GRPO training step, cvxrl against a peer on the same work.

Same policy, prompts, group size, completion length, reward and optimizer. The two run in alternation, each round
in a fresh process started from this one; its first steps are left out. Prints the ratio of the median step times
and of the peak resident memory, and nothing absolute that would belong to one machine only.

    pip install -c constraints.txt -e ".[bench]" && python benchmarks/train_step.py --peer trl
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "math_grpo.yaml"


def load(arguments: argparse.Namespace) -> Any:
    from cvxrl.recipe.load import load_recipe

    return load_recipe(
        RECIPE,
        [
            f"rollout.prompts={arguments.prompts}",
            f"rollout.samples={arguments.samples}",
            f"train.steps={arguments.warmup + arguments.steps}",
            "optim.warmup_steps=0",
            "eval.every=0",
        ],
    )


def run_cvxrl(arguments: argparse.Namespace) -> list[float]:
    """Seconds of every step, what a user's `cvxrl train` does in one included."""
    from cvxrl.engine.signals import StopRequest
    from cvxrl.engine.trainer import Hooks, Trainer

    seconds: list[float] = []
    hooks = Hooks(
        record=lambda record: seconds.append(record["time/step_s"]),
        evaluation=lambda step, result: None,
        checkpoint=lambda position: None,
    )
    Trainer.build(load(arguments)).run(hooks, StopRequest())
    return seconds


def run_trl(arguments: argparse.Namespace) -> list[float]:
    """Seconds from one finished optimizer step to the next."""
    import datasets
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from cvxrl.policy.locate import locate
    from cvxrl.tasks import load_grader, load_task

    recipe = load(arguments)
    task, grader = load_task(recipe.task, recipe.seed), load_grader(recipe.task)
    examples = [task.train(i) for i in range(recipe.train.steps * recipe.rollout.prompts)]
    by_prompt = {e.prompt: e for e in examples}

    def reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        return [g.reward for g in grader.grade(completions, [by_prompt[p] for p in prompts])]

    ends: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    path = locate(recipe.model).path
    batch = arguments.peer_batch or recipe.sequences_per_step
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=recipe.sequences_per_step // batch,
            num_generations=recipe.rollout.samples,
            max_completion_length=recipe.rollout.max_new_tokens,
            temperature=recipe.rollout.temperature,
            learning_rate=recipe.optim.lr,
            lr_scheduler_type="constant",
            max_grad_norm=recipe.optim.max_grad_norm,
            beta=0.0,
            max_steps=recipe.train.steps,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
        )
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(path),
            processing_class=AutoTokenizer.from_pretrained(path, padding_side="left"),
            reward_funcs=reward,
            args=config,
            train_dataset=datasets.Dataset.from_list([{"prompt": e.prompt} for e in examples]),
            callbacks=[Clock()],
        )
        start = time.perf_counter()
        trainer.train()
    return [b - a for a, b in zip([start, *ends], ends, strict=False)]


def child(arguments: argparse.Namespace) -> None:
    runner = {"cvxrl": run_cvxrl, "trl": run_trl}[arguments.child]
    seconds = runner(arguments)[arguments.warmup :]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    Path(arguments.report).write_text(json.dumps({"seconds": seconds, "peak_kib": peak}))


def measure(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    """One round of one side, in a process of its own."""
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        command = [sys.executable, __file__, "--child", name, "--report", report.name]
        for key in ("prompts", "samples", "steps", "warmup", "peer_batch"):
            command += [f"--{key.replace('_', '-')}", str(getattr(arguments, key))]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        result: dict[str, Any] = json.loads(Path(report.name).read_text())
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--peer", choices=["trl"], default="trl")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10, help="steps measured per round")
    parser.add_argument("--warmup", type=int, default=3, help="steps left out at the start of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--peer-batch", type=int, default=0, help="the peer's per-device batch (its own default is 8); 0 is all at once"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--report", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments)
        return
    sides: dict[str, list[dict[str, Any]]] = {"cvxrl": [], arguments.peer: []}
    for round_ in range(arguments.rounds):
        # Who goes first changes, so that a drift of the machine's speed favours nobody.
        for name in sorted(sides, reverse=bool(round_ % 2)):
            sides[name].append(measure(arguments, name))
            print(f"round {round_ + 1}/{arguments.rounds}: {name} done", file=sys.stderr)
    median = {k: statistics.median(s for r in v for s in r["seconds"]) for k, v in sides.items()}
    peak = {k: max(r["peak_kib"] for r in v) for k, v in sides.items()}
    report = {
        "peer": arguments.peer,
        "peer_batch": arguments.peer_batch or arguments.prompts * arguments.samples,
        "completions": f"{arguments.prompts} x {arguments.samples}",
        "steps_per_side": arguments.rounds * arguments.steps,
        "time_ratio": median["cvxrl"] / median[arguments.peer],
        "memory_ratio": peak["cvxrl"] / peak[arguments.peer],
    }
    if arguments.json:
        print(json.dumps(report))
        return
    print(f"GRPO step, {report['completions']} completions, {report['steps_per_side']} steps per side, in alternation")
    print(f"{arguments.peer} runs {report['peer_batch']} completions per forward and backward pass")
    print(f"time   cvxrl / {arguments.peer}: {report['time_ratio']:.2f} (medians)")
    print(f"memory cvxrl / {arguments.peer}: {report['memory_ratio']:.2f} (peak resident)")


if __name__ == "__main__":
    main()
