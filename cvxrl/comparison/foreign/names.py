"""From another program's names of metrics to ours: exact, then suffix, then alias; what is left is reported."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

# Names of docs/run_directory.md under which a comparison looks for something, or which it can be asked for.
OURS = (
    *("eval/accuracy", "eval/stderr", "eval/truncated", "eval/grader_errors"),
    *("reward/mean", "reward/std", "reward/correct", "reward/zero_variance_groups"),
    *("response/length", "response/truncated", "advantage/mean", "advantage/min", "advantage/max"),
    *("loss", "policy/entropy", "policy/kl", "policy/reference_kl", "grad/norm", "grad/norm_clipped", "optim/lr"),
    *("tokens/total", "time/step_s", "time/eval_s", "time/total_s", "grpo/clipped", "grpo/ratio"),
)
# In front of a name of ours these leave its meaning as it is. `val/reward/mean` is no `reward/mean`.
_SAME = ("train", "training", "trainer", "metrics")


@dataclass(frozen=True)
class Alias:
    """Another name for a metric of ours, where its documentation or source says that the two are one.

    Attributes:
        ours: our name.
        theirs: regular expression of the whole name.
        evidence: another name must be there too, or the two are not known to be one.
    """

    ours: str
    theirs: str
    evidence: str | None = None


TRL = (
    Alias("eval/accuracy", r"(eval_|eval/)accuracy"),
    Alias("eval/accuracy", r"(eval_|eval/)rewards/accuracy(_reward)?/mean"),
    Alias("eval/truncated", r"(eval_|eval/)completions/clipped_ratio"),
    Alias("reward/mean", r"(train/)?reward"),
    Alias("reward/std", r"(train/)?reward_std"),
    Alias("reward/correct", r"(train/)?rewards/accuracy(_reward)?/mean"),
    Alias("reward/zero_variance_groups", r"(train/)?frac_reward_zero_std"),
    Alias("response/length", r"(train/)?completions/mean_length"),
    Alias("response/truncated", r"(train/)?completions/clipped_ratio"),
    Alias("policy/entropy", r"(train/)?entropy"),
    Alias("policy/reference_kl", r"(train/)?kl"),
    Alias("grad/norm", r"(train/)?grad_norm"),
    Alias("optim/lr", r"(train/)?learning_rate"),
    Alias("time/step_s", r"(train/)?step_time"),
    Alias("grpo/clipped", r"(train/)?clip_ratio/region_mean"),
)
VERL = (
    Alias("eval/accuracy", r"val-core/[^/]+/acc/mean@\d+"),
    Alias("reward/mean", r"critic/score/mean"),
    Alias("response/length", r"response_length/mean"),
    Alias("response/truncated", r"response_length/clip_ratio"),
    Alias("policy/entropy", r"actor/entropy"),
    Alias("grad/norm", r"actor/grad_norm"),
    Alias("optim/lr", r"actor/lr"),
    Alias("grpo/clipped", r"actor/pg_clipfrac"),
    Alias("time/step_s", r"timing_s/step"),
)
PRIME_RL = (
    # pass@k is only written where every reward is 0 or 1. `all` counts a rollout that broke as 0, `effective` drops it.
    Alias("eval/accuracy", r"eval/[^/]+/all/[^/]+/avg@\d+", evidence=r"eval/.+/pass@\d+"),
    Alias("reward/mean", r"train/[^/]+/all/[^/]+/reward/mean"),
    Alias("policy/entropy", r"entropy/all/mean"),
    Alias("grad/norm", r"optim/grad_norm"),
    Alias("time/step_s", r"time/step"),
)
TINKER = (
    Alias("eval/accuracy", r"test/env/all/correct"),
    Alias("reward/mean", r"env/all/reward/total"),
    Alias("reward/correct", r"env/all/correct"),
    Alias("response/length", r"env/all/ac_tokens_per_turn"),
    Alias("policy/entropy", r"optim/entropy"),
    Alias("time/step_s", r"time/total"),
)


@dataclass(frozen=True)
class Named:
    """Which of their names stands for which of ours.

    Attributes:
        ours: our name of each name that has one.
        unmapped: names that have none; they keep their own, and can be asked for by it.
        ambiguous: our names for which two of theirs could stand, with these; they stand for none.
    """

    ours: dict[str, str]
    unmapped: list[str]
    ambiguous: dict[str, list[str]]

    @property
    def doubts(self) -> list[str]:
        """The same in words."""
        found = [
            f"{len(names)} names could be `{ours}`, so none is: {', '.join(names)}; say --alias {ours}={names[0]}"
            for ours, names in self.ambiguous.items()
        ]
        if self.unmapped:
            shown = ", ".join(self.unmapped[:_SHOWN])
            more = f" and {len(self.unmapped) - _SHOWN} more" if len(self.unmapped) > _SHOWN else ""
            found.append(f"no name of ours for {shown}{more}; they keep their own")
        return found


_SHOWN = 8


def match_names(theirs: Collection[str], aliases: Sequence[Alias], stated: Mapping[str, str]) -> Named:
    """Find our name for each of theirs.

    Args:
        theirs: names in a log.
        aliases: other names that its program has for metrics of ours.
        stated: from our names to theirs, as the user says; before everything else.

    Returns:
        What is certain. A name that only looks like one of ours is unmapped.
    """
    known = set(theirs)
    ours: dict[str, str] = {name: key for key, name in stated.items() if name in known}
    ambiguous: dict[str, list[str]] = {}
    for key in OURS:
        if key in ours.values():
            continue
        for found in _by_rank(key, known - set(ours), aliases):
            if len(found) == 1:
                ours[found[0]] = key
            elif found:
                ambiguous[key] = found
            if found:
                break
    left = sorted(known - set(ours) - {name for names in ambiguous.values() for name in names})
    return Named(ours, left, ambiguous)


def _by_rank(key: str, theirs: Collection[str], aliases: Sequence[Alias]) -> list[list[str]]:
    """Names that could be ``key``, those of a better reason first."""
    exact = [name for name in theirs if name == key]
    suffix = sorted(name for name in theirs if name.removesuffix(f"/{key}") in _SAME and name != key)
    named = [
        name
        for name in sorted(theirs)
        for alias in aliases
        if alias.ours == key and re.fullmatch(alias.theirs, name) and _is_evident(alias, theirs)
    ]
    return [exact, suffix, list(dict.fromkeys(named))]


def _is_evident(alias: Alias, theirs: Collection[str]) -> bool:
    return alias.evidence is None or any(re.fullmatch(alias.evidence, name) for name in theirs)
