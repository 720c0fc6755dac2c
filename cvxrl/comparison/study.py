"""A study as a file: methods, regimes, a stage that tunes, one that confirms on fresh seeds, and the rule that judges.

Everything that could be decided after looking at results is decided in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, PositiveFloat, field_validator, model_validator

from cvxrl.comparison.gate import Gate, parse_gate
from cvxrl.comparison.options import parse_seeds
from cvxrl.errors import Problem, UserError
from cvxrl.recipe.base import RunName, Section
from cvxrl.recipe.load import check
from cvxrl.recipe.merge import Layers
from cvxrl.recipe.shipped import find_recipe
from cvxrl.recipe.yaml_file import read_mapping, write_value

_MARK = "study"

# Dotted recipe keys and their values, as `--set` takes them.
Settings = dict[str, Any]


class StudiedMethod(Section):
    """One of the methods that are compared."""

    recipe: str = Field(description="Recipe file, relative to the plan, or the name of one of the package.")
    set: Settings = Field({}, description="Dotted recipe keys and values laid over it.")
    alternatives: tuple[Settings, ...] = Field(
        (), description="Settings tried one by one at the best value of the tuning stage; the best of all is confirmed."
    )


class Regime(Section):
    """A way of training, in which every method is run."""

    set: Settings = Field({}, description="Dotted recipe keys and values.")
    values: tuple[PositiveFloat, ...] | None = Field(
        None, min_length=1, description="Values of the varied key to tune over here, instead of the stage's."
    )


class Tuning(Section):
    """The stage that chooses a value of the varied key for every method and regime."""

    values: tuple[PositiveFloat, ...] = Field(min_length=1, description="Values of the varied key.")
    seeds: str = Field(description="Training seeds, such as 100-101; no confirmatory seed may be among them.")
    by: Literal["area", "mean"] = Field(
        "area", description="What is highest at the chosen value: mean area under the curve, or mean final score."
    )


class Confirmation(Section):
    """The stage whose runs are judged."""

    seeds: dict[float, str] = Field(
        min_length=1, description="For each multiple of the chosen value, its training seeds, such as {1: 0-9, 2: 0-5}."
    )

    @field_validator("seeds")
    @classmethod
    def _the_chosen_value_itself(cls, seeds: dict[float, str]) -> dict[float, str]:
        if 1.0 not in seeds or any(multiple <= 0 for multiple in seeds):
            raise ValueError("multiples are positive, and 1 is among them; write {1: 0-9, 2: 0-5}")
        return seeds


class Rule(Section):
    """A verdict and what it takes."""

    verdict: str = Field(min_length=1, description="What is concluded where all requirements hold.")
    when: tuple[str, ...] = Field(
        min_length=1,
        description="Requirements as `--require` takes them; a method in a regime is METHOD@REGIME. What speaks of "
        "`headroom` is held against all confirmatory runs, everything else against those at the chosen values.",
    )


class Study(Section):
    """A plan: what is run, and what will be said of it."""

    study: Literal[1] = Field(1, description="Version of this format; marks the file as a plan.")
    name: RunName = Field(description="Folder of its runs below the output folder.")
    question: str = Field(min_length=1, description="What is to be decided, in a sentence.")
    set: Settings = Field({}, description="Dotted recipe keys and values for all runs.")
    methods: dict[RunName, StudiedMethod] = Field(
        min_length=2, description="Methods by name; the first is the baseline."
    )
    regimes: dict[RunName, Regime] = Field({"all": Regime()}, min_length=1, description="Regimes by name.")
    vary: str = Field("optim.lr", description="Recipe key that is tuned and then exceeded.")
    tuning: Tuning = Field(description="First stage.")
    confirmation: Confirmation = Field(description="Second stage.")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Of intervals and verdicts.")
    rules: tuple[Rule, ...] = Field(
        min_length=1, description="In order; the first whose requirements hold is the verdict."
    )
    otherwise: str = Field("undecided", description="Verdict where no rule holds.")

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        wrong = list(_contradictions(self))
        if wrong:
            raise ValueError("\n".join(wrong))
        return self

    @property
    def labels(self) -> list[str]:
        """Every method in every regime, as rules name them."""
        return [f"{method}@{regime}" for regime in self.regimes for method in self.methods]

    @property
    def gates(self) -> list[list[Gate]]:
        """Requirements of each rule."""
        return [[parse_gate(text) for text in rule.when] for rule in self.rules]


def is_study(path: Path) -> bool:
    """Whether a YAML file is a plan rather than a recipe."""
    if path.suffix not in (".yaml", ".yml") or not path.is_file():
        return False
    try:
        return _MARK in read_mapping(path)
    except UserError:
        return False  # whoever reads it as a recipe says what is wrong


def load_study(path: Path) -> Study:
    """Read and check a plan.

    Raises:
        UserError: with one problem per mistake.
    """
    layers = Layers(Study)
    layers.add(read_mapping(path), str(path))
    return check(Study, layers)


def _contradictions(study: Study) -> Iterator[str]:
    """Lines of the form `key: what is wrong; remedy`."""
    taken: set[int] = set()
    for key, text in _seed_texts(study):
        try:
            seeds = set(parse_seeds(text))
        except UserError as error:
            yield f"{key}: {error.problems[0].message}; write e.g. 0-4"
            continue
        if key == "tuning.seeds":
            taken = seeds
        elif both := sorted(seeds & taken):
            yield f"{key}: seed {both[0]} was used to choose the value; take fresh seeds"
    for number, rule in enumerate(study.rules):
        for text in rule.when:
            try:
                gate = parse_gate(text)
            except UserError as error:
                yield f"rules.{number}.when: {error.problems[0].message}; {error.problems[0].remedy.replace(';', ',')}"
                continue
            for name in (*gate.names, *gate.swept):
                if name not in study.labels:
                    yield f"rules.{number}.when: there is no {name}; there are {', '.join(study.labels)}"


def _seed_texts(study: Study) -> Iterator[tuple[str, str]]:
    yield "tuning.seeds", study.tuning.seeds
    for multiple, text in study.confirmation.seeds.items():
        yield f"confirmation.seeds.{multiple:g}", text


def as_overrides(*settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Settings as `--set` texts, later ones last."""
    return tuple(f"{key}={write_value(value)}" for one in settings for key, value in one.items())


def recipe_of(method: StudiedMethod, plan: Path) -> Path:
    """Recipe file of a method.

    Raises:
        UserError: there is none.
    """
    beside = plan.resolve().parent / method.recipe
    if beside.is_file():
        return beside
    try:
        found = find_recipe(method.recipe)
    except UserError as error:
        raise UserError(*(Problem(p.message, "methods", str(plan), p.remedy) for p in error.problems)) from None
    if not found.is_file():
        raise UserError(Problem(f"there is no recipe {found}", "methods", str(plan), "paths are relative to the plan"))
    return found
