"""What has never run on a GPU, in one call of at most ten minutes: correctness first, then speed.

Losses and gradients of every objective on the device against the CPU; decoding with a static cache (CUDA graphs) and
with vLLM against the plain decoder; bf16; fused losses against full logits, Liger's and the three matrix products at
the shape of Qwen2.5-0.5B; a step on a random policy of that shape against TRL's, with and without vLLM. Each part has
a share of the time, and the file is whole after each: a result, an error, or why it was not run.

    pip install -c constraints.txt -e ".[bench]" && python benchmarks/gpu.py OUT.json     # --seconds 560
    python benchmarks/gpu.py OUT.json --smoke     # every part on the CPU with tiny shapes: whether the script works
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_ranks import HALF, SMALL, LeftOutError, Numbers, Session, apart, group, random_policy, vllm_run
from torch import Tensor

HERE = Path(__file__).resolve().parent
QWEN = {"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2}
QWEN |= {"intermediate_size": 4864, "vocab_size": 151_936}
TINY = {"hidden_size": 56, "num_hidden_layers": 2, "num_attention_heads": 14, "num_key_value_heads": 2}
TINY |= {"intermediate_size": 128, "vocab_size": 512}
# Time of the products alone over that of the fused loss: what the issue of speed is decided by.
GOAL = 0.7


@dataclass(frozen=True)
class Part:
    """One part of the call.

    Attributes:
        name: in the file.
        share: of the whole time that it may take at most; what one leaves over, later ones do not get.
        make: does it.
    """

    name: str
    share: float
    make: Callable[[Session], None]


def all_parts() -> list[Part]:
    """In order: what is cheap and decides whether the rest means anything comes first."""
    return [
        Part("objectives", 0.1, objectives),
        Part("engines", 0.3, engines),
        Part("bf16", 0.15, bf16),
        Part("losses", 0.2, losses),
        Part("step", 0.25, steps),
    ]


# --- every objective on the device against the CPU


def objectives(session: Session) -> None:
    """The loss of every token and the gradient in the logits, of one batch, on the device and on the CPU."""

    def make() -> Numbers:
        from pydantic import TypeAdapter

        from cvxrl.objectives.registry import OBJECTIVES
        from cvxrl.recipe.objective import ObjectiveSpec

        adapter: TypeAdapter[Any] = TypeAdapter(ObjectiveSpec)
        vocab, tokens = (64, 8) if session.smoke else (32_768, 64)
        found = {}
        for kind in sorted(OBJECTIVES):
            spec = adapter.validate_python({"kind": kind})
            here, there = (loss_and_gradient(spec, device, vocab, tokens) for device in ("cpu", session.device))
            found[kind] = max(distance(a, b) for a, b in zip(here, there, strict=True))
        worst = max(found, key=found.__getitem__)
        if found[worst] > 1e-4:
            raise RuntimeError(f"{worst} is {found[worst]:.2g} from the CPU, relative to its largest number: {found}")
        return {
            "device": session.device,
            "objectives": len(found),
            "largest_relative_distance": found[worst],
            "of": worst,
        }

    session.check("objectives", make)


def loss_and_gradient(spec: Any, device: str, vocab: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Losses [N] and their gradient [N, V], on the CPU: two prompts with two responses each, off-policy."""
    from cvxrl.objectives.batch import TokenBatch
    from cvxrl.objectives.registry import compute

    generator = torch.Generator().manual_seed(0)
    logits_NV, noise_NV = torch.randn(2, tokens, vocab, generator=generator)
    actions_N = torch.randint(vocab, (tokens,), generator=generator)
    sequence_N = torch.arange(4).repeat_interleave(tokens // 4)
    advantages_S = torch.randn(4, generator=generator)
    old_NV = logits_NV + 0.1 * noise_NV
    old_N = old_NV.log_softmax(-1).gather(-1, actions_N.unsqueeze(-1)).squeeze(-1)
    held = logits_NV.to(device).requires_grad_()
    batch = TokenBatch(
        held,
        actions_N=actions_N.to(device),
        advantages_N=advantages_S[sequence_N].to(device),
        old_logits_NV=old_NV.to(device),
        old_logprobs_N=old_N.to(device),
        reference_logprobs_N=(old_N - 0.1).to(device),
        group_advantages_NG=advantages_S.view(2, 2).repeat_interleave(2, dim=0)[sequence_N].to(device),
        sequence_N=sequence_N.to(device),
        group_S=torch.tensor([0, 0, 1, 1], device=device),
    )
    loss_N = compute(batch, spec).loss_N
    loss_N.sum().backward()
    assert held.grad is not None
    return loss_N.detach().cpu(), held.grad.cpu()


def distance(here: Tensor, there: Tensor) -> float:
    """Largest difference, relative to the largest number."""
    return float((here - there).abs().max() / here.abs().max().clamp(min=1e-12))


# --- sampling and precision, by training the embedded policy


def engines(session: Session) -> None:
    """Static decoding and vLLM: the same runs as with the plain decoder, and how fast they sample."""
    run = beside_the_first(session, "math_grpo")
    session.check("decoder", lambda: run("decoder", "rollout.engine=auto"))
    session.check("static", lambda: run("static", "rollout.engine=static"))
    vllm_run(session)


def bf16(session: Session) -> None:
    """Autocast, and half-precision weights with fp32 copies, beside fp32."""
    run = beside_the_first(session, "math_lco_kld")
    session.check("fp32", lambda: run("fp32"))
    session.check("bf16-autocast", lambda: run("bf16-autocast", "train.precision=bf16"))
    session.check("bf16-weights", lambda: run("bf16-weights", *HALF))


def beside_the_first(session: Session, recipe: str) -> Callable[..., Numbers]:
    """A function that trains a recipe with more settings: how fast, and how far from the first that it trained."""
    runs: list[Numbers] = []

    def run(name: str, *settings: str) -> Numbers:
        runs.append(session.run(name, recipe, [*SMALL, *settings]))
        far = {"apart": apart(runs[0]["records"], runs[-1]["records"])} if len(runs) > 1 else {}
        return {**speed(runs[-1]), **far}

    return run


def speed(run: Numbers) -> Numbers:
    """Medians over the steps, the first left out, and the peak."""
    records = run["records"][1:] or run["records"]
    seconds = {k: statistics.median(r[f"time/{k}"] for r in records) for k in ("step_s", "collect_s", "update_s")}
    return {**seconds, "peak_mib": run["peak_bytes"] / 2**20, "reward": run["records"][-1]["reward/mean"]}


# --- fused losses


def losses(session: Session) -> None:
    """`loss_memory.py` at the shape of Qwen2.5-0.5B, one objective after the other."""
    from loss_memory import CASES

    dtype = "float32" if session.device == "cpu" else "bfloat16"
    shape = {"tokens": 4096, "vocab": QWEN["vocab_size"], "hidden": QWEN["hidden_size"], "rounds": 3}
    if session.smoke:
        shape = {"tokens": 64, "vocab": TINY["vocab_size"], "hidden": TINY["hidden_size"], "rounds": 1}

    def make(objective: str) -> Numbers:
        options = {**shape, "objective": objective, "device": session.device, "dtype": dtype}
        (found,) = script(session, "loss_memory.py", ["--json", *words(options)])
        over = 1.0 / found["floor_ratio"]
        # Rows alone are read for the squared losses, so that they stay below the floor of all products.
        judged = {"of_floor": over, "goal": GOAL, "met": over >= GOAL}
        liger = {} if objective != "grpo" or found["liger_ratio"] is not None else {"liger": why_no_liger(session)}
        return {**found, **judged, **liger, "dtype": dtype}

    for objective in CASES:
        session.check(f"loss-{objective}", lambda objective=objective: make(objective))


def why_no_liger(session: Session) -> str:
    installed = importlib.util.find_spec("liger_kernel") is not None
    return "not run: it needs a GPU" if installed else "not run: liger-kernel is not installed"


# --- a step against TRL


PLAIN = ("task.template=none", "task.unknown_characters=allow")


def steps(session: Session) -> None:
    """`train_step.py` on a random policy of the same shape: TRL as it samples itself, and with vLLM in its process."""
    policy = session.folder / "shaped"
    random_policy(policy, TINY if session.smoke else QWEN)
    size = {"prompts": 16, "samples": 8, "length": 256, "steps": 4, "warmup": 2, "rounds": 1, "dtype": "bfloat16"}
    if session.smoke:
        size |= {"prompts": 4, "samples": 2, "length": 8, "steps": 1, "warmup": 1, "dtype": "float32"}

    def make(*more: str, ours: Sequence[str] = ()) -> Numbers:
        for package, wanted in (("trl", True), ("vllm", "--peer-vllm" in more)):
            if wanted and importlib.util.find_spec(package) is None:
                raise LeftOutError(f"{package} is not installed")
        # The random policy's tokenizer is the embedded policy's: no template, and letters that it does not know.
        settings = [word for one in (*PLAIN, *ours) for word in ("--set", one)]
        options = words({**size, "model": policy, "device": session.device})
        found: Numbers = script(session, "train_step.py", ["--json", *options, *more, *settings])
        return found

    session.check("step-trl", make)
    session.check("step-trl-static", lambda: make(ours=["rollout.engine=static"]))
    colocated = "rollout.engine={kind: vllm, mode: colocated}"
    session.check("step-trl-vllm", lambda: make("--peer-vllm", ours=[colocated]))


def script(session: Session, name: str, arguments: Sequence[str]) -> Any:
    """What another benchmark prints, in what is left of the part's time; all that it started is ended with it."""
    file = session.folder / f"{name}.out"
    with file.open("wb") as stream, (session.folder / f"{name}.log").open("ab") as log:
        with group([sys.executable, str(HERE / name), *arguments], stdout=stream, stderr=log) as process:
            try:
                code = process.wait(timeout=max(1.0, session.until - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise LeftOutError("it did not end within this part's share of the time") from None
    if code:
        lines = (session.folder / f"{name}.log").read_text(errors="replace").strip().splitlines()
        raise RuntimeError(f"{name} ended with {code}: {' | '.join(lines[-4:])}")
    return json.loads(file.read_text())


def words(options: dict[str, Any]) -> Iterator[str]:
    """Options as a command line has them."""
    for name, value in options.items():
        yield from (f"--{name.replace('_', '-')}", str(value))


def main() -> int:
    """Make all parts; 1 where one of them failed, 0 also where some could not be made."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    known = all_parts()
    parser.add_argument("out", type=Path, help="the JSON file to write")
    parser.add_argument("--seconds", type=float, default=560.0, help="longest time of the call")
    parser.add_argument("--smoke", action="store_true", help="on the CPU, with tiny shapes")
    parser.add_argument("--only", action="append", choices=[part.name for part in known], help="may be repeated")
    arguments = parser.parse_args()
    if not arguments.smoke and not torch.cuda.is_available():
        parser.error("no CUDA device is available; --smoke runs every part on the CPU with tiny shapes")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended on the way out
    device = "cpu" if arguments.smoke else "cuda"
    with tempfile.TemporaryDirectory() as folder:
        session = Session(arguments.out, Path(folder), 0.0, 1, device, arguments.smoke)
        ends = time.monotonic() + arguments.seconds
        for part in known:
            if arguments.only and part.name not in arguments.only:
                continue
            share = 1.0 if arguments.only else part.share
            session.until = min(ends, time.monotonic() + share * arguments.seconds)
            part.make(session)
    return int(any(one["status"] == "failed" for one in session.found))


if __name__ == "__main__":
    sys.exit(main())
