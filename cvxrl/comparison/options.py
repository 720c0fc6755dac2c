"""What a comparison can be asked: every number that its results depend on, and the command-line option that sets it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import typer

from cvxrl.errors import Problem, UserError

DivergedAs = float | Literal["last", "omit"]

FEW_SEEDS = 5  # below this many, a warning is printed (Henderson et al. 2018 and others advise at least 5)

_READ, _JUDGE = "Reading runs", "Judging"
_MOST_SEEDS = 1000  # more is a typing mistake
_SEED_PART = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")
_MOST_FACTORS = 2
_PLAIN_VALUE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]*")


def parse_seeds(text: str) -> tuple[int, ...]:
    """`0-4`, `0,2` or `0-2,7` as increasing seeds, each once.

    Raises:
        UserError: it is written otherwise, runs backwards, or names more than a thousand.
    """
    seeds: set[int] = set()
    for part in text.split(","):
        found = _SEED_PART.fullmatch(part.strip())
        if found is None:
            raise _wrong_seeds(f"`{text}` is not a list of seeds")
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            raise _wrong_seeds(f"`{part.strip()}` runs backwards")
        if last - first >= _MOST_SEEDS:
            raise _wrong_seeds(f"`{part.strip()}` names more than {_MOST_SEEDS} seeds")
        seeds.update(range(first, last + 1))
    return tuple(sorted(seeds))


def parse_diverged_as(text: str) -> DivergedAs:
    """A finite number, `last` or `omit`.

    Raises:
        UserError: it is none of them.
    """
    if text == "last":
        return "last"
    if text == "omit":
        return "omit"
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        what = f"`{text}` is neither a number nor last or omit"
        raise UserError(Problem(what, "--diverged-as", remedy="write 0, last or omit"))
    return value


def split_vary(vary: str) -> tuple[str, list[str]]:
    """`optim.lr=1e-4,1e-3` as key and values; without values the list is empty.

    Raises:
        UserError: a value cannot be part of a folder's name.
    """
    key, equals, text = vary.partition("=")
    values = [value.strip() for value in text.split(",")] if equals else []
    if not key.strip() or (equals and not all(_PLAIN_VALUE.fullmatch(v) for v in values)):
        raise UserError(
            Problem(f"`{vary}` is not KEY or KEY=A,B,...", "--vary", remedy="write --vary optim.lr=1e-4,1e-3")
        )
    return key.strip(), list(dict.fromkeys(values))


def check_varied(varied: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Refuse more keys than two, the same twice, and a grid of which one side is not told.

    Raises:
        UserError: they are no one or two factors.
    """
    keys = [key for key, _ in varied]
    if len(set(keys)) < len(keys):
        remedy = "write all of its values behind one --vary"
        raise UserError(Problem(f"`{keys[-1]}` is varied twice", "--vary", remedy=remedy))
    if len(keys) > _MOST_FACTORS:
        what = f"{len(keys)} keys; a map has two sides"
        raise UserError(Problem(what, "--vary", remedy="vary one or two keys at a time"))
    if len({bool(values) for _, values in varied}) > 1:
        lacking = next(key for key, values in varied if not values)
        remedy = f"write --vary {lacking}=A,B too, or no values at all"
        raise UserError(Problem(f"`{lacking}` has no values and the other key has", "--vary", remedy=remedy))


@dataclass(frozen=True)
class Options:
    """Settings of a comparison; the help text of a field is its description.

    Attributes:
        vary: keys in which runs of a method differ, at most two; one may be given as its name alone. The values that
            the command line takes with them are for training.
        diverged_as: of a diverged run: a number, its last value, or left out.
        lost: count runs that have not ended as failed.
        power: chance of finding a difference for which the needed seeds are computed.
        resamples: bootstrap draws, and relabelings where they cannot be enumerated.
        statistics_seed: seed of the bootstrap.
    """

    metric: Annotated[
        str, typer.Option(help="Key of metrics.jsonl whose final value is the score.", rich_help_panel=_READ)
    ] = "eval/accuracy"
    window: Annotated[
        int | None,
        typer.Option(min=1, help="Last values averaged; none means 1 of eval/..., else 10.", rich_help_panel=_READ),
    ] = None
    baseline: Annotated[
        str | None, typer.Option(help="Method to compare with; none means the first.", rich_help_panel=_JUDGE)
    ] = None
    vary: tuple[str, ...] = ()
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Score to reach; none means 0.9 for an accuracy, else no such column.", rich_help_panel=_JUDGE
        ),
    ] = None
    collapse: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Fell: ended below this share of its best level, beyond doubt.", rich_help_panel=_JUDGE
        ),
    ] = 0.8
    spike: Annotated[
        float, typer.Option(min=1, help="Spike: gradient norm above this many running medians.", rich_help_panel=_JUDGE)
    ] = 5.0
    diverged_as: Annotated[
        DivergedAs,
        typer.Option(
            parser=parse_diverged_as,
            metavar="NUMBER|last|omit",
            help="Score of a diverged or failed run.",
            rich_help_panel=_JUDGE,
        ),
    ] = 0.0
    lost: Annotated[
        bool,
        typer.Option(
            "--count-unfinished",
            help="Unfinished runs will never finish: count them as failed, instead of waiting with verdicts.",
            rich_help_panel=_JUDGE,
        ),
    ] = False
    confidence: Annotated[
        float, typer.Option(min=0.5, max=0.999, help="Of intervals and verdicts.", rich_help_panel=_JUDGE)
    ] = 0.95
    power: float = 0.8
    resamples: int = 10_000
    statistics_seed: int = 0
    allow_diff: Annotated[
        bool, typer.Option("--allow-diff", help="Compare although other keys differ.", rich_help_panel=_READ)
    ] = False
    seeds: Annotated[
        tuple[int, ...] | None,
        typer.Option(
            parser=parse_seeds,
            metavar="0-4",
            help="Keep these seeds; with recipes, train those that are missing.",
        ),
    ] = None

    def __post_init__(self) -> None:
        """Take one key for a tuple of one."""
        keys = (self.vary,) if isinstance(self.vary, str) else tuple(self.vary or ())
        object.__setattr__(self, "vary", keys)
        check_varied([(key, ()) for key in keys])

    @property
    def varied(self) -> str:
        """The varied keys as words; empty without any."""
        return " x ".join(self.vary)

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger metric is known to be better; if not, verdicts say higher and lower."""
        return is_quality(self.metric)

    @property
    def threshold_or_default(self) -> float | None:
        """Score to reach: as stated, or the same for all comparisons of an accuracy, whoever takes part."""
        return self.threshold if self.threshold is not None else 0.9 if self.bounds == (0.0, 1.0) else None

    @property
    def bounds(self) -> tuple[float, float]:
        """Range that the metric cannot leave, and so no interval of its averages."""
        return (0.0, 1.0) if self.metric in ("eval/accuracy", "reward/correct") else (-math.inf, math.inf)


def is_quality(metric: str) -> bool:
    """Whether a metric measures how good a policy is, larger being better."""
    return metric == "eval/accuracy" or metric in ("reward/mean", "reward/correct")


def _wrong_seeds(message: str) -> UserError:
    return UserError(Problem(message, "--seeds", remedy="write e.g. 0-4, or 0,1,5-7"))
