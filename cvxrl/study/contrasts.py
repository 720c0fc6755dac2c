"""Ratios of two methods' headrooms: those of the rules, and every method against its regime's baseline."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cvxrl.comparison.headroom import Headroom, ratio_of, ratio_range
from cvxrl.stats.bootstrap import Interval
from cvxrl.study.plan import Study
from cvxrl.study.verdict import Judged

_PAIR = re.compile(r"headroom\(\s*([^(),]+?)\s*,\s*([^(),]+?)\s*\)")


@dataclass(frozen=True)
class Contrast:
    """The headroom of one method over that of another.

    Attributes:
        one, other: as rules name them.
        ratio: None where one of them has no headroom.
        interval: of it, at the plan's confidence; None where it cannot be told.
        judged: whether a rule speaks of it.
    """

    one: str
    other: str
    ratio: float | None
    interval: Interval | None
    judged: bool


def contrasts(study: Study, judged: Judged) -> list[Contrast]:
    """Those of the rules first, in their order; then every method over the first one of its regime.

    Each interval is at the plan's confidence by itself, as the rules take it: a plan whose rules look at several raises
    the confidence accordingly.
    """
    rooms = {h.method: h for h in judged.headrooms}
    ruled = [pair for rule in study.rules for text in rule.when for pair in _PAIR.findall(text)]
    base = next(iter(study.methods))
    beside = [(f"{m}@{r}", f"{base}@{r}") for m, r in study.tuned if m != base and study.runs_in(base, r)]
    pairs = list(dict.fromkeys([*ruled, *beside]))
    return [
        _contrast(rooms[one], rooms[other], study.confidence, (one, other) in ruled)
        for one, other in pairs
        if one in rooms and other in rooms
    ]


def _contrast(one: Headroom, other: Headroom, confidence: float, judged: bool) -> Contrast:
    return Contrast(one.method, other.method, ratio_of(one, other), ratio_range(one, other, confidence), judged)
