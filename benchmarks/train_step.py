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
# The embedded policy, and the recipe whose task a language model gets: GRPO on both.
EMBEDDED, LANGUAGE = (ROOT / "recipes" / name for name in ("math_grpo.yaml", "smollm2_lco_kld.yaml"))
# What a step consists of, as far as its record tells: sampling and grading; passes and optimizer.
PARTS = {"collect": "time/collect_s", "update": "time/update_s"}


def load(arguments: argparse.Namespace) -> Any:
    """The recipe that both sides follow."""
    from cvxrl.recipe.load import load_recipe

    changes = [
        f"rollout.prompts={arguments.prompts}",
        f"rollout.samples={arguments.samples}",
        f"train.steps={arguments.warmup + arguments.steps}",
        f"train.precision={'bf16' if arguments.dtype == 'bfloat16' else 'fp32'}",
        f"train.device={arguments.device}",
        "optim.warmup_steps=0",
        "eval.every=0",
    ]
    if arguments.model:
        changes += [f"model.path={arguments.model}", "objective={kind: grpo}"]
    if arguments.length:
        changes.append(f"rollout.max_new_tokens={arguments.length}")
    if arguments.micro_batch >= 0:
        changes.append(f"train.micro_batch={arguments.micro_batch or 'null'}")
    return load_recipe(LANGUAGE if arguments.model else EMBEDDED, [*changes, *arguments.set])


def run_cvxrl(arguments: argparse.Namespace) -> list[dict[str, float]]:
    """Seconds of every step and of its parts, what a user's `cvxrl train` does in one included."""
    from cvxrl.engine.trainer import Hooks, Trainer
    from cvxrl.report.stop import StopRequest

    recipe = load(arguments)
    steps: list[dict[str, float]] = []
    used = [time.process_time()]

    def record(found: dict[str, float]) -> None:
        used.append(time.process_time())
        parts = {part: found[key] for part, key in PARTS.items()}
        tokens = found["response/length"] * recipe.sequences_per_step
        idle = found["reward/zero_variance_groups"]
        steps.append(
            {"step": found["time/step_s"], "cpu": used[-1] - used[-2], "tokens": tokens, "idle": idle, **parts}
        )

    hooks = Hooks(record=record, evaluation=lambda *_: None, checkpoint=lambda *_: None)
    Trainer.build(recipe).run(hooks, StopRequest())
    return steps


def run_trl(arguments: argparse.Namespace) -> list[dict[str, float]]:
    """Seconds from one finished optimizer step to the next."""
    import datasets
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from cvxrl.policy.locate import locate
    from cvxrl.rollout.prompts import render
    from cvxrl.tasks import load_grader, load_task

    recipe = load(arguments)
    task, grader = load_task(recipe.task, recipe.seed), load_grader(recipe.task)
    path = locate(recipe.model).path
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    examples = [task.train(i) for i in range(recipe.train.steps * recipe.rollout.prompts)]
    by_prompt = {render(e.prompt, recipe.task, tokenizer): e for e in examples}
    prompts = [render(e.prompt, recipe.task, tokenizer) for e in examples]

    def reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        return [g.reward for g in grader.grade(completions, [by_prompt[p] for p in prompts])]

    ends: list[tuple[float, float]] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append((time.perf_counter(), time.process_time()))

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
            bf16=arguments.dtype == "bfloat16",
            use_cpu=arguments.device == "cpu",
            **({"use_vllm": True, "vllm_mode": "colocate"} if arguments.peer_vllm else {}),
            report_to=[],
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
        )
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(path),
            processing_class=tokenizer,
            reward_funcs=reward,
            args=config,
            train_dataset=datasets.Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
            callbacks=[Clock()],
        )
        start = time.perf_counter(), time.process_time()
        trainer.train()
    return [{"step": b[0] - a[0], "cpu": b[1] - a[1]} for a, b in zip([start, *ends], ends, strict=False)]


def child(arguments: argparse.Namespace) -> None:
    runner = {"cvxrl": run_cvxrl, "trl": run_trl}[arguments.child]
    found = {
        "steps": runner(arguments)[arguments.warmup :],
        "peak_kib": peak_kib(arguments.device),
    }
    Path(arguments.report).write_text(json.dumps(found))


def peak_kib(device: str) -> float:
    """The most memory that was in use: resident, or, on a GPU, of its own."""
    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    import torch

    return torch.cuda.max_memory_allocated() / 1024


def measure(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    """One round of one side, in a process of its own."""
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        command = [sys.executable, __file__, "--child", name, "--report", report.name]
        for key in (
            "prompts",
            "samples",
            "steps",
            "warmup",
            "peer_batch",
            "model",
            "dtype",
            "length",
            "micro_batch",
            "device",
        ):
            command += [f"--{key.replace('_', '-')}", str(getattr(arguments, key))]
        command += ["--peer-vllm"] if arguments.peer_vllm else []
        for change in arguments.set:
            command += ["--set", change]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        result: dict[str, Any] = json.loads(Path(report.name).read_text())
        return result


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--peer", choices=["trl"], default="trl")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--model", default="", help="a language model's directory; without it the embedded policy")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="bfloat16: under autocast")
    parser.add_argument("--length", type=int, default=0, help="longest completion; 0 is the recipe's")
    parser.add_argument("--steps", type=int, default=10, help="steps measured per round")
    parser.add_argument("--warmup", type=int, default=3, help="steps left out at the start of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--micro-batch", type=int, default=-1, help="our sequences per pass; 0 is all at once, -1 the recipe's"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change our recipe further")
    parser.add_argument(
        "--peer-batch", type=int, default=0, help="the peer's per-device batch (its own default is 8); 0 is all at once"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--peer-vllm", action="store_true", help="the peer samples with vLLM, in its own process")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--report", help=argparse.SUPPRESS)
    return parser


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Both sides in alternation; ratios of their medians and peaks, and where our own time goes.

    Processor time is that of whole steps, on all cores.
    """
    sides: dict[str, list[dict[str, Any]]] = {"cvxrl": [], arguments.peer: []}
    for round_ in range(arguments.rounds):
        # Who goes first changes, so that a drift of the machine's speed favours nobody.
        for name in sorted(sides, reverse=bool(round_ % 2)):
            sides[name].append(measure(arguments, name))
            print(f"round {round_ + 1}/{arguments.rounds}: {name} done", file=sys.stderr)
    median, used = (
        {k: statistics.median(step[what] for r in v for step in r["steps"]) for k, v in sides.items()}
        for what in ("step", "cpu")
    )
    peak = {k: max(r["peak_kib"] for r in v) for k, v in sides.items()}
    ours = [step for r in sides["cvxrl"] for step in r["steps"]]
    return {
        "peer": arguments.peer,
        "peer_batch": arguments.peer_batch or arguments.prompts * arguments.samples,
        "completions": f"{arguments.prompts} x {arguments.samples}",
        "model": Path(arguments.model).name or "embedded",
        "dtype": arguments.dtype,
        "steps_per_side": arguments.rounds * arguments.steps,
        "time_ratio": median["cvxrl"] / median[arguments.peer],
        "cpu_ratio": used["cvxrl"] / used[arguments.peer],
        "memory_ratio": peak["cvxrl"] / peak[arguments.peer],
        "seconds": median,
        "cpu_seconds": used,
        "peak_mib": {k: v / 1024 for k, v in peak.items()},
        "response_tokens": statistics.mean(step["tokens"] for step in ours),
        "groups_without_contrast": statistics.mean(step["idle"] for step in ours),
        "parts": {part: statistics.median(s[part] / s["step"] for s in ours) for part in PARTS},
    }


def main() -> None:
    """Run the comparison and print it."""
    arguments = parser().parse_args()
    if arguments.child:
        child(arguments)
        return
    report = compare(arguments)
    if arguments.json:
        print(json.dumps(report))
        return
    print(
        f"GRPO step, {report['model']} in {report['dtype']}, {report['completions']} completions, "
        f"{report['steps_per_side']} steps per side, in alternation"
    )
    print(f"{arguments.peer} runs {report['peer_batch']} completions per forward and backward pass")
    print(f"time   cvxrl / {arguments.peer}: {report['time_ratio']:.2f} (medians)")
    print(f"processor time cvxrl / {arguments.peer}: {report['cpu_ratio']:.2f} (medians)")
    print(f"memory cvxrl / {arguments.peer}: {report['memory_ratio']:.2f} (peak resident)")
    idle = report["groups_without_contrast"]
    print(f"groups without contrast, which get no backward pass on our side: {idle:.0%}")
    shares = ", ".join(f"{part} {share:.2f}" for part, share in report["parts"].items())
    print(f"shares of our step: {shares}, the rest is the KL estimate for the log")


if __name__ == "__main__":
    main()
