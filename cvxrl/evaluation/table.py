"""The numbers of an evaluation as text: n beside each, at most 80 columns."""

from __future__ import annotations

from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cvxrl.evaluation.record import Estimate, EvalRecord, Results, TaskInfo
from cvxrl.report.format import NO_ERROR, fixed, percent, with_error

_WIDTH = 80
_UNKNOWN = "unknown"


def print_record(record: EvalRecord, stream: TextIO) -> None:
    """Print two tables: accuracy beside what may spoil it, and the numbers for every k."""
    console = Console(file=stream, width=_WIDTH, highlight=False, no_color=not stream.isatty())
    for line in _header(record):
        console.print(Text(line), soft_wrap=True)
    console.print(_quality(record.results))
    console.print(_at_k(record.results))
    for line in _footnotes(record.results):
        console.print(Text(line))


def _header(record: EvalRecord) -> list[str]:
    task, asked, policy = record.task, record.sampling, record.checkpoint
    nucleus = f", top-p {asked.top_p:g}" if asked.top_p is not None and asked.top_p < 1 else ""
    tokens, seed = (_UNKNOWN if value is None else value for value in (asked.max_new_tokens, asked.seed))
    at = "" if record.step is None else f" after step {record.step}"
    who, what = _UNKNOWN, _UNKNOWN
    if policy is not None:
        who = f"{policy.path} ({policy.parameters:,} parameters, {policy.dtype}, sha256 {policy.sha256[:12]})"
    if task is not None:
        version = f" version {task.version}" if task.version is not None else ""
        what = f"{task.name}{version} (questions {task.fingerprint[:12]}, template {task.spec.template})"
    return [
        f"policy    {who}{at}",
        f"task      {what}",
        f"sampling  {asked.questions} questions{_different(task, asked.questions)} x {asked.samples}, "
        f"temperature {asked.temperature:g}{nucleus}, {tokens} new tokens, seed {seed}",
    ]


def _different(task: TaskInfo | None, questions: int) -> str:
    """How many of the questions are different ones, where some come more than once."""
    unique = None if task is None else task.unique
    return f" ({unique} different)" if unique is not None and unique < questions else ""


def _quality(results: Results) -> Table:
    table = Table(title=Text("completions"), title_justify="left", width=_WIDTH)
    table.add_column("", ratio=1)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    total = f"{results.questions} x {results.samples}"
    rows = (
        (f"accuracy (avg@{results.samples})", _with_interval(results.accuracy, NO_ERROR)),
        ("truncated at the length limit", _share(results.truncated)),
        ("grader errors (count as wrong)", _share(results.grader_errors)),
        ("no answer found", _share(results.no_answer)),
        ("accuracy, strict grader", _with_interval(results.strict_accuracy)),
        ("graders disagree", _share(results.disagreement)),
        ("  right for the task's grader only", _share(results.strict_missed)),
        ("  right for the strict grader only", _share(results.strict_only)),
        ("mean length (tokens)", _UNKNOWN if results.mean_tokens is None else fixed(results.mean_tokens, 1)),
    )
    for name, value in rows:
        table.add_row(Text(name), Text(value), Text(total))
    return table


def _at_k(results: Results) -> Table:
    table = Table(title=Text("k completions per question"), title_justify="left", width=_WIDTH)
    for name in ("k", "pass@k", "avg@k", "maj@k", "n"):
        table.add_column(name, justify="right", no_wrap=True, ratio=None if name == "k" else 1)
    for row in results.at_k:
        cells = (str(row.k), *map(_estimate, (row.pass_at_k, row.avg_at_k, row.maj_at_k)))
        table.add_row(*map(Text, cells), Text(f"{results.questions} x {results.samples}"))
    return table


def _footnotes(results: Results) -> list[str]:
    notes = [
        "± is one standard error, [ ] a 95% interval, both clustered by question; n is",
        "questions x completions.",
        "Every number uses all completions: pass@k and maj@k average over all subsets of",
        "k, and avg@k is the same for every k. maj@k breaks ties at random.",
    ]
    if results.questions == 1:
        notes.append(f"One question: no standard error; an {NO_ERROR}.")
    elif results.accuracy.stderr == 0:
        notes.append("All questions scored alike, so ± 0 says nothing about the error; the interval does.")
    if results.questions < 100:
        notes.append(f"One question is worth {100 / results.questions:.1f} points.")
    return notes


def _estimate(estimate: Estimate | None, missing: str = "") -> str:
    return _UNKNOWN if estimate is None else with_error(estimate.value, estimate.stderr, missing)


def _with_interval(estimate: Estimate | None, missing: str = "") -> str:
    known = estimate is not None and estimate.low is not None and estimate.high is not None
    return _estimate(estimate, missing) + (f" [{fixed(estimate.low)}, {fixed(estimate.high)}]" if known else "")  # type: ignore[union-attr]


def _share(value: float | None) -> str:
    return _UNKNOWN if value is None else percent(value)
