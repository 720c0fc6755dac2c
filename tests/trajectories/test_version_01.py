"""What version 0.1 wrote is read, and gives the numbers that it gave: runs, checkpoints, evaluations, rollouts."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from helpers import quick_if

from .draws import replace_draws
from .record import ROOT, machine, one_thread
from .test_trajectories import RECORDED

FOLDER = ROOT / "tests" / "fixtures" / "v01"
# What may differ from a recorded document, and why: `document/dotted.path` -> reason; both may hold wildcards.
CHANGED: dict[str, str] = {
    "*/checkpoint.sha256": "one digest of weights for all commands: that of run.json, which knows types and shapes",
    "eval-*/schema_version": "the form holds evaluations during training too, and says how many were decoded at a time",
    "inspect-lora/snapshots.*.policy": "an adapted policy has the digest of what it amounts to, whoever takes it",
    "inspect-*/*.gradients.minibatch_cosine": "over the minibatches that have a gradient; 0.1 took rounding for one",
    "inspect-lora/snapshots.0.objectives.0.gradients.*": "groups without a contrast, whose LCO-KLD gradient is zero by "
    "definition, are left out as in training; their rounding was 1e-7 of the norm",
    "inspect-lora/snapshots.0.cosines.*lco-kld*": "the same rounding",
    "inspect-*/*.curvature.*est*": "Lanczos sums in float64; an eigenvalue's error holds its products' rounding",
    "inspect-*/*.logits.*est": "extreme eigenvalues are of all tokens, not of 256 of each micro-batch",
    "inspect-*/*.displaced.*est": "likewise",
    "inspect-*/*.verdict.[023]": "words wait for an interval over prompts, and sentences print it",
    "inspect-*/*.gradients.noise_scale.*": "last bits: Student's t of SciPy",
    "compare*/schema_version": "conclusions are others: docs/statistics.md",
    "compare*/options.collapse": "a fall is from 0.8 of the best level on, and beyond the evaluations' error",
    "compare*/methods.*.collapsed": "failures, in four kinds",
    "compare*/methods.*.diverged": "likewise",
    "compare*/methods.*.score.collapse*": "likewise",
    "compare*/methods.*.intervals.*": "never narrower than the evaluations' error; last bits: Student's t of SciPy",
    "compare*/methods.*.stability.grad_p99": "the largest ratio to the running median, and a share of norms above it",
    "compare*/methods.*.stability.spikes": "likewise",
    "compare*/comparisons.*.difference*": "of the means of all seeds, by Student's t, all comparisons together",
    "compare*/comparisons.*.improvement_interval.*": "all comparisons together",
    "compare*/comparisons.*.p_*": "of that difference",
    "compare*/comparisons.*.sign_flip_p_value": "one test",
    "compare*/comparisons.*.seeds_needed": "the fewest that the interval allows",
    "compare/warnings.[12]": "other words",
    "inspect-*/*.verdict.6": "the sentence on room says what a line search accepts, too",
    "inspect-ppo/*.sharpness.*": "along a step the critic moves with the policy; 0.1 left it at the step's end",
    "inspect-*/*.verdict.1": "the sentence says of how many tokens the smallest eigenvalue is",
    "inspect-*/notes*": "no note on drawn tokens where all were looked at",
    "*/checkpoint.recipe": "fields that cannot change a result are outside the digest of a recipe",
}

RUNS = ("tiny_grpo", "tiny_lco_kld", "tiny_diverged", "tiny_guarded")
EVALUATION = "tiny_grpo/seed-0/evals/sums/EVAL.json"
GATE = "P(tiny_lco_kld > tiny_grpo) > 0.1"
LOOK = ("--parts", "logits,gradients,update,sharpness", "--drift", "2")
# Document -> command that gave it, in the folder of the runs. All read what is stored, or draw nothing.
DOCUMENTS = {
    # The threshold that 0.1 took by itself, from the best of these runs.
    "compare": ("compare", *RUNS, "--allow-diff", "--threshold", "0.314999994635582", "--json"),
    "compare-reward": (
        *("compare", *RUNS[:2], "--metric", "reward/mean", "--window", "3", "--baseline", "tiny_lco_kld"),
        *("--threshold", "0.3", "--confidence", "0.9", "--require", GATE, "--json"),
    ),
    "eval-from": ("eval", "--from", EVALUATION, "--json"),
    "eval-from-k": ("eval", "--from", EVALUATION, "--k", "1,3", "--json"),
    "inspect-lco_kld": (
        *("inspect-grads", "tiny_lco_kld/seed-1", "--step", "4", "--lanczos", "6", "--probes", "4", "--json"),
    ),
    "inspect-ppo": ("inspect-grads", "tiny_ppo/seed-0", *LOOK, "--json"),
    "inspect-lora": ("inspect-grads", "tiny_lora/seed-0", *LOOK, "--json"),
}
# The same for evaluations of stored policies; the draws are replaced where there are any.
_SUMS = ("--task", "sums.yaml", "--out", "asked", "--json")
ASKED = {
    "eval-greedy": ("eval", "--ckpt", "tiny_lco_kld/seed-0", *_SUMS, "--temperature", "0"),
    "eval-run": ("eval", "--ckpt", "tiny_grpo/seed-0", *_SUMS),
    "eval-checkpoint": ("eval", "--ckpt", "tiny_grpo/seed-1/checkpoints/step-000004", *_SUMS, "--top-p", "0.9"),
    "eval-policy": ("eval", "--ckpt", "tiny_ppo/seed-0/policy", *_SUMS, "--samples", "3", "--batch", "8"),
    "eval-adapter": ("eval", "--ckpt", "tiny_lora/seed-0/checkpoints/step-000008", *_SUMS),
    "eval-held-out": ("eval", "--ckpt", "tiny_sft/seed-0", "--out", "asked", "--json"),
}
_FRESH = ("provenance.*", "finished", "seconds")  # of the moment and the machine


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A copy to work in; commands run here too (see `cvxrl`)."""
    shutil.copytree(FOLDER / "runs", tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def exact() -> bool:
    """Whether this machine adds up as the one that recorded did."""
    return machine() == RECORDED["machine"]


@pytest.fixture(autouse=True)
def on_one_thread() -> Iterator[None]:
    with one_thread():
        yield


# One policy looked at is enough where time is short: PPO's, whose critic moves along.
@pytest.mark.parametrize("name", quick_if(lambda name: name not in ("inspect-lco_kld", "inspect-lora"), DOCUMENTS))
def test_stored_runs_give_the_recorded_document(name: str, cvxrl: Any, runs: Path, exact: bool) -> None:
    before = {file for file in runs.rglob("*") if file.is_file()}
    done = cvxrl(*DOCUMENTS[name])
    assert done.code == 0, done.err
    inspected = name.startswith("inspect")
    # Sums in another order move a gradient's last digits, and a curvature's well before them. On the machine that
    # recorded, products round otherwise since weights are aligned in memory.
    tolerance = (1e-6 if inspected else 0.0) if exact else 0.05 if inspected else 1e-9
    found = different(name, _recorded(name), json.loads(done.out), tolerance, _FRESH if inspected else ())
    assert not found, "\n".join(found)
    new = {file for file in runs.rglob("*") if file.is_file() and file.name.startswith("rollouts-")} - before
    assert not new, f"the frozen rollouts were not found: sampled again into {new}"


@pytest.mark.parametrize("name", ASKED)
def test_stored_policies_give_the_recorded_answers(name: str, cvxrl: Any, runs: Path, exact: bool) -> None:
    with replace_draws():
        done = cvxrl(*ASKED[name])
    assert done.code == 0, done.err
    document, expected = json.loads(done.out), _recorded(name)
    if not exact:  # a last bit may turn a draw, and then all that follows it
        accuracies = [each.pop("results")["accuracy"]["value"] for each in (document, expected)]
        assert accuracies[0] == pytest.approx(accuracies[1], abs=0.1)
    found = different(name, expected, document, 0.0, _FRESH)
    assert not found, "\n".join(found)


def test_a_stored_policy_is_as_good_when_asked_anew(cvxrl: Any, runs: Path) -> None:
    stored = json.loads((runs / EVALUATION).read_text())
    done = cvxrl("eval", "--ckpt", "tiny_grpo/seed-0", *_SUMS, "--samples", "32")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    same = {key: stored[key] for key in ("checkpoint", "task")}
    assert not different("eval-anew", same, document, 0.0, ())
    # The questions are the same, so only the draws of their answers differ: binomial at most.
    count = stored["sampling"]["questions"] * stored["sampling"]["samples"]
    before, now = (d["results"]["accuracy"]["value"] for d in (stored, document))
    assert abs(before - now) < 4 * math.sqrt(0.25 / count)


def test_the_recorded_documents_say_something() -> None:
    methods = {m["method"]: m for m in _recorded("compare")["methods"]}
    assert [methods[name]["diverged"] for name in RUNS] == [0, 0, 2, 2]
    assert len({methods[name]["mean"] for name in RUNS[:2]}) == 2
    accuracy = [_recorded(name)["results"]["accuracy"]["value"] for name in ASKED]
    assert all(0.05 < value < 0.95 for value in accuracy) and len(set(accuracy)) > 3
    for name in ("inspect-lco_kld", "inspect-ppo", "inspect-lora"):
        (snapshot,) = _recorded(name)["snapshots"]
        assert all(o["gradients"]["norm"] > 0 for o in snapshot["objectives"]) and len(snapshot["objectives"]) > 3


def test_no_file_names_a_place_on_a_machine() -> None:
    for file in FOLDER.rglob("*"):
        if file.suffix in (".json", ".jsonl", ".yaml"):
            text = file.read_text(encoding="utf-8")
            assert not any(place in text for place in ('"/', "'/", ": /", "/home/", "/root/", "/tmp/")), file


def different(name: str, recorded: Any, now: Any, tolerance: float, passed_over: tuple[str, ...]) -> list[str]:
    """Lines for what the recorded document says and the new one does not; the new one may say more."""
    found = []
    for keys, expected in _leaves(recorded):
        path = ".".join(map(str, keys))
        if any(fnmatchcase(path, p) for p in passed_over) or any(fnmatchcase(f"{name}/{path}", p) for p in CHANGED):
            continue
        value = _at(now, keys)
        if _is_number(expected) and _is_number(value):
            same = math.isclose(expected, value, rel_tol=tolerance, abs_tol=tolerance)
        else:
            same = expected == value
        if not same:
            found.append(f"{name}/{path}: was {expected!r}, is {value!r}")
    return found


def _leaves(value: Any, keys: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Every number, text and empty collection with the keys that lead to it, and the length of every list."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, (*keys, key))
    elif isinstance(value, list):
        yield (*keys, "length"), len(value)
        for index, inner in enumerate(value):
            yield from _leaves(inner, (*keys, index))
    else:
        yield keys, value


def _at(value: Any, keys: tuple[str | int, ...]) -> Any:
    for key in keys:
        if isinstance(value, list):
            value = len(value) if key == "length" else value[key] if int(key) < len(value) else "absent"
        else:
            value = value.get(key, "absent") if isinstance(value, dict) else "absent"
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _recorded(name: str) -> Any:
    return json.loads((FOLDER / "documents" / f"{name}.json").read_text(encoding="utf-8"))


def test_the_smallest_difference_of_a_document_is_found() -> None:
    recorded = {"a": [1.0, {"b": None}], "c": {}, "d": "x"}
    assert different("x", recorded, {**recorded, "more": 1}, 0.0, ()) == []
    for now in (
        {**recorded, "a": [1.0000000000000002, {"b": None}]},
        {**recorded, "a": [1.0, {"b": 0}]},
        {**recorded, "a": [1.0, {"b": None}, 2]},
        {**recorded, "a": [1.0]},
        {**recorded, "c": {"e": 1}},
        {"a": recorded["a"], "c": {}},
    ):
        assert different("x", recorded, now, 0.0, ()), now
    assert different("x", recorded, {**recorded, "a": [1.1, {"b": None}]}, 0.2, ()) == []
    assert different("x", recorded, {**recorded, "d": "y"}, 0.0, ("d",)) == []
