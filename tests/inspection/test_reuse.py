"""Objectives along the updates on one rollout, and their losses along one step: against training and closed forms."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SilentSink, tiny
from torch import Tensor

from cvxrl.engine.credit import Critic
from cvxrl.engine.session import run_training
from cvxrl.engine.update import Updater
from cvxrl.gradients.logit_space import Rules
from cvxrl.inspection.checkpoint import LoadedCheckpoint, MeasuredObjective, load_checkpoint
from cvxrl.inspection.findings import findings
from cvxrl.inspection.measure_direction import SHARES, StepLine, measure_direction, measure_sharpness, step_line
from cvxrl.inspection.measure_gradients import measure_gradients
from cvxrl.inspection.measure_logits import measure_logits
from cvxrl.inspection.measure_reuse import measure_reuse
from cvxrl.inspection.measure_update import losses_by_prompt, measure_update, take_steps, token_distributions
from cvxrl.inspection.options import InspectOptions
from cvxrl.inspection.plan import InspectionPlan, make_plan
from cvxrl.inspection.record import ObjectiveMetrics, read_record
from cvxrl.inspection.schedule import next_index, next_rate
from cvxrl.inspection.step_metrics import ReuseMetrics
from cvxrl.inspection.walk import Walk
from cvxrl.objectives.batch import ObjectiveOutput, TokenBatch
from cvxrl.objectives.lco import lco_kld
from cvxrl.objectives.registry import OBJECTIVES
from cvxrl.recipe.lco import LcoKldSpec
from cvxrl.recipe.step import FixedStep, LineSearchStep
from cvxrl.recipe.training import SgdSpec
from cvxrl.runs.directory import RunDir
from cvxrl.tasks import load_grader, load_task

REUSED = (
    *("checkpoint.every=1", "checkpoint.keep=9", "eval.every=0", "train.inner_epochs=2", "train.minibatches=2"),
    *("optim.lr=0.001", "rollout.max_new_tokens=32"),
)
RULES = Rules(eigenvalue_tokens=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rollouts of GRPO, four optimizer steps each, every rollout's end kept."""
    out = tmp_path_factory.mktemp("outputs")
    recipe = tiny("math_grpo", *REUSED)
    run_training(recipe, RunDir.of(out, recipe), SilentSink(), "new")
    return out / "math_grpo" / "seed-0"


@pytest.fixture(scope="module")
def plan(run: Path, tmp_path_factory: pytest.TempPathFactory) -> InspectionPlan:
    """One for all, so that completions are drawn once and read again."""
    out = tmp_path_factory.mktemp("inspect")
    return make_plan(InspectOptions(str(run), steps=(1,), objectives=("grpo", "lco-kld"), out=out))


@pytest.fixture
def loaded(plan: InspectionPlan) -> Iterator[LoadedCheckpoint]:
    grader = load_grader(plan.recipe.task)
    yield load_checkpoint(plan, plan.checkpoints[0], load_task(plan.recipe.task, plan.recipe.seed), grader)
    grader.close()


def reuse(loaded: LoadedCheckpoint, plan: InspectionPlan, objective: MeasuredObjective, walk: Walk) -> ReuseMetrics:
    return measure_reuse(loaded, objective, walk, plan.yardstick, RULES, lambda _: None)


def with_rate(objective: MeasuredObjective, rate: float) -> MeasuredObjective:
    optim = objective.recipe.optim.model_copy(update={"lr": rate, "warmup_steps": 0})
    return replace(objective, saved=None).under(objective.recipe.model_copy(update={"optim": optim}))


# --- along the updates ----------------------------------------------------------------------------------------------


def test_the_steps_are_those_that_training_took_next(run: Path, plan: InspectionPlan, loaded: LoadedCheckpoint) -> None:
    assert plan.walk == Walk(updates=4, epochs=2, minibatches=2)
    before = {name: p.detach().clone() for name, p in loaded.trainable.items()}
    found = reuse(loaded, plan, loaded.objectives[0], plan.walk)
    trained = {r["step"]: r for r in map(json.loads, RunDir(run).metrics.read_text().splitlines())}[2]
    assert (found.optimizer, len(found.steps)) == ("saved", 4) and trained["grad/norm"] > 0.1
    assert sum(s.norm for s in found.steps) / 4 == pytest.approx(trained["grad/norm"], rel=1e-6)
    assert sum(s.loss for s in found.steps) / 4 == pytest.approx(trained["loss"], rel=1e-5, abs=1e-9)
    assert all(s.learning_rate == pytest.approx(trained["optim/lr"]) for s in found.steps)
    assert all(torch.equal(before[name], p) for name, p in loaded.trainable.items())


def test_before_the_first_update_all_is_as_it_is_measured_without_reuse(
    plan: InspectionPlan, loaded: LoadedCheckpoint
) -> None:
    for objective in loaded.objectives:
        start = reuse(loaded, plan, objective, Walk(1, 1, 1)).points[0]
        same = measure_logits(objective, objective.on_policy, plan.yardstick, RULES, lambda _: None)
        for name in ("convex", "away", "frozen", "intervals", "tokens", "directed"):
            assert getattr(start.logits, name) == getattr(same, name), name
        gradients, _ = measure_gradients(loaded, objective, 4, None, lambda _: None)
        assert start.norm == pytest.approx(gradients.norm, rel=1e-4)
        assert start.qkv == pytest.approx(gradients.qkv, rel=1e-4)
        losses_P = losses_by_prompt(objective, objective.on_policy)
        assert start.loss == pytest.approx(float(losses_P.sum()), rel=1e-5, abs=1e-8)
        assert (start.kl, start.clipped, start.ess_sequences) == (0, 0, pytest.approx(1))
        assert set(start.ratio.values()) == {1.0}
        assert start.reward == pytest.approx(float(loaded.rollouts.rewards_PG.mean()))


def test_distance_to_the_target_is_the_loss_of_lco_kld(plan: InspectionPlan, loaded: LoadedCheckpoint) -> None:
    """With token-mean weights its reduced loss is the mean KL(target || policy) per token, wherever the policy is."""
    assert plan.recipe.reduction == "token-mean"
    found = reuse(loaded, plan, with_rate(loaded.objectives[1], 1e-3), Walk(3, 3, 1))
    assert [p.update for p in found.points] == [0, 1, 2, 3]
    for point in found.points:
        assert point.target_kl == pytest.approx(point.loss, rel=1e-4)
    assert found.points[-1].kl > 0


def test_reuse_freezes_and_turns_tokens_of_grpo_and_none_of_lco(plan: InspectionPlan, loaded: LoadedCheckpoint) -> None:
    grpo, lco = (reuse(loaded, plan, with_rate(o, 1e-3), Walk(8, 8, 1)) for o in loaded.objectives)
    clipped = [point.logits.frozen_by.get("clip", 0.0) for point in grpo.points]
    assert clipped[0] == 0 and clipped[-1] > 0.01
    assert grpo.points[0].logits.away == 0 and (grpo.points[-1].logits.away or 0) > 0.01
    assert {(p.logits.convex, p.logits.away, p.logits.frozen_by.get("clip", 0.0)) for p in lco.points} == {(1, 0, 0)}
    told = " ".join(findings(ObjectiveMetrics(label="grpo", own=True, equation="L", reuse=grpo), 0, "grpo", None))
    assert "after 8 steps on one rollout:" in told and "0% of the tokens pull away" not in told


def test_looks_double_and_end_with_the_last_update() -> None:
    assert Walk(16, 4, 4).looks == [0, 1, 2, 4, 8, 16]
    assert Walk(100, 100, 1).looks == [0, 1, 2, 4, 8, 16, 32, 64, 100]
    assert Walk(1, 1, 1).looks == [0, 1]


def test_the_command_shows_reuse_and_direction(run: Path, cvxrl: Any, tmp_path: Path) -> None:
    figures = (
        "--plot-reuse",
        tmp_path / "r.png",
        "--plot-direction",
        tmp_path / "d.svg",
        "--html",
        tmp_path / "p.html",
    )
    asked = (
        "--prompts",
        "2",
        "--updates",
        "3",
        "--inner-minibatches",
        "4",
        "--parts",
        "sharpness",
        "--objectives",
        "grpo,lco-kld",
    )
    done = cvxrl("inspect-grads", run, *asked, *figures, "--out", tmp_path)
    assert done.code == 0, done.err
    assert "Along the updates on one rollout" in done.out and "after 3 steps on one rollout" in done.out
    assert max(len(line) for line in done.out.splitlines() if not line.startswith("policy")) <= 80
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG") and b"<svg" in (tmp_path / "d.svg").read_bytes()
    assert (tmp_path / "p.html").read_text().count("data:image/svg+xml") == 3
    for o in read_record(tmp_path / "INSPECT.json").snapshots[0].objectives:
        assert o.reuse is not None and o.direction is not None and o.logits is None
        assert [p.update for p in o.reuse.points] == [0, 1, 2, 3] and o.reuse.minibatches == 4
        assert {"loss", "target_kl", "kl", "entropy", "reward"} <= set(o.reuse.points[-1].intervals)


# --- along the step -------------------------------------------------------------------------------------------------


def test_the_line_begins_and_ends_where_the_step_does_and_leaves_as_its_slope_says(loaded: LoadedCheckpoint) -> None:
    for objective in loaded.objectives:
        before = {name: p.detach().clone() for name, p in loaded.trainable.items()}
        with step_line(loaded, objective, lambda _: None) as line:
            assert line is not None
            found = measure_direction(line)
            nudge = 2.0**-7
            difference = (line.loss_at(nudge) - line.loss_at(-nudge)) / (2 * nudge)
            end = line.loss_at(1.0)
        assert found.slope == pytest.approx(difference, rel=0.05)
        assert found.shares == list(SHARES) and found.losses[SHARES.index(1.0)] == pytest.approx(end)
        assert found.losses[0] == pytest.approx(float(losses_by_prompt(objective, objective.on_policy).sum()), rel=1e-4)
        assert found.changes[0] is not None and found.changes[0].low == found.changes[0].high == 0
        assert all(torch.equal(before[name], p) for name, p in loaded.trainable.items())


@pytest.mark.parametrize("control", [FixedStep(), LineSearchStep(kind="line-search", sufficient_decrease=0.9)])
def test_a_step_looked_at_on_its_line_is_the_one_that_is_taken(
    loaded: LoadedCheckpoint, control: FixedStep | LineSearchStep
) -> None:
    told: list[int] = []
    for objective in loaded.objectives:
        objective = objective.under(objective.recipe.model_copy(update={"step": control}))
        asked = (loaded, objective, token_distributions(objective), LcoKldSpec(), RULES)
        alone = measure_update(*asked, told.append)
        times = len(told)
        with step_line(loaded, objective, lambda _: None) as line:
            assert line is not None
            assert measure_update(*asked, told.append, line) == alone
            assert told[times:] == told[:times], "as much progress is told"
        told.clear()
        assert alone.kl > 0 and alone.loss_after != alone.loss_before


def test_no_place_of_a_line_is_passed_over_twice(loaded: LoadedCheckpoint) -> None:
    told: list[int] = []
    with step_line(loaded, loaded.objectives[1], told.append) as line:
        assert line is not None
        sequences = len(line.sequences)
        first = [line.loss_at(share) for share in (0.0, 1.0, 0.5)]
        assert told == [sequences] * 3
        line.known.clear()
        again = [line.loss_at(share) for share in (0.5, 1.0, 0.0, 1.0)]
        assert again == [first[2], first[1], first[0], first[1]] and told == [sequences] * 6


def test_lco_along_its_own_gradient_is_convex_where_the_logits_are_linear(
    loaded: LoadedCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last norm's gain enters the logits linearly, so a loss that is convex in them is convex along its step."""
    for name, parameter in loaded.policy.model.named_parameters():
        parameter.requires_grad_(name == "model.norm.weight")

    def bends() -> Tensor:
        lco = loaded.objectives[1]
        recipe = lco.recipe.model_copy(update={"optim": SgdSpec(kind="sgd", lr=30.0, max_grad_norm=None)})
        with step_line(loaded, replace(lco, saved=None).under(recipe), lambda _: None) as line:
            assert line is not None and line.slope < 0
            losses = torch.tensor([line.loss_at(0.5 * k) for k in range(9)], dtype=torch.float64)
        return losses[2:] - 2 * losses[1:-1] + losses[:-2]

    assert bool((bends() > 0).all())

    def turned(batch: TokenBatch, spec: Any) -> ObjectiveOutput:
        return ObjectiveOutput(-lco_kld(batch, spec).loss_N)

    monkeypatch.setitem(OBJECTIVES, "lco-kld", turned)
    assert bool((bends() < 0).all())


# --- a line search along it -----------------------------------------------------------------------------------------


class Parabola(StepLine):
    """A line on which the loss is (alpha - valley)^2, whatever the policy."""

    valley: float

    def loss_at(self, share: float) -> float:
        return (share - self.valley) ** 2

    @property
    def slope(self) -> float:
        return -2 * self.valley


@pytest.mark.parametrize(
    ("valley", "share", "tried"),
    # Halving from 1, the first that is at most 1.8 valleys: there (a - v)^2 <= v^2 - 0.1 a 2 v.
    [(0.1, 0.125, 4), (0.5, 0.5, 2), (0.6, 1.0, 1), (3.0, 1.0, 1)],
)
def test_what_a_line_search_accepts_fits_more_often(
    loaded: LoadedCheckpoint, valley: float, share: float, tried: int
) -> None:
    control = LineSearchStep(kind="line-search", tolerance=0.0)
    objective = loaded.objectives[1]
    objective = objective.under(objective.recipe.model_copy(update={"step": control}))
    line = Parabola(objective, objective.on_policy, [], [], [], lambda _: None)
    object.__setattr__(line, "valley", valley)
    found = measure_sharpness(line, 1, 20)
    assert found.room == pytest.approx(2 * valley, rel=1e-3)
    search = found.line_search
    assert search is not None and (search.share, search.evaluations) == (share, tried)
    assert search.slope == -2 * valley and search.loss == pytest.approx((share - valley) ** 2)
    assert search.room == pytest.approx(2 * valley / share, rel=1e-3)
    assert search.room is not None and search.room >= 1 / (1 - search.sufficient_decrease) * (1 - 1e-3)


def test_a_step_that_leads_uphill_is_not_taken(loaded: LoadedCheckpoint) -> None:
    objective = loaded.objectives[1]
    line = Parabola(objective, objective.on_policy, [], [], [], lambda _: None)
    object.__setattr__(line, "valley", -1.0)
    found = measure_sharpness(line, 1, 5)
    assert found.room == 0 and found.line_search is not None
    assert (found.line_search.share, found.line_search.loss, found.line_search.room) == (0, None, None)
    told = " ".join(findings(ObjectiveMetrics(label="x", own=True, equation="L", sharpness=found), 0, "x", None))
    assert "a line search takes none of it, which leads uphill" in told


def test_a_step_that_is_too_long_is_cut_until_it_fits(loaded: LoadedCheckpoint) -> None:
    with step_line(loaded, with_rate(loaded.objectives[1], 1e-2), lambda _: None) as line:
        assert line is not None
        found = measure_sharpness(line, 1, 9)
    search = found.line_search
    assert found.room is not None and found.room < 1
    assert search is not None and 0 < search.share < 1 and search.loss is not None
    assert search.loss <= search.loss_before + 0.1 * search.share * search.slope + 1e-5
    assert search.room is None or search.room > 1


# --- the run's own step ---------------------------------------------------------------------------------------------


def test_the_next_step_has_the_learning_rate_that_training_takes_next(run: Path, tmp_path: Path) -> None:
    sets = ("optim.warmup_steps=7",)
    made = make_plan(InspectOptions(str(run), steps=(1,), objectives=("lco-kld",), sets=sets, out=tmp_path))
    assert made.walk is not None
    for named in (*made.objectives, *([made.unnamed] if made.unnamed else [])):
        again = made.walk.recipe(named.recipe)
        assert next_index(named.recipe, 1) == next_index(again, 1) == 4
        assert next_rate(named.recipe, 1) == next_rate(again, 1) == pytest.approx(1e-3 * 5 / 7)


def test_the_drift_is_the_run_s_also_where_its_objective_is_not_named(
    run: Path, plan: InspectionPlan, cvxrl: Any
) -> None:
    def moved(objectives: str) -> dict[str, Any]:
        options = ("--parts", "logits", "--drift", "1", "--set", "train.inner_epochs=1", "--out", plan.folder)
        done = cvxrl("inspect-grads", run, "--step", "1", "--objectives", objectives, *options, "--json")
        assert done.code == 0, done.err
        return dict(json.loads(done.out)["snapshots"][0])

    named, unnamed = moved("grpo,lco-kld"), moved("lco-kld")
    assert named["displaced_kl"] == unnamed["displaced_kl"] > 0
    assert (named["displaced_by"], unnamed["displaced_by"]) == ("grpo", "the run's grpo")
    assert [o["displaced"] for o in unnamed["objectives"]] == [named["objectives"][1]["displaced"]]


@pytest.mark.parametrize("place", [0, 1])
def test_a_critic_is_put_back_whichever_objective_has_it(loaded: LoadedCheckpoint, place: int) -> None:
    critic = Critic(2)
    objectives = list(loaded.objectives)
    with_critic = replace(objectives[place], loss=replace(objectives[place].loss, critic=critic))
    objectives[place] = with_critic
    others = [replace(loaded, objectives=objectives)]
    others.append(replace(loaded, objectives=loaded.objectives[1 - place :][:1], unnamed=with_critic))
    before = [p.detach().clone() for p in critic.parameters()]
    for one in others:
        with one.restored(), torch.no_grad():
            for parameter in critic.parameters():
                parameter += 1
        assert all(map(torch.equal, before, critic.parameters()))


def test_a_step_drops_what_training_drops(loaded: LoadedCheckpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = loaded.objectives[0]
    dropping = objective.recipe.model_copy(
        update={"model": objective.recipe.model.model_copy(update={"dropout": True})}
    )
    model, seen = loaded.policy.model, list[bool]()
    monkeypatch.setattr(Updater, "step", lambda *_: seen.append(model.training) or {})
    for one in (objective, objective.under(dropping)):
        take_steps(one, one.on_policy, 2, 1, lambda _: None)
        assert not model.training
    assert seen == [False, False, True, True]


@pytest.mark.parametrize(
    ("dropout", "uses", "expected"), [(True, 1, [False, True]), (True, 2, [True] * 2), (False, 1, [True] * 2)]
)
def test_with_dropout_the_trained_pass_tells_the_probabilities_of_a_rollout_that_is_used_once(
    loaded: LoadedCheckpoint, monkeypatch: pytest.MonkeyPatch, dropout: bool, uses: int, expected: list[bool]
) -> None:
    recipe = loaded.objectives[0].recipe
    model = recipe.model.model_copy(update={"dropout": dropout})
    train = recipe.train.model_copy(update={"inner_epochs": uses, "minibatches": 1})
    objective = loaded.objectives[0].under(recipe.model_copy(update={"model": model, "train": train}))
    seen = list[bool]()
    monkeypatch.setattr(Updater, "step", lambda _, sequences, __: seen.append(sequences.old_logits is not None) or {})
    take_steps(objective, loaded.remembered(objective), 2, 1, lambda _: None)
    assert seen == expected


# --- bad input ------------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[list[str], list[str]]] = {
    "no updates": (["--updates", "0"], ["--updates"]),
    "uneven minibatches": (
        ["--inner-minibatches", "3"],
        ["--inner-minibatches", "3 does not divide the 16 sequences of grpo", "choose a divisor of 16"],
    ),
    "more updates than epochs": (
        ["--updates", "9", "--inner-epochs", "2"],
        ["--updates", "9 updates are more than 2 epochs of 2 make"],
    ),
    "no reuse to look at": (
        ["--parts", "reuse", "--set", "train.inner_epochs=1", "--set", "train.minibatches=1"],
        ["one optimizer step per rollout", "--updates 16"],
    ),
    "no picture": (["--plot-reuse", "x.doc", "--plot-direction", "y.txt"], ["--plot-reuse", "--plot-direction"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input(name: str, run: Path, cvxrl: Any, tmp_path: Path) -> None:
    arguments, expected = REFUSED[name]
    done = cvxrl("inspect-grads", run, "--objectives", "grpo", *arguments, "--out", tmp_path / "inspect")
    assert done.code == 2 and done.out == "" and "Traceback" not in done.err
    assert all(text in done.err for text in expected), done.err
    assert not (tmp_path / "inspect").exists()
