"""Time and memory of a loss and its gradients: from hidden states in chunks against full logits.

Each side runs in a fresh process, in alternation. Memory is the peak above what the inputs and their gradients take;
time is one forward and backward pass after a small one. `floor` is the three matrix products alone, in the same chunks.
Where the full logits would not fit into the memory that is free, both sides get fewer tokens, and the output says so.
On a CUDA machine `--device cuda --dtype bfloat16` adds Liger's fused GRPO loss on the same tensors, if installed.

    python benchmarks/loss_memory.py --objective lco-kld --objective grpo --objective lco-mse
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cvxrl.objectives.batch import TokenBatch
from cvxrl.objectives.linear import Frozen, HiddenBatch, LinearHead, linear_objective
from cvxrl.objectives.linear.sweep import default_chunk
from cvxrl.objectives.registry import compute
from cvxrl.recipe.objective import GrpoSpec, LcoKldSpec, LcoLchSpec, LcoMseSpec

# Objective, whether the sampling policy is the current one, and how many [T, V] tensors the full logits take at most.
CASES: dict[str, tuple[Any, bool, int]] = {
    "lco-kld": (LcoKldSpec(), True, 5),
    "lco-kld-frozen": (LcoKldSpec(), False, 6),
    "grpo": (GrpoSpec(), True, 3),
    "lco-mse": (LcoMseSpec(), False, 4),
    "lco-lch": (LcoLchSpec(), False, 4),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Share of the free memory that the full logits may take: other programs want some.
MEMORY_SHARE = 0.7


class Work:
    """The tensors of one case, and a function per side that runs one forward and backward pass on T tokens."""

    def __init__(self, arguments: argparse.Namespace, tokens: int) -> None:
        """Draw them; the parameters have the scale of a model's."""
        generator = torch.Generator(arguments.device).manual_seed(0)
        options: dict[str, Any] = {"generator": generator, "device": arguments.device}

        def normal(*shape: int, spread: float = 1.0) -> Tensor:
            # In place: a second copy for the spread would count towards the peak.
            return torch.randn(*shape, dtype=DTYPES[arguments.dtype], **options).mul_(spread)

        self.spec, self.on_policy, _ = CASES[arguments.objective]
        self.hidden_NH = normal(tokens, arguments.hidden).requires_grad_()
        self.old_NH = normal(tokens, arguments.hidden)
        self.weight_VH = normal(arguments.vocab, arguments.hidden, spread=arguments.hidden**-0.5).requires_grad_()
        self.actions_N = torch.randint(arguments.vocab, (tokens,), **options)
        self.advantages_N = torch.randn(tokens, **options)
        self.weights_N = torch.full((tokens,), 1.0 / tokens, device=arguments.device)
        self.chunk = arguments.chunk or None
        # What `floor` and `liger` use, so that all sides have the same chunks.
        buffers = 2 if arguments.objective == "lco-kld-frozen" else 1
        self.rows = min(tokens, arguments.chunk or default_chunk(arguments.vocab, buffers=buffers))

    @property
    def inputs(self) -> list[Tensor]:
        """What gradients are computed for."""
        return [self.hidden_NH, self.weight_VH]

    def linear(self) -> None:
        """From hidden states, in chunks."""
        head = LinearHead(self.weight_VH)
        frozen = None if self.on_policy else Frozen(self.old_NH, LinearHead(self.weight_VH.detach()))
        batch = HiddenBatch(
            self.hidden_NH,
            head,
            actions_N=self.actions_N,
            advantages_N=self.advantages_N,
            frozen=frozen,
            on_policy=self.on_policy,
        )
        linear_objective(batch, self.spec, self.weights_N, chunk_tokens=self.chunk).loss.backward()

    def plain(self) -> None:
        """All logits at once, as a model returns them."""
        logits_NV = (self.hidden_NH @ self.weight_VH.T).float()
        if self.on_policy:
            old_NV = logits_NV.detach()
        else:
            with torch.no_grad():
                old_NV = (self.old_NH @ self.weight_VH.T).float()
        old_N = (old_NV.gather(-1, self.actions_N.unsqueeze(-1)) - old_NV.logsumexp(-1, keepdim=True)).squeeze(-1)
        batch = TokenBatch(
            logits_NV,
            actions_N=self.actions_N,
            advantages_N=self.advantages_N,
            old_logits_NV=old_NV,
            old_logprobs_N=old_N,
        )
        (self.weights_N * compute(batch, self.spec).loss_N).sum().backward()

    def floor(self) -> None:
        """The matrix products of a loss that needs all logits: forward, and one per gradient."""
        with torch.no_grad():
            to_hidden, to_weight = torch.zeros_like(self.hidden_NH), torch.zeros_like(self.weight_VH)
            out_CV = self.hidden_NH.new_empty(self.rows, self.weight_VH.shape[0])
            for start in range(0, self.hidden_NH.shape[0], self.rows):
                part_CH = self.hidden_NH[start : start + self.rows]
                part_CV = torch.mm(part_CH, self.weight_VH.T, out=out_CV[: part_CH.shape[0]])
                torch.mm(part_CV, self.weight_VH, out=to_hidden[start : start + self.rows])
                to_weight.addmm_(part_CV.T, part_CH)

    def liger(self) -> None:
        """Liger's fused GRPO loss on the same tensors, as one sequence of T tokens."""
        from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

        loss = LigerFusedLinearGRPOLoss(beta=0.0, use_ref_model=False, chunk_size=1)
        # Its batch runs over sequences: as many of one length as there are chunks here.
        rows = max(1, self.actions_N.numel() // self.rows)
        length = self.actions_N.numel() // rows
        used = rows * length
        found = loss(
            self.hidden_NH[:used].view(rows, length, -1),
            self.weight_VH,
            self.actions_N[:used].view(rows, length),
            torch.ones(rows, length, device=self.hidden_NH.device),
            self.advantages_N[:rows],
        )
        found[0].backward()


def peak_and_rest(device: str) -> tuple[Callable[[], int], int]:
    """How to read the peak memory in bytes, and what is in use now; the peak starts over here."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated, torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")

    def status(key: str) -> int:
        text = Path("/proc/self/status").read_text()
        return 1024 * int(text.split(f"{key}:")[1].split()[0])

    return lambda: status("VmHWM"), status("VmRSS")


def child(arguments: argparse.Namespace) -> None:
    """One side once: seconds, and bytes beyond the inputs and their gradients."""
    # On a GPU the first pass of a size also compiles and tunes.
    small = arguments.tokens if arguments.device == "cuda" else min(64, arguments.tokens)
    getattr(Work(arguments, small), arguments.child)()
    work = Work(arguments, arguments.tokens)
    peak, before = peak_and_rest(arguments.device)
    start, used = time.perf_counter(), time.process_time()
    getattr(work, arguments.child)()
    if arguments.device == "cuda":
        torch.cuda.synchronize()
    seconds, used = time.perf_counter() - start, time.process_time() - used
    gradients = sum(t.numel() * t.element_size() for t in work.inputs)
    print(json.dumps({"seconds": seconds, "cpu_s": used, "bytes": peak() - before - gradients}))


def measure(arguments: argparse.Namespace, side: str, objective: str, tokens: int) -> dict[str, float]:
    """One side in a process of its own."""
    command = [sys.executable, __file__, "--child", side, "--objective", objective, "--tokens", str(tokens)]
    for key in ("vocab", "hidden", "chunk", "device", "dtype"):
        command += [f"--{key}", str(getattr(arguments, key))]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ})
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"{objective} {side}: {found['seconds']:.2f} s", file=sys.stderr)
    return found


def tokens_that_fit(arguments: argparse.Namespace, objective: str) -> int:
    """The tokens asked for, halved until the full logits fit into the free memory."""
    if arguments.device == "cuda":
        free = torch.cuda.mem_get_info()[0]
    else:
        free = 1024 * int(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0])
    fixed = 4 * arguments.vocab * arguments.hidden * DTYPES[arguments.dtype].itemsize
    tokens: int = arguments.tokens
    while CASES[objective][2] * tokens * arguments.vocab * 4 + fixed > MEMORY_SHARE * free and tokens > 64:
        tokens //= 2
    return tokens


def compare(arguments: argparse.Namespace, objective: str) -> dict[str, Any]:
    """Ratios of the medians over rounds in alternation."""
    tokens, sides = tokens_that_fit(arguments, objective), ["plain", "linear", "floor"]
    if arguments.device == "cuda" and objective == "grpo" and importlib.util.find_spec("liger_kernel"):
        sides.append("liger")
    rounds: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for round_ in range(arguments.rounds):
        for side in sides if round_ % 2 == 0 else reversed(sides):
            rounds[side].append(measure(arguments, side, objective, tokens))
    seconds = {side: statistics.median(r["seconds"] for r in found) for side, found in rounds.items()}
    memory = {side: max(r["bytes"] for r in found) for side, found in rounds.items()}
    return {
        "objective": objective,
        "tokens": tokens,
        "memory_ratio": memory["linear"] / memory["plain"],
        "time_ratio": seconds["linear"] / seconds["plain"],
        "floor_ratio": seconds["linear"] / seconds["floor"],
        "liger_ratio": seconds["linear"] / seconds["liger"] if "liger" in seconds else None,
        "linear_s": seconds["linear"],
        "linear_cpu_s": statistics.median(r["cpu_s"] for r in rounds["linear"]),
        "plain_cpu_s": statistics.median(r["cpu_s"] for r in rounds["plain"]),
        "plain_s": seconds["plain"],
        "linear_mib": memory["linear"] / 2**20,
        "plain_mib": memory["plain"] / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--objective", action="append", choices=list(CASES), help="may be repeated; all if none")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--hidden", type=int, default=896)
    parser.add_argument("--chunk", type=int, default=0, help="tokens per chunk; 0 for the default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device is available")
    if arguments.child:
        arguments.objective = arguments.objective[0]
        child(arguments)
        return
    found = [compare(arguments, objective) for objective in arguments.objective or CASES]
    if arguments.json:
        print(json.dumps(found))
        return
    print(f"V = {arguments.vocab}, H = {arguments.hidden}, {arguments.dtype}, {arguments.device}, chunks / full logits")
    print(f"{'objective':15} {'T':>5} {'memory':>7} {'time':>6} {'time / 3 products':>18} {'MiB':>5} {'of':>6}")
    for row in found:
        ratios = f"{row['memory_ratio']:7.4f} {row['time_ratio']:6.3f} {row['floor_ratio']:18.3f}"
        print(f"{row['objective']:15} {row['tokens']:5} {ratios} {row['linear_mib']:5.0f} {row['plain_mib']:6.0f}")
        if row["tokens"] < arguments.tokens:
            print(f"  (full logits of {arguments.tokens} tokens do not fit into this machine's free memory)")
        if row["liger_ratio"] is not None:
            print(f"  time / Liger's fused GRPO loss: {row['liger_ratio']:.3f}")
    if not torch.cuda.is_available():
        print("no CUDA device: bf16 on a GPU and Liger's fused loss were not measured")


if __name__ == "__main__":
    main()
