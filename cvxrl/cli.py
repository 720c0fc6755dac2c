"""The command line: one Typer application over the commands, and the exit code of a user's mistake."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated

import typer

from cvxrl import __version__
from cvxrl.commands import INTERRUPTED, LOST, USER_ERROR, command_to_go_on, complain
from cvxrl.commands.compare import CompareCommand, compare
from cvxrl.commands.eval import EvalCommand, evaluate
from cvxrl.commands.help import SETTINGS, Group
from cvxrl.commands.inspect_grads import InspectCommand, inspect_grads
from cvxrl.commands.train import TrainCommand, train
from cvxrl.errors import Problem, UserError
from cvxrl.ranks import RankLostError, this_rank

app = typer.Typer(
    name="cvxrl",
    cls=Group,
    help="Logits-convex policy optimization of language models: train, evaluate, compare, inspect.",
    no_args_is_help=True,
    context_settings=SETTINGS,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"cvxrl {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Logits-convex policy optimization of language models."""
    name = context.invoked_subcommand
    if this_rank() is not None and name not in ("train", "eval"):
        remedy = "start it by itself; torchrun is for train and eval"
        raise UserError(Problem(f"`{name}` runs in one process", remedy=remedy))


app.command(cls=TrainCommand)(train)
app.command(cls=CompareCommand)(compare)
app.command("eval", cls=EvalCommand)(evaluate)
app.command("inspect-grads", cls=InspectCommand)(inspect_grads)


def main() -> None:
    """Entry point: run the command and turn user errors into messages and exit code 2."""
    if this_rank() is None:
        _run(nullcontext())
        return
    # Where the main rank keeps the store and leaves first, torch would print frames of C++ for each of the others.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from cvxrl.engine.torch_world import join  # one of several processes: an error of any ends all

    with join() as world:
        _run(world.agreed())


def _run(agreed: AbstractContextManager[None]) -> None:
    try:
        with agreed:
            app()
    except UserError as error:
        for problem in error.problems:
            complain(f"error: {problem}")
        sys.exit(USER_ERROR)
    except RankLostError as error:
        # The launcher ends what it finds running; this process says why, and leaves with the code that says it too.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        complain(f"error: {error}; go on with: {command_to_go_on('--resume')}")
        sys.exit(LOST)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
