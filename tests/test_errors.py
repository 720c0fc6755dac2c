"""What a user's mistake is told as."""

from __future__ import annotations

from helpers import ROOT

from cvxrl.errors import suggest


def test_the_nearest_known_word_is_suggested_and_a_far_one_is_not() -> None:
    known = ("optim.lr", "optim.eps", "train.steps")
    assert suggest("optim.lrr", known) == "did you mean `optim.lr`? "
    assert suggest("eval/every", known) == "" == suggest("x", iter(()))
    assert suggest("step", known) == "" and suggest("step", known, cutoff=0.4) == "did you mean `train.steps`? "


def test_did_you_mean_is_said_in_one_place() -> None:
    users = [path.name for path in (ROOT / "cvxrl").rglob("*.py") if "difflib import" in path.read_text()]
    phrase = [path.name for path in (ROOT / "cvxrl").rglob("*.py") if "did you mean {" in path.read_text()]
    assert users == ["errors.py"] == phrase
