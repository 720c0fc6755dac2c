"""The rollouts that training would sample next from a checkpoint: read where they are kept, else sampled and kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from cvxrl.engine.build import build_collector, build_generator
from cvxrl.engine.collectors import Collector
from cvxrl.engine.records import identify
from cvxrl.engine.world import SingleProcess
from cvxrl.errors import Problem, UserError
from cvxrl.inspection.plan import InspectionPlan
from cvxrl.inspection.rollouts import FrozenRollouts, freeze, read_rollouts, rollout_file, rollout_key
from cvxrl.inspection.size import MOST_HOURS
from cvxrl.inspection.sources import Checkpoint
from cvxrl.policy.identity import hash_as_held
from cvxrl.policy.model import Policy
from cvxrl.recipe.advantage import RewardAdvantage
from cvxrl.report.format import clock
from cvxrl.tasks import Grader, Task


def next_rollouts(
    plan: InspectionPlan,
    source: Checkpoint,
    policy: Policy,
    task: Task,
    grader: Grader,
    note: Callable[[str], None],
) -> tuple[FrozenRollouts, Path, str]:
    """Those of the training step that would come next, from their file if it is there."""
    recipe = plan.recipe
    step = (source.step or 0) + 1
    identity = identify(policy, task)
    key = rollout_key(recipe, step, identity.model, identity.tokenizer, identity.task)
    file = rollout_file(plan.folder / source.name, key)
    if not file.is_file() and recipe.model.lora is not None:
        # Version 0.1 took the digest of an adapted policy in another way.
        before = rollout_key(recipe, step, hash_as_held(policy.model), identity.tokenizer, identity.task)
        if rollout_file(file.parent, before).is_file():
            key, file = before, rollout_file(file.parent, before)
    if file.is_file() and not plan.options.fresh:
        return read_rollouts(file), file, identity.model
    # Rewards do not depend on advantages, so those of the plainest estimator do here.
    plain = recipe.model_copy(update={"advantage": RewardAdvantage()})

    def collector(prompts: int) -> Collector:
        asked = plain.model_copy(update={"rollout": plain.rollout.model_copy(update={"prompts": prompts})})
        return build_collector(asked, policy, build_generator(asked, policy), task, grader, None, SingleProcess())

    whole = collector(recipe.rollout.prompts)
    whole.check()
    began = time.monotonic()
    collector(1).collect(step)
    seconds = (time.monotonic() - began) * recipe.rollout.prompts
    if seconds > 3600 * MOST_HOURS and not plan.options.yes:
        what = f"{plan.size.text}, which take about {seconds / 3600:,.0f} hours to sample"
        raise UserError(Problem(what, "--prompts", remedy="lower it, or add --yes"))
    note(
        f"sampling {plan.size.completions:,} completions of {source.name}: {clock(seconds)} at most, from one prompt's"
    )
    return freeze(whole, step, key, file), file, identity.model
