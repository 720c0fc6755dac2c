"""A study as a file: methods, regimes, a stage that tunes, one that confirms on fresh seeds, grids, and the rule.

Everything that could be decided after looking at results is decided in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PositiveFloat, field_validator, model_validator

from cvxrl.comparison.gate import Gate, parse_gate
from cvxrl.errors import Problem, UserError
from cvxrl.recipe.base import RunName, Section
from cvxrl.recipe.load import check
from cvxrl.recipe.merge import Layers
from cvxrl.recipe.shipped import find_recipe
from cvxrl.recipe.yaml_file import read_mapping, write_value

_MARK = "study"

# Dotted recipe keys and their values, as `--set` takes them.
Settings = dict[str, Any]
# Training seeds, such as `0-9`, or `3` alone, which YAML reads as a number.
Seeds = Annotated[str, BeforeValidator(lambda seeds: str(seeds) if type(seeds) is int else seeds)]
# Seeds for each multiple of the chosen value.
Multiples = dict[float, Seeds]


class StudiedMethod(Section):
    """One of the methods that are compared."""

    recipe: str = Field(description="Recipe file, relative to the plan, or the name of one of the package.")
    set: Settings = Field({}, description="Dotted recipe keys and values laid over it.")
    alternatives: tuple[Settings, ...] = Field(
        (), description="Settings tried one by one at the best value of the tuning stage; the best of all is confirmed."
    )
    regimes: tuple[RunName, ...] | None = Field(
        None, description="Regimes in which it is tuned and confirmed; none means all, an empty list only grids."
    )
    values: dict[RunName, tuple[PositiveFloat, ...]] = Field(
        {}, description="By regime: its own values of the varied key to tune over."
    )
    confirm: Multiples | None = Field(
        None, description="Its own confirmatory seeds for each multiple, instead of the stage's."
    )

    @field_validator("confirm")
    @classmethod
    def _as_confirmed(cls, seeds: Multiples | None) -> Multiples | None:
        return None if seeds is None else _checked_multiples(seeds)


class Regime(Section):
    """A way of training, in which every method is run."""

    set: Settings = Field({}, description="Dotted recipe keys and values.")
    values: tuple[PositiveFloat, ...] | None = Field(
        None, min_length=1, description="Values of the varied key to tune over here, instead of the stage's."
    )


class Tuning(Section):
    """The stage that chooses a value of the varied key for every method and regime."""

    values: tuple[PositiveFloat, ...] = Field(min_length=1, description="Values of the varied key.")
    seeds: Seeds = Field(description="Training seeds, such as 100-101; no confirmatory seed may be among them.")
    by: Literal["area", "mean"] = Field(
        "area", description="What is highest at the chosen value: mean area under the curve, or mean final score."
    )


class Confirmation(Section):
    """The stage whose runs are judged."""

    seeds: Multiples = Field(
        min_length=1, description="For each multiple of the chosen value, its training seeds, such as {1: 0-9, 2: 0-5}."
    )

    @field_validator("seeds")
    @classmethod
    def _as_confirmed(cls, seeds: Multiples) -> Multiples:
        return _checked_multiples(seeds)


class Grid(Section):
    """Methods at values of the varied key that are fixed beforehand, or at multiples of the chosen one."""

    methods: tuple[RunName, ...] = Field(min_length=1, description="Methods that are run.")
    regimes: tuple[RunName, ...] | None = Field(None, description="Regimes in which they are; none means all.")
    set: Settings = Field({}, description="Dotted recipe keys and values, laid over the regime's.")
    values: tuple[PositiveFloat, ...] = Field((), description="Values of the varied key; needs no tuning.")
    multiples: tuple[PositiveFloat, ...] = Field(
        (), description="Multiples of the chosen value, in place of values; of methods that are tuned."
    )
    seeds: Seeds = Field(description="Training seeds of every cell.")

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if bool(self.values) == bool(self.multiples):
            raise ValueError("give values or multiples; write e.g. values: [1.0e-4, 1.0e-3]")
        return self


class Rule(Section):
    """A verdict and what it takes."""

    verdict: str = Field(min_length=1, description="What is concluded where all requirements hold.")
    when: tuple[str, ...] = Field(
        min_length=1,
        description="Requirements as `--require` takes them. METHOD@REGIME is a method at its chosen value, "
        "METHOD@REGIME[x4] at four times it, METHOD@REGIME@GRID[optim.lr=0.001] in a grid; `headroom` is of all "
        "values.",
    )


class Study(Section):
    """A plan: what is run, and what will be said of it."""

    study: Literal[1] = Field(1, description="Version of this format; marks the file as a plan.")
    name: RunName = Field(description="Folder of its runs below the output folder.")
    question: str = Field(min_length=1, description="What is to be decided, in a sentence.")
    set: Settings = Field({}, description="Dotted recipe keys and values for all runs.")
    methods: dict[RunName, StudiedMethod] = Field(
        min_length=1, description="Methods by name; the first is the baseline."
    )
    regimes: dict[RunName, Regime] = Field({"all": Regime()}, min_length=1, description="Regimes by name.")
    vary: str = Field("optim.lr", description="Recipe key that is tuned and then exceeded.")
    tuning: Tuning | None = Field(None, description="First stage; none where there are only grids.")
    confirmation: Confirmation | None = Field(None, description="Second stage; none where there are only grids.")
    grids: dict[RunName, Grid] = Field({}, description="Third stage: grids by name.")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Of intervals and verdicts.")
    rules: tuple[Rule, ...] = Field(
        min_length=1, description="In order; the first whose requirements hold is the verdict."
    )
    otherwise: str = Field("undecided", description="Verdict where no rule holds.")

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        from cvxrl.study.contradictions import contradictions

        wrong = list(contradictions(self))
        if wrong:
            raise ValueError("\n".join(wrong))
        return self

    @property
    def tuned(self) -> list[tuple[str, str]]:
        """Method and regime of whatever is tuned and confirmed, the baseline first; regimes in order."""
        if self.tuning is None:
            return []
        return [(method, regime) for regime in self.regimes for method in self.methods if self.runs_in(method, regime)]

    @property
    def labels(self) -> list[str]:
        """The same as rules name them."""
        return [f"{method}@{regime}" for method, regime in self.tuned]

    @property
    def gates(self) -> list[list[Gate]]:
        """Requirements of each rule."""
        return [[parse_gate(text) for text in rule.when] for rule in self.rules]

    def runs_in(self, method: str, regime: str) -> bool:
        """Whether a method is tuned and confirmed in a regime."""
        own = self.methods[method].regimes
        return own is None or regime in own

    def multiples(self, method: str) -> Multiples:
        """Confirmatory seeds of a method for each multiple of its chosen value."""
        stage = {} if self.confirmation is None else self.confirmation.seeds
        own = self.methods[method].confirm
        return stage if own is None else own


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


def _checked_multiples(seeds: Multiples) -> Multiples:
    if 1.0 not in seeds or any(multiple <= 0 for multiple in seeds):
        raise ValueError("multiples are positive, and 1 is among them; write {1: 0-9, 2: 0-5}")
    return seeds
