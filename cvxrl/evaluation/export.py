"""Samples in the form that lm-evaluation-harness writes with `--log_samples` (lm-eval 0.4)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cvxrl.errors import Problem, UserError
from cvxrl.evaluation.record import EvalRecord, Sample
from cvxrl.runs.jsonl import write_lines

METRIC = "exact_match"


def export_samples(record: EvalRecord, samples: Sequence[Sample], file: Path) -> None:
    """Write one line per question.

    `resps` holds all n completions of the question, `filtered_resps` the answers found in them, and `exact_match` the
    share judged right by the task's grader. The prompt is the bare problem: templates belong to the policy.

    Raises:
        UserError: there are not the completions that the record speaks of, or the file cannot be written.
    """
    by_question: dict[int, list[Sample]] = {}
    for sample in sorted(samples, key=lambda s: (s.question, s.sample)):
        by_question.setdefault(sample.question, []).append(sample)
    expected = [(q.id, [bool(c) for c in q.correct]) for q in record.questions]
    if [(each[0].id, [s.correct for s in each]) for _, each in sorted(by_question.items())] != expected:
        raise UserError(
            Problem(
                "the completions are not those of EVAL.json",
                "--export-samples",
                "samples.jsonl",
                "keep samples.jsonl beside its EVAL.json, or evaluate again",
            )
        )
    write_lines(file, (_line(number, each, record) for number, each in sorted(by_question.items())))


def _line(number: int, each: Sequence[Sample], record: EvalRecord) -> dict[str, Any]:
    first, asked = each[0], record.sampling
    doc = {"id": first.id, "prompt": first.prompt, "answer": first.answer}
    how = {
        "until": [],
        "do_sample": asked.temperature > 0,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "max_gen_toks": asked.max_new_tokens,
    }
    found = [s.extracted or "" for s in each]
    return {
        "doc_id": number,
        "doc": doc,
        "target": first.answer,
        "arguments": {"gen_args_0": {"arg_0": first.prompt, "arg_1": how}},
        "resps": [[s.completion for s in each]],
        "filtered_resps": found if len(found) == 1 else [found],
        "filter": "none",
        "metrics": [METRIC],
        "doc_hash": _hash(json.dumps(doc, indent=2, ensure_ascii=False)),
        "prompt_hash": _hash(first.prompt),
        "target_hash": _hash(first.answer),
        METRIC: sum(s.correct for s in each) / len(each),
    }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
