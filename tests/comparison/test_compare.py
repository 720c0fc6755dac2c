"""From run directories to numbers: scores, groups, refusals, verdicts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT
from made_runs import PROVENANCE, make_run, make_seeds

from cvxrl.comparison.gate import judge, parse_gate
from cvxrl.comparison.group import show_value
from cvxrl.comparison.options import Options
from cvxrl.comparison.pair import compare_pairs
from cvxrl.comparison.plan import plan_runs
from cvxrl.comparison.result import Comparison, build
from cvxrl.comparison.run import Run
from cvxrl.comparison.score import ratios_to_running_median, score_run
from cvxrl.comparison.sources import discover, read_run, read_runs
from cvxrl.comparison.summary import GroupSummary, Reached
from cvxrl.comparison.tables import all_tables, verdict
from cvxrl.errors import UserError
from cvxrl.runs.directory import RunDir

GRPO, LCO = "math_grpo", "math_lco_kld"


def compare(*paths: Path, **options: object) -> Comparison:
    found = discover([str(path) for path in paths])
    runs, problems = read_runs(found.runs)
    return build(runs, Options(resamples=200, **options), [*found.problems, *problems])  # type: ignore[arg-type]


def read(out: Path, **options: object) -> Run:
    return read_run(make_run(out, **options))  # type: ignore[arg-type]


def test_a_run_by_hand(tmp_path: Path) -> None:
    run = read(tmp_path, curve=(0.0, 0.5, 1.0, 0.8, 0.9))
    score = score_run(run, Options())
    assert score.score == 0.9 and score.best == 1.0
    assert score.area == pytest.approx((0.25 + 0.75 + 0.9 + 0.85) / 4)
    assert score.largest_drop == pytest.approx(0.2)
    assert score.seconds == 8.0 and score.tokens == 400
    averaged = score_run(run, Options(metric="reward/mean", window=2))
    assert averaged.score == pytest.approx(0.85)
    assert score_run(run, Options(metric="reward/mean")).score == pytest.approx((0.5 + 1.0 + 0.8 + 0.9) / 4)


def test_what_a_diverged_run_counts_as(tmp_path: Path) -> None:
    run = read(tmp_path, curve=(0.4, 0.6, 0.8, 0.8, 0.8), status="diverged", diverged_at=3)
    zero, last, omitted = (score_run(run, Options(diverged_as=d)) for d in (0.0, "last", "omit"))  # type: ignore[arg-type]
    assert (zero.score, last.score, omitted.score) == (0.0, 0.8, None)
    assert zero.area == pytest.approx((0.5 + 0.7 + 0.4 + 0.0) / 4)  # to 0 at step 3, and there to the end
    assert last.area == pytest.approx((0.5 + 0.7 + 0.8 + 0.8) / 4)
    assert omitted.area is None
    entropy = score_run(run, Options(metric="policy/entropy"))
    assert entropy.score == 0.5  # no verdict on an entropy: its last value


def test_norms_are_held_against_the_norms_before_them() -> None:
    quiet = np.ones(30)
    assert set(ratios_to_running_median(quiet)) == {1.0}
    quiet[[2, 10, 29]] = 5.1  # the one at 2 comes before there is anything to compare with
    assert sorted(ratios_to_running_median(quiet))[-2:] == [5.1, 5.1]
    step = ratios_to_running_median(np.repeat([1.0, 100.0], [20, 20]))
    assert (step > 5).sum() == 10  # a level that lasts is no jump any more
    assert ratios_to_running_median(1.1 ** np.arange(60)).max() == pytest.approx(1.1**10.5, rel=0.01)  # growth shows
    assert not len(ratios_to_running_median(np.zeros(30)))


def test_threshold_is_censored(tmp_path: Path) -> None:
    for seed, curve in enumerate([(0.4, 0.9, 0.9), (0.4, 0.5, 0.9), (0.4, 0.5, 0.5)]):
        make_run(tmp_path, GRPO, seed, curve)
    reached = compare(tmp_path, threshold=0.9).summaries[0].reached
    assert reached == Reached(count=2, steps=2.0, tokens=200.0)  # the third counts as longest
    most = compare(tmp_path, threshold=0.95).summaries[0].reached
    assert most == Reached(count=0, steps=None, tokens=None)
    assert compare(tmp_path).options.threshold == 0.9  # of any accuracy, whoever takes part
    c = compare(tmp_path, metric="reward/mean")
    assert c.options.threshold is None and "steps" not in next(t for t in all_tables(c) if "Speed" in t.title).columns


def test_groups_and_numbers(tmp_path: Path) -> None:
    make_seeds(tmp_path, GRPO, [0.7, 0.7, 0.8, 0.9, 1.0])
    make_seeds(tmp_path, LCO, [0.1, 0.2, 0.3, 0.4, 0.5])
    c = compare(tmp_path)
    grpo, lco = c.summaries
    assert (grpo.label, grpo.seeds, grpo.run, grpo.finished) == (GRPO, [0, 1, 2, 3, 4], 5, 5)
    assert grpo.mean == pytest.approx(0.82) and grpo.median == 0.8 and grpo.iqm == pytest.approx(0.8)
    assert (grpo.worst, grpo.best) == (0.7, 1.0)
    (pair,) = c.pairs
    assert (pair.label, pair.baseline, pair.paired_seeds) == (LCO, GRPO, 5)
    assert pair.difference == pytest.approx(-0.52) and pair.improvement == 0.0
    # The differences are -0.6, -0.5, -0.5, -0.5, -0.5: t = -0.52 / (0.0447 / sqrt 5) = -26 with 4 degrees of freedom.
    assert pair.p_value == pytest.approx(1.3e-5, rel=0.02) and pair.verdict == "worse"
    assert [f.key for f in c.factors if not f.declared] == [] and not c.problems and not c.warnings
    assert compare(tmp_path, baseline=LCO).pairs[0].verdict == "better"
    assert lco.intervals["mean"].low >= 0.0 and grpo.intervals["mean"].high <= 1.0  # an accuracy stays in [0, 1]


def test_a_metric_without_a_good_direction_has_no_better(tmp_path: Path) -> None:
    for recipe, level in ((GRPO, 1.0), (LCO, 9.0)):
        for seed in range(5):
            make_run(tmp_path, recipe, seed, norms=[level + seed / level] * 2)
    c = compare(tmp_path, metric="grad/norm")
    assert c.pairs[0].verdict == "higher"


def test_adding_a_method_changes_no_other_interval(tmp_path: Path) -> None:
    for recipe in (GRPO, LCO, "math_lco_mse"):
        make_seeds(tmp_path, recipe, [0.5, 0.6, 0.8])
    two, three = compare(tmp_path / GRPO, tmp_path / LCO), compare(tmp_path)
    assert two.summaries == three.summaries[:2]
    assert two.summaries[0].intervals != compare(tmp_path, statistics_seed=1).summaries[0].intervals
    assert two.pairs[0].p_value == three.pairs[0].p_value
    narrow, wide = two.pairs[0].difference_interval, three.pairs[0].difference_interval
    assert (narrow is None and wide is None) or wide.low < narrow.low  # two comparisons share the confidence


def test_unfinished_runs_are_listed_and_left_out(tmp_path: Path) -> None:
    make_seeds(tmp_path, GRPO, [0.7, 0.8])
    make_run(tmp_path, GRPO, 2, (0.4, 0.1, 0.1), status="interrupted")
    make_seeds(tmp_path, LCO, [0.7, 0.8])
    c = compare(tmp_path)
    assert c.summaries[0].scores == [0.7, 0.8] and c.summaries[0].unfinished == 1 and c.summaries[0].run == 3
    assert any("seed-2: interrupted" in text for text in c.warnings)
    assert c.pairs[0].verdict == "unfinished" and not c.problems
    lost = compare(tmp_path, lost=True).summaries[0]
    assert lost.scores == [0.7, 0.8, 0.0] and lost.kinds["failed"] == 1 and lost.unfinished == 0


def test_too_few_seeds(tmp_path: Path) -> None:
    make_seeds(tmp_path, GRPO, [0.7, 0.8])
    make_seeds(tmp_path, LCO, [0.9])
    c = compare(tmp_path)
    assert any("fewer than 5" in text for text in c.warnings)
    (problem,) = c.problems
    assert problem.file == LCO and "1 scored seed;" in problem.message and "--seeds 0-4" in problem.remedy
    assert c.summaries[0].mean == pytest.approx(0.75)  # the good ones are shown all the same
    assert "no verdict with 1 seed" in verdict(c.pairs[0])


def test_configurations_that_differ_are_refused(tmp_path: Path) -> None:
    make_seeds(tmp_path, GRPO, [0.7, 0.8])
    make_seeds(tmp_path, LCO, [0.7, 0.8], overrides=["optim.lr=0.1", "rollout.prompts=8"])
    with pytest.raises(UserError) as caught:
        compare(tmp_path)
    assert [p.key for p in caught.value.problems] == ["optim.lr", "rollout.prompts"]
    assert "--allow-diff" in caught.value.problems[0].remedy
    c = compare(tmp_path, allow_diff=True)
    assert [f.key for f in c.factors if not f.declared] == ["optim.lr", "rollout.prompts"]
    assert "undeclared" in str([t.rows for t in all_tables(c)])


def test_what_cannot_change_a_result_may_differ(tmp_path: Path) -> None:
    make_seeds(tmp_path, GRPO, [0.7, 0.8])
    make_seeds(tmp_path, LCO, [0.7, 0.8], overrides=["checkpoint.every=1", "logging.samples=0"])
    assert len(compare(tmp_path).pairs) == 1


def test_runs_of_one_name_must_share_a_recipe(tmp_path: Path) -> None:
    make_seeds(tmp_path / "a", GRPO, [0.7, 0.8])
    make_seeds(tmp_path / "b", GRPO, [0.7, 0.8], overrides=["optim.lr=0.1"])
    with pytest.raises(UserError, match=r"optim\.lr.*differ") as caught:
        compare(tmp_path)
    assert caught.value.problems[0].remedy == "add --vary optim.lr"


def test_other_tasks_are_refused(tmp_path: Path) -> None:
    make_seeds(tmp_path, GRPO, [0.7, 0.8])
    make_seeds(tmp_path, LCO, [0.7, 0.8], task="another")
    with pytest.raises(UserError, match="another task"):
        compare(tmp_path, allow_diff=True)


def test_the_same_run_twice_counts_once(tmp_path: Path) -> None:
    paths = make_seeds(tmp_path / "a", GRPO, [0.7, 0.8])
    make_run(tmp_path / "b", GRPO, 0, (0.4, 0.55, 0.7))
    c = compare(tmp_path / "a", paths[0], tmp_path / "b")
    assert c.summaries[0].scores == [0.7, 0.8]
    assert len([w for w in c.warnings if "same recipe and seed" in w]) == 1


def test_sensitivity(tmp_path: Path) -> None:
    for lr, finals in (("1e-4", [0.5, 0.5]), ("1e-3", [0.9, 0.9]), ("1e-2", [0.85, 0.83]), ("1e-1", [0.9, 0.1])):
        make_seeds(tmp_path / lr, GRPO, finals, overrides=[f"optim.lr={lr}"])
    make_run(tmp_path / "1e-1", GRPO, 2, status="diverged", diverged_at=1, overrides=["optim.lr=1e-1"])
    c = compare(tmp_path, vary="optim.lr")
    assert [s.label for s in c.summaries] == [f"math_grpo[optim.lr={v}]" for v in ("0.0001", "0.001", "0.01", "0.1")]
    (s,) = c.sensitivities
    assert [p.mean for p in s.points] == pytest.approx([0.5, 0.9, 0.84, 1 / 3])
    assert [p.failures for p in s.points] == [0, 0, 0, 2]  # one diverged, one collapsed
    assert (s.best, s.low, s.high, s.ratio) == (0.001, 0.001, 0.01, pytest.approx(10))
    assert not s.open_low and not s.open_high
    with pytest.raises(UserError, match=r"did you mean `optim\.lr`"):
        compare(tmp_path, vary="optim.l")


def test_a_sweep_meets_the_baseline_value_by_value(tmp_path: Path) -> None:
    for lr in ("1e-4", "1e-3"):
        for recipe in (GRPO, LCO):
            make_seeds(tmp_path / lr, recipe, [0.5, 0.6], overrides=[f"optim.lr={lr}"])
    pairs = compare(tmp_path, vary="optim.lr").pairs
    assert [(p.label, p.baseline) for p in pairs] == [
        (f"{LCO}[optim.lr={v}]", f"{GRPO}[optim.lr={v}]") for v in ("0.0001", "0.001")
    ]
    one = compare(tmp_path, vary="optim.lr", baseline=f"{LCO}[optim.lr=0.001]").pairs
    assert len(one) == 3 and {p.baseline for p in one} == {f"{LCO}[optim.lr=0.001]"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"metric": "eval/acuracy"}, "did you mean `eval/accuracy`"),
        ({"baseline": "math_grp"}, "did you mean `math_grpo`"),
        ({"seeds": (7,)}, "no runs with these seeds"),
    ],
)
def test_unknown_names(options: dict[str, object], words: str, tmp_path: Path) -> None:
    make_seeds(tmp_path, GRPO, [0.7, 0.8])
    with pytest.raises(UserError, match=words):
        compare(tmp_path, **options)


def damage(path: Path, kind: str) -> None:
    record, metrics = path / "run.json", path / "metrics.jsonl"
    if kind == "no run.json":
        record.unlink()
    elif kind == "torn run.json":
        record.write_text(record.read_text()[:50])
    elif kind == "foreign run.json":
        record.write_text("[]")
    elif kind == "no recipe":
        (path / "recipe.yaml").unlink()
    elif kind == "bad recipe":
        (path / "recipe.yaml").write_text("name: 3\nx: 1\n")
    elif kind == "torn metrics":
        metrics.write_text('{"step": 0\n' + metrics.read_text())
    elif kind == "text in metrics":
        metrics.write_text('{"step": 0, "eval/accuracy": "high"}\n')
    elif kind == "steps run backwards":
        metrics.write_text("".join(reversed(metrics.read_text().splitlines(keepends=True))))
    elif kind == "metrics too short":
        metrics.write_text(metrics.read_text().splitlines(keepends=True)[0])
    elif kind == "binary metrics":
        metrics.write_bytes(b"\xff\xfe\x00")
    elif kind == "other seed":
        record.write_text(record.read_text().replace('"seed":0', '"seed":5'))


@pytest.mark.parametrize(
    "kind",
    [
        "no run.json",
        "torn run.json",
        "foreign run.json",
        "no recipe",
        "bad recipe",
        "torn metrics",
        "text in metrics",
        "steps run backwards",
        "metrics too short",
        "binary metrics",
        "other seed",
    ],
)
def test_damaged_runs_are_named(kind: str, tmp_path: Path) -> None:
    path = make_run(tmp_path)
    assert read_run(path).seed == 0
    damage(path, kind)
    with pytest.raises(UserError) as caught:
        read_run(path)
    for problem in caught.value.problems:
        assert str(path) in problem.file and problem.remedy, problem


def test_an_edited_recipe_is_noticed(tmp_path: Path) -> None:
    first, _ = make_seeds(tmp_path, GRPO, [0.7, 0.8])
    for path in (tmp_path / GRPO).iterdir():
        file = path / "recipe.yaml"
        file.write_text(file.read_text().replace("lr: 0.0003", "lr: 0.0004"))
    assert any(str(first) in w and "digest" in w for w in compare(tmp_path).warnings)


def test_runs_with_other_code_or_random_streams_are_noticed(tmp_path: Path) -> None:
    first, second = (make_seeds(tmp_path, recipe, [0.7, 0.8])[0] for recipe in (GRPO, LCO))
    assert not any("more than their recipes" in w for w in compare(tmp_path).warnings)
    for path, change in ((first, {"streams": 1}), (second, {"provenance": {**PROVENANCE.model_dump(), "commit": "x"}})):
        record = json.loads((path / "run.json").read_text())
        (path / "run.json").write_text(json.dumps(record | change))
    (said,) = [w for w in compare(tmp_path).warnings if "more than their recipes" in w]
    assert said.endswith(": commit, random streams")


def test_discover(tmp_path: Path) -> None:
    make_seeds(tmp_path / "out", GRPO, [0.7, 0.8])
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "r.yaml").write_text("")
    one = str(tmp_path / "out" / GRPO / "seed-0")
    found = discover([one, str(tmp_path / "out"), str(tmp_path / "o*" / "*" / "seed-*"), str(tmp_path / "r.yaml")])
    assert [p.name for p in found.runs] == ["seed-0", "seed-1"] and not found.problems
    assert [p.name for p in found.recipes] == ["r.yaml"]
    bad = discover([str(tmp_path / name) for name in ("empty", "notes.txt", "nowhere", "no*")])
    assert len(bad.problems) == 3 + 1  # no* finds the text file once more
    assert all(problem.remedy for problem in bad.problems)


def scored(label: str, scores: list[float]) -> GroupSummary:
    """A summary of which only the scores matter."""
    counts = dict.fromkeys(("run", "finished", "unfinished", "failures", "unlearned"), 0)
    empty = dict.fromkeys(("mean", "median", "iqm", "worst", "best", "area", "seconds", "tokens"))
    return GroupSummary(
        label=label,
        method=label,
        value=None,
        seeds=list(range(len(scores))),
        scores=scores,
        reached=Reached(0, None, None),
        failure_interval=None,
        kinds={},
        error=0.0,
        **counts,
        **empty,  # type: ignore[arg-type]
    )


def test_verdicts_err_no_more_often_than_promised() -> None:
    """Four methods equal to the baseline: in at most 5% of comparisons is any of them called better or worse."""
    rng, trials, alarms, found = np.random.default_rng(3), 400, 0, 0
    for _ in range(trials):
        base, *others = (scored(f"m{i}", list(rng.normal(0.8, 0.05, 5))) for i in range(5))
        pairs = compare_pairs([(o, base) for o in others], Options(resamples=20))
        alarms += any(p.verdict != "not resolved" for p in pairs)
        better = scored("b", list(rng.normal(1.0, 0.05, 5)))
        found += compare_pairs([(better, base)], Options(resamples=20))[0].verdict == "better"
    assert alarms / trials <= 0.07  # 5% and two standard errors
    assert found / trials > 0.95  # and what is far apart is told apart


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_what_is_not_finite_has_no_verdict(value: float) -> None:
    base = scored("a", [0.1, 0.2, 0.3])
    (pair,) = compare_pairs([(scored("b", [0.8, 0.9, value]), base)], Options(resamples=20))
    assert pair.verdict == "no verdict"


def test_a_varied_list_is_a_value_like_any_other(tmp_path: Path) -> None:
    for terms in ("[3, 5]", "[3, 6]"):
        for name in (GRPO, LCO):
            for seed in (0, 1):
                folder, last = tmp_path / terms / name, 0.8 + 0.01 * seed
                make_run(folder, name, seed, (0.4, 0.6, last), overrides=[f"task.source.terms={terms}"])
    key = "task.source.terms"
    comparison = compare(tmp_path, vary=(key,))
    assert [s.label for s in comparison.summaries] == [
        f"{name}[{key}={terms}]" for name in (GRPO, LCO) for terms in ("[3, 5]", "[3, 6]")
    ]
    assert [pair.baseline for pair in comparison.pairs] == [f"{GRPO}[{key}=[3, 5]]", f"{GRPO}[{key}=[3, 6]]"]
    assert judge(parse_gate(f"mean({GRPO}[{key}=[3, 5]]) > 0.8"), comparison).met
    (first, _) = compare(tmp_path, vary=(key, "seed")).maps
    assert first.rows == ["[3, 5]", "[3, 6]"] and first.columns == [0, 1]


def test_values_alike_to_six_digits_are_told_apart(tmp_path: Path) -> None:
    for index, rate in enumerate((1.2345671e-4, 1.2345672e-4)):
        for seed in (0, 1):
            make_run(tmp_path / str(index), GRPO, seed, (0.4, 0.6, 0.8), overrides=[f"optim.lr={rate}"])
    labels = [s.label for s in compare(tmp_path, vary=("optim.lr",)).summaries]
    assert labels == [f"{GRPO}[optim.lr=0.00012345671]", f"{GRPO}[optim.lr=0.00012345672]"]
    with pytest.raises(UserError, match=r"differ: 0\.00012345671 in .*, 0\.00012345672 here"):
        compare(tmp_path)


@pytest.mark.parametrize(
    ("value", "shown"), [(1e-3, "0.001"), (1e6, "1e+06"), (0.5, "0.5"), (2.0, "2"), (1234567.0, "1234567.0"), (7, "7")]
)
def test_values_are_shown_in_few_characters_and_whole(value: float, shown: str) -> None:
    assert show_value(value) == shown


def test_json_is_whole_and_finite(tmp_path: Path) -> None:
    from cvxrl.comparison.export import to_document

    make_seeds(tmp_path, GRPO, [0.7, 0.8])
    make_seeds(tmp_path, LCO, [0.7, 0.8])
    document = json.loads(json.dumps(to_document(compare(tmp_path), []), allow_nan=False))
    assert document["schema_version"] == 2
    assert [m["scores"] for m in document["methods"]] == [[0.7, 0.8], [0.7, 0.8]]
    assert document["comparisons"][0]["difference"] == 0.0


def test_a_run_that_version_0_1_left_unfinished_is_not_gone_on_with(tmp_path: Path) -> None:
    file = ROOT / "recipes" / "math_grpo.yaml"
    sets = ["train.steps=2", "eval.every=1", "optim.warmup_steps=0"]
    run_dir = RunDir(make_run(tmp_path, status="interrupted"))
    # Steps were done and nothing was saved, so it begins again; once it is asked to.
    assert [(job.resume, job.overwrite) for job in plan_runs([file], sets, [0], tmp_path).jobs] == [(False, True)]
    record = json.loads(run_dir.record.read_text())
    del record["streams"]
    run_dir.record.write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"begun by cvxrl 0\.1(.|\n)*--overwrite"):
        plan_runs([file], sets, [0], tmp_path)
    run_dir.record.write_text(json.dumps(record | {"status": "finished"}))
    assert plan_runs([file], sets, [0], tmp_path).jobs == []
