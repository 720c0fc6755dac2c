"""Which of the stored completions belong to a checkpoint, and by how many updates the policy that sampled is older."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cvxrl.errors import Problem, UserError
from cvxrl.inspection.foreign.checkpoint import ForeignCheckpoint
from cvxrl.inspection.foreign.completions import OPTION, StoredCompletions

_NAMES = "completions_*.parquet"


def choose_file(checkpoint: ForeignCheckpoint | None, given: Path | None) -> Path | None:
    """The file to measure on: what the checkpoint's own policy sampled, or else the newest from before it.

    TRL logs at the end of an optimizer step what that step learned from, so what checkpoint N sampled is in the file of
    step N + 1; in that of step N, if an evaluation followed there.

    Raises:
        UserError: a file or folder was named that holds none.
    """
    folder = given if given is not None else checkpoint.completions if checkpoint is not None else None
    if folder is None or (given is None and not folder.is_dir()):
        return None
    if folder.is_file():
        return folder
    files = dict(_by_step(folder))
    if not files:
        if given is None:
            return None
        raise UserError(
            Problem(f"holds no {_NAMES}", OPTION, str(folder), "name a parquet file that TRL's log_completions wrote")
        )
    if checkpoint is None:
        return files[max(files)]
    own = [step for step in files if sampled_after(checkpoint, step, checkpoint.evaluated(step)) == checkpoint.step]
    before = [step for step in files if step <= checkpoint.step]
    learned = [step for step in own if not checkpoint.evaluated(step)]
    return files[min(learned or own or [max(before)] if before or own else files)]


def sampled_after(checkpoint: ForeignCheckpoint, step: int, evaluation: bool) -> int:
    """Optimizer steps behind the policy that sampled the completions logged at a step."""
    if evaluation:
        return step
    uses = checkpoint.per_rollout or 1
    return max(0, uses * ((step - 1) // uses))


def describe_choice(stored: StoredCompletions, checkpoint: ForeignCheckpoint | None) -> Iterator[str]:
    """What is known of where completions come from, and what is not; a sentence each."""
    size = f"{len(stored.prompts)} prompts x {stored.samples}"
    if checkpoint is None or stored.step is None:
        yield f"completions of {stored.file.name}, {size}: which policy sampled them is not known"
    else:
        yield f"completions of {stored.file.name}, {size}{_origin(stored, checkpoint)}"
    yield (
        "log-probabilities of the sampler are not stored: this checkpoint's policy is taken as the one that sampled, "
        "so that all ratios start at 1"
    )
    if stored.dropped:
        yield f"{stored.dropped} rows of {stored.file.name} are in no whole group and were left out"
    yield from _describe_rewards(stored)


def _origin(stored: StoredCompletions, checkpoint: ForeignCheckpoint) -> str:
    assert stored.step is not None
    after = sampled_after(checkpoint, stored.step, stored.of_evaluation)
    assumed = "" if checkpoint.per_rollout or stored.of_evaluation else " (if every step sampled anew)"
    if stored.of_evaluation:
        what = f": the end of the evaluation at step {stored.step}, on prompts that training does not take"
    else:
        what = f", which step {stored.step} learned from"
    if after == checkpoint.step:
        return f"{what}; sampled by this checkpoint's policy{assumed}"
    apart = checkpoint.step - after
    which = f"{apart} updates before" if apart > 0 else f"{-apart} updates after"
    return f"{what}; sampled by a policy {which} this checkpoint{assumed}, which is not known"


def _describe_rewards(stored: StoredCompletions) -> Iterator[str]:
    if stored.rewards is None:
        yield "rewards are not stored: the stored advantages stand for them"
        return
    names = ", ".join(stored.functions)
    if len(stored.functions) > 1:
        how = "their weights are not known and taken as 1" if stored.weights is None else f"weights {stored.weights}"
        names += f"; {how}"
    unscored = sum(reward != reward for group in stored.rewards for reward in group)
    none = f"; {unscored} completions have no reward and count as their group's mean" if unscored else ""
    yield f"rewards are the stored ones ({names}){none}; task and grader are not known, nor which answers are right"


def _by_step(folder: Path) -> Iterator[tuple[int, Path]]:
    for file in folder.glob(_NAMES):
        number = file.stem.rpartition("_")[2]
        if number.isdecimal():
            yield int(number), file
