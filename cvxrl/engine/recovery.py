"""The records of a run that goes on from a checkpoint: what metrics.jsonl lacks is taken from what else there is.

The checkpoint decides how far the run has come; metrics.jsonl may have been emptied, torn or lost since.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from cvxrl.engine.state import Position
from cvxrl.engine.trainer import Record
from cvxrl.errors import Mistakes
from cvxrl.evaluation.folder import read_record
from cvxrl.evaluation.held_out import Evaluation
from cvxrl.recipe.schema import Recipe
from cvxrl.runs.directory import RunDir
from cvxrl.runs.jsonl import read_what_is_whole

_MEASURED = "time/step_s"  # of every step; records that were brought back lack it


@dataclass(frozen=True)
class Recovery:
    """Records up to a checkpoint.

    Attributes:
        records: one per step that anything is known of, in order; the evaluation before step 1 has step 0.
        lost: what could not be brought back, in words; None where nothing is missing.
    """

    records: list[Record]
    lost: str | None


def recover_records(run_dir: RunDir, position: Position) -> Recovery:
    """Whole lines of metrics.jsonl up to a position, and for steps without one what evals/ and the checkpoint know.

    Args:
        run_dir: whose files are read; nothing is written.
        position: of the checkpoint that the run goes on from.
    """
    known = {int(r["step"]): r for r in read_what_is_whole(run_dir.metrics) if r["step"] <= position.step}
    missing = [step for step in range(1, position.step + 1) if _MEASURED not in known.get(step, {})]
    evaluated = []
    for file in sorted(run_dir.path.glob("evals/step-*.json")):
        step = int(file.stem.removeprefix("step-"))
        stored = None if step in known or step > position.step else Mistakes().attempt(read_record, file)
        if stored is not None:
            known[step] = {"step": step, **Evaluation(stored, []).metrics()}
            evaluated.append(step)
    if position.step in missing:
        totals = {"tokens/total": position.tokens, "time/total_s": position.seconds}
        known[position.step] = {"step": position.step, **known.get(position.step, {}), **totals}
    records = [known[step] for step in sorted(known)]
    if not missing:
        return Recovery(records, None)
    kept = f"; evaluations of {_spans(evaluated)} were taken from evals/" if evaluated else ""
    return Recovery(records, f"metrics.jsonl lacks the records of step {_spans(missing)}{kept}")


def without_former_end(records: Sequence[Record], then: Recipe, now: Recipe) -> tuple[list[Record], int | None]:
    """Records of a longer run: without the evaluation that a shorter one had only because the step was its last.

    Returns:
        The records, and the step whose evaluation was left out, if there was one.
    """
    last, every = then.train.steps, then.eval.every
    if last == now.train.steps or not every or last % every == 0:
        return list(records), None
    cut = [
        {key: value for key, value in record.items() if record["step"] != last or not _of_evaluation(key)}
        for record in records
    ]
    return cut, last if cut != list(records) else None


def without_unfinished(records: Sequence[Record], then: Recipe, now: Recipe) -> tuple[list[Record], Record | None]:
    """Records of a run whose sampler was lost in an evaluation: without that of the step that is still to be evaluated.

    Returns:
        The records, and the one that lacks its evaluation, if the last does.
    """
    *before, last = records or [{"step": 0}]
    step = int(last["step"])
    due = all(r.eval.every and (step % r.eval.every == 0 or step == r.train.steps) for r in (then, now))
    if not step or not due or any(map(_of_evaluation, last)):
        return list(records), None
    return before, last


def _of_evaluation(key: str) -> bool:
    return key.startswith("eval/") or key == "time/eval_s"


def _spans(steps: Sequence[int]) -> str:
    """`1 to 74, 76`."""
    starts = [step for before, step in pairwise([steps[0] - 2, *steps]) if step != before + 1]
    ends = [step for step, after in pairwise([*steps, steps[-1] + 2]) if after != step + 1]
    return ", ".join(f"{a} to {b}" if a != b else str(a) for a, b in zip(starts, ends, strict=True))
