"""What is watched, saved and logged while a run trains, as recipe sections."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from cvxrl.recipe.base import ADDED, NEUTRAL, FunctionName, Section

_ACTION = "`warn` says so once and goes on; `stop` ends the run as diverged, which `compare` counts."


class EntropyGuard(Section):
    """`policy/entropy` below `below` for `patience` steps in a row: the policy has stopped exploring."""

    below: NonNegativeFloat = Field(description="Lowest mean entropy, in nats per token.")
    patience: PositiveInt = Field(5, description="Steps in a row before the guard acts.")
    action: Literal["warn", "stop"] = Field("warn", description=_ACTION)


class KlGuard(Section):
    """`policy/kl` above `above` for `patience` steps in a row: a step moves the policy too far."""

    above: PositiveFloat = Field(
        description="Largest KL(policy that sampled, policy after the step), in nats per token."
    )
    patience: PositiveInt = Field(1, description="Steps in a row before the guard acts.")
    action: Literal["warn", "stop"] = Field("warn", description=_ACTION)


class RewardGuard(Section):
    """Mean `reward/mean` of the last `window` steps at least `drop` below the best such mean so far: collapse."""

    drop: PositiveFloat = Field(description="Fall of the windowed mean from its maximum, in units of reward.")
    window: PositiveInt = Field(10, description="Steps that are averaged.")
    action: Literal["warn", "stop"] = Field("warn", description=_ACTION)


class GuardsSpec(Section):
    """Rules that watch the metrics; each is off unless given."""

    entropy: EntropyGuard | None = Field(None, description="Entropy collapse.")
    kl: KlGuard | None = Field(None, description="KL explosion.")
    reward: RewardGuard | None = Field(None, description="Reward collapse.")


class CheckpointSpec(Section):
    """When the trainer's state is saved."""

    every: NonNegativeInt = Field(0, description="Save every N steps; 0 saves only when interrupted, and at the end.")
    final: bool = Field(
        True, description="Also save at the last step, from which `--resume --set train.steps=N` goes on."
    )
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
        "`cvxrl.runs.sink.NullSink`, whose further methods get completions and figures. The working directory is "
        "searched too."
    )
    options: dict[str, Any] = Field({}, description="Keyword arguments of the function.")


_PATIENCE = "Seconds that the end of the run waits for what has not been sent; training itself never waits."
_PROJECT = "Project on the dashboard."
_NAME = "Name of the run there; without one, `<recipe name>-seed-<seed>`."
_GROUP = "Runs of one group are shown together; without one, the recipe's name."


class TensorboardSink(Section):
    """Event files for TensorBoard; needs `pip install "cvxrl[tensorboard]"`."""

    kind: Literal["tensorboard"] = Field(
        "tensorboard", description="Scalars, completions, learning curves, recipe and hyperparameters."
    )
    directory: str | None = Field(
        None,
        description="Folder for `<recipe name>/seed-<seed>/` with the event files; without one, `tensorboard/` in the "
        "run directory.",
    )
    patience: PositiveFloat = Field(30.0, description=_PATIENCE)


class TrackioSink(Section):
    """A run of trackio; needs `pip install "cvxrl[trackio]"`."""

    kind: Literal["trackio"] = Field(
        "trackio", description="In trackio's database on this machine (`TRACKIO_DIR`), or on a Hugging Face Space."
    )
    project: str = Field("cvxrl", description=_PROJECT)
    name: str | None = Field(None, description=_NAME)
    group: str | None = Field(None, description=_GROUP)
    space: str | None = Field(None, description="`owner/name` of a Space that it is sent to; without one, stays here.")
    patience: PositiveFloat = Field(30.0, description=_PATIENCE)


class WandbSink(Section):
    """A run of Weights & Biases; needs `pip install "cvxrl[wandb]"`."""

    kind: Literal["wandb"] = Field("wandb", description="On its server, or in a directory that `wandb sync` sends.")
    project: str = Field("cvxrl", description=_PROJECT)
    entity: str | None = Field(None, description="User or team; without one, W&B's default for the login.")
    name: str | None = Field(None, description=_NAME)
    group: str | None = Field(None, description=_GROUP)
    tags: tuple[str, ...] = Field((), description="Tags besides the recipe's name and `seed-<seed>`.")
    mode: Literal["online", "offline"] | None = Field(
        None, description="Without one, what W&B's own settings say (`WANDB_MODE`), which is online by default."
    )
    directory: str | None = Field(
        None, description="Folder for `wandb/`; without one, `WANDB_DIR`, or the run directory."
    )
    patience: PositiveFloat = Field(30.0, description=_PATIENCE)


SinkSpec = Annotated[CsvSink | TensorboardSink | TrackioSink | WandbSink | CallableSink, Field(discriminator="kind")]


class LoggingSpec(Section):
    """What is written besides metrics."""

    samples: Annotated[NonNegativeInt, NEUTRAL] = Field(
        4, description="Readable completions stored with every evaluation, and with every step of `rollouts`."
    )
    rollouts: Annotated[NonNegativeInt, NEUTRAL] = Field(
        10,
        description="At step 1 and every N steps, store as many of the completions that the step collects to train on, "
        "with probabilities and advantages token by token; 0 is never.",
    )
    kl_sequences: NonNegativeInt = Field(
        32,
        description="Sequences of each step on which KL(policy that sampled || policy after it) is estimated; 0 is "
        "never. That estimate is what `guards.kl` reads.",
    )
    idle_groups: Annotated[bool, ADDED] = Field(
        True,
        description="Whether groups that have no gradient, since all their rewards are alike, get a forward pass for "
        "`policy/entropy` and what comes with the loss. Without it those are means over the other groups; training is "
        "the same.",
    )
    gradients: Annotated[NonNegativeInt, NEUTRAL] = Field(
        0,
        description="Every N steps, log gradient norms by kind of module and, for one group of completions, the shares "
        "of tokens that are convex, pull away from their target or are frozen (docs/inspect.md); 0 is never.",
    )
    updates: Annotated[bool, NEUTRAL] = Field(
        False,
        description="Also write every optimizer step by itself, a line of `updates.jsonl` each; metrics.jsonl has the "
        "means over those of a rollout.",
    )
    sinks: Annotated[tuple[SinkSpec, ...], NEUTRAL] = Field(
        (),
        description="Where the metrics go besides metrics.jsonl and the display, e.g. `[csv, wandb]` or "
        "`[{kind: wandb, project: mine}]` (docs/dashboards.md). A sink that fails is named once and left out from then "
        "on; training goes on.",
    )
