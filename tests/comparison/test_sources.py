"""`compare` over runs of several programs: a second source, beside our own run directories."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers import ROOT
from made_runs import make_seeds
from typer.testing import CliRunner

from cvxrl.cli import app
from cvxrl.comparison.export import to_csv, to_document, to_html_page
from cvxrl.comparison.figures.gallery import all_figures
from cvxrl.comparison.gate import judge, parse_gate
from cvxrl.comparison.options import Options
from cvxrl.comparison.result import Comparison, build
from cvxrl.comparison.run import LoggedRun
from cvxrl.comparison.run_directory import RunDirectories
from cvxrl.comparison.sources import SOURCES, discover, read_run, read_runs
from cvxrl.comparison.tables import all_tables
from cvxrl.errors import Problem, UserError
from cvxrl.report.document import to_markdown

GRPO, FOREIGN = "math_grpo", "trl_grpo"


class CsvLogs:
    """Runs as `METHOD-seedN.csv` with a column `step` and one per metric."""

    def owns(self, path: Path) -> bool:
        return path.suffix == ".csv" and "-seed" in path.stem

    def read(self, path: Path) -> LoggedRun:
        method, _, seed = path.stem.rpartition("-seed")
        try:
            with path.open() as file:
                records = [{key: float(text) for key, text in row.items()} for row in csv.DictReader(file)]
        except ValueError as error:
            raise UserError(Problem(f"is damaged: {error}", file=str(path), remedy="leave it out")) from None
        return LoggedRun(path, method, int(seed), steps=int(records[-1]["step"]), records=records)


@pytest.fixture(autouse=True)
def csv_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cvxrl.comparison.sources.SOURCES", [*SOURCES, CsvLogs()])


def log(folder: Path, method: str, seed: int, curve: Sequence[float]) -> Path:
    file = folder / f"{method}-seed{seed}.csv"
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text("step,eval/accuracy\n" + "".join(f"{step},{value}\n" for step, value in enumerate(curve)))
    return file


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """Five seeds of our own, five foreign ones, in one folder."""
    make_seeds(tmp_path / "outputs", GRPO, [0.7, 0.7, 0.8, 0.9, 1.0])
    for seed, final in enumerate([0.1, 0.2, 0.3, 0.4, 0.5]):
        log(tmp_path / "outputs" / "elsewhere", FOREIGN, seed, (0.4, (0.4 + final) / 2, final))
    return tmp_path / "outputs"


def compare(*paths: Path, **options: object) -> Comparison:
    found = discover([str(path) for path in paths])
    runs, problems = read_runs(found.runs)
    return build(runs, Options(resamples=200, **options), [*found.problems, *problems])  # type: ignore[arg-type]


def logged(method: str, seed: int, curve: Sequence[float]) -> LoggedRun:
    records = [{"step": step, "eval/accuracy": value} for step, value in enumerate(curve)]
    return LoggedRun(Path(f"{method}-seed{seed}"), method, seed, len(curve) - 1, records)


def test_values_that_are_not_finite_are_none() -> None:
    runs = [logged(GRPO, seed, (0.4, 0.5 + seed / 10, float("inf"), 0.8 + seed / 100)) for seed in range(3)]
    runs += [logged("other", seed, (0.4, 0.5, float("nan") if seed == 1 else 0.6)) for seed in range(3)]
    assert list(runs[0].series("eval/accuracy").step_T) == [0, 1, 3]
    comparison = build(runs, Options(resamples=100))
    assert [summary.scores for summary in comparison.summaries] == [[0.8, 0.81, pytest.approx(0.82)], [0.6, 0.5, 0.6]]
    assert all(to_markdown(table) for table in all_tables(comparison))


def test_a_run_without_a_finite_value_is_named() -> None:
    runs = [logged(GRPO, 0, (0.4, 0.5)), logged(GRPO, 1, (float("nan"), float("-inf")))]
    problem = build(runs, Options(resamples=100)).problems[0]
    assert "has no value of `eval/accuracy`" in problem.message and problem.file.endswith("seed1")


def test_foreign_runs_are_found_below_a_folder_and_never_inside_a_run(outputs: Path) -> None:
    log(outputs / GRPO / "seed-0" / "report", FOREIGN, 9, (0.1, 0.2))
    log(outputs / ".hidden", FOREIGN, 9, (0.1, 0.2))
    one = outputs / "elsewhere" / f"{FOREIGN}-seed0.csv"
    found = discover([str(outputs), str(one)])
    assert not found.problems and len(found.runs) == 10
    assert {path.name for path in found.runs} == {
        *(f"{FOREIGN}-seed{n}.csv" for n in range(5)),
        *(f"seed-{n}" for n in range(5)),
    }
    assert discover([str(one)]).runs == [one]


def test_one_table_one_verdict_one_gate(outputs: Path) -> None:
    c = compare(outputs)
    assert [(s.label, s.scores) for s in c.summaries] == [
        (FOREIGN, [0.1, 0.2, 0.3, 0.4, 0.5]),
        (GRPO, [0.7, 0.7, 0.8, 0.9, 1.0]),
    ]
    (pair,) = c.pairs
    assert (pair.label, pair.paired_seeds, pair.verdict) == (GRPO, 5, "better")
    assert judge(parse_gate(f"P({GRPO} > {FOREIGN}) > 0.9"), c).met
    # The same numbers as when both are our own.
    twin = outputs.parent / "own"
    make_seeds(twin, "math_lco_kld", [0.1, 0.2, 0.3, 0.4, 0.5])
    own = compare(twin, outputs / GRPO)
    assert own.pairs[0].difference == pair.difference and own.pairs[0].p_value == pair.p_value


def test_what_a_log_does_not_hold_stays_empty(outputs: Path) -> None:
    c = compare(outputs)
    foreign = c.summaries[0]
    assert foreign.seconds is None and foreign.tokens is None
    assert foreign.reached.count == 0
    reached = compare(outputs, threshold=0.05).summaries[0].reached
    assert (reached.count, reached.steps, reached.tokens) == (5, 0.0, None)
    tables = {table.title.split(":")[0]: table for table in all_tables(c)}
    assert tables["Stability"].rows[0][:5] == [FOREIGN, "-", "-", "-", "-"]
    assert tables["Speed"].rows[0][-2:] == ["-", "-"]
    verdict = judge(parse_gate(f"tokens({FOREIGN}) > 0"), compare(outputs, threshold=0.05))
    assert not verdict.met, "tokens that nobody counted meet no requirement"
    assert not judge(parse_gate(f"seconds({FOREIGN}) >= 0"), c).met


def test_one_page_and_one_document(outputs: Path) -> None:
    c = compare(outputs)
    page = to_html_page(c, [], "cvxrl compare outputs")
    assert page.count("<img") == len(all_figures(c)) == 5
    for text in (page, "".join(map(to_markdown, all_tables(c))), to_csv(c)):
        assert FOREIGN in text and GRPO in text
    document = json.loads(json.dumps(to_document(c, []), allow_nan=False))
    assert [m["label"] for m in document["methods"]] == [FOREIGN, GRPO]
    assert document["methods"][0]["rows"][0]["path"].endswith(f"{FOREIGN}-seed0.csv")


def test_a_panel_without_data_says_so_and_has_no_scale(outputs: Path) -> None:
    from cvxrl.comparison.figures.curves import stability_curves

    for axis in stability_curves(compare(outputs / "elsewhere")).axes:
        assert [text.get_text() for text in axis.texts] == ["not measured"]
        assert not len(axis.get_xticks()) and not len(axis.get_yticks())


def test_an_unknown_recipe_is_said_to_be_unchecked(outputs: Path) -> None:
    c = compare(outputs)
    (said,) = [text for text in c.warnings if "not known" in text]
    assert f"{FOREIGN}-seed0.csv and 4 more: recipe and task not known" in said
    assert c.factors == [] and not c.problems
    make_seeds(outputs, "math_lco_kld", [0.7, 0.8])
    three = compare(outputs)
    assert "objective.kind" in [f.key for f in three.factors]
    assert all(set(f.values) == {GRPO, "math_lco_kld"} for f in three.factors)
    (table,) = [t for t in all_tables(three) if "differs" in t.title]
    assert FOREIGN not in str(table.rows)


def test_own_runs_are_still_held_against_each_other(outputs: Path) -> None:
    make_seeds(outputs, "math_lco_kld", [0.7, 0.8], overrides=["optim.lr=0.1"])
    with pytest.raises(UserError, match=r"optim\.lr"):
        compare(outputs)
    make_seeds(outputs / "more", "math_lco_mse", [0.7, 0.8], task="another")
    with pytest.raises(UserError, match="another task"):
        compare(outputs, allow_diff=True)


def test_runs_of_unknown_recipe_join_the_method_of_their_name(outputs: Path) -> None:
    log(outputs, GRPO, 5, (0.4, 0.6, 0.6))
    log(outputs, GRPO, 0, (0.4, 0.6, 0.6))
    c = compare(outputs)
    assert c.summary(GRPO).seeds == [0, 1, 2, 3, 4, 5]
    assert any("same recipe and seed" in text for text in c.warnings)


def test_a_sweep_takes_only_what_says_its_value(outputs: Path) -> None:
    for lr in ("1e-4", "1e-3"):
        make_seeds(outputs / lr, "math_lco_kld", [0.5, 0.6], overrides=[f"optim.lr={lr}"])
    c = compare(outputs, vary="optim.lr", allow_diff=True)
    assert c.summary(FOREIGN).value is None and len(c.sensitivities) == 1
    with pytest.raises(UserError, match="no run says with which recipe"):
        compare(outputs / "elsewhere", vary="optim.lr")


def test_a_damaged_log_hides_no_good_one(outputs: Path) -> None:
    (outputs / "elsewhere" / f"{FOREIGN}-seed3.csv").write_text("step,eval/accuracy\n0,high\n")
    c = compare(outputs)
    assert [p.file for p in c.problems] == [str(outputs / "elsewhere" / f"{FOREIGN}-seed3.csv")]
    assert c.summaries[0].seeds == [0, 1, 2, 4]


def test_the_command_takes_them_as_its_own(outputs: Path) -> None:
    arguments = [str(outputs / "elsewhere"), str(outputs / GRPO), "--json", "--require", f"P({GRPO} > {FOREIGN}) > 0.9"]
    done = CliRunner().invoke(app, ["compare", *arguments])
    assert done.exit_code == 0, done.output
    assert [m["label"] for m in json.loads(done.stdout)["methods"]] == [FOREIGN, GRPO]


def test_the_source_in_the_documentation_reads_its_runs(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "compare.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    sources = [RunDirectories()]
    monkeypatch.setattr("cvxrl.comparison.sources.SOURCES", sources)
    assert not discover([str(outputs / "elsewhere")]).runs
    exec(block, {"Path": Path, "csv": csv, "LoggedRun": LoggedRun, "SOURCES": sources})
    assert [s.label for s in compare(outputs).summaries] == [FOREIGN, GRPO]


def test_what_nobody_owns_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "notes.csv").write_text("a,b\n")
    assert "neither a run" in discover([str(tmp_path / "notes.csv")]).problems[0].message
    with pytest.raises(UserError, match="is missing"):
        read_run(tmp_path / "nowhere")
