"""From a foreign checkpoint and options to what is measured, and under which recipe. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from cvxrl.errors import Problem, UserError
from cvxrl.evaluation.target import Target
from cvxrl.inspection.foreign.checkpoint import ForeignCheckpoint
from cvxrl.inspection.foreign.choice import choose_file, describe_choice
from cvxrl.inspection.foreign.completions import OPTION, StoredCompletions, read_completions
from cvxrl.inspection.foreign.settings import not_followed, recipe_of
from cvxrl.inspection.options import InspectOptions
from cvxrl.inspection.sources import Checkpoint, Checkpoints
from cvxrl.recipe.load import load_recipe
from cvxrl.recipe.schema import Recipe


def plan_foreign(found: Sequence[ForeignCheckpoint], options: InspectOptions, steps: list[int] | None) -> Checkpoints:
    """What is looked at of the checkpoints of another trainer.

    Args:
        found: in the order of training, at least one.
        options: as given.
        steps: of `--step`.

    Raises:
        UserError: there is no such step; no recipe, or none that their settings amount to; no completions.
    """
    chosen = _chosen(found, options, steps)
    stored = [_stored(checkpoint, options) for checkpoint in chosen]
    known = [one for one in stored if one is not None]
    if len(known) < len(stored):
        if known:  # numbers on stored and on sampled prompts do not stand beside each other
            missing = ", ".join(str(c.step) for c, one in zip(chosen, stored, strict=True) if one is None)
            raise UserError(Problem(f"step {missing} has no stored completions", "--step", remedy="leave it out"))
        recipe = _named(options, chosen[-1].path)
    elif options.recipe is not None:
        recipe = load_recipe(options.recipe, options.sets)
    else:
        recipe = recipe_of(chosen[-1], known[-1], options.sets)
    if known:
        known, recipe = _alike(known, recipe)
    sources = [_source(checkpoint, known[i] if known else None, recipe, options) for i, checkpoint in enumerate(chosen)]
    return Checkpoints(recipe, sources, Target(options.path, options.path).folder("inspect"))


def stored_for_policy(target: Target, options: InspectOptions) -> StoredCompletions | None:
    """Completions that were named for a policy of no trainer's checkpoint."""
    if options.completions is None or options.fresh:
        return None
    file = choose_file(None, options.completions)
    return None if file is None else _first(read_completions(file, None), options)


def with_shape(recipe: Recipe, stored: StoredCompletions) -> Recipe:
    """The recipe with the prompts and samples of stored completions."""
    size = {"prompts": len(stored.prompts), "samples": stored.samples, "rounds": 1}
    return recipe.model_copy(update={"rollout": recipe.rollout.model_copy(update=size)})


def _chosen(
    found: Sequence[ForeignCheckpoint], options: InspectOptions, steps: list[int] | None
) -> list[ForeignCheckpoint]:
    by_step = {checkpoint.step: checkpoint for checkpoint in found}
    if options.all_steps:
        return list(by_step.values())
    if steps is None:
        return [found[-1]]
    missing = [str(step) for step in steps if step not in by_step]
    if missing:
        remedy = f"choose from {', '.join(map(str, by_step))}"
        what = f"there is no checkpoint of step {', '.join(missing)}"
        raise UserError(Problem(what, "--step", options.path, remedy))
    return [by_step[step] for step in sorted(set(steps))]


def _stored(checkpoint: ForeignCheckpoint, options: InspectOptions) -> StoredCompletions | None:
    if options.fresh:
        return None
    file = choose_file(checkpoint, options.completions)
    return None if file is None else _first(read_completions(file, checkpoint), options)


def _first(stored: StoredCompletions, options: InspectOptions) -> StoredCompletions:
    """As many prompts as were asked for."""
    problems = []
    if options.prompts is not None and options.prompts > len(stored.prompts):
        what = f"{options.prompts} prompts, and {stored.file.name} holds {len(stored.prompts)}"
        problems.append(Problem(what, "--prompts", remedy="ask for fewer, or sample anew: --recipe RECIPE --fresh"))
    if options.samples is not None and options.samples != stored.samples:
        what = f"{stored.file.name} holds {stored.samples} completions of each prompt, whose advantages belong together"
        problems.append(Problem(what, "--samples", remedy="leave it out, or sample anew: --recipe RECIPE --fresh"))
    if problems:
        raise UserError(*problems)
    first = stored.first(options.prompts or len(stored.prompts))
    # A recipe that was named says how rewards become advantages.
    return replace(first, advantages=None) if options.recipe is not None and first.rewards is not None else first


def _named(options: InspectOptions, path: Path) -> Recipe:
    """The recipe that says what is sampled.

    Raises:
        UserError: none was named.
    """
    if options.recipe is not None:
        return load_recipe(options.recipe, options.sets)
    what = "with --fresh" if options.fresh else f"without stored completions ({path.parent / 'completions'})"
    raise UserError(
        Problem(
            f"{what} there is nothing to measure on: the checkpoint names no task",
            "--recipe",
            remedy=f"name one that does, e.g. --recipe math_grpo; or completions that TRL stored, with {OPTION}",
        )
    )


def _alike(stored: list[StoredCompletions], recipe: Recipe) -> tuple[list[StoredCompletions], Recipe]:
    """As many prompts for every checkpoint as the fewest have, and the recipe with that shape."""
    if len({one.samples for one in stored}) > 1:
        sizes = ", ".join(f"{one.samples} in {one.file.name}" for one in stored)
        what = f"completions per prompt differ between the steps: {sizes}"
        raise UserError(Problem(what, "--step", remedy="look at them one by one"))
    fewest = min(len(one.prompts) for one in stored)
    return [one.first(fewest) for one in stored], with_shape(recipe, stored[0].first(fewest))


def _source(
    checkpoint: ForeignCheckpoint, stored: StoredCompletions | None, recipe: Recipe, options: InspectOptions
) -> Checkpoint:
    target = Target(str(checkpoint.path), str(checkpoint.path))
    model = target.model(recipe.model.dtype, None).model_copy(
        update={"trust_remote_code": recipe.model.trust_remote_code}
    )
    notes = [*_loss(checkpoint, recipe, options)]
    if stored is not None:
        notes += describe_choice(stored, checkpoint)
    else:
        notes.append("completions are sampled anew, from the recipe's task; which prompts came next is not known")
    source = Checkpoint(checkpoint.step, model, None, foreign=checkpoint, stored=stored)
    return replace(source, notes=tuple(notes))


def _loss(checkpoint: ForeignCheckpoint, recipe: Recipe, options: InspectOptions) -> Iterator[str]:
    """Whose loss is measured, and what of the trainer's is not in it."""
    known = bool(checkpoint.settings)
    if options.recipe is not None:
        differ = ", ".join(_differences(checkpoint, recipe))
        yield f"loss, advantage and optimizer are those of {recipe.name}" + (
            f"; the trainer had {differ}" if differ else ""
        )
    else:
        yield (
            "loss, reduction and optimizer are those of training_args.bin, read without unpickling; what a class of "
            "the user's own does otherwise is not known"
        )
    if not known:
        yield "the trainer's settings are not known: there is no readable training_args.bin"
    left = list(not_followed(checkpoint)) if options.recipe is None else []
    if left:
        yield f"not computed: {'; '.join(left)}"
    if recipe.regularizer.kl_coefficient or "reference_logprobs" in recipe.objective.needs:
        yield f"the policy that training started from is not known: the reference is {recipe.model.path}"


def _differences(checkpoint: ForeignCheckpoint, recipe: Recipe) -> Iterator[str]:
    for key, name, own in (
        ("learning_rate", "learning rate", recipe.optim.lr),
        ("weight_decay", "weight decay", recipe.optim.weight_decay),
        ("max_grad_norm", "max_grad_norm", recipe.optim.max_grad_norm),
        ("temperature", "temperature", recipe.rollout.temperature),
    ):
        theirs = checkpoint.settings.get(key)
        if theirs is not None and theirs != own:
            yield f"{name} {theirs:g}"
    kind = checkpoint.settings.get("loss_type")
    if kind is not None and "objective" not in checkpoint.settings:
        yield f"loss_type {kind}"
