"""Fields that cannot change a result: outside the digest, free on --resume, and truly without influence."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, SilentSink, tiny, without_times
from pydantic import BaseModel

from cvxrl.comparison.sources import read_run
from cvxrl.engine.session import run_training
from cvxrl.errors import UserError
from cvxrl.recipe.base import section_classes
from cvxrl.recipe.digest import differences, digest, digests_as_written, neutral_differences, neutral_keys
from cvxrl.recipe.load import dump, load_recipe
from cvxrl.recipe.schema import Recipe
from cvxrl.runs.directory import RunDir


def with_value(section: BaseModel, key: tuple[str, ...], value: Any) -> Any:
    """A copy with another value at ``key``, unchecked."""
    inner = with_value(getattr(section, key[0]), key[1:], value) if key[1:] else value
    return section.model_copy(update={key[0]: inner})


def every_field(section: type[BaseModel], at: Any, key: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every key of the schema, in every kind of section, with a recipe whose section at that key is of that kind."""
    for name, field in section.model_fields.items():
        here = (*key, name)
        yield here, at
        for inner in section_classes(field.annotation):
            yield from every_field(inner, with_value(at, here, inner.model_construct()), here)


def test_a_marked_field_is_outside_the_digest_and_every_other_field_is_in_it() -> None:
    marked, unmarked = set(), set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydantic's, about values of another type
        for key, recipe in every_field(Recipe, tiny("math_grpo")):
            other = with_value(recipe, key, "something else")
            name = ".".join(key)
            within = any(f"{name}.".startswith(f"{neutral}.") for neutral in neutral_keys())
            assert (digest(other) == digest(recipe)) is within, name
            assert ([found for found, *_ in differences(recipe, other)] == []) is within, name
            (marked if within else unmarked).add(name)
    assert not marked & unmarked, "a key means the same in every kind of section"
    assert {"checkpoint.every", "checkpoint.best", "logging.samples", "logging.gradients"} <= marked
    assert {"train.micro_batch", "rollout.batch", "train.device", "train.loss", "logging.kl_sequences"} <= unmarked
    assert {"advantage.lam", "objective.support.k", "task.reward.memory_mb"} <= unmarked and len(unmarked) > 150


def test_differences_are_told_apart_by_whether_they_can_change_a_result() -> None:
    left, right = tiny("math_grpo"), tiny("math_grpo", "checkpoint.every=7", "optim.lr=1e-3", "logging.samples=0")
    assert differences(left, right) == [("optim.lr", 3e-4, 1e-3)]
    assert neutral_differences(left, right) == [("checkpoint.every", 0, 7), ("logging.samples", 4, 0)]


def test_the_digests_of_a_written_recipe_are_ours_and_that_of_version_0_1(tmp_path: Path) -> None:
    recipe = tiny("math_lco_kld", "optim.lr=1e-5")
    written = tmp_path / "recipe.yaml"
    written.write_text(dump(recipe))
    ours, old = digests_as_written(written)
    assert ours == digest(recipe)
    canonical = json.dumps(recipe.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    assert old == hashlib.sha256(canonical.encode()).hexdigest() != ours
    # A field that this version does not have yet, as a later one finds in a run of today.
    written.write_text(dump(recipe).replace("reduction: token-mean\n", ""))
    assert digests_as_written(written)[0] != ours


class Interrupting(SilentSink):
    """Ctrl-C after a step."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def step(self, record: Any) -> None:
        super().step(record)
        if record["step"] == self.after:
            raise KeyboardInterrupt


def test_resuming_with_other_neutral_fields_gives_the_same_run_and_is_recorded(tmp_path: Path) -> None:
    small = ("train.steps=3", "eval.every=3", "train.minibatches=2", "rollout.prompts=2", "rollout.max_new_tokens=12")
    small += ("task.reward.noise=coin",)  # so short, next to no reply is right
    plain, whole = tiny("math_lco_kld", *small), RunDir(tmp_path / "whole")
    run_training(plain, whole, SilentSink(), "new")
    saved, broken = tiny("math_lco_kld", *small, "checkpoint.every=1", "checkpoint.keep=1"), RunDir(tmp_path / "broken")
    assert run_training(saved, broken, Interrupting(2), "new").status == "interrupted"
    looked = tiny("math_lco_kld", *small, "logging={gradients: 1, samples: 0}", "checkpoint={every: 2, best: false}")
    with pytest.raises(UserError, match=r"logging\.kl_sequences"):
        broken.check(tiny("math_lco_kld", *small, "logging.kl_sequences=1"), "resume")
    assert run_training(looked, broken, SilentSink(), "resume").status == "finished"
    one, two = ([json.loads(line) for line in d.metrics.read_text().splitlines()] for d in (whole, broken))
    assert "logits/convex" in two[-1] and "logits/convex" not in two[1]
    for left, right in zip(one, two, strict=True):
        assert without_times(left) == {key: right[key] for key in without_times(left)}
    weights = [(d.policy / "model.safetensors").read_bytes() for d in (whole, broken)]
    assert weights[0] == weights[1]
    (session,) = broken.read_record().resumed
    assert session.changed == {
        "recipe: checkpoint.best": ("True", "False"),
        "recipe: checkpoint.every": ("1", "2"),
        "recipe: checkpoint.keep": ("1", "2"),
        "recipe: logging.gradients": ("0", "1"),
        "recipe: logging.samples": ("4", "0"),
    }


def test_runs_that_version_0_1_wrote_load_and_are_as_they_were_trained() -> None:
    runs = [file.parent for file in sorted((ROOT / "tests/fixtures/v01/runs").glob("*/seed-*/run.json"))]
    assert len(runs) > 10
    for run in runs:
        written = json.loads((run / "run.json").read_text())["digest"]
        assert written == digests_as_written(run / "recipe.yaml")[1] != digest(load_recipe(run / "recipe.yaml"))
        assert not read_run(run).doubts


def test_a_run_of_version_0_1_is_as_it_was_trained(tmp_path: Path) -> None:
    from made_runs import make_run

    path = make_run(tmp_path)
    record = json.loads((path / "run.json").read_text())
    for written in digests_as_written(path / "recipe.yaml"):
        (path / "run.json").write_text(json.dumps(record | {"digest": written}))
        assert not read_run(path).doubts
    (path / "recipe.yaml").write_text((path / "recipe.yaml").read_text().replace("lr: 0.0003", "lr: 0.0004"))
    assert read_run(path).doubts
