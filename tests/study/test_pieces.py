"""A study in pieces: what comes first, what is left, and stages of their own."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from made_studies import PLAN

from cvxrl.commands.training import parse_duration
from cvxrl.comparison import train
from cvxrl.comparison.plan import Job
from cvxrl.errors import UserError


def cell(job: Job) -> str:
    return str(job.path.parent)


def test_every_cell_gets_its_first_seed_before_any_gets_a_second(study: Any) -> None:
    assert study().code == 0
    for jobs in study.trained:
        taken: Counter[str] = Counter()
        rounds = []
        for job in jobs:
            rounds.append(taken[cell(job)])
            taken[cell(job)] += 1
        assert rounds == sorted(rounds) and max(rounds) >= 1
    confirmed = study.trained[-1]
    assert [job.seed for job in confirmed] == [0] * 8 + [1] * 8 + [2] * 4 + [3] * 4


def test_a_study_out_of_time_says_what_is_left_and_the_same_command_goes_on(study: Any) -> None:
    first = study("--jobs", "2", most=5)
    assert first.code == 3
    # 7 of this round, 4 alternatives and 24 confirmatory runs of a minute, two at a time
    assert "unfinished: 35 runs have not ended, so nothing is chosen yet; the same command goes on" in first.err
    assert "about 0:17:30" in first.err
    second = study("--jobs", "2", most=20)
    assert second.code == 3 and "unfinished: 15 runs have not ended, so nothing is judged" in second.err
    assert "about 0:07:30" in second.err and "chosen" in second.out and "Verdict" not in second.out
    assert study("--jobs", "2").code == 0 and len(study.trained[-1]) == 15


def test_no_run_is_started_once_the_time_is_over(study: Any) -> None:
    done = study("--for", "0s")
    assert done.code == 3 and study.trained == [] and "unfinished: 40 runs" in done.err


def test_runs_that_have_begun_go_on_when_the_time_is_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clock = iter([0.0, 1.0, *[9.0] * 1000])
    monkeypatch.setattr(train, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda _: None))

    def start(job: Job, _threads: int | None) -> train._Active:
        return train._Active(job, subprocess.Popen(["true"]), tempfile.TemporaryFile(), 0.0)

    monkeypatch.setattr(train, "_start", start)
    jobs = [Job(tmp_path, (), seed, tmp_path, tmp_path / str(seed), 1, resume=False) for seed in range(5)]
    said: list[str] = []
    watcher = SimpleNamespace(
        started=lambda job, *_: said.append(f"started {job.seed}"),
        ended=lambda job, text: said.append(f"ended {job.seed}: {text.split()[0]}"),
        at_step=lambda *_: None,
    )
    assert train.train_all(jobs, 1, None, watcher, until=5.0) == []
    assert said == ["started 0", "ended 0: finished"]
    clock, said[:] = iter([0.0] * 1000), []
    train.train_all(jobs, 2, None, watcher, until=5.0)
    assert sum(text.startswith("ended") for text in said) == 5


@pytest.mark.parametrize(("text", "seconds"), [("40m", 2400), ("90s", 90), ("1h30m", 5400), ("0.5h", 1800)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["40", "m", "", "40 m", "1d", "-3m", "3m2"])
def test_what_is_no_duration(text: str, study: Any) -> None:
    with pytest.raises(UserError, match="no duration"):
        parse_duration(text)


def test_a_dry_run_counts_what_is_there_and_trains_nothing(study: Any, tmp_path: Path) -> None:
    before = study("--dry-run")
    assert before.code == 0 and study.trained == [] and not (tmp_path / "outputs").exists()
    assert "40 of 40 runs left, 1 at a time: in a time that the first run will show" in before.out
    assert "x1, x4" in before.out and "1 alternatives" in before.out
    study(most=3)
    during = study("--dry-run", "--jobs", "2")
    assert "37 of 40 runs left, 2 at a time: about 0:18:30" in during.out
    study("--stage", "tuning")
    after = study("--dry-run", "--jobs", "2")
    assert "24 of 40 runs left, 2 at a time: about 0:12:00" in after.out and "0.001, 0.001, alternative 1" in after.out
    assert max(map(len, after.out.splitlines())) <= 80


def test_a_stage_of_its_own_keeps_its_choices_where_they_can_be_committed(study: Any, tmp_path: Path) -> None:
    early = study("--stage", "confirmation", "--choices", "chosen.json")
    assert early.code == 2 and "nothing is chosen yet" in early.err and study.trained == []
    tuned = study("--stage", "tuning", "--choices", "chosen.json")
    assert tuned.code == 0 and len(study.trained) == 2 and "0.001, alternative 1" in tuned.out
    kept = json.loads((tmp_path / "chosen.json").read_text())
    assert kept["chosen"]["lco@once"]["value"] == 1e-3 and not (tmp_path / "outputs/mine/choices.json").exists()
    assert study("--stage", "tuning", "--choices", "chosen.json").code == 0 and study.trained == []
    confirmed = study("--stage", "confirmation", "--choices", "chosen.json")
    assert confirmed.code == 0 and "Verdict: lco is better" in confirmed.out and len(study.trained) == 1


def test_a_wrong_stage_and_options_of_studies_without_one(study: Any, cvxrl: Any) -> None:
    wrong = study("--stage", "tunning", "--for", "soon")
    assert wrong.code == 2 and "there is no stage `tunning`" in wrong.err and "`soon` is no duration" in wrong.err
    other = cvxrl("compare", "math_grpo", "--stage", "tuning", "--choices", "x.json")
    assert other.code == 2 and other.err.count("is for a study") == 2


def test_recipes_out_of_time_are_not_compared(cvxrl: Any) -> None:
    command = ["compare", "math_grpo", "math_lco_kld", "--seeds", "0-1"]
    dry = cvxrl(*command, "--dry-run")
    assert dry.code == 0 and "2 methods x 2 seeds = 4 runs" in dry.err and "trains nothing" in dry.err
    over = cvxrl(*command, "--for", "0s")
    assert over.code == 3 and "4 to begin" in over.err and "nothing is compared yet" in over.err


OWN = PLAN.replace(
    "grpo: {recipe: math_grpo}",
    """grpo: {recipe: math_grpo}
  soft: {recipe: math_lco_kld, set: {objective.beta: 0.5}, regimes: [twice], values: {twice: [3.0e-4, 1.0e-3]},
    confirm: {1: 0-1, 2: 0}}
  fixed: {recipe: math_lco_kld, regimes: []}""",
).replace(
    "rules:",
    """grids:
  map: {methods: [fixed, grpo], regimes: [once], values: [1.0e-4, 1.0e-3, 3.0e-3], seeds: 0-1}
  noisy: {methods: [lco], set: {eval.every: 2}, multiples: [1, 2], seeds: 0-2}
rules:
  - verdict: the map is flat
    when:
      - mean(fixed@once@map[optim.lr=0.003]) > mean(fixed@once@map[optim.lr=0.0001])
      - mean(lco@once[x4]) >= mean(lco@once)
  - verdict: it bears more, and noise as well
    when:
      - failures(fixed@once@map[optim.lr=0.003]) == 0
      - mean(lco@once@noisy[x2]) < mean(lco@once@noisy)
      - low(headroom(lco@once@noisy)) > 0""",
)


def test_methods_with_regimes_values_and_seeds_of_their_own_and_grids(study: Any, tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(OWN)
    done = study("--json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert set(document["study"]["chosen"]) == {"grpo@once", "lco@once", "grpo@twice", "soft@twice", "lco@twice"}
    assert list(document["study"]["chosen"]["soft@twice"]["scores"]) == ["0.0003", "0.001"]
    where = Counter(str(job.out.relative_to("outputs/mine")) for job in study.trained[-1])
    assert where["grids/map/once/optim.lr=0.003"] == 2 * 2 and where["grids/noisy/twice/optim.lr=0.002"] == 3
    assert sum(where.values()) == 2 * 3 * 2 + 2 * 2 * 3
    soft = [job for job in study.trained[-2] if "soft" in job.path.parts]
    assert [(job.seed, job.out.name) for job in soft] == [
        (0, "optim.lr=0.0003"),
        (0, "optim.lr=0.0006"),
        (1, "optim.lr=0.0003"),
    ]
    assert document["study"]["verdict"] == "it bears more, and noise as well"
    assert {m["label"] for m in document["grids"]["map"]["methods"]} >= {"fixed@once@map[optim.lr=0.003]"}


def test_grids_alone_need_no_tuning(study: Any, tmp_path: Path) -> None:
    text = PLAN[: PLAN.index("tuning:")] + (
        "grids: {map: {methods: [grpo, lco], values: [1.0e-4, 1.0e-3], seeds: 0-1}}\n"
        "rules: [{verdict: flat, when: ['mean(lco@once@map[optim.lr=0.001]) > mean(lco@once@map[optim.lr=0.0001])']}]"
    )
    (tmp_path / "plan.yaml").write_text(text)
    done = study()
    assert done.code == 0, done.err
    assert "Verdict: flat" in done.out and "Grid map" in done.out and len(study.trained) == 1
    assert not (tmp_path / "outputs/mine/choices.json").exists()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("regimes: [twice]", "regimes: [thrice]", "there is no regime thrice"),
        ("values: {twice:", "values: {thrice:", "there is no regime thrice"),
        ("methods: [fixed, grpo]", "methods: [fixt, grpo]", "did you mean `fixed`"),
        ("methods: [lco], set", "methods: [fixed], set", "fixed is not tuned in once"),
        ("multiples: [1, 2]", "multiples: [1, 2], values: [1.0]", "give values or multiples"),
        ("confirm: {1: 0-1, 2: 0}", "confirm: {2: 0}", "1 is among them"),
        ("seeds: 0-2}", "seeds: 100}", "seed 100 was used"),
        ("@map[optim.lr=0.003]) == 0", "@map[optim.lr=0.03]) == 0", "there is no fixed@once@map[optim.lr=0.03]"),
        ("mean(lco@once[x4])", "mean(lco@once[x3])", "there is no lco@once[x3]"),
        ("headroom(lco@once@noisy)", "headroom(lco@once@map)", "there is no lco@once@map"),
        ("confirmation: {seeds: {1: 0-3, 4: 0-1}}", "", "the one stage needs the other"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(old: str, new: str, words: str, study: Any, tmp_path: Path) -> None:
    assert old in OWN
    (tmp_path / "plan.yaml").write_text(OWN.replace(old, new, 1))
    done = study()
    assert done.code == 2 and words in done.err and study.trained == [], done.err


def test_cells_whose_runs_diverge_are_scored(study: Any) -> None:
    def status(job: Job) -> Any:
        return "diverged" if "=0.004" in job.out.name and "grpo" in job.path.parts else "finished"

    done = study("--json", status=status)
    document = json.loads(done.out)
    failed = {m["label"]: (m["failures"], m["mean"]) for m in document["sweep"]["methods"] if m["failures"]}
    assert failed == {f"grpo@{regime}[optim.lr=0.004]": (2, 0.0) for regime in ("once", "twice")}
