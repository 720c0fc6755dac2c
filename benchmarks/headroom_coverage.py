"""How often the intervals of the half-fail point, of headroom and of its ratio hold the truth, in simulated sweeps.

Two methods run the same values, half a decade apart. A run fails where its value is above its seed's threshold, which
is spread around the method's half-fail point; failures of one seed may go together over the values. A good run's
score peaks at a value of the method's own and a failing one keeps a third of it, so the best value has to be found.

Usage: python benchmarks/headroom_coverage.py [TRIALS]      # prints the table of docs/compare.md; 250 take ten minutes
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from cvxrl.stats.failure_curve import fit_failures
from cvxrl.stats.headroom import best_draws, headroom_draws, headroom_interval, ratio_interval

SEEDS, VALUES, SPREADS, ALIKE = (5, 10), (4, 6), (0.05, 0.2, 0.5), (0.0, 0.5, 1.0)
STEP, RESAMPLES, CONFIDENCE, NOISE, KEPT, ERROR = 0.5, 500, 0.95, 0.05, 0.3, 0.02
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Truth:
    """A method: decades of its half-fail point and of its best score, and the spread of thresholds in decades."""

    half: float
    peak: float
    spread: float

    def height(self, place: Array) -> Array:
        """Score of a run that does not fail."""
        return np.asarray(0.9 - 0.3 * (place - self.peak) ** 2)

    def headroom(self, place: Array) -> float:
        """Decades from the value with the largest expected score to the half-fail point."""
        fails = ndtr((place - self.half) / self.spread)
        expected = self.height(place) * (1 - (1 - KEPT) * fails)
        return self.half - float(place[expected.argmax()])


@dataclass
class Counts:
    """Trials in which something held."""

    trials: int = 0
    held: dict[str, int] = field(default_factory=dict)

    def add(self, **found: bool) -> None:
        """Count one trial."""
        self.trials += 1
        for name, value in found.items():
            self.held[name] = self.held.get(name, 0) + bool(value)

    def share(self, name: str) -> str:
        """In percent."""
        return f"{100 * self.held[name] / self.trials:.1f}"


def simulate(truth: Truth, place: Array, seeds: int, alike: float, rng: np.random.Generator) -> tuple[Array, Array]:
    """Whether each seed fails at each value, and its score there."""
    own, common = rng.standard_normal((seeds, len(place))), rng.standard_normal((seeds, 1))
    fails = place > truth.half + truth.spread * (np.sqrt(alike) * common + np.sqrt(1 - alike) * own)
    score = np.clip(truth.height(place) + NOISE * rng.standard_normal(fails.shape), 0, 1)
    return fails, np.where(fails, KEPT, 1.0) * score


def measure(
    counts: Counts, pair: tuple[Truth, Truth], place: Array, seeds: int, alike: float, rng: np.random.Generator
) -> None:
    """One trial of two methods."""
    draws, values = [], list(10**place)
    curve = None
    for truth in pair[::-1]:
        fails, score = simulate(truth, place, seeds, alike, rng)
        curve = fit_failures(values, [dict(enumerate(fails[:, v].tolist())) for v in range(len(place))])
        by_seed = [dict(enumerate(score[:, v])) for v in range(len(place))]
        best = best_draws(values, by_seed, [ERROR] * len(place), rng, confidence=CONFIDENCE, resamples=RESAMPLES)
        draws.insert(0, headroom_draws(curve, best, rng))
    half, room = curve.half_interval(CONFIDENCE), headroom_interval(draws[0], CONFIDENCE)
    ratio = ratio_interval(draws[0], draws[1], CONFIDENCE)
    rooms = [truth.headroom(place) for truth in pair]
    counts.add(
        half=half.low <= 10 ** pair[0].half <= half.high,
        open=half.low == 0 or half.high == np.inf,
        room=room.low <= 10 ** rooms[0] <= room.high,
        ratio=ratio.low <= 10 ** (rooms[0] - rooms[1]) <= ratio.high,
        more=ratio.low > 1,
        less=ratio.high < 1,
    )


def experiment(trials: int, seeds: int, values: int, spread: float, alike: float) -> list[str]:
    """One row: half-fail points anywhere among the values; then equal methods; then one that bears four times more."""
    place = STEP * np.arange(values)
    rng = np.random.default_rng(0)
    anywhere, equal, larger = Counts(), Counts(), Counts()
    for _ in range(trials):
        half, peak = rng.uniform(place[1], place[-1], 2), rng.uniform(0.2, 1.2, 2)
        pair = tuple(Truth(h, h - p, spread) for h, p in zip(half, peak, strict=True))
        measure(anywhere, pair, place, seeds, alike, rng)
        least = rng.uniform(place[1], place[-1] - np.log10(4))
        same = Truth(least, least - peak[0], spread)
        measure(equal, (same, same), place, seeds, alike, rng)
        measure(larger, (Truth(least + np.log10(4), same.peak, spread), same), place, seeds, alike, rng)
    shares = [anywhere.share(name) for name in ("half", "open", "room", "ratio")]
    return [
        *map(str, (seeds, values, spread, alike)),
        *shares,
        equal.share("more"),
        equal.share("less"),
        larger.share("more"),
    ]


def main() -> None:
    """Print the table as Markdown."""
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else 250
    names = ("seeds", "values", "spread", "alike", "half fail", "open ends", "headroom", "ratio")
    names += ("false more", "false less", "finds x4")
    print(f"| {' | '.join(names)} |\n|{'--:|' * len(names)}")
    for case in product(SEEDS, VALUES, SPREADS, ALIKE):
        print(f"| {' | '.join(experiment(trials, *case))} |", flush=True)


if __name__ == "__main__":
    main()
