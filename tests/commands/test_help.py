"""What a command's help shows, whoever asks for it."""

from __future__ import annotations

from typing import Any

import pytest

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
