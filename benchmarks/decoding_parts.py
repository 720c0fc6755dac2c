"""What a decoded token of all rows consists of, each part beside its floor: `python benchmarks/decoding_parts.py`.

Every part is timed where it runs, in processor seconds of one thread, and the smallest of a few rounds is printed. The
floor of a product is its operations at the rate of a large square one (or its bytes over the bandwidth, if that takes
longer), of all else the bytes that it must read and write over the bandwidth. Rate and bandwidth are measured between
the rounds. `alone` is the part's product by itself, with nothing else in between, at the shapes that decoding has.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from decoding import PROMPT, Work, made, rate_and_bandwidth, timed
from torch.nn import functional as F

from cvxrl.rollout import plain_decoder
from cvxrl.rollout.local_generator import draw
from cvxrl.rollout.plain_decoder import PlainDecoder

PRODUCTS = ("qkv", "out", "gate_up", "down")


class Clock:
    """Processor seconds by part."""

    def __init__(self) -> None:
        """Nothing has run."""
        self.spent: dict[str, float] = defaultdict(float)

    def on(self, part: str, job: Callable[..., Any]) -> Callable[..., Any]:
        """``job``, its time put down to a part."""

        def timed(*given: Any, **named: Any) -> Any:
            start = time.process_time()
            made = job(*given, **named)
            self.spent[part] += time.process_time() - start
            return made

        return timed


def taken_apart(work: Work, steps: int) -> dict[str, float]:
    """Seconds of each part of a token of all rows."""
    decoder, clock = PlainDecoder(work.policy), Clock()
    logits = decoder.start(work.prompts, [1] * work.rows)
    for layer in decoder.layers:
        for name in PRODUCTS:
            setattr(layer, name, clock.on(name, getattr(layer, name)))
    decoder.head = clock.on("head", decoder.head)
    decoder._store = clock.on("cache", decoder._store)  # type: ignore[method-assign]
    drawn = clock.on("draw", draw)
    numbers = torch.rand(steps + 1, work.rows, dtype=torch.float64)
    attention = clock.on("attention", F.scaled_dot_product_attention)
    with (
        mock.patch.object(F, "scaled_dot_product_attention", attention),
        mock.patch.object(plain_decoder, "_norm", clock.on("norms", plain_decoder._norm)),
        mock.patch.object(plain_decoder, "turn", clock.on("rotation", plain_decoder.turn)),
    ):
        logits = decoder.step(drawn(logits, numbers[-1], 1.0, 1.0)[0])
        clock.spent.clear()
        start = time.process_time()
        for t in range(steps):
            logits = decoder.step(drawn(logits, numbers[t], 1.0, 1.0)[0])
        whole = time.process_time() - start
    clock.spent["all else"] = whole - sum(clock.spent.values())
    clock.spent["together"] = whole
    return {part: seconds / steps for part, seconds in clock.spent.items()}


def shapes(work: Work) -> dict[str, tuple[int, int, int]]:
    """Inputs, outputs and number of each product's matrices."""
    config = work.policy.model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    queries, keys = config.num_attention_heads * width, config.num_key_value_heads * width
    hidden, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    return {
        "qkv": (hidden, queries + 2 * keys, layers),
        "out": (queries, hidden, layers),
        "gate_up": (hidden, 2 * inner, layers),
        "down": (inner, hidden, layers),
        "head": (hidden, config.vocab_size, 1),
    }


def floors(work: Work, steps: int, rate: float, bandwidth: float) -> dict[str, float]:
    """Seconds that no program can do without."""
    config, rows = work.policy.model.config, work.rows
    found = {
        part: max(2 * k * n * count * rows / rate, 4 * k * n * count / bandwidth)
        for part, (k, n, count) in shapes(work).items()
    }
    keys = (shapes(work)["qkv"][1] - shapes(work)["out"][0]) // 2
    layers, heads = config.num_hidden_layers, keys * config.num_attention_heads // config.num_key_value_heads
    places = PROMPT + 1 + (steps + 1) / 2
    found["attention"] = max(4 * layers * heads * places * rows / rate, 8 * layers * keys * places * rows / bandwidth)
    found["draw"] = 4 * rows * config.vocab_size / bandwidth
    # In and out once each: what a program that runs them one after another cannot avoid, but one that joins them can.
    found["norms"] = 4 * rows * config.hidden_size * 2 * (2 * layers + 1) / bandwidth
    found["rotation"] = 4 * rows * (heads + keys) * 2 * layers / bandwidth
    found["cache"] = 4 * rows * 2 * keys * 2 * layers / bandwidth
    return found


def alone(work: Work) -> dict[str, Callable[[], Any]]:
    """Each part's products by themselves, with a matrix for every layer."""
    jobs: dict[str, Callable[[], Any]] = {}
    for part, (k, n, count) in shapes(work).items():
        x, matrices = torch.randn(work.rows, k), [torch.randn(n, k) for _ in range(count)]
        product = F.linear if part in ("qkv", "out") else lambda x, w: plain_decoder._by_columns(x, w, None)
        jobs[part] = lambda x=x, matrices=matrices, product=product: [product(x, w) for w in matrices]  # type: ignore[misc]
    return jobs


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="embedded, smollm2 (random weights), or a directory")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, list[float]] = defaultdict(list)
    rates, single = [], defaultdict(list)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        work = Work(made(folder, asked.model), asked.rows, asked.tokens)
        jobs = alone(work)
        for _ in range(asked.rounds):
            rates.append(rate_and_bandwidth(clock=time.process_time))
            for part, seconds in taken_apart(work, asked.tokens).items():
                found[part].append(seconds)
            for part, job in jobs.items():
                single[part].append(timed(job, 1, time.process_time))
    rate, bandwidth = (max(x) for x in zip(*rates, strict=True))
    bounds = floors(work, asked.tokens, rate, bandwidth)
    goal = sum(work.floor(rate, bandwidth))
    print(
        f"{rate / 1e9:.0f} GFLOP/s, {bandwidth / 1e9:.1f} GB/s; ms of a token of {asked.rows} rows, smallest of rounds"
    )
    for part, seconds in found.items():
        bound = goal if part == "together" else bounds.get(part)
        line = f"{part:10} {min(seconds) * 1e3:8.2f}"
        line += "" if bound is None else f"   floor {bound * 1e3:7.2f}   ratio {min(seconds) / bound:5.2f}"
        print(line + (f"   alone {min(single[part]) * 1e3:7.2f}" if part in single else ""))


if __name__ == "__main__":
    main()
