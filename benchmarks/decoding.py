"""Decoding against its floor, and against vLLM's CPU build: `python benchmarks/decoding.py --model smollm2`.

No program on this machine decodes a token of all rows below its floor: the larger of the operations of its matrix
products at the rate of the best product measured here, and their weights over the bandwidth measured here; plus the
same of attention and its cache. Rate, bandwidth and decoding are measured in alternation in one process, so that a
busy machine slows them alike.

With `--vllm PYTHON` (of an environment with vLLM, docs/vllm.md) the same prompts and lengths are also sampled by vLLM,
in fp32 as here, compiled unless `--eager`; each side in processes of its own, in alternation. The fastest of
three repeats counts, in processor seconds if there is one thread; loading, start-up and compilation do not.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from cvxrl.policy.load import load_policy
from cvxrl.policy.model import Policy
from cvxrl.recipe.load import load_recipe
from cvxrl.rollout.generator import Sampling
from cvxrl.rollout.local_generator import LocalGenerator
from cvxrl.rollout.randomness import completion_keys

PROMPT, WARMUP, REPEATS = 40, 2, 3
# As in the configuration of SmolLM2-135M; the weights do not matter to the time.
SMOLLM2 = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def timed(job: Callable[[], Any], repeats: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one repeat."""
    start = clock()
    for _ in range(repeats):
        job()
    return (clock() - start) / repeats


def rate_and_bandwidth(
    size: int = 2048, mib: int = 512, clock: Callable[[], float] = time.perf_counter
) -> tuple[float, float]:
    """Operations per second of a square product in fp32, and bytes per second of reading a large tensor."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    long = torch.randn(mib * 2**18)
    out = torch.empty(size, size)
    product = timed(lambda: torch.mm(a, b, out=out), 3, clock)
    read = timed(lambda: long.sum(), 2, clock)
    return 2 * size**3 / product, 4 * long.numel() / read


class Endless(Policy):
    """Its completions never end by themselves: how long they are is part of the measurement."""

    @property
    def end_ids(self) -> tuple[int, ...]:
        """None."""
        return ()


class Work:
    """A policy and the prompts that it answers, all of one length."""

    def __init__(self, model: str, rows: int, tokens: int) -> None:
        """Load it, or make one of SmolLM2's shape."""
        changes = [] if model == "embedded" else [f"model.path={model}"]
        loaded = load_policy(load_recipe("math_grpo", changes).model, torch.device("cpu"))
        self.policy = Endless(loaded.model, loaded.tokenizer)
        self.rows, self.tokens = rows, tokens
        self.prompts = prompts(rows, self.policy.model.config.vocab_size)

    def sample(self) -> None:
        """So many tokens for every prompt."""
        keys = completion_keys(0, "sampling", 1, prompts=range(self.rows), samples=1)
        LocalGenerator(self.policy).generate(self.prompts, keys, Sampling(self.tokens, 1.0))

    def seconds_per_token(self) -> float:
        """Of a token of all rows, the prefill and the first token apart: the difference of two lengths."""
        tokens = self.tokens
        whole = timed(self.sample, 1)
        self.tokens = 1
        first = timed(self.sample, 1)
        self.tokens = tokens
        return (whole - first) / (tokens - 1)

    def floor(self, rate: float, bandwidth: float) -> tuple[float, float]:
        """Seconds of a token's products and weights, and of its attention and cache, half-way through."""
        config = self.policy.model.config
        head = config.hidden_size // config.num_attention_heads
        matrices = sum(p.numel() for n, p in self.policy.model.named_parameters() if p.ndim == 2)
        if not config.tie_word_embeddings:
            matrices -= config.vocab_size * config.hidden_size
        places = PROMPT + (self.tokens + 1) / 2
        cached = config.num_hidden_layers * config.num_key_value_heads * head * 2 * places * self.rows
        attended = config.num_hidden_layers * config.num_attention_heads * head * 2 * places * self.rows
        products = max(2 * matrices * self.rows / rate, 4 * matrices / bandwidth)
        return products, max(2 * attended / rate, 4 * cached / bandwidth)


def prompts(rows: int, vocabulary: int) -> list[list[int]]:
    """Token ids without those of special tokens, the same for both sides."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, vocabulary, (rows, PROMPT), generator=generator).tolist()


def against_the_floor(work: Work, rounds: int) -> None:
    """Print the ratio of each round, and what the floor consists of."""
    for _ in range(WARMUP):
        work.sample()
    found = []
    for _ in range(rounds):
        rate, bandwidth = rate_and_bandwidth()
        seconds = work.seconds_per_token()
        again = rate_and_bandwidth()
        rate, bandwidth = max(rate, again[0]), max(bandwidth, again[1])
        products, attention = work.floor(rate, bandwidth)
        found.append(seconds / (products + attention))
        print(
            f"{rate / 1e9:.0f} GFLOP/s, {bandwidth / 1e9:.1f} GB/s: a token of all rows {seconds * 1e3:.1f} ms, "
            f"floor {products * 1e3:.1f} + {attention * 1e3:.1f} ms, ratio {found[-1]:.2f}"
        )
    print(f"ratio to the floor, median of {rounds}: {statistics.median(found):.2f}")


def fastest(job: Callable[[], Any]) -> float:
    """Seconds of the fastest repeat after one to warm up: of the processor, if one thread does it all."""
    clock = time.process_time if os.environ.get("OMP_NUM_THREADS") == "1" else time.perf_counter
    job()
    return min(timed(job, 1, clock) for _ in range(REPEATS))


def ours(model: str, rows: int, tokens: int) -> float:
    """Tokens per second, in this process."""
    work = Work(model, rows, tokens)
    return rows * tokens / fastest(work.sample)


def theirs(model: str, rows: int, tokens: int, eager: bool) -> float:
    """Tokens per second of vLLM, in this process; compiled or not, which is not counted."""
    from vllm import LLM, SamplingParams, TokensPrompt

    limits = {"max_model_len": PROMPT + tokens, "max_num_seqs": rows, "enable_prefix_caching": False}
    # In the precision of ours: left alone, it would take bf16, which few CPUs compute with.
    llm = LLM(model, dtype="float32", enforce_eager=eager, **limits)
    how = SamplingParams(temperature=1.0, max_tokens=tokens, min_tokens=tokens, ignore_eos=True, detokenize=False)
    vocabulary = llm.llm_engine.model_config.get_vocab_size()
    asked = [TokensPrompt(prompt_token_ids=ids) for ids in prompts(rows, vocabulary)]
    return rows * tokens / fastest(lambda: llm.generate(asked, how, use_tqdm=False))


def in_a_process(python: str, side: str, asked: argparse.Namespace, folder: str) -> float:
    """Tokens per second of one side, in a process of its own."""
    options = ["--side", side, "--model", folder, "--rows", str(asked.rows), "--tokens", str(asked.tokens)]
    options += ["--eager"] if asked.eager else []
    threads = str(asked.threads)
    environment = os.environ | {"OMP_NUM_THREADS": threads, "VLLM_CPU_OMP_THREADS_BIND": f"0-{asked.threads - 1}"}
    environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}
    command = [python, str(Path(__file__).resolve()), *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return float(done.stdout.split()[-1])


def against_vllm(asked: argparse.Namespace, folder: str) -> None:
    """Print tokens per second of both sides, by rounds in alternation."""
    found: dict[str, list[float]] = {"ours": [], "vllm": []}
    for _ in range(asked.rounds):
        found["ours"].append(in_a_process(sys.executable, "ours", asked, folder))
        found["vllm"].append(in_a_process(asked.vllm, "vllm", asked, folder))
    ratios = [a / b for a, b in zip(found["ours"], found["vllm"], strict=True)]
    print(json.dumps({name: [round(rate) for rate in rates] for name, rates in found.items()}))
    print(f"tokens per second, ours over vLLM's, {asked.threads} threads, {asked.rows} rows of {asked.tokens} tokens: "
          f"{statistics.median(ratios):.2f} {[f'{r:.2f}' for r in ratios]}")  # fmt: skip


def made(folder: str, model: str) -> str:
    """A directory that both sides can load."""
    if model == "embedded":
        load_policy(load_recipe("math_grpo").model, torch.device("cpu")).save(Path(folder))
    elif model == "smollm2":
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**SMOLLM2)).save_pretrained(folder)
        # Its words are never looked at.
        load_policy(load_recipe("math_grpo").model, torch.device("cpu")).tokenizer.save_pretrained(folder)
        AutoTokenizer.from_pretrained(folder)
    else:
        return model
    return folder


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="embedded, smollm2 (random weights), or a directory")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--vllm", metavar="PYTHON", help="interpreter of an environment with vLLM")
    parser.add_argument("--eager", action="store_true", help="vLLM without compilation, which needs a C++ compiler")
    parser.add_argument("--side", choices=("ours", "vllm"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side:
        work = asked.model, asked.rows, asked.tokens
        print(ours(*work) if asked.side == "ours" else theirs(*work, asked.eager))
        return
    torch.set_num_threads(asked.threads)
    with tempfile.TemporaryDirectory() as folder:
        where = made(folder, asked.model)
        if asked.vllm:
            against_vllm(asked, where)
        else:
            against_the_floor(Work(where, asked.rows, asked.tokens), asked.rounds)


if __name__ == "__main__":
    main()
