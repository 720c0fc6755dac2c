"""From command-line options to what will run; every mistake that can be seen without loading anything. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import ValidationError

from cvxrl.errors import Mistakes, Problem, UserError
from cvxrl.evaluation.folder import EvalDir, read_record
from cvxrl.evaluation.options import Options
from cvxrl.evaluation.source import AskedTask, find_task, with_data
from cvxrl.evaluation.summary import check_ks, default_ks, parse_ks
from cvxrl.evaluation.target import Target, find_target
from cvxrl.ranks import is_main
from cvxrl.recipe.engine import EngineSpec, VllmSpec
from cvxrl.recipe.evaluation import EvalSampling
from cvxrl.recipe.model import ModelSpec
from cvxrl.runs.directory import RunDir
from cvxrl.runs.entry import Entry

_SAMPLING = ("questions", "samples", "temperature", "top_p", "max_new_tokens")


@dataclass(frozen=True)
class Plan:
    """A checked evaluation.

    Attributes:
        target: the policy.
        model: how it is loaded.
        task: the questions and their grader.
        sampling: how the policy is asked; ``questions`` is None for all.
        seed: seed of sampling.
        engine: what samples: as in the run that the policy belongs to, unless the user says otherwise.
        rows: completions decoded at a time; None for what fits into memory. They change no random number.
        exactly: whether fewer questions than asked for are a mistake.
        ks: values of k to report.
        folder: where results go.
        entry: how an existing folder is entered.
        notes: what the user should know before it starts.
    """

    target: Target
    model: ModelSpec
    task: AskedTask
    sampling: EvalSampling
    seed: int
    engine: EngineSpec
    rows: int | None
    exactly: bool
    ks: list[int]
    folder: EvalDir
    entry: Entry
    notes: list[str] = field(default_factory=list)


def make_plan(options: Options) -> Plan:
    """Check the options against what is on the disk.

    Raises:
        UserError: with every mistake found.
    """
    mistakes = Mistakes()
    target = mistakes.attempt(find_target, options.ckpt or "")
    task = None
    if target is not None or options.task is not None:
        task = mistakes.attempt(find_task, options.task, target.recipe if target else None)
    if task is not None and (options.data or options.template):
        task = mistakes.attempt(with_data, task, options.data, options.template)
    notes: list[str] = []
    sampling = mistakes.attempt(_sampling, options, task.sampling if task else EvalSampling(max_new_tokens=1), notes)
    ks = mistakes.attempt(parse_ks, options.ks) if options.ks is not None else None
    # Without the task its number of samples is unknown, and nothing can be said about k.
    if sampling is not None and ks is not None and (task is not None or options.samples is not None):
        mistakes.attempt(check_ks, ks, sampling.samples, f"lower k, or raise --samples to {max(ks)}")
    folder = options.out
    if folder is None and target is not None and task is not None:
        folder = target.folder(task.name)
    if folder is not None and is_main():
        mistakes.attempt(EvalDir(folder).check, options.entry)
    for name, lowest in (("seed", 0), ("batch", 1)):
        value = getattr(options, name)
        if value is not None and value < lowest:
            mistakes.problems.append(Problem(f"must be at least {lowest}, got {value}", f"--{name}", "", "raise it"))
    engine = mistakes.attempt(_engine, options, target)
    if mistakes.problems or engine is None or target is None or task is None or sampling is None or folder is None:
        raise UserError(*mistakes.problems)
    return Plan(
        target=target,
        model=target.model(options.dtype, options.revision, trust_remote_code=options.trust_remote_code),
        task=task,
        sampling=sampling,
        seed=task.seed if options.seed is None else options.seed,
        engine=engine,
        rows=options.batch or task.rows or _rows_of_training(target, options),
        exactly=options.questions is not None,
        ks=ks or default_ks(sampling.samples),
        folder=EvalDir(folder),
        entry=options.entry,
        notes=notes,
    )


def _engine(options: Options, target: Target | None) -> EngineSpec:
    """That of the run, or what the options say.

    Raises:
        UserError: an address without a server, or none.
    """
    own: EngineSpec = target.recipe.rollout.engine if target is not None and target.recipe else "auto"
    asked = options.engine or ("vllm" if options.url is not None else None)
    if asked is None:
        return own
    if asked != "vllm":
        if options.url is not None:
            raise UserError(Problem(f"`{asked}` samples here, not on a server", "--url", remedy="leave it out"))
        return asked
    base = own.model_dump() if isinstance(own, VllmSpec) else {}
    try:
        return VllmSpec.model_validate(base | ({"url": options.url, "mode": "server"} if options.url else {}))
    except ValidationError:
        remedy = "give http://HOST:PORT of a server that `python -m cvxrl.serve` started"
        raise UserError(Problem(f"no address of a server: {options.url}", "--url", remedy=remedy)) from None


def _rows_of_training(target: Target, options: Options) -> int | None:
    """How many completions the run decoded at a time when it asked itself the same; None if it did not.

    What fits into memory differs between a training and an evaluation, and with it the rounding of the logits.
    """
    step, same = target.evaluated_at(), options.task is None and options.max_new_tokens is None
    if target.run is None or step is None or not same:
        return None
    try:
        return read_record(RunDir(target.run).evaluation(step)).rows
    except UserError:
        return None


def _sampling(options: Options, defaults: EvalSampling, notes: list[str]) -> EvalSampling:
    """Lay the options over the task's settings."""
    given = {name: getattr(options, name) for name in _SAMPLING if getattr(options, name) is not None}
    try:
        sampling = EvalSampling.model_validate(defaults.model_dump() | given)
    except ValidationError as error:
        raise UserError(
            *(
                Problem(
                    f"{e['msg'][:1].lower()}{e['msg'][1:]}, got {e['input']}",
                    f"--{str(e['loc'][0]).replace('_', '-')}",
                    remedy="change the value",
                )
                for e in error.errors()
            )
        ) from None
    if sampling.temperature == 0 and sampling.samples > 1:
        if options.samples is not None:
            raise UserError(
                Problem(
                    f"{sampling.samples} greedy completions of a question would all be the same",
                    "--samples",
                    remedy="set --samples 1, or a --temperature above 0",
                )
            )
        notes.append("temperature 0: one completion per question, since all would be the same")
        sampling = sampling.model_copy(update={"samples": 1})
    return sampling
