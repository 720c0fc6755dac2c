"""`cvxrl inspect-grads`: it measures the step that training would take next, changes nothing, and repeats."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT, SMALL_POLICY, SilentSink, tiny, without_times
from safetensors.torch import load_file, save_file

from cvxrl.engine.credit import with_group_advantages
from cvxrl.engine.session import run_training
from cvxrl.gradients.gram import Gram, mean_pairwise_cosine
from cvxrl.inspection.checkpoint import LoadedCheckpoint, load_checkpoint
from cvxrl.inspection.figures import side_by_side
from cvxrl.inspection.findings import findings, headline
from cvxrl.inspection.measure_gradients import measure_bands, measure_gradients, split_gradient
from cvxrl.inspection.measure_logits import summarize
from cvxrl.inspection.measure_update import effective_share, take_steps
from cvxrl.inspection.metrics import GradientMetrics, LogitMetrics
from cvxrl.inspection.options import InspectOptions
from cvxrl.inspection.page import all_figures
from cvxrl.inspection.plan import make_plan
from cvxrl.inspection.record import CheckpointMetrics, InspectRecord, ObjectiveMetrics, read_record
from cvxrl.inspection.step_metrics import SharpnessMetrics, UpdateMetrics
from cvxrl.objectives.batch import ObjectiveOutput, TokenBatch
from cvxrl.objectives.lco import lco_kld
from cvxrl.objectives.registry import OBJECTIVES
from cvxrl.report.figure import to_svg
from cvxrl.runs.directory import RunDir
from cvxrl.tasks import load_grader, load_task

KEPT = ("checkpoint.every=1", "checkpoint.keep=9", "train.steps=3", "eval.every=0", "rollout.max_new_tokens=32")
QUICK = ("--parts", "logits,gradients,update", "--drift", "1")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps of LCO-KLD and of PPO, every step kept."""
    out = tmp_path_factory.mktemp("outputs")
    for name in ("math_lco_kld", "math_ppo"):
        recipe = tiny(name, *KEPT)
        run_training(recipe, RunDir.of(out, recipe), SilentSink(), "new")
    return out


@pytest.fixture
def run(runs: Path) -> Path:
    return runs / "math_lco_kld" / "seed-0"


@pytest.fixture
def loaded(run: Path, tmp_path: Path) -> Iterator[LoadedCheckpoint]:
    plan = make_plan(InspectOptions(str(run), steps=(1,), out=tmp_path / "inspect"))
    grader = load_grader(plan.recipe.task)
    yield load_checkpoint(plan, plan.checkpoints[0], load_task(plan.recipe.task, plan.recipe.seed), grader)
    grader.close()


def metrics(run: Path) -> dict[int, dict[str, float]]:
    return {r["step"]: r for r in map(json.loads, RunDir(run).metrics.read_text().splitlines())}


def objective(document: dict[str, Any], label: str, snapshot: int = -1) -> dict[str, Any]:
    return next(o for o in document["snapshots"][snapshot]["objectives"] if o["label"] == label)


# --- the next step of training --------------------------------------------------------------------------------------


def test_the_inspected_step_is_the_one_that_training_took(run: Path, cvxrl: Any, tmp_path: Path) -> None:
    done = cvxrl(
        "inspect-grads",
        run,
        "--step",
        "1",
        "--parts",
        "gradients",
        "--objectives",
        "lco-kld",
        "--json",
        "--out",
        tmp_path,
    )
    assert done.code == 0, done.err
    document = json.loads(done.out)
    trained = metrics(run)[2]
    assert trained["grad/norm"] > 0
    assert objective(document, "lco-kld")["gradients"]["norm"] == pytest.approx(trained["grad/norm"], rel=1e-4)
    assert document["snapshots"][0]["reward"] == pytest.approx(trained["reward/mean"], rel=1e-6)
    assert document["snapshots"][0]["correct"] == pytest.approx(trained["reward/correct"], rel=1e-6)


def test_a_step_with_the_saved_optimizer_gives_the_next_checkpoint_bit_for_bit(
    run: Path, loaded: LoadedCheckpoint
) -> None:
    own = loaded.objectives[0]
    before = {name: p.detach().clone() for name, p in loaded.trainable.items()}
    with loaded.restored():
        take_steps(own, own.on_policy, 1, 1, lambda _: None)
        expected = load_file(RunDir(run).checkpoints / "step-000002" / "model.safetensors")
        moved = {name: p.detach().clone() for name, p in loaded.trainable.items()}
    assert all(torch.equal(expected[name], tensor) for name, tensor in moved.items())
    assert any(not torch.equal(before[name], tensor) for name, tensor in moved.items())
    assert all(torch.equal(before[name], p) for name, p in loaded.trainable.items())


def test_parts_of_the_gradient_add_up(run: Path, cvxrl: Any, tmp_path: Path) -> None:
    arguments = ("--step", "1", "--parts", "gradients,bands", "--json", "--out", tmp_path)
    document = json.loads(cvxrl("inspect-grads", run, *arguments).out)
    for label in ("lco-kld", "grpo", "lco-mse", "reinforce"):
        g = objective(document, label)["gradients"]
        both = g["positive"] ** 2 + g["negative"] ** 2 + 2 * g["sign_cosine"] * g["positive"] * g["negative"]
        assert g["norm"] ** 2 == pytest.approx(both, rel=1e-3)
        assert g["norm"] ** 2 == pytest.approx(sum(norm**2 for norm in g["by_module"].values()), rel=1e-6)
        assert g["norm"] > sum(norm**2 for norm in g["by_layer"].values()) ** 0.5
        assert sum(band["tokens"] for band in g["bands"]) == pytest.approx(1)
        assert sum(band["share"] for band in g["bands"]) == pytest.approx(1)
        assert g["norm"] <= sum(band["norm"] for band in g["bands"]) * (1 + 1e-6)
    cosines = document["snapshots"][0]["cosines"]
    assert cosines["grpo"]["reinforce"] == pytest.approx(1, abs=1e-5)  # on-policy they are one


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("math_lco_kld", "full-logits"),
        pytest.param("math_grpo", "chunked", marks=pytest.mark.slow),
        *(pytest.param(name, "full-logits", marks=pytest.mark.slow) for name in ("math_gspo", "pref_dpo")),
    ],
)
def test_looking_while_training_changes_no_number(name: str, loss: str, tmp_path: Path) -> None:
    records = []
    for every in (0, 2):
        recipe = tiny(name, f"logging.gradients={every}", "train.inner_epochs=2", f"train.loss={loss}")
        sink = SilentSink()
        run_training(recipe, RunDir.of(tmp_path / str(every), recipe), sink, "new")
        records.append([without_times(record) for record in sink.records if record["step"] > 0])
    plain, looked = records
    added = looked[1].keys() - plain[1].keys()
    assert looked[0] == plain[0] and {k: v for k, v in looked[1].items() if k not in added} == plain[1]
    assert {"grad/qkv", "grad/module/q", "grad/module/embedding"} <= added
    parts = sum(value**2 for key, value in looked[1].items() if key.startswith("grad/module/"))
    assert parts > 0
    if name == "math_lco_kld":
        assert looked[1]["logits/convex"] == 1 and looked[1]["logits/away"] == 0


# --- what it promises -----------------------------------------------------------------------------------------------


def test_numbers_repeat_from_the_frozen_rollouts_and_nothing_in_the_run_changes(
    run: Path, cvxrl: Any, tmp_path: Path
) -> None:
    kept = {f: f.read_bytes() for f in run.rglob("*") if f.is_file()}
    arguments = (
        "inspect-grads",
        run,
        "--step",
        "2",
        *QUICK,
        "--objectives",
        "lco-kld,grpo",
        "--samples",
        "2",
        "--json",
        "--out",
        tmp_path,
    )
    first, second = cvxrl(*arguments), cvxrl(*arguments)
    assert first.code == second.code == 0, first.err
    assert json.loads(first.out) == json.loads(second.out)
    assert len(list(tmp_path.rglob("rollouts-*.json"))) == 1
    assert {f: f.read_bytes() for f in run.rglob("*") if f.is_file()} == kept
    assert InspectRecord.model_validate_json((tmp_path / "INSPECT.json").read_text()).snapshots[0].step == 2


def test_rollouts_are_read_and_not_sampled_again(run: Path, cvxrl: Any, tmp_path: Path) -> None:
    arguments = (
        "inspect-grads",
        run,
        "--step",
        "2",
        "--parts",
        "gradients",
        "--objectives",
        "grpo",
        "--json",
        "--out",
        tmp_path,
    )
    cvxrl(*arguments)
    (file,) = tmp_path.rglob("rollouts-*.json")
    frozen = json.loads(file.read_text())
    frozen["rewards"] = [[1.0, 0.0, 0.0, 0.0] for _ in frozen["rewards"]]
    file.write_text(json.dumps(frozen))
    changed = json.loads(cvxrl(*arguments).out)
    fresh = json.loads(cvxrl(*arguments, "--fresh").out)
    assert objective(changed, "grpo")["gradients"]["norm"] != objective(fresh, "grpo")["gradients"]["norm"]


def test_every_checkpoint_and_its_files(run: Path, cvxrl: Any, tmp_path: Path) -> None:
    files = ("--plot", tmp_path / "p.png", "--html", tmp_path / "p.html", "--out", tmp_path)
    quick = ("--lanczos", "2", "--probes", "2", "--samples", "2")
    done = cvxrl("inspect-grads", run, "--all-steps", "--objectives", "lco-kld", *quick, *files)
    assert done.code == 0, done.err
    assert "Over training" in done.out and "One optimizer step" in done.out
    assert max(len(line) for line in done.out.splitlines() if not line.startswith("policy")) <= 80
    assert "left" in done.err and "100%" in done.err  # progress with the time left
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "p.html").read_text()
    assert "data:image/svg+xml" in page and "http" not in page.replace("http-equiv", "")
    record = InspectRecord.model_validate_json((tmp_path / "INSPECT.json").read_text())
    assert [s.step for s in record.snapshots] == [0, 1, 2, 3]
    assert all(o.logits is not None and o.sharpness is not None for s in record.snapshots for o in s.objectives)


def test_curvature_of_a_convex_loss_on_a_policy(run: Path, cvxrl: Any, tmp_path: Path) -> None:
    arguments = ("--parts", "curvature", "--lanczos", "6", "--probes", "3", "--objectives", "lco-kld,grpo")
    document = json.loads(cvxrl("inspect-grads", run, "--step", "1", *arguments, "--json", "--out", tmp_path).out)
    found = objective(document, "lco-kld")["curvature"]
    assert found["largest"] > 0 and found["trace"] > 0 and found["products"] == 9
    # At its start the loss is a Gauss-Newton form plus what its small residuals bend: hardly below zero.
    assert found["smallest"] > -0.2 * found["largest"]


def test_ppo_measures_with_the_critic_that_was_trained(runs: Path, cvxrl: Any, tmp_path: Path) -> None:
    run = runs / "math_ppo" / "seed-0"
    document = json.loads(cvxrl("inspect-grads", run, "--step", "1", *QUICK, "--json", "--out", tmp_path).out)
    assert [o["label"] for o in document["snapshots"][0]["objectives"]] == [
        "ppo",
        "lco-kld",
        "lco-mse",
        "grpo",
        "reinforce",
    ]
    assert objective(document, "ppo")["own"] and objective(document, "ppo")["update"]["optimizer"] == "saved"
    assert objective(document, "grpo")["update"]["optimizer"] == "fresh"
    cosine = document["snapshots"][0]["cosines"]["ppo"]["grpo"]
    assert cosine < 0.999  # other advantages


def test_a_policy_without_a_run_under_a_recipe(cvxrl: Any, tmp_path: Path) -> None:
    small = ("--set", "rollout.samples=2", "--prompts", "4", "--set", "rollout.max_new_tokens=32")
    recipe = ("--recipe", ROOT / "recipes" / "math_lco_kld.yaml", "--objectives", "lco-kld,ppo")
    done = cvxrl("inspect-grads", SMALL_POLICY, *recipe, *small, *QUICK, "--json", "--out", tmp_path)
    assert done.code == 2 and "critic" in done.err
    recipe = (
        "--recipe",
        ROOT / "recipes" / "math_lco_kld.yaml",
        "--objectives",
        f"lco-kld,{ROOT}/recipes/math_dapo.yaml",
    )
    done = cvxrl("inspect-grads", SMALL_POLICY, *recipe, *small, *QUICK, "--json", "--out", tmp_path)
    assert done.code == 0, done.err
    assert [o["label"] for o in json.loads(done.out)["snapshots"][0]["objectives"]] == ["lco-kld", "math_dapo"]


# --- how large it is, and how it ends -------------------------------------------------------------------------------


def test_a_size_beyond_the_machine_is_refused_before_anything_is_loaded(cvxrl: Any, tmp_path: Path) -> None:
    base = ("inspect-grads", "package:cvxrl/assets/base", "--recipe", "math_grpo", "--out", tmp_path)
    done = cvxrl(*base, "--prompts", "100000000")
    assert done.code == 2 and "800,000,000 completions, at most 32,000,000,000 tokens" in done.err
    assert "of memory" in done.err and "or add --yes" in done.err and not list(tmp_path.iterdir())


def test_what_would_take_days_is_refused_or_asked_for_twice(
    cvxrl: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ("--prompts", "4", "--samples", "2", "--parts", "update", "--objectives", "grpo", "--out", tmp_path)
    base = ("inspect-grads", SMALL_POLICY, "--recipe", "math_grpo", *small)
    monkeypatch.setattr("cvxrl.inspection.runner.MOST_HOURS", 0.0)
    done = cvxrl(*base)
    assert done.code == 2 and "hours from here" in done.err and "add --yes" in done.err
    assert "plan: 1 checkpoint(s) x grpo; 8 completions, at most 320 tokens, their logits up to" in done.err
    done = cvxrl(*base, "--yes")
    assert done.code == 0 and "about 0:00" in done.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_ends_it_at_once(
    number: int, cvxrl: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: Any) -> None:
        os.kill(os.getpid(), number)
        raise AssertionError("went on")

    monkeypatch.setattr("cvxrl.inspection.runner.load_checkpoint", asked)
    before = signal.getsignal(number)
    done = cvxrl("inspect-grads", "package:cvxrl/assets/base", "--recipe", "math_grpo", "--out", tmp_path)
    assert done.code == 130 and "interrupted" in done.err and not list(tmp_path.iterdir())
    assert signal.getsignal(number) == before


# --- a defect in an objective shows ---------------------------------------------------------------------------------


def verdict_of(cvxrl: Any, run: Path, out: Path) -> dict[str, Any]:
    parts = ("--parts", "logits", "--drift", "1")
    arguments = ("--step", "1", "--objectives", "lco-kld", *parts, "--json", "--out", out)
    return objective(json.loads(cvxrl("inspect-grads", run, *arguments).out), "lco-kld")


def test_planted_defects_change_the_verdict(
    run: Path, cvxrl: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = verdict_of(cvxrl, run, tmp_path)
    assert sound["logits"]["convex"] == 1 and sound["logits"]["away"] == sound["displaced"]["away"] == 0
    assert not sound["verdict"][0].startswith(("pulls", "not"))
    assert set(sound["logits"]["intervals"]) == {"convex", "away", "frozen"}
    assert sound["logits"]["intervals"]["away"]["high"] > 0  # none of a few prompts is not none of all

    def flipped(batch: TokenBatch, spec: Any) -> ObjectiveOutput:
        return ObjectiveOutput(-lco_kld(batch, spec).loss_N)

    monkeypatch.setitem(OBJECTIVES, "lco-kld", flipped)
    wrong = verdict_of(cvxrl, run, tmp_path)
    assert wrong["logits"]["away"] > 0.9 and wrong["logits"]["convex"] < 0.1
    assert "pull away from their target" in " ".join(wrong["verdict"])

    def moving(batch: TokenBatch, spec: Any) -> ObjectiveOutput:
        return lco_kld(batch, spec.model_copy(update={"target": "moving"}))

    monkeypatch.setitem(OBJECTIVES, "lco-kld", moving)
    assert verdict_of(cvxrl, run, tmp_path)["displaced"] != sound["displaced"]


# --- words ----------------------------------------------------------------------------------------------------------


def logits(**changes: Any) -> LogitMetrics:
    plain = {
        "tokens": 100, "directed": 100, "structure": "odds", "convex": 1.0, "concave": 0.0, "indefinite": 0.0,
        "smallest": 0.0, "largest": 1.0, "away": 0.0, "cosine": 0.9, "frozen": 0.0, "frozen_by": {}, "distance": 0.1,
        "gradient": 0.1,
    }  # fmt: skip
    return LogitMetrics.model_validate(plain | changes)


def update(**changes: Any) -> UpdateMetrics:
    plain = dict.fromkeys(("learning_rate", "loss_before", "loss_after", "surrogate", "kl", "kl_max"), 0.0)
    plain |= dict.fromkeys(("entropy_before", "entropy_after", "clipped", "ess_tokens", "ess_sequences"), 0.0)
    rest = {"optimizer": "fresh", "update_to_weight": None, "by_module": {}, "ratio": {"max": 1.0}, "logits": None}
    return UpdateMetrics.model_validate(plain | rest | changes)


def numbers(**parts: Any) -> ObjectiveMetrics:
    return ObjectiveMetrics(label="x", own=False, equation="L", **parts)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"logits": logits()}, "steady"),
        ({"logits": logits(convex=0.9)}, "not convex"),
        ({"logits": logits(), "displaced": logits(frozen=0.12)}, "partly frozen"),
        ({"logits": logits(), "displaced": logits(away=0.31, frozen=0.12)}, "pulls away"),
        (
            {"logits": logits(away=0.31), "sharpness": SharpnessMetrics(room=0.5, searched=1, critical=2, passes=3)},
            "overshoots",
        ),
        ({"sharpness": SharpnessMetrics(room=None, searched=8, critical=None, passes=3)}, "steady"),
    ],
)
def test_headlines(parts: dict[str, Any], expected: str) -> None:
    assert headline(numbers(**parts)) == expected


@pytest.mark.parametrize(
    ("name", "sure", "unsure", "word"),
    [
        ("away", (0.06, 0.2), (0.01, 0.2), "pulls away"),
        ("frozen", (0.06, 0.2), (0.01, 0.2), "partly frozen"),
        ("convex", (0.8, 0.94), (0.8, 0.99), "not convex"),
    ],
)
def test_a_word_is_said_where_other_rollouts_would_say_it_too(
    name: str, sure: tuple[float, float], unsure: tuple[float, float], word: str
) -> None:
    share = {"away": 0.1, "frozen": 0.1, "convex": 0.9}[name]
    for (low, high), expected in ((sure, word), (unsure, "steady")):
        seen = logits(**{name: share}, intervals={name: {"low": low, "high": high}})
        assert headline(numbers(logits=seen)) == expected
        assert name == "frozen" or f"{high:.0%}]" in " ".join(findings(numbers(logits=seen), 4, "x", None))


def test_jumps_and_overshoots_need_an_interval_that_clears_them_too() -> None:
    for interval, expected in (((0.11, 0.3), "jumps"), ((0.05, 0.3), "steady")):
        moved = update(kl=0.2, kl_interval=dict(zip(("low", "high"), interval, strict=True)))
        assert headline(numbers(update=moved)) == expected
    short = SharpnessMetrics(room=0.5, searched=1.0, critical=None, passes=9)
    for interval, expected in (((0.01, 0.3), "overshoots"), ((-0.01, 0.3), "steady")):
        moved = update(loss_change_interval=dict(zip(("low", "high"), interval, strict=True)))
        assert headline(numbers(update=moved, sharpness=short)) == expected


def test_what_convexity_implies_is_not_told_as_evidence() -> None:
    told = " ".join(findings(numbers(logits=logits(convex=1.0, away=0.0)), 4, "x", None))
    assert "no token pulls away, as convexity implies" in told
    bent = logits(convex=0.9, away=0.0, intervals={"away": {"low": 0.0, "high": 0.2}})
    assert "no token pulls away [0%, 20%]" in " ".join(findings(numbers(logits=bent), 4, "x", None))


def test_sentences_hold_the_numbers() -> None:
    off = logits(away=0.31, frozen=0.12, frozen_by={"clip": 0.12, "improbable": 0.0})
    lines = " ".join(findings(numbers(logits=logits(), displaced=off), 4, "grpo", 0.25))
    assert "31% of the tokens pull away from their target; frozen far from it: 12% by the clip" in lines
    assert "after 4 steps of grpo (KL 0.25)" in lines


def test_the_smallest_eigenvalue_says_of_which_tokens_it_is() -> None:
    off = logits(convex=0.4, indefinite=0.6, smallest=-1.5, known=100, eigenvalue_tokens=100)
    assert (
        "convex in the logits of 40% of the tokens (60% indefinite, 0% concave; smallest eigenvalue -1.5 of all 100 "
        in (findings(numbers(logits=off), 4, "grpo", None)[1])
    )
    drawn = off.model_copy(update={"eigenvalue_tokens": 60, "known": 60})
    assert (
        "of 60 sampled tokens (60% indefinite, 0% concave; smallest eigenvalue -1.5 of 60 sampled tokens)"
        in (findings(numbers(logits=drawn), 4, "grpo", None)[1])
    )


def test_groups_without_a_contrast_are_in_no_mean(loaded: LoadedCheckpoint) -> None:
    """One reward for a whole group is an advantage of zero: its gradient is zero, and is not rounding."""
    own = loaded.objectives[0]
    for with_contrast in (3, 1, 0):
        given_PG = torch.zeros(4, 4)
        given_PG[:with_contrast, 0] = 1.0
        objective = replace(own, sequences=with_group_advantages(own.sequences, given_PG))
        measured, total = measure_gradients(loaded, objective, 4, None, lambda _: None)
        assert (measured.minibatches, measured.minibatches_with_gradient) == (4, with_contrast)
        if with_contrast == 3:
            parts = Gram()
            for p in range(3):
                parts.add(split_gradient(loaded, objective, range(4 * p, 4 * p + 4), (lambda b: b.actions_N >= 0,))[0])
            assert measured.minibatch_cosine == pytest.approx(mean_pairwise_cosine(parts.matrix()), rel=1e-4)
        else:
            assert measured.minibatch_cosine is None
        bands = measure_bands(loaded, objective, objective.everything, 10, lambda _: None)
        assert sum(band.tokens for band in bands) == pytest.approx(1)
        assert all((band.share is None) == (with_contrast == 0) for band in bands)
    assert all(not bool(g.any()) for g in total.values()) and measured.norm == 0
    metrics = ObjectiveMetrics(label="x", own=True, equation="L", gradients=measured)
    assert findings(metrics, 4, "x", None)[0] == "no gradient"


def test_a_batch_without_a_target_is_not_called_unconvex() -> None:
    names = ("psd_N", "nsd_N", "directed_N", "away_N", "reason_N")
    columns = {name: torch.zeros(3, dtype=torch.bool) for name in names}
    columns |= {"known_N": torch.ones(3, dtype=torch.bool), "reason_N": torch.zeros(3, dtype=torch.int8)}
    for name in ("min_eigenvalue_N", "max_eigenvalue_N", "cosine_N"):
        columns[name] = torch.full((3,), torch.nan)
    columns |= {"gradient_norm_N": torch.zeros(3), "distance_N": torch.zeros(3)}
    empty = summarize(columns, torch.zeros(3, dtype=torch.long), "odds")
    assert (empty.convex, empty.away, empty.frozen, empty.smallest, empty.frozen_by) == (None, None, None, None, {})
    assert findings(numbers(logits=empty), 4, "x", None) == [
        "steady",
        "where it was sampled: no token has a target other than where it is",
    ]


def test_a_panel_without_data_takes_no_room(run: Path, cvxrl: Any, tmp_path: Path) -> None:
    plot = tmp_path / "figure.pdf"
    arguments = ("--step", "1", "--parts", "gradients", "--objectives", "grpo", "--out", tmp_path, "--plot", plot)
    assert cvxrl("inspect-grads", run, *arguments).code == 0
    assert plot.read_bytes().startswith(b"%PDF")
    (shown,) = all_figures(read_record(tmp_path / "INSPECT.json"))
    assert len(shown.figure.axes) == 1


@pytest.mark.parametrize(("norms", "scale"), [((0.0, 0.0), "linear"), ((0.0, 2.0), "log")])
def test_gradients_that_are_all_zero_are_drawn(norms: tuple[float, ...], scale: str) -> None:
    """Of a policy that gets every answer right."""
    by_layer = {str(layer): norm for layer, norm in enumerate(norms)}
    gradients = GradientMetrics.model_construct(by_layer=by_layer, bands=[])
    measured = ObjectiveMetrics.model_construct(label="grpo", gradients=gradients)
    sizes = dict.fromkeys(("step", "prompts", "samples", "tokens"), 1)
    snapshot = CheckpointMetrics.model_construct(**sizes, displaced_kl=None, objectives=[measured])
    shown = side_by_side(InspectRecord.model_construct(recipe="math_grpo", snapshots=[snapshot]))
    assert to_svg(shown.figure) and [axis.get_yscale() for axis in shown.figure.axes] == [scale]


def test_effective_share_by_hand() -> None:
    weights = torch.tensor([1.0, 1.0, 2.0])
    assert effective_share(weights.log()) == pytest.approx(16 / (3 * 6))
    assert effective_share(torch.full((5,), -1000.0)) == pytest.approx(1)


# --- bad input ------------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[list[str], list[str]]] = {
    "no such path": (["./nowhere"], ["PATH", "no such directory"]),
    "no recipe": (["package:cvxrl/assets/base"], ["--recipe", "belongs to no run"]),
    "step without a run": (
        ["package:cvxrl/assets/base", "--recipe", f"{ROOT}/recipes/math_grpo.yaml", "--step", "3"],
        ["--step", "run directories"],
    ),
    "no such step": (["RUN", "--step", "7"], ["--step", "choose from 0, 1, 2, 3"]),
    "steps that are none": (["RUN", "--step", "1,x"], ["--step", "not a list of steps"]),
    "two ways to choose": (["RUN", "--step", "1", "--all-steps"], ["--all-steps", "--step"]),
    "unknown objectives": (["RUN", "--objectives", "lco-kdl,grop"], ["did you mean `lco-kld`", "did you mean `grpo`"]),
    "no objective": (["RUN", "--objectives", ","], ["--objectives", "names no objective"]),
    "objective without values": (["RUN", "--objectives", "ppo"], ["`ppo` needs the values of a critic", "math_ppo"]),
    "objective of pairs": (["RUN", "--objectives", "dpo"], ["`dpo` learns from preferences"]),
    "missing recipe file": (["RUN", "--objectives", "none.yaml"], ["none.yaml"]),
    "too few prompts": (["RUN", "--prompts", "3"], ["--prompts", "noise scale", "multiple of 4"]),
    "minibatches that do not divide": (["RUN", "--minibatches", "3"], ["--minibatches", "does not divide"]),
    "unknown part": (["RUN", "--parts", "logit,gradients"], ["--parts", "did you mean `logits`"]),
    "no picture": (["RUN", "--plot", "figure.doc"], ["--plot", ".png"]),
    "recipe without rollouts": (["RUN", "--recipe", f"{ROOT}/recipes/base_sft.yaml"], ["--recipe", "demonstrations"]),
    "no CUDA": (["RUN", "--device", "cuda"], ["train.device", "no CUDA device"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input(name: str, run: Path, cvxrl: Any, tmp_path: Path) -> None:
    arguments, expected = REFUSED[name]
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    done = cvxrl("inspect-grads", *(str(run) if a == "RUN" else a for a in arguments), "--out", tmp_path / "inspect")
    assert done.code == 2 and done.out == ""
    assert all(text in done.err for text in expected), done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "inspect").exists()


def test_all_mistakes_are_told_at_once(run: Path, cvxrl: Any) -> None:
    done = cvxrl("inspect-grads", run, "--objectives", "grop", "--parts", "logit", "--prompts", "3", "--plot", "x.doc")
    assert done.code == 2
    assert all(option in done.err for option in ("--objectives", "--parts", "--prompts", "--plot"))


def test_weights_that_are_not_finite_are_named(run: Path, cvxrl: Any, tmp_path: Path) -> None:
    shutil.copytree(RunDir(run).policy, tmp_path / "policy")
    file = tmp_path / "policy" / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.1.self_attn.q_proj.weight"][0, 0] = torch.nan
    save_file(weights, file, metadata={"format": "pt"})
    recipe = ROOT / "recipes" / "math_lco_kld.yaml"
    done = cvxrl("inspect-grads", tmp_path / "policy", "--recipe", recipe, "--out", tmp_path / "inspect")
    assert done.code == 2 and "model.layers.1.self_attn.q_proj.weight" in done.err and "not finite" in done.err


def test_a_damaged_checkpoint_is_refused(run: Path, cvxrl: Any, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step-000002" / "trainer.pt").write_bytes(b"torn")
    done = cvxrl("inspect-grads", tmp_path / "run", "--step", "2")
    assert done.code == 2 and "trainer.pt" in done.err


def test_damaged_rollouts_are_refused(run: Path, cvxrl: Any, tmp_path: Path) -> None:
    arguments = ("inspect-grads", run, "--step", "3", "--parts", "gradients", "--out", tmp_path)
    assert cvxrl(*arguments).code == 0
    (file,) = tmp_path.rglob("rollouts-*.json")
    file.write_text("{")
    done = cvxrl(*arguments)
    assert done.code == 2 and "--fresh" in done.err and file.name in done.err
