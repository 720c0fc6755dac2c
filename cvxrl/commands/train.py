"""`cvxrl train`, and what there is to train: recipes below its help, with `--list` also kinds of sections."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from cvxrl.commands import DIVERGED, DONE, INTERRUPTED, command_to_go_on
from cvxrl.commands.completion import recipe_keys, recipe_names
from cvxrl.commands.dry_run import Bandwidth, Flops, Machine, Memory, Ranks, print_plan
from cvxrl.commands.help import Command, section
from cvxrl.errors import Mistakes, UserError
from cvxrl.imports import loading_libraries
from cvxrl.ranks import RankLostError, is_main, this_rank

if TYPE_CHECKING:
    from cvxrl.recipe.schema import Recipe
    from cvxrl.runs.entry import Entry


class TrainCommand(Command):
    """A command whose help lists the recipes that it can be given by name."""

    examples: ClassVar = {
        "cvxrl train math_grpo": "a recipe of the package, on the embedded policy",
        "cvxrl train my.yaml --set optim.lr=1e-3 --seed 1": "a recipe of yours, changed",
        "cvxrl train math_grpo --resume": "go on with a run that was interrupted",
        "cvxrl train math_grpo --dry-run": "every key with its value, and what would run",
    }

    def more(self) -> Iterator[str]:
        """A line per recipe; their files are read only now."""
        yield from _recipes()
        yield " Recipes of the paper's scale, objectives, advantages: cvxrl train --list"
        yield " Every key of a recipe: --dry-run"
        yield ""


def _list_and_exit(asked: bool) -> None:
    """Callback of `--list`: recipes, objectives and advantages, a line each, on stdout."""
    if not asked:
        return
    from cvxrl.recipe.advantage import AdvantageSpec
    from cvxrl.recipe.objective import ObjectiveSpec
    from cvxrl.recipe.shipped import PAPER

    objectives = section("Objectives: objective.kind", _kinds(ObjectiveSpec))
    advantages = section("Advantages: advantage.kind", _kinds(AdvantageSpec))
    typer.echo("\n".join([*_recipes(), *_recipes(PAPER), *objectives, *advantages]))
    raise typer.Exit


def train(
    recipe: Annotated[
        Path,
        typer.Argument(
            metavar="RECIPE", help="Recipe file, or a name from the list below.", autocompletion=recipe_names
        ),
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Override a recipe key; repeatable. --dry-run prints the keys.",
            autocompletion=recipe_keys,
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Override the recipe's seed.")] = None,
    out: Annotated[Path, typer.Option(help="Output folder.")] = Path("outputs"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run, or begin it.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start an existing run again.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would run, and stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
    ranks: Ranks = None,
    device_memory: Memory = None,
    device_flops: Flops = None,
    device_bandwidth: Bandwidth = None,
    _list: Annotated[
        bool,
        typer.Option(
            "--list", callback=_list_and_exit, is_eager=True, help="List recipes, objectives, advantages, and stop."
        ),
    ] = False,
) -> None:
    """Train a policy as a recipe says."""
    from cvxrl.recipe.load import load_recipe
    from cvxrl.runs.entry import entry_of

    mistakes = Mistakes()
    entry = mistakes.attempt(entry_of, resume, overwrite)
    machine = mistakes.attempt(Machine.of, ranks, device_memory, device_flops, device_bandwidth)
    resolved = mistakes.attempt(load_recipe, recipe, set_ or [], seed)
    if entry is None or machine is None or resolved is None:
        raise UserError(*mistakes.problems)
    if dry_run:
        print_plan(resolved, machine, as_json)
        return
    _train(resolved, out, entry, as_json)


def _train(recipe: Recipe, out: Path, entry: Entry, as_json: bool) -> None:
    from cvxrl.runs.directory import RunDir

    run_dir = RunDir.of(out, recipe)
    if this_rank() is None:
        run_dir.check(recipe, entry)  # before the seconds that importing torch takes
    with loading_libraries():
        from cvxrl.engine.session import run_training
        from cvxrl.engine.torch_world import world_of
        from cvxrl.report.display import make_sink

    try:
        with make_sink(sys.stderr if as_json else sys.stdout) as display:
            go_on = command_to_go_on("--resume")
            result = run_training(recipe, run_dir, display, entry, go_on, world_of(recipe))
    except (UserError, RankLostError):
        raise
    except Exception:
        if run_dir.path.is_dir() and is_main():
            from cvxrl.runs.secrets import redact

            with contextlib.suppress(OSError):
                run_dir.log.write_text(redact(traceback.format_exc()), encoding="utf-8", errors="backslashreplace")
        raise
    if as_json:
        from cvxrl.runs.files import json_line

        document = {
            "status": result.status,
            "run": str(result.run_dir),
            "result": dict(result.result),
            "divergence": result.divergence.model_dump() if result.divergence else None,
        }
        typer.echo(json_line(document))
    codes = {"finished": DONE, "diverged": DIVERGED, "interrupted": INTERRUPTED}
    raise typer.Exit(codes[result.status])


def _recipes(folder: str = "") -> Iterator[str]:
    from cvxrl.recipe.shipped import PAPER, headline, shipped_recipes

    of_paper = {name: file for name, file in shipped_recipes().items() if file.parent.name == PAPER}
    shown = of_paper if folder else {n: file for n, file in shipped_recipes().items() if n not in of_paper}
    title = "Recipes of the paper's scale, in docs/scale.md" if folder else "Recipes"
    return section(title, {name: headline(file) for name, file in shown.items()})


def _kinds(union: Any) -> dict[str, str]:
    """Kinds of a section with what its `kind` field says of itself."""
    from cvxrl.recipe.base import kind_of, section_classes

    return {str(kind_of(spec)): spec.model_fields["kind"].description or "" for spec in section_classes(union)}
