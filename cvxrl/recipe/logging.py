"""What is saved and logged beside the metrics, and where else these go, as recipe sections."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from cvxrl.recipe.base import NEUTRAL, FunctionName, Section


class CheckpointSpec(Section):
    """When the trainer's state is saved."""

    every: NonNegativeInt = Field(0, description="Save every N steps; 0 saves only when interrupted.")
    keep: PositiveInt = Field(2, description="Newest checkpoints kept; older ones are removed.")
    best: bool = Field(
        True,
        description="Also keep the checkpoint with the highest `eval/accuracy` (the earliest of equals) among those "
        "taken at a step that was evaluated.",
    )


class CsvSink(Section):
    """A table in the run directory."""

    kind: Literal["csv"] = Field("csv", description="`metrics.csv`: a row per step, a column per key.")


class CallableSink(Section):
    """A class of yours."""

    kind: Literal["callable"] = Field("callable", description="An object that a python function or class makes.")
    function: FunctionName = Field(
        description="`module:Class`; called with the run directory (a `Path`), the resolved recipe (a mapping) and "
        "`options`, returns an object with the methods of `cvxrl.runs.sink.Sink`; a base class without any effect is "
        "`cvxrl.runs.sink.NullSink`. The working directory is searched too."
    )
    options: dict[str, Any] = Field({}, description="Keyword arguments of the function.")


SinkSpec = Annotated[CsvSink | CallableSink, Field(discriminator="kind")]


class LoggingSpec(Section):
    """What is written besides metrics."""

    samples: Annotated[NonNegativeInt, NEUTRAL] = Field(
        4, description="Readable completions stored with every evaluation."
    )
    kl_sequences: NonNegativeInt = Field(
        32,
        description="Sequences of each step on which KL(before || after the update) is estimated; 0 is never. That "
        "estimate is what `guards.kl` reads.",
    )
    gradients: Annotated[NonNegativeInt, NEUTRAL] = Field(
        0,
        description="Every N steps, log gradient norms by kind of module and, for one group of completions, the shares "
        "of tokens that are convex, pull away from their target or are frozen (docs/inspect.md); 0 is never.",
    )
    sinks: Annotated[tuple[SinkSpec, ...], NEUTRAL] = Field(
        (),
        description="Where the metrics go besides metrics.jsonl and the display, e.g. `[{kind: csv}]`. A sink that "
        "fails is named once and left out from then on; training goes on.",
    )
