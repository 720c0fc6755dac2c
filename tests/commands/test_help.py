"""What a command's help shows, whoever asks for it."""

from __future__ import annotations

from typing import Any

import pytest

from cvxrl.commands.completion import recipe_keys, recipe_names

COMMANDS = ("train", "eval", "compare", "inspect-grads")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_untyped_flags_and_a_short_name(command: str, cvxrl: Any) -> None:
    asked, short = cvxrl(command, "--help"), cvxrl(command, "-h")
    assert asked.code == short.code == 0
    assert asked.out == short.out
    assert f"   cvxrl {command} " in asked.out.partition(" Examples\n")[2]
    assert "<bool>" not in asked.out
    assert max(map(len, asked.out.splitlines())) <= 80


def test_the_help_of_train_says_where_keys_and_objectives_are_listed(cvxrl: Any) -> None:
    output = cvxrl("train", "--help").out
    assert "--list" in output and "--dry-run prints the keys" in " ".join(output.replace("│", " ").split())


def test_the_shell_is_offered_recipes_and_keys() -> None:
    assert recipe_names("math_lco_k") == [
        "math_lco_kld",
        "math_lco_kld_dense",
        "math_lco_kld_paper",
        "math_lco_kld_x100",
    ]
    assert recipe_names("nothing") == []
    assert recipe_keys("optim.lr") == ["optim.lr="] and "objective.beta=" in recipe_keys("objective.")
    assert recipe_keys("logging.s") == ["logging.samples=", "logging.sinks="], "elements of a list have no keys"


def test_a_tab_completes_commands_recipes_and_keys(cvxrl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_CVXRL_COMPLETE", "complete_bash")
    for line, offered in (
        ("cvxrl tr", ["train"]),
        ("cvxrl train smok", ["smoke"]),
        ("cvxrl train smoke --set optim.betas", ["optim.betas="]),
        ("cvxrl compare coin_g", ["coin_grpo"]),
    ):
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(line.split()) - 1))
        assert cvxrl().out.split() == offered, line
