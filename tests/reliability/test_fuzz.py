"""Mutated recipes and `--set`: each is planned, or refused with exit code 2 and the key; no traceback, no hang."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from cvxrl.cli import main
from cvxrl.recipe.base import section_classes
from cvxrl.recipe.load import load_recipe
from cvxrl.recipe.schema import Recipe

# --dry-run takes milliseconds; the margin is for a machine that is busy with other things.
HANG_S = 20
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
BASES = [
    load_recipe(p, ("advantage.verifier=x",) if "dense" in p.stem else ()).model_dump(mode="json")
    for p in RECIPES
    if p.stem != "math_base"
]


def keys(section: type[BaseModel], prefix: tuple[str, ...] = (), depth: int = 0) -> Iterator[tuple[str, ...]]:
    """Every key that some recipe could have."""
    for name, field in section.model_fields.items():
        yield (*prefix, name)
        if depth < 6:
            for inner in section_classes(field.annotation):
                yield from keys(inner, (*prefix, name), depth + 1)


KEYS = sorted(set(keys(Recipe)))
NUMBERS = st.one_of(
    st.integers(-3, 12),
    st.sampled_from([2**31, 2**63, 2**64, -(2**63), 10**30, 10**400]),
    st.floats(),
    st.sampled_from([1e308, -0.0, 5e-324, float("nan"), float("inf")]),
)
TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [
            "",
            " ",
            "none",
            "null",
            "1e-4",
            "0x1F",
            "1:30",
            "2020-01-01",
            "~",
            "..",
            "/",
            "a\0b",
            "é",
            "\ud800",
            "%s",
            "{}",
            "cuda",
            "auto",
            "float32",
            "group",
            "lco-kld",
            "dpo",
            "gae",
            "dense",
            "callable",
            "dataset",
            "os:system",
            "package:cvxrl/../..",
            "package:",
            "package:a/b",
            "~nobody/x",
            "a" * 5000,
            "x.jsonl",
            "x.gguf",
            "(((((a*)*)*)*)*)",
        ]
    ),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(TEXTS, st.just("kind")), inner, max_size=3)
    ),
    max_leaves=6,
)
LITERALS = sorted({f["kind"] for b in BASES for f in [b["objective"], b["advantage"], b["task"]["source"]]})
KINDS = st.fixed_dictionaries({"kind": st.sampled_from([*LITERALS, "nothing"])})


@st.composite
def mutated(draw: Any) -> dict[str, Any]:
    """A shipped recipe with one to four keys set, removed or misspelt."""
    values: dict[str, Any] = json.loads(json.dumps(draw(st.sampled_from(BASES))))
    for _ in range(draw(st.integers(1, 4))):
        *path, last = draw(st.sampled_from(KEYS))
        section: Any = values
        for part in path:
            if not isinstance(section.get(part), dict):
                section[part] = {}
            section = section[part]
        match draw(st.sampled_from(["set", "set", "set", "kind", "remove", "misspell"])):
            case "set":
                section[last] = draw(VALUES)
            case "kind":
                section[last] = draw(KINDS)
            case "remove":
                section.pop(last, None)
            case "misspell":
                section[last + draw(st.text(max_size=2))] = draw(VALUES)
    return values


@st.composite
def overrides(draw: Any) -> list[str]:
    """`--set` texts: keys of the schema or noise, values as YAML or noise."""
    some = []
    for _ in range(draw(st.integers(1, 3))):
        key = draw(st.one_of(st.sampled_from(KEYS).map(".".join), st.text(max_size=8)))
        value = draw(st.one_of(VALUES.map(_inline), st.text(max_size=20)))
        some.append(f"{key}={value}" if draw(st.integers(0, 9)) else key)
    return some


def _inline(value: Any) -> str:
    try:
        return yaml.safe_dump(value, default_flow_style=True, width=10**9).removesuffix("\n...\n").strip()
    except (yaml.YAMLError, UnicodeError):
        return repr(value)


def outcome(recipe: Path, sets: list[str]) -> tuple[int, str]:
    """Exit code and stderr of `cvxrl train RECIPE --set ... --dry-run`, in this process."""

    def hang(*_: object) -> None:
        raise AssertionError("it hangs")

    argv = ["cvxrl", "train", str(recipe), *(f"--set={text}" for text in sets), "--dry-run", "--json"]
    out, err = io.StringIO(), io.StringIO()
    before, handler = sys.argv, signal.signal(signal.SIGALRM, hang)
    signal.alarm(HANG_S)
    try:
        sys.argv = argv
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        if code == 0:
            json.loads(out.getvalue())
        return code, err.getvalue()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        sys.argv = before
    raise AssertionError("main returned")


def check(code: int, said: str) -> None:
    """Planned; or refused, every mistake with the place it is at and what to do."""
    assert code in (0, 2), (code, said)
    if code == 0:
        return
    problems = said.split("error: ")[1:]
    assert problems, said
    for problem in problems:
        assert ": " in problem, f"names no key or file: {problem}"
        assert "\n    -> " in problem, f"no remedy: {problem}"


def write(values: Mapping[str, Any], folder: Path) -> Path | None:
    """The recipe as a file; none if YAML cannot hold it."""
    path = folder / "fuzzed.yaml"
    try:
        path.write_text(yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=False), encoding="utf-8")
    except (yaml.YAMLError, UnicodeError, ValueError):
        return None
    return path


QUICK = settings(
    max_examples=30, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
LONG = settings(QUICK, max_examples=3000, derandomize=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def recipe_survives(values: dict[str, Any], folder: Path) -> None:
    path = write(values, folder)
    if path is not None:
        check(*outcome(path, []))


def set_survives(sets: list[str], folder: Path) -> None:
    check(*outcome(ROOT / "recipes" / "math_grpo.yaml", sets))


def text_survives(text: str, folder: Path) -> None:
    (folder / "text.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    check(*outcome(folder / "text.yaml", []))


YAML_TEXT = st.one_of(st.text(alphabet="ab:{}[]&*!|>-'\"\n #,?%@`~0.\t", max_size=60), st.text(max_size=40))
test_recipes = settings(QUICK, max_examples=10)(given(values=mutated())(recipe_survives))
test_overrides = QUICK(given(sets=overrides())(set_survives))
test_texts = QUICK(given(text=YAML_TEXT)(text_survives))
test_many_recipes = pytest.mark.slow(pytest.mark.timeout(1800)(LONG(given(values=mutated())(recipe_survives))))
test_many_overrides = pytest.mark.slow(pytest.mark.timeout(1800)(LONG(given(sets=overrides())(set_survives))))
test_many_texts = pytest.mark.slow(pytest.mark.timeout(1800)(LONG(given(text=YAML_TEXT)(text_survives))))


@pytest.mark.parametrize("text", ["{'-?b~&0#}': null}", "{a: 1}", "{}", "name: x", "lco-kld: 1", "task: 1"])
def test_mistakes_at_the_root(text: str, folder: Path) -> None:
    """The first of them was found above."""
    text_survives(text, folder)


def test_a_misspelt_key_is_named(folder: Path) -> None:
    """The property above would let any message pass that names some place; a single mistake has a single place."""
    for key in KEYS[::7]:
        code, said = outcome(ROOT / "recipes" / "smoke.yaml", [".".join(key) + "x=1"])
        assert code == 2 and (".".join(key) + "x" in said or key[0] in said), (key, said)
