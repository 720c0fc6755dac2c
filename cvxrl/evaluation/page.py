"""The page on which the completions of an evaluation are read, and which of them it shows token by token."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cvxrl.errors import Problem, UserError
from cvxrl.evaluation.folder import EvalDir, read_samples
from cvxrl.evaluation.record import EvalRecord, Sample
from cvxrl.report.completions import Part, completions_page
from cvxrl.runs.jsonl import read_lines

_SPELT = 256  # completions of which the tokens are kept; samples.jsonl holds the text of all
_SHOWN = 500  # on the page
_DOUBTED = 200  # of these, completions on which the graders differ, or which could not be graded


def spelt(questions: int, samples: int) -> set[tuple[int, int]]:
    """Completions of which the tokens are kept: all of evenly spaced questions, or the first ones of question 0.

    Args:
        questions: how many there are.
        samples: of each; with more of them, the questions are some of those with fewer.

    Returns:
        (question, sample) of at most 256 completions.
    """
    stride = 1
    while -(-questions // stride) * min(samples, _SPELT) > _SPELT:
        stride *= 2  # powers of two, so that questions chosen with a longer stride are among those with a shorter one
    return {(q, s) for q in range(0, questions, stride) for s in range(min(samples, _SPELT))}


def evaluation_page(record: EvalRecord, samples: Sequence[Sample]) -> str:
    """The page of a whole evaluation.

    Of more completions than it has room for it shows those of evenly spaced questions, among them those that are known
    token by token, and the first of those on which the graders differ or which could not be graded.
    """
    known = spelt(record.sampling.questions, record.sampling.samples)
    ordered = sorted(samples, key=lambda s: (s.question, s.sample))
    doubted = [s for s in ordered if s.error is not None or s.strict != s.correct][:_DOUBTED]
    first = [s for s in ordered if (s.question, s.sample) in known]
    chosen = {id(s): s for s in [*doubted, *first, *_spaced(ordered, _SHOWN)]}
    kept = {*list(chosen)[:_SHOWN]}
    task = record.task.name if record.task else "the task"
    policy = record.checkpoint.path if record.checkpoint else "the policy"
    notes = [_numbers(record)]
    if len(samples) > len(kept):
        notes.append(
            f"{len(kept)} of {len(samples)} completions are shown: those of evenly spaced questions, and first of all "
            f"{len(doubted)} on which the graders differ or which could not be graded. samples.jsonl has all."
        )
    part = Part(f"{task}", [s.readable() for s in ordered if id(s) in kept])
    return completions_page(f"Completions of {policy} on {task}", notes, [part])


def stored_page(file: Path, record: EvalRecord) -> str:
    """The page of an evaluation that is stored: of `cvxrl eval`, or of a run while it trained.

    Args:
        file: EVAL.json beside its samples.jsonl, or evals/step-*.json of a run, beside its rollouts/.
        record: what it holds.

    Raises:
        UserError: its completions are not there.
    """
    samples = EvalDir(file.parent).samples
    if samples.is_file():
        return evaluation_page(record, read_samples(samples))
    shown = file.parent.parent / "rollouts" / f"{file.stem}.jsonl"
    lines: list[dict[str, Any]] = read_lines(shown, json.loads, "delete the file")
    if not lines:
        raise UserError(
            Problem(
                f"the completions of {file} are not there",
                "--html",
                remedy="keep samples.jsonl beside its EVAL.json, or rollouts/ beside evals/ of a run",
            )
        )
    notes = [_numbers(record), "The completions that logging.samples keeps."]
    return completions_page(f"Completions of {file}", notes, [Part(f"step {record.step}, evaluation", lines)])


def _numbers(record: EvalRecord) -> str:
    results, sampling = record.results, record.sampling
    strict = "" if results.strict_accuracy is None else f", by the strict grader {results.strict_accuracy.value:.3f}"
    asked = f"{results.questions} questions x {results.samples} completions at temperature {sampling.temperature:g}"
    return f"Accuracy {results.accuracy.value:.3f}{strict}; {asked}."


def _spaced(samples: Sequence[Sample], wanted: int) -> list[Sample]:
    """Completions, all of a question's, of evenly spaced questions: at most about so many."""
    every = -(-len(samples) // wanted)
    return [s for s in samples if s.question % max(1, every) == 0]
