"""The model card of a trained policy: `policy/README.md` with the metadata that the Hugging Face Hub reads.

Nothing in it depends on the clock or the machine, so that a run and its repetition write the same bytes.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from cvxrl import __version__
from cvxrl.errors import UserError
from cvxrl.evaluation.folder import read_record
from cvxrl.evaluation.record import Estimate, EvalRecord
from cvxrl.policy.locate import PACKAGE_PREFIX
from cvxrl.recipe.digest import digest, digests_as_written
from cvxrl.recipe.load import dump
from cvxrl.recipe.schema import Recipe, optimizer_steps
from cvxrl.report.document import Table, to_markdown
from cvxrl.report.format import NOTHING, fixed, percent
from cvxrl.runs.directory import RunDir
from cvxrl.runs.files import write_text

FILE: Final = "README.md"
_ARXIV: Final = re.compile(r"arXiv (\d{4}\.\d{4,5})")
_HUB_ID: Final = re.compile(r"[\w.-]+/[\w.-]+")
_OURS: Final = "apache-2.0"  # of the embedded policies


class Card:
    """The card in the `policy/` of a run, brought up to date by an evaluation unless somebody has edited it."""

    def __init__(self, run: RunDir, recipe: Recipe) -> None:
        """Look whether it is as it was written, before the evaluation writes anything."""
        self._run, self._recipe = run, recipe
        self._file = run.policy / FILE
        self._ours = run.policy.is_dir() and (not self._file.is_file() or self._text() == model_card(run, recipe))

    def refresh(self) -> None:
        """Write it again with what is stored now."""
        if self._ours:
            write_text(self._file, model_card(self._run, self._recipe))

    def _text(self) -> str:
        return self._file.read_text(encoding="utf-8", errors="replace")


def write_card(run: RunDir, directory: Path, recipe: Recipe) -> None:
    """Write `README.md` into a directory that holds the policy of a run.

    Args:
        run: whose evaluations are told.
        directory: where the policy is, or is being written.
        recipe: what it was trained by.
    """
    write_text(directory / FILE, model_card(run, recipe))


def model_card(run: RunDir, recipe: Recipe) -> str:
    """The card: metadata, how it was trained, equation, evaluations with their errors, citation, the whole recipe."""
    found = list(evaluations(run, recipe))
    parts = [
        f"---\n{_metadata(recipe, found)}\n---\n",
        f"# {recipe.name}, seed {recipe.seed}\n",
        f"A policy trained with [cvxrl](https://pypi.org/project/cvxrl/) {__version__}: {_origin(recipe)}, "
        f"{recipe.train.steps:,} steps of `{recipe.objective.kind}` on `{recipe.task.source.kind}`.\n",
        _section(_training(recipe)),
        f"Loss per token: `{recipe.equation}`\n",
        _section(_table(found)) if found else "## Evaluation\n\nNone is stored.\n",
        f"## Use\n\n```python\n{_USE}```\n",
        f"## Citation\n\n```bibtex\n{''.join(_citations(recipe))}```\n",
        "## Recipe\n\nSave it as `recipe.yaml`; `cvxrl train recipe.yaml` trains the same policy.\n\n"
        f"<details><summary>every key</summary>\n\n```yaml\n{dump(recipe)}```\n\n</details>\n",
    ]
    return "\n".join(parts)


def evaluations(run: RunDir, recipe: Recipe) -> Iterator[tuple[str, EvalRecord]]:
    """What is stored of the final policy: the run's own last evaluation, then those of `cvxrl eval`, by task.

    A run that was made longer keeps the evaluations of the policy that it had before, under its former recipe.
    """
    last = _read(run.evaluation(recipe.train.steps))
    if last is not None:
        yield f"{recipe.task.source.kind} (held out)", last
    recipes = {digest(recipe), *(digests_as_written(run.recipe) if run.recipe.is_file() else ())}
    weights = last.checkpoint.sha256 if last is not None and last.checkpoint is not None else None
    for file in sorted(run.path.glob("evals/*/EVAL.json")):
        record = _read(file)
        if record is not None and _is_final(record, recipes, weights):
            yield file.parent.name, record


_USE = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("<this repository>")
tokenizer = AutoTokenizer.from_pretrained("<this repository>")
"""


def _read(file: Path) -> EvalRecord | None:
    """None without a file, and for a damaged one, which the command that reads it tells."""
    with contextlib.suppress(UserError):
        return read_record(file) if file.is_file() else None
    return None


def _is_final(record: EvalRecord, recipes: Container[str | None], weights: str | None) -> bool:
    """Whether the final policy answered: one exported under the run's recipe, or any with the same weights.

    Equal digests of weights prove it; unequal ones prove nothing, since another data type and version 0.1 give others.
    """
    policy = record.checkpoint
    if policy is None or record.step is not None or "checkpoints/step-" in policy.policy:
        return False
    return policy.recipe in recipes or policy.sha256 == weights


def _origin(recipe: Recipe) -> str:
    if recipe.model.path is None:
        return "from new weights"
    base = recipe.model.path
    return f"from `{base}`" + (f" at `{recipe.model.revision}`" if recipe.model.revision else "")


def _training(recipe: Recipe) -> Table:
    spec, optim = recipe.train, recipe.optim
    rows = [
        ["objective", recipe.objective.kind],
        ["advantage", recipe.advantage.kind if recipe.data == "rollouts" else NOTHING],
        ["reduction", recipe.reduction],
        ["steps", f"{spec.steps:,}, of {recipe.sequences_per_step:,} sequences each"],
        ["optimizer", f"{optim.kind}, learning rate {optim.lr:g}, {optimizer_steps(spec):,} steps"],
        ["seed", str(recipe.seed)],
        ["digest of the recipe", digest(recipe)],
    ]
    return Table("Training", ["<", "<value"], rows)


def _table(found: Sequence[tuple[str, EvalRecord]]) -> Table:
    rows = []
    for name, record in found:
        results, asked = record.results, record.sampling
        accuracy = results.accuracy
        rows.append(
            [
                name,
                fixed(accuracy.value),
                NOTHING if accuracy.stderr is None else fixed(accuracy.stderr),
                _interval(accuracy),
                f"{asked.questions} x {asked.samples}",
                f"{asked.temperature:g}",
                NOTHING if results.truncated is None else percent(results.truncated),
            ]
        )
    columns = ["<task", "accuracy", "error", "95% interval", "questions x samples", "temperature", "truncated"]
    note = "Share of completions judged right. Error and interval are over questions, of this one training seed."
    return Table("Evaluation", columns, rows, note)


def _section(table: Table) -> str:
    return to_markdown(table).replace("### ", "## ", 1)


def _interval(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return NOTHING
    return f"{estimate.low:.3f} to {estimate.high:.3f}"


def _metadata(recipe: Recipe, found: Sequence[tuple[str, EvalRecord]]) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=re.sub(r"[^\w.-]+", "-", name).strip("-").lower(),
            dataset_name=name,
            metric_type="accuracy",
            metric_name=f"accuracy (avg@{record.sampling.samples})",
            metric_value=round(record.results.accuracy.value, 6),
        )
        for name, record in found
    ]
    base, license_ = _base(recipe)
    more: dict[str, Any] = {"eval_results": results, "model_name": f"{recipe.name}-seed-{recipe.seed}"} if found else {}
    data = ModelCardData(
        base_model=base,
        license=license_,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["cvxrl", "reinforcement-learning", recipe.objective.kind],
        **more,
    )
    return data.to_yaml().strip()


def _base(recipe: Recipe) -> tuple[str | None, str | None]:
    """Id of the policy on the Hub that training started from, and the licence that its own card names, if known."""
    path = recipe.model.path
    if path is None:
        return None, None
    if path.startswith(PACKAGE_PREFIX):
        return None, _OURS
    local = Path(path).expanduser()
    is_id = not local.exists() and _HUB_ID.fullmatch(path) is not None
    return path if is_id else None, _license(local if local.is_dir() else None, path if is_id else None)


def _license(folder: Path | None, repository: str | None) -> str | None:
    """What the card says that lies beside the weights or in the Hub's cache; asks no server."""
    from huggingface_hub import ModelCard, try_to_load_from_cache

    file = folder / FILE if folder else None
    if repository is not None:
        cached = try_to_load_from_cache(repository, FILE)
        file = Path(cached) if isinstance(cached, str) else None
    if file is None or not file.is_file():
        return None
    try:
        card = ModelCard(file.read_text(encoding="utf-8"), ignore_metadata_errors=True)
        found = getattr(card.data, "license", None)
    except Exception:  # a card that others wrote, in whatever state
        return None
    return found if isinstance(found, str) else None


def _citations(recipe: Recipe) -> Iterator[str]:
    """An entry per paper that the parts in use name in their descriptions, the software first."""
    yield f"@software{{cvxrl,\n  title = {{cvxrl}},\n  version = {{{__version__}}}\n}}\n"
    sections: Mapping[str, Any] = {"objective": recipe.objective}
    if recipe.data == "rollouts":
        sections = {**sections, "advantage": recipe.advantage}
    papers = {
        number: (section.__doc__ or "").split("\n")[0].rstrip(".")
        for section in sections.values()
        for number in _ARXIV.findall((section.__doc__ or "").split("\n")[0])
    }
    for number, what in papers.items():
        note = what.replace("{", "").replace("}", "")
        fields = [f"eprint = {{{number}}}", "archivePrefix = {arXiv}", f"note = {{{note}}}"]
        fields.append(f"url = {{https://arxiv.org/abs/{number}}}")
        yield f"@misc{{arxiv{number.replace('.', '')},\n  " + ",\n  ".join(fields) + "\n}\n"
