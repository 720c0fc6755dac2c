"""Secrets of the environment (tokens, keys, passwords) must not reach a file of the run."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping

from cvxrl.errors import Problem, UserError
from cvxrl.recipe.load import dump
from cvxrl.recipe.schema import Recipe

_SECRET_NAME = re.compile(
    r"(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|(API|ACCESS|PRIVATE|SECRET)_?KEY)$", re.IGNORECASE
)
# `user:password@` in an address, and the token formats that services document for scanners to find.
_SECRET_SHAPE = re.compile(r"(?<=://)[^\s/@:]+:[^\s/@]+(?=@)|\b(?:hf_|sk-|gh[pousr]_|github_pat_|xox[abp]-)[\w-]{16,}")
# Shorter values are words like `true`, whose removal would garble the text and hide nothing.
_SHORTEST = 8
_HIDDEN = "***"


def redact(text: str, environment: Mapping[str, str] | None = None) -> str:
    """Text with every secret value of the environment, and what looks like one, replaced by `***`."""
    for value in sorted(_secrets(environment).values(), key=len, reverse=True):
        text = text.replace(value, _HIDDEN)
    return _SECRET_SHAPE.sub(_HIDDEN, text)


def refuse_secrets(recipe: Recipe, environment: Mapping[str, str] | None = None) -> None:
    """Refuse a recipe that holds a secret: it is written to recipe.yaml, and people share that file.

    Raises:
        UserError: naming the environment variable, not its value.
    """
    text = dump(recipe) + json.dumps(recipe.model_dump(mode="json"), ensure_ascii=False)
    problems = [
        Problem(
            f"holds the value of the environment variable {name}, which recipe.yaml would show",
            file="recipe",
            remedy=f"let your function read os.environ['{name}'] itself",
        )
        for name, value in _secrets(environment).items()
        if value in text
    ]
    if problems:
        raise UserError(*problems)


def _secrets(environment: Mapping[str, str] | None) -> dict[str, str]:
    found = os.environ if environment is None else environment
    return {n: v for n, v in found.items() if _SECRET_NAME.search(n) and len(v) >= _SHORTEST}
