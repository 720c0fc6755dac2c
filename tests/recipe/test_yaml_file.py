"""Recipes as YAML 1.2 reads them, and aliases that are no recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from helpers import ROOT

from cvxrl.errors import UserError
from cvxrl.recipe.yaml_file import _FastLoader, _Loader, parse_value, read_mapping, write_mapping

READINGS = {
    "010": 10,
    "0o17": 15,
    "0x1F": 31,
    "-0": 0,
    "1:30": "1:30",
    "1_000": "1_000",
    "yes": "yes",
    "off": "off",
    "TRUE": True,
    "2024-05-01": "2024-05-01",
    "1e-4": 1e-4,
    "2e5": 2e5,
    "5.": 5.0,
    "-.5": -0.5,
    "~": None,
    "": None,
    "{a: &x {b: 1}, c: {<<: *x, d: 2}}": {"a": {"b": 1}, "c": {"b": 1, "d": 2}},
    "{a: &x {b: 1}, c: {<<: *x, b: 2}}": {"a": {"b": 1}, "c": {"b": 2}},
    "{a: &x {b: 1}, e: &y {b: 3, f: 1}, c: {<<: [*x, *y]}}": {
        "a": {"b": 1},
        "e": {"b": 3, "f": 1},
        "c": {"b": 1, "f": 1},
    },
}


@pytest.mark.parametrize("text", READINGS)
def test_a_text_is_read_as_version_1_2_reads_it(text: str) -> None:
    value = parse_value(text)
    assert value == READINGS[text]
    assert type(value) is type(READINGS[text])


@pytest.mark.parametrize("recipe", ["math_grpo", "reuse_lco_kld_search", "plans/small"])
def test_libyaml_reads_what_the_careful_loader_reads(recipe: str) -> None:
    text = (ROOT / "recipes" / f"{recipe}.yaml").read_text(encoding="utf-8")
    assert repr(yaml.load(text, Loader=_FastLoader)) == repr(yaml.load(text, Loader=_Loader))


@pytest.mark.skipif(not yaml.__with_libyaml__, reason="PyYAML was built without libyaml")
def test_libyaml_is_what_reads() -> None:
    assert issubclass(_FastLoader, yaml.CSafeLoader)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    texts = [*READINGS, "null", "true", "1e5", ".inf", "<<", "=", "a: b", "é\n", "0123", "1.", "no", "12:30:45"]
    values = {"texts": texts, "numbers": [1, 1e-8, 1e300, 0.1], "none": None, "true": True}
    file = tmp_path / "values.yaml"
    file.write_text(write_mapping(values), encoding="utf-8")
    assert read_mapping(file) == values


def test_half_of_a_surrogate_pair_is_written_and_read_back(tmp_path: Path) -> None:
    values = {"x": "\ud83d", "y": "\U0001f600"}
    file = tmp_path / "recipe.yaml"
    file.write_text(write_mapping(values), encoding="utf-8")
    assert read_mapping(file) == values


def _bomb() -> str:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("self: &s {x: *s}", "inside the value"),
        ("list: &s [1, [*s]]", "inside the value"),
        (_bomb(), "values"),
        ("a: " + "[" * 3000, "nested too deeply"),
        ("seed: " + "9" * 5000, "4300 digits"),
        ("optim: {<<: 3}", "mapping"),
    ],
)
def test_what_is_no_tree_of_values_is_refused(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        read_mapping(file)
    assert words in str(error.value) and str(file) in str(error.value)
