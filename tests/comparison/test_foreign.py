"""Runs that other programs logged: found, read, named, and held beside our own without guessing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from foreign_logs import (
    write_chart,
    write_lines,
    write_prime,
    write_tinker,
    write_trackio_table,
    write_trl,
    write_verl,
)
from made_runs import make_run, make_seeds

from cvxrl.comparison.foreign.label import Label, Stated, find_label, parse_label
from cvxrl.comparison.foreign.log import Table
from cvxrl.comparison.foreign.names import TRL, match_names
from cvxrl.comparison.foreign.pickled import plain_settings
from cvxrl.comparison.options import Options
from cvxrl.comparison.result import Comparison, build
from cvxrl.comparison.sources import discover, discover_stated, read_run, read_runs
from cvxrl.errors import UserError

CURVE = (0.25, 0.5, 0.75)


def values(path: Path, metric: str) -> list[float]:
    return [float(v) for v in read_run(path).series(metric).value_T]


def compare(*paths: Path, stated: Stated | None = None, **options: object) -> Comparison:
    found = discover([str(path) for path in paths])
    runs, problems = read_runs(found.runs, stated)
    return build(runs, Options(resamples=200, **options), [*found.problems, *problems])  # type: ignore[arg-type]


# --- formats


def test_a_trl_folder_is_its_newest_state(tmp_path: Path) -> None:
    folder = write_trl(tmp_path / "trl" / "grpo-seed3", CURVE, seed=3)
    write_trl(folder, CURVE[:2])
    run = read_run(folder)
    assert (run.method, run.seed, run.status, run.steps, run.last_step) == ("grpo", 3, "finished", 2, 2)
    assert values(folder, "eval/accuracy") == list(CURVE)
    assert values(folder, "reward/mean") == [0.5, 0.75] and values(folder, "grad/norm") == [1, 1]
    assert values(folder, "loss") == [0.1, 0.1], "the summary's mean over all steps is no value of the last one"
    assert values(folder, "time/total_s") == [2, 4]
    assert values(folder, "policy/reference_kl") == [0, 0] and "policy/kl" not in run.metrics
    assert discover([str(tmp_path / "trl")]).runs == [folder]
    assert read_run(folder / "checkpoint-1").last_step == 1


def test_a_trl_run_that_stopped_before_its_last_step_has_not_ended(tmp_path: Path) -> None:
    run = read_run(write_trl(tmp_path / "grpo-seed0", CURVE, planned=10))
    assert (run.status, run.steps, run.last_step) == ("interrupted", 10, 2)


@pytest.mark.parametrize(("reached", "status"), [(100, "finished"), (95, "interrupted")])
@pytest.mark.parametrize("is_summed_up", [True, False])
def test_a_trl_run_came_as_far_as_its_state_says(reached: int, status: str, is_summed_up: bool, tmp_path: Path) -> None:
    history: list[dict[str, Any]] = [{"step": step, "reward": 0.5} for step in (30, 60, 90)]
    history += [{"step": reached, "train_runtime": 9.0}] if is_summed_up else []
    state = {"global_step": reached, "max_steps": 100, "log_history": history}
    folder = tmp_path / "grpo-seed0"
    folder.mkdir()
    (folder / "trainer_state.json").write_text(json.dumps(state))
    run = read_run(folder)
    assert (run.status, run.steps, run.last_step) == (status, 100, reached)
    assert list(run.series("reward/mean").step_T) == [30, 60, 90]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a-seed0.jsonl", '{"step": 0, "data": {"x": 1}}\n{"step": 1, "data": {"x": 2}}\n{"step": 3, "data": {}}\n'),
        ("a-seed0.jsonl", '{"step": 0, "x": 1}\n{"step": 1, "x": 2}\n{"step": 3, "time": 5.0}\n'),
    ],
)
def test_a_row_without_a_number_says_how_far_a_run_came(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    run = read_run(discover([str(tmp_path / name)]).runs[0])
    assert (run.status, run.steps, run.last_step) == ("finished", 3, 3)
    assert list(run.series("x").step_T) == [0, 1]


@pytest.mark.parametrize(
    "text",
    [
        "Step,a-seed0 - x,a-seed1 - x\n0,1,1\n1,1,\n2,,1\n3,,1\n",
        "method,seed,step,x\na,0,0,1\na,0,1,2\na,0,3,\na,1,3,1\n",
    ],
)
def test_empty_cells_of_a_table_may_be_other_runs_steps(text: str, tmp_path: Path) -> None:
    file = tmp_path / "all.csv"
    file.write_text(text)
    assert [run.last_step for run in read_runs(discover([str(file)]).runs)[0]] == [1, 3]


def test_a_row_without_a_number_may_be_written_again() -> None:
    table = Table(Path("x"))
    for step, values in ((0, {"x": 1}), (1, {"x": 1}), (9, {}), (0, {"x": 2}), (1, {"x": 2})):
        table.add(step, values)
    assert table.reached == 1


def test_completions_alone_are_rewards_by_step(tmp_path: Path) -> None:
    parquet, table = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow").table
    folder = tmp_path / "grpo-seed1" / "completions"
    folder.mkdir(parents=True)
    for step, rewards in ((1, [0.0, 1.0]), (2, [1.0, 1.0])):
        rows = {"step": [step] * 2, "prompt": ["1+1", "1+1"], "completion": ["2", "3"], "check": rewards}
        parquet.write_table(table(rows | {"advantage": [0.1, -0.1]}), folder / f"completions_{step:05d}.parquet")
    run = read_run(folder.parent)
    assert values(folder.parent, "reward/mean") == [0.5, 1.0] and run.seed == 1
    assert any("no trainer_state.json" in doubt for doubt in run.doubts)
    (folder / "completions_00002.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(UserError, match=r"completions_00002\.parquet: cannot be read"):
        read_run(folder.parent)


def test_verl_prime_and_tinker(tmp_path: Path) -> None:
    verl = write_verl(tmp_path / "project" / "gspo-seed2.jsonl", CURVE)
    prime = write_prime(tmp_path / "ipo-seed0", CURVE)
    tinker = write_tinker(tmp_path / "is-seed4-2026-08-01-12-00", CURVE, seed=4)
    for path, label in ((verl, ("gspo", 2)), (prime, ("ipo", 0)), (tinker, ("is", 4))):
        run = read_run(path)
        assert (run.method, run.seed) == label
        assert values(path, "eval/accuracy") == list(CURVE), path
        assert values(path, "reward/mean")[-2:] == [0.5, 0.75]
    assert values(verl, "grad/norm") == [1, 1] and values(prime, "policy/entropy") == [0.5] * 3
    assert {path.name for path in discover([str(tmp_path)]).runs} == {verl.name, prime.name, tinker.name}


def test_an_average_reward_is_no_accuracy_without_evidence(tmp_path: Path) -> None:
    record = {"step": 1, "time": 1.0, "eval/sums/all/solver/avg@4": 1.5}
    write_lines(tmp_path / "ipo-seed0" / "metrics.jsonl", [record])
    run = read_run(tmp_path / "ipo-seed0")
    assert "eval/accuracy" not in run.metrics and "eval/sums/all/solver/avg@4" in run.metrics


def test_a_database_and_a_chart_hold_several_runs(tmp_path: Path) -> None:
    curves = {"grpo-seed0": CURVE, "grpo-seed1": (0.5, 0.5, 1.0)}
    database = write_trackio_table(tmp_path / "logs" / "sums.db", curves)
    chart = write_chart(
        tmp_path / "chart.csv", {f"lco/a - b-seed{n}": curve for n, curve in enumerate(curves.values())}
    )
    for file in (database, chart):
        runs, problems = read_runs(discover([str(file)]).runs)
        assert [(run.seed, list(run.series("eval/accuracy").value_T)) for run in runs] == [
            (0, list(CURVE)),
            (1, [0.5, 0.5, 1.0]),
        ]
        assert not problems
        assert discover([str(runs[1].path)]).runs == [runs[1].path], "one of them can be given by name"
    assert {run.method for run in read_runs(discover([str(chart)]).runs)[0]} == {"lco/a - b"}
    assert any(
        "`loss` is not finite in 3 steps" in doubt
        for doubt in read_run(database.with_name("sums.db#grpo-seed0")).doubts
    )
    with pytest.raises(UserError, match=r"has no run `nobody`\n.*there are: sums\.db#grpo-seed0, sums\.db#grpo-seed1"):
        read_run(database.with_name("sums.db#nobody"))


def test_a_plain_table_may_name_its_runs_in_columns(tmp_path: Path) -> None:
    file = tmp_path / "all.csv"
    file.write_text("method,seed,step,eval/accuracy,note\na,0,1,0.5,x\na,1,1,0.7,\nb,0,1,0.2,\nb,1,1,,\n")
    runs, _ = read_runs(discover([str(file)]).runs)
    assert [(run.method, run.seed, run.path.name) for run in runs] == [
        ("a", 0, "all.csv#a-seed0"),
        ("a", 1, "all.csv#a-seed1"),
        ("b", 0, "all.csv#b-seed0"),
    ]


def test_a_file_may_have_the_mark_of_its_runs_in_its_own_name(tmp_path: Path) -> None:
    file = tmp_path / "a#b.csv"
    file.write_text("method,seed,step,x\ng#2,0,1,0.5\nb,0,1,0.2\n")
    runs, problems = read_runs(discover([str(tmp_path)]).runs)
    assert [run.method for run in runs] == ["g#2", "b"] and not problems
    assert read_run(discover([f"{file}#g#2-seed0"]).runs[0]).method == "g#2"
    database = write_trackio_table(tmp_path / "c#d.db", {"a-seed0": CURVE})
    assert read_run(discover([str(database)]).runs[0]).method == "a"


def test_the_folder_of_a_file_is_no_method_of_the_runs_in_it(tmp_path: Path) -> None:
    table, database = tmp_path / "all.csv", write_trackio_table(tmp_path / "sums.db", {"seed0": CURVE})
    table.write_text("method,seed,step,x\n,0,1,0.5\nb,0,1,0.2\n")
    runs, problems = read_runs(discover([str(table), str(database)]).runs)
    assert [run.method for run in runs] == ["b"]
    assert ["does not say which method" in str(problem) for problem in problems] == [True, True]
    found, stated = discover_stated([(f"{table}#-seed0", Label("a", 0))], {})
    assert [run.method for run in read_runs(found.runs, stated)[0]] == ["a"]


@pytest.mark.parametrize(
    "name", ["a-seed0.jsonl", "a-seed0/metrics.jsonl", "a-seed0/trainer_state.json", "a-seed0.csv"]
)
def test_byte_order_marks_are_passed_over(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    state = {"global_step": 1, "max_steps": 1, "log_history": [{"step": 1, "x": 0.5}]}
    text = {".csv": "step,x\n1,0.5\n", ".json": json.dumps(state), ".jsonl": '{"step": 1, "x": 0.5}\n'}
    file.write_text(text[file.suffix], encoding="utf-8-sig")
    if file.name == "metrics.jsonl":
        (file.parent / "config.json").write_text('{"seed": 0}', encoding="utf-8-sig")
    (path,) = discover([str(tmp_path)]).runs
    run = read_run(path)
    assert (run.method, run.seed, list(run.series("x").value_T)) == ("a", 0, [0.5])


def test_our_own_damaged_directories_stay_ours(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (run / "run.json").unlink()
    with pytest.raises(UserError, match=r"run\.json: is missing"):
        read_run(run)
    (run / "recipe.yaml").unlink()
    with pytest.raises(UserError, match="is missing"):
        read_run(run)


# --- names


def test_names_are_matched_exact_then_by_suffix_then_by_alias() -> None:
    named = match_names({"loss", "train/loss", "train_loss", "reward", "grad_norm", "kl"}, TRL, {})
    assert named.ours == {
        "loss": "loss",
        "reward": "reward/mean",
        "grad_norm": "grad/norm",
        "kl": "policy/reference_kl",
    }
    assert named.unmapped == ["train/loss", "train_loss"]
    assert match_names({"train/reward/mean"}, TRL, {}).ours == {"train/reward/mean": "reward/mean"}


@pytest.mark.parametrize(
    "name", ["val/reward/mean", "eval_reward", "my_reward", "rewards/format/mean", "Loss", "accuracy"]
)
def test_a_name_that_only_looks_alike_is_not_guessed(name: str) -> None:
    named = match_names({name}, TRL, {})
    assert named.ours == {} and named.unmapped == [name]
    assert name in named.doubts[0]


def test_two_names_for_one_are_none_until_the_user_says(tmp_path: Path) -> None:
    names = {"eval_accuracy", "eval_rewards/accuracy_reward/mean"}
    named = match_names(names, TRL, {})
    assert named.ours == {} and named.ambiguous == {"eval/accuracy": sorted(names)}
    for seed in range(2):
        write_trl(tmp_path / f"grpo-seed{seed}", CURVE, extra={"eval_accuracy": 0.5})
    with pytest.raises(UserError, match=r"2 names could be `eval/accuracy`, so none is: .*--alias eval/accuracy="):
        compare(tmp_path)
    chosen = compare(tmp_path, stated=Stated(aliases={"eval/accuracy": "eval_rewards/accuracy_reward/mean"}))
    assert chosen.summaries[0].scores == [0.75, 0.75]


def test_an_alias_that_no_log_has_is_refused(tmp_path: Path) -> None:
    write_trl(tmp_path / "grpo-seed0", CURVE)
    _, problems = read_runs(discover([str(tmp_path)]).runs, Stated(aliases={"eval/accuracy": "eval_los"}))
    assert "no log has a metric `eval_los`" in problems[0].message and "`eval_loss`" in problems[0].remedy


# --- method and seed


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("grpo-seed0", ("grpo", 0)),
        ("grpo_seed_12", ("grpo", 12)),
        ("lco kld.seed=3", ("lco kld", 3)),
        ("math-lr2e-05-seed7-2026-11-26-10-00", ("math-lr2e-05", 7)),
        ("seed-4", ("trl_grpo", 4)),
    ],
)
def test_a_name_says_method_and_seed(name: str, label: tuple[str, int], tmp_path: Path) -> None:
    assert find_label(tmp_path / "trl_grpo" / name, name, None) == Label(*label)


@pytest.mark.parametrize("name", ["grpo", "grpo-0", "grpo_s1", "reseed1x", "seedling", "run-3", "seed0-of-grpo"])
def test_a_name_that_does_not_say_is_not_guessed(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--as METHOD:SEED="):
        find_label(tmp_path / name, name, None)
    with pytest.raises(UserError, match=r"--as METHOD:5="):
        find_label(tmp_path / name, name, 5)


def test_name_and_configuration_may_not_contradict(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is called seed 0, and its configuration says seed 1"):
        read_run(write_trl(tmp_path / "grpo-seed0", CURVE, seed=1))


def test_settings_are_read_without_unpickling(tmp_path: Path) -> None:
    import torch
    from foreign_logs import Arguments

    torch.save(Arguments(41, 0.002), tmp_path / "args.bin")
    found = plain_settings(tmp_path / "args.bin", ("seed", "learning_rate", "loss_type", "data_seed", "none"))
    assert found == {"seed": 41, "learning_rate": 0.002, "loss_type": "dapo", "data_seed": None}
    (tmp_path / "args.bin").write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(ValueError, match="not a zip file"):
        plain_settings(tmp_path / "args.bin", ("seed",))


def test_as_says_it_all(tmp_path: Path) -> None:
    assert parse_label("grpo:3=a=b:c") == ("a=b:c", Label("grpo", 3))
    one = write_trl(tmp_path / "first", CURVE)
    two = write_trackio_table(tmp_path / "sums.db", {"x1": CURVE, "y2": CURVE})
    found, stated = discover_stated([(str(one), Label("a", 0)), (f"{two}#y2", Label("a", 1))], {})
    runs, problems = read_runs(found.runs, stated)
    assert [(run.method, run.seed) for run in runs] == [("a", 0), ("a", 1)] and not problems


def test_as_refuses_what_is_no_single_foreign_run(tmp_path: Path) -> None:
    own = make_run(tmp_path / "own")
    two = write_trackio_table(tmp_path / "sums.db", {"x1": CURVE, "y2": CURVE})
    given = [(str(path), Label("a", 0)) for path in (own, two, tmp_path / "gone")]
    found, _ = discover_stated(given, {})
    assert [p.key for p in found.problems] == ["--as"] * 3
    assert "which says what it is" in found.problems[0].message and "holds 2 runs" in found.problems[1].message


# --- damaged, empty, mixed, resumed


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a-seed0.jsonl", '{"step": 0, "data": {"x": 1}}\nnot json\n{"step": 1, "data": {}}\n', "line 2 is damaged"),
        ("a-seed0.jsonl", '{"step": 0, "data": {"x": 1}}\n{"step": 1, "x": 2}\n', "line 2 is of another program"),
        ("a-seed0.jsonl", '{"step": 0, "x": 1}\n{"x": 2}\n', "line 2 has no step"),
        ("a-seed0.jsonl", '{"step": 0, "data": {"x": "text"}}\n', "no step with a number"),
        ("a-seed0.jsonl", '{"step": 1, "x": 1}\n{"step": 1, "x": 2}\n', "two values of `x`"),
        ("a-seed0.csv", "step,x\n", "no step with a number"),
        ("a-seed0.csv", "step,x,y\n0,1,1\n1,high,low\n2,1,2\n", "`x` in line 3 is no number; `y` in line 3"),
        ("a-seed0.csv", "step,x\n0,1,5\n", "more cells than the header"),
        ("a-seed0.csv", "step,Step,x\n0,1,5\n", "two columns of one name"),
        ("a-seed0.csv", "step,x\n0,1\nnan,1\n", "has a row at step nan"),
        ("a-seed0.jsonl", '{"step": Infinity, "x": 1}\n', "has a row at step inf"),
        ("a-seed0.db", "SQLite format 3\0 torn", "is damaged"),
        ("trainer_state.json", "{", "cannot be read"),
        ("trainer_state.json", '{"global_step": 1}', "no `log_history`"),
        ("trainer_state.json", '{"global_step": 1, "max_steps": 1, "log_history": [{"x": 1}]}', "entry 1 .* no step"),
    ],
)
def test_what_is_damaged_empty_or_mixed_is_named(name: str, text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "a-seed0" / name
    file.parent.mkdir()
    file.write_text(text)
    assert discover([str(file)]).runs
    with pytest.raises(UserError, match=said) as raised:
        read_run(discover([str(file)]).runs[0])
    assert all(problem.file.startswith(str(file)) and problem.remedy for problem in raised.value.problems)


def test_all_mistakes_at_once(tmp_path: Path, cvxrl: Any) -> None:
    for seed in range(2):
        write_trl(tmp_path / f"grpo-seed{seed}", CURVE)
    (tmp_path / "bad.jsonl").write_text('{"step": 1, "x": 1}\n{"step": 1, "x": 2}\n')
    (tmp_path / "empty.csv").write_text("step,x\n")
    done = cvxrl("compare", tmp_path)
    assert done.code == 2
    for said in (
        "bad.jsonl: step 1 has two values",
        "bad.jsonl: does not say which method",
        "empty.csv: holds no step",
    ):
        assert said in done.err


def test_a_torn_last_line_is_passed_over(tmp_path: Path) -> None:
    file = write_verl(tmp_path / "a-seed0.jsonl", CURVE)
    file.write_text(file.read_text() + '{"step": 3, "da')
    assert values(file, "eval/accuracy") == list(CURVE)


def test_what_was_logged_before_a_resumption_is_gone(tmp_path: Path) -> None:
    table = Table(tmp_path)
    for step, value in ((1, 0.1), (2, 0.2), (3, 0.9), (4, 0.9), (2, 0.3)):
        table.add(step, {"x": value})
    assert table.records({}) == [{"step": 1, "x": 0.1}, {"step": 2, "x": 0.3}]
    assert "resumed at step 2" in table.doubts({})[0] and not table.problems()
    table.add(1, {"late": 1.0})
    assert table.records({})[1] == {"step": 2, "x": 0.3}, "a value that came late takes nothing away"


def test_a_value_that_is_not_finite_is_no_value_and_is_said(tmp_path: Path) -> None:
    run = read_run(write_trl(tmp_path / "grpo-seed0", CURVE, extra={"grad_norm": math.nan}))
    assert not len(run.series("grad/norm").value_T) and run.status == "finished"
    assert any("`grad_norm` is not finite in 2 steps, first in step 1" in doubt for doubt in run.doubts)


# --- beside our own


def test_one_table_one_page_one_gate(tmp_path: Path, cvxrl: Any) -> None:
    make_seeds(tmp_path / "outputs", "math_grpo", [0.7, 0.7, 0.8])
    for seed, final in enumerate((0.1, 0.2, 0.3)):
        write_trl(tmp_path / "trl_runs" / f"trl_grpo-seed{seed}", (0.4, (0.4 + final) / 2, final), seed=seed)
    page = tmp_path / "page.html"
    gate = "low(diff(math_grpo, trl_grpo)) > 0"
    done = cvxrl("compare", "trl_runs", "outputs", "--json", "--html", page, "--require", gate)
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert [(m["label"], m["seeds"]) for m in document["methods"]] == [
        ("trl_grpo", [0, 1, 2]),
        ("math_grpo", [0, 1, 2]),
    ]
    assert "trl_grpo" in page.read_text() and "math_grpo" in page.read_text()
    assert "no error of an evaluation" in done.err and "does not record whether it diverged" in done.err


def test_tied_scores_of_unknown_error_have_no_interval_and_no_verdict(tmp_path: Path) -> None:
    for seed in range(3):
        write_trl(tmp_path / f"a-seed{seed}", CURVE)
        write_trl(tmp_path / f"b-seed{seed}", (0.25, 0.5, 0.5))
    c = compare(tmp_path)
    assert all(s.error == 0 and not s.intervals for s in c.summaries)
    assert [pair.verdict for pair in c.pairs] == ["no verdict"]


def test_a_log_that_ends_early_leaves_its_method_without_a_verdict(tmp_path: Path) -> None:
    for seed, final in enumerate((0.5, 0.6, 0.7)):
        write_verl(tmp_path / f"a-seed{seed}.jsonl", (0.2, 0.4, final))
        write_verl(tmp_path / f"b-seed{seed}.jsonl", (0.2, 0.9, 0.9 + final / 10)[: 2 if seed == 0 else 3])
    c = compare(tmp_path)
    assert c.summary("b").unfinished == 1 and c.pairs[0].verdict == "unfinished"
    assert any("b-seed0.jsonl: interrupted, ends at step 1" in text for text in c.warnings)
    counted = compare(tmp_path, lost=True)
    assert sorted(counted.summary("b").scores)[0] == 0.0 and counted.summary("b").failures == 1


def test_seeds_of_one_method_share_their_settings(tmp_path: Path) -> None:
    for seed, rate in enumerate((1e-3, 1e-3, 2e-3)):
        write_trl(tmp_path / f"grpo-seed{seed}", CURVE, seed=seed, rate=rate)
    with pytest.raises(UserError, match=r"learning_rate: runs of `grpo` differ: 0\.001 in .*seed0, 0\.002 here"):
        compare(tmp_path)


def test_labels_on_the_command_line(tmp_path: Path, cvxrl: Any) -> None:
    make_seeds(tmp_path / "outputs", "math_grpo", [0.7, 0.9])
    paths = [write_trl(tmp_path / name, (0.1, 0.2, value)) for name, value in (("x", 0.2), ("y", 0.3))]
    labels = [part for seed, path in enumerate(paths) for part in ("--as", f"theirs:{seed}={path}")]
    done = cvxrl("compare", *labels, "outputs", "--json")
    assert done.code == 0, done.err
    assert {m["label"]: m["seeds"] for m in json.loads(done.out)["methods"]} == {
        "math_grpo": [0, 1],
        "theirs": [0, 1],
    }
    bad = cvxrl("compare", "--as", "theirs=x", "--alias", "reward")
    assert bad.code == 2 and "is not METHOD:SEED=PATH" in bad.err and "is not OURS=THEIRS" in bad.err
    assert cvxrl("compare").code == 2


# --- files that the libraries themselves write


def test_what_tensorboard_writes(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from torch.utils.tensorboard import SummaryWriter

    folder = tmp_path / "grpo-seed5"
    with SummaryWriter(folder) as writer:
        writer.add_text("args", json.dumps({"seed": 5}))
        for step, value in enumerate(CURVE):
            writer.add_scalar("eval/accuracy", value, step)
            writer.add_scalar("train/grad_norm", 2.0, step)
    run = read_run(folder)
    assert (run.method, run.seed) == ("grpo", 5) and discover([str(tmp_path)]).runs == [folder]
    assert values(folder, "eval/accuracy") == list(CURVE) and values(folder, "grad/norm") == [2, 2, 2]
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-5])
    assert len(values(folder, "grad/norm")) == 2, "a torn last record is passed over"
    for at in (20, len(whole) // 2):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(UserError, match="is damaged at byte"):
            read_run(folder)
    file.write_bytes(b"")
    with pytest.raises(UserError, match="is empty"):
        read_run(folder)


def test_what_trackio_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio", reason="trackio is not installed")
    import subprocess
    import sys

    script = (
        "import trackio\n"
        "for seed in (0, 1):\n"
        "    trackio.init(project='sums', name=f'grpo-seed{seed}', config={'seed': seed}, embed=False)\n"
        "    for step in range(3):\n"
        "        trackio.log({'eval/accuracy': (0.25, 0.5, 0.75)[step]}, step=step)\n"
        "    trackio.finish()\n"
    )
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, timeout=120)
    found = discover([str(tmp_path / "trackio")])
    runs, problems = read_runs(found.runs)
    assert not problems and [(run.method, run.seed) for run in runs] == [("grpo", 0), ("grpo", 1)]
    assert list(runs[0].series("eval/accuracy").value_T) == list(CURVE)
