"""How often the intervals and verdicts of `cvxrl compare` are right, by simulating experiments whose truth is known.

    python benchmarks/coverage.py --trials 2000 --write docs/statistics.md

Prints Markdown tables; with --write they replace what stands between the two marks in that page. Everything is drawn
from one seed. A share p of n trials has the standard error sqrt(p (1 - p) / n): 0.5 points for 95% of 2000.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cvxrl.comparison.options import Options
from cvxrl.comparison.outcome import outcome_of
from cvxrl.comparison.run import LoggedRun
from cvxrl.stats.aggregate import Aggregate, iqm, mean, median
from cvxrl.stats.bootstrap import Interval, bootstrap_interval
from cvxrl.stats.difference import mean_difference
from cvxrl.stats.improvement import improvement_interval
from cvxrl.stats.proportion import exact_interval

Array = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], Array]

MARKS = ("<!-- begin: benchmarks/coverage.py -->", "<!-- end: benchmarks/coverage.py -->")
SEEDS = (3, 5, 10, 20)
RESAMPLES = 1000
LOW, HIGH = 0.92, 0.98  # what counts as holding 95%

SCORES: dict[str, Draw] = {
    "normal": lambda rng, n: rng.normal(0.7, 0.05, n),
    "skewed": lambda rng, n: 0.95 - rng.exponential(0.1, n),
    "20% collapse": lambda rng, n: np.where(rng.random(n) < 0.2, rng.normal(0.1, 0.02, n), rng.normal(0.95, 0.01, n)),
    "near 1": lambda rng, n: rng.beta(30, 0.6, n),
    "tied": lambda rng, n: rng.binomial(8, 0.9, n) / 8,
}
AGGREGATES: dict[str, Aggregate] = {"mean": mean, "median": median, "IQM": iqm}


def share(hits: Sequence[bool]) -> str:
    """A share in percent, marked where it is outside of 92 to 98."""
    value = float(np.mean(hits)) if hits else float("nan")
    return f"{value:.1%}" + ("" if LOW <= value <= HIGH else " *")


def holds(interval: Interval | None, truth: float) -> bool:
    """Whether an interval was printed and holds the truth."""
    return interval is not None and interval.low <= truth <= interval.high


def coverage(trials: int) -> Iterator[str]:
    """Table of the intervals: five shapes of distribution, four seed counts."""
    yield "| scores | seeds | mean | median | IQM | a - b, same seeds | a - b, others | P(a > b) | a - b none |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for name, draw in SCORES.items():
        many = draw(np.random.default_rng(0), 1_000_000)[:, None]
        truths = {label: float(of(many)) for label, of in AGGREGATES.items()}
        for seeds in SEEDS:
            rng = np.random.default_rng([seeds, *name.encode()])
            found: dict[str, list[bool]] = {}
            silent: list[bool] = []
            for _ in range(trials):
                x, y = draw(rng, seeds), draw(rng, seeds)
                for label, of in AGGREGATES.items():
                    interval = bootstrap_interval(x[:, None], of, rng, confidence=0.95, resamples=RESAMPLES)
                    if interval.high > interval.low:
                        found.setdefault(label, []).append(holds(interval, truths[label]))
                paired, apart = difference(x, y, 0), difference(x, y, seeds)
                silent.append(paired is None)
                for label, interval_or_none in (("paired", paired), ("apart", apart)):
                    if interval_or_none is not None:
                        found.setdefault(label, []).append(holds(interval_or_none, 0.0))
                found.setdefault("P", []).append(holds(improvement_interval(x, y, 0.95), 0.5))
            cells = [share(found[label]) for label in ("mean", "median", "IQM", "paired", "apart", "P")]
            yield f"| {name} | {seeds} | {' | '.join(cells)} | {np.mean(silent):.1%} |"


def difference(x: Array, y: Array, first: int) -> Interval | None:
    """Interval of mean(x) - mean(y), y's seeds counting from ``first``."""
    return mean_difference(dict(enumerate(map(float, x))), dict(enumerate(map(float, y), first))).interval(0.95)


def shares(trials: int) -> Iterator[str]:
    """Table of the interval of the share of failed runs."""
    yield "| true share | " + " | ".join(f"{n} seeds" for n in SEEDS) + " |"
    yield "|---|" + "---|" * len(SEEDS)
    rng = np.random.default_rng(1)
    for truth in (0.02, 0.1, 0.2, 0.5):
        cells = [
            share([holds(exact_interval(int(rng.binomial(n, truth)), n, 0.95), truth) for _ in range(trials)])
            for n in SEEDS
        ]
        yield f"| {truth:.0%} | {' | '.join(cells)} |"


def correlated(rng: np.random.Generator, base: Array, n: int, correlation: float) -> Array:
    """Standard normal scores of n seeds, of which those that the baseline ran too have this correlation with it."""
    own, shared = rng.normal(0, 1, n), min(n, len(base))
    own[:shared] = correlation * base[:shared] + (1 - correlation**2) ** 0.5 * own[:shared]
    return own


def false_verdicts(trials: int) -> Iterator[str]:
    """Table of family-wise errors: four methods as good as the baseline."""
    designs = {
        "5 seeds each, equal spread": ((5,) * 5, (1.0,) * 5),
        "5 seeds each, spread 1 to 4": ((5,) * 5, (1.0, 2.0, 0.5, 4.0, 1.0)),
        "3 to 20 seeds, equal spread": ((5, 3, 10, 20, 5), (1.0,) * 5),
        "3 to 20 seeds, fewest spread most": ((5, 3, 10, 20, 5), (1.0, 4.0, 2.0, 0.5, 1.0)),
    }
    correlations = (-0.6, 0.0, 0.5, 0.9)
    yield "| design | " + " | ".join(f"correlation {c:g}" for c in correlations) + " | version 0.1, worst |"
    yield "|---|" + "---|" * (len(correlations) + 1)
    for name, (counts, spreads) in designs.items():
        cells, before = [], []
        for correlation in correlations:
            rng, wrong, old = np.random.default_rng(2), 0, 0
            for _ in range(trials):
                base = rng.normal(0, 1, counts[0])
                others = [
                    s * correlated(rng, base, n, correlation) for n, s in zip(counts[1:], spreads[1:], strict=True)
                ]
                wrong += any(verdict(o, base * spreads[0], 4) for o in others)
                old += min(permutation(o, base * spreads[0]) for o in others) * 4 <= 0.05
            cells.append(f"{wrong / trials:.1%}")
            before.append(old / trials)
        yield f"| {name} | {' | '.join(cells)} | {max(before):.1%} |"


def verdict(x: Array, y: Array, comparisons: int) -> bool:
    """Whether one of several comparisons says better or worse."""
    found = mean_difference(dict(enumerate(map(float, x))), dict(enumerate(map(float, y))))
    interval = found.interval(1 - 0.05 / comparisons)
    return interval is not None and not interval.low <= 0 <= interval.high


def permutation(x: Array, y: Array) -> float:
    """The test of version 0.1: every relabeling of all runs where few, or 500 drawn ones; unpaired."""
    pooled, size = np.concatenate([x, y]), len(x)
    if len(pooled) <= 10:
        chosen = np.array(list(combinations(range(len(pooled)), size)))
    else:
        rng = np.random.default_rng(0)
        chosen = rng.permuted(np.tile(np.arange(len(pooled)), (500, 1)), axis=1)[:, :size]
    sums = pooled[chosen].sum(axis=1)
    differences = np.abs(sums / size - (pooled.sum() - sums) / len(y))
    return float(np.mean(differences >= abs(x.mean() - y.mean()) - 1e-12))


def power(trials: int) -> Iterator[str]:
    """Table of true differences found, beside version 0.1's test."""
    yield "| seeds | correlation | difference (sd) | found, 1 comparison | of 4 | version 0.1, 1 | of 4 |"
    yield "|---|---|---|---|---|---|---|"
    for seeds in (3, 5, 10):
        for correlation in (0.0, 0.5, 0.9):
            for effect in (1.0, 2.0, 3.0):
                rng, hits = np.random.default_rng(3), np.zeros(4)
                for _ in range(trials):
                    base = rng.normal(0, 1, seeds)
                    other = effect + correlated(rng, base, seeds, correlation)
                    p = permutation(other, base)
                    hits += [verdict(other, base, 1), verdict(other, base, 4), p <= 0.05, p * 4 <= 0.05]
                cells = " | ".join(f"{value:.0%}" for value in hits / trials)
                yield f"| {seeds} | {correlation:g} | {effect:g} | {cells} |"


def failures(trials: int) -> Iterator[str]:
    """Table of runs called failures, for policies that stay what they are and for one that falls."""
    yield "| true accuracy | evaluations | 32 x 2 answers | 128 x 4 answers | should be |"
    yield "|---|---|---|---|---|"
    for evaluations in (6, 21, 51):
        flat = {f"{p:g} throughout": [p] * evaluations for p in (0.03, 0.1, 0.5, 0.95)}
        rise = [*np.linspace(0.3, 0.95, evaluations // 2), *[0.5] * (evaluations - evaluations // 2)]
        for name, truth in {**flat, "0.3 to 0.95, then 0.5": rise}.items():
            rng = np.random.default_rng(4)
            cells = [
                f"{np.mean([failed(rng, truth, questions, samples) for _ in range(trials)]):.1%}"
                for questions, samples in ((32, 2), (128, 4))
            ]
            wanted = "95% or more" if truth is rise else "5% or less"
            yield f"| {name} | {evaluations} | {' | '.join(cells)} | {wanted} |"


def failed(rng: np.random.Generator, truth: Sequence[float], questions: int, samples: int) -> bool:
    """Whether a run with these true accuracies, as evaluations find them, counts as failed."""
    right = rng.binomial(samples, np.asarray(truth)[:, None], (len(truth), questions)) / samples
    records = [
        {"step": float(t), "eval/accuracy": float(r.mean()), "eval/stderr": float(r.std(ddof=1) / questions**0.5)}
        for t, r in enumerate(right)
    ]
    recipe = {
        "train": {"inner_epochs": 1, "minibatches": 1},
        "optim": {"warmup_steps": 0},
        "eval": {"prompts": questions, "samples": samples},
    }
    run = LoggedRun(Path("run"), "a", 0, steps=len(truth) - 1, records=records, recipe=recipe)
    return outcome_of(run, "eval/accuracy", Options()).failed


def main() -> None:
    """Simulate, print, and write if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--write", type=Path, help="page whose tables are replaced")
    arguments = parser.parse_args()
    parts = {
        f"95% intervals that hold the truth, of {arguments.trials}; * outside 92 to 98%": coverage,
        "95% interval of the share of failed runs": shares,
        "Equal means: experiments of four comparisons with any verdict": false_verdicts,
        "Unequal means: verdicts": power,
        "Runs called failures": failures,
    }
    text = ""
    for title, part in parts.items():
        lines = [f"\n**{title}**\n", *part(arguments.trials)]
        print("\n".join(lines), flush=True)
        text += "\n".join(lines) + "\n"
    if arguments.write:
        page = arguments.write.read_text(encoding="utf-8")
        before, rest = page.split(MARKS[0])
        arguments.write.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{rest.split(MARKS[1])[1]}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
