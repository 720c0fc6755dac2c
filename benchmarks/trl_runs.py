"""Runs of TRL's own loop on a recipe's policy and task, for `cvxrl compare` to read beside `cvxrl train`'s.

pip install -c constraints.txt -e ".[trl]"
python benchmarks/trl_runs.py grpo --seeds 0-2 --steps 40         # TRL's GRPOTrainer and its own loss
python benchmarks/trl_runs.py lco --seeds 0-2 --steps 40          # the same loop with LCOTrainer
cvxrl compare trl_runs/* outputs/math_grpo outputs/math_lco_kld --html page.html

Held-out accuracies are those of our evaluator on the recipe's questions, written into the trainer's own history with
the seconds of the training steps so far (`time/total_s`, `time/cpu_s`), evaluations and logging left out.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cvxrl.comparison.options import parse_seeds
from cvxrl.recipe.load import load_recipe
from cvxrl.recipe.objective import CispoSpec, GrpoSpec, GspoSpec
from cvxrl.recipe.schema import Recipe

RECIPES = {"grpo": "math_grpo", "lco": "math_lco_kld"}
NAMES = {"grpo": "trl_grpo", "lco": "trl_lco_kld"}
# What a GRPOConfig takes over of an LCOConfig: all that is not the loss.
SHARED = (
    *("num_generations", "per_device_train_batch_size", "gradient_accumulation_steps", "steps_per_generation"),
    *("num_iterations", "max_completion_length", "temperature", "max_steps", "learning_rate", "lr_scheduler_type"),
    *("weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "seed"),
    *("gradient_checkpointing", "bf16", "disable_dropout"),  # TRL's defaults of the first two cost time here
)
# TRL's words for a recipe's.
REDUCTIONS = {"token-mean": "dapo", "sequence-mean": "grpo", "constant": "dr_grpo"}
SCALES = {"group": "group", "group-centered": "none", "batch": "batch"}
Row = dict[str, float]


def loss_settings(recipe: Recipe) -> dict[str, Any]:
    """What a GRPOConfig says of a recipe's advantage, objective and reduction.

    Raises:
        KeyError: TRL has no such thing.
    """
    objective = recipe.objective
    shared = {"scale_rewards": SCALES[recipe.advantage.kind], "beta": 0.0}
    if isinstance(objective, CispoSpec):  # TRL clips at this itself, not at 1 + this
        return {**shared, "loss_type": "cispo", "epsilon_high": objective.ratio_max}
    if not isinstance(objective, GrpoSpec | GspoSpec):
        raise KeyError(objective.kind)
    level = "sequence" if isinstance(objective, GspoSpec) else "token"
    clip = {"epsilon": objective.clip_low, "epsilon_high": objective.clip_high, "importance_sampling_level": level}
    return {**shared, **clip, "loss_type": REDUCTIONS[recipe.reduction]}


def judge(recipe: Recipe, tokenizer: Any, due: Callable[[int], bool], stop: Callable[[Row], bool]) -> Any:
    """A callback that times training steps alone and asks our evaluator's questions after the rollouts that are due."""
    from transformers import TrainerCallback

    from cvxrl.evaluation.held_out import HeldOut
    from cvxrl.evaluation.together import Alone
    from cvxrl.policy.model import Policy
    from cvxrl.rollout.local_generator import LocalGenerator
    from cvxrl.tasks import load_grader, load_task

    class Judge(TrainerCallback):  # type: ignore[misc]
        used, began = [0.0, 0.0], (0.0, 0.0)

        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            policy = Policy(model.eval(), tokenizer)
            task, grader = load_task(recipe.task, recipe.seed), load_grader(recipe.task)
            self.held_out = HeldOut.prepare(recipe, policy, LocalGenerator(policy), task, grader, Alone())
            model.train()
            self.look(state, control)

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter(), time.process_time()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            ended = time.perf_counter(), time.process_time()
            self.used = [u + e - b for u, e, b in zip(self.used, ended, self.began, strict=True)]
            rollout, within = divmod(state.global_step, args.steps_per_generation * args.num_iterations)
            if within == 0 and due(rollout):
                self.look(state, control)

        def look(self, state: Any, control: Any) -> None:
            found = self.held_out.evaluate(state.global_step).metrics()
            seconds = dict(zip(("time/total_s", "time/cpu_s"), self.used, strict=True))
            row = {"step": state.global_step, "epoch": state.epoch or 0.0, **found, **seconds}
            state.log_history.append(row)
            if stop(row):
                control.should_training_stop = control.should_save = True

    return Judge()


def train(
    method: str,
    recipe: Recipe,
    due: Callable[[int], bool],
    folder: Path,
    stop: Callable[[Row], bool] = lambda _: False,
) -> Any:
    """One run of TRL's loop; its history is in the state of the trainer that is returned, and in the folder.

    Args:
        method: `grpo`, which is TRL's loss, or `lco`, which is the recipe's by LCOTrainer.
        recipe: policy, task, batch, optimizer and lengths.
        due: whether an evaluation follows the rollout of this number.
        folder: where the trainer writes.
        stop: whether an evaluation ends the run.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    from cvxrl.integrations.trl import LCOConfig, LCOTrainer, recipe_task
    from cvxrl.policy.locate import locate

    path = locate(recipe.model).path
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    prompts, _, reward = recipe_task(recipe, tokenizer)
    settings: dict[str, Any] = {
        **{"output_dir": str(folder), "report_to": [], "disable_tqdm": True, "use_cpu": True, "logging_steps": 1},
        **{"save_strategy": "steps", "save_steps": 10**6, "log_completions": True, "num_completions_to_print": 0},
    }
    args = LCOConfig.from_recipe(recipe, **settings)
    loop = LCOTrainer
    if method == "grpo":
        shared = {name: getattr(args, name) for name in SHARED}
        loop, args = GRPOTrainer, GRPOConfig(**settings, **shared, **loss_settings(recipe))
    callbacks = [judge(recipe, tokenizer, due, stop)]
    model = AutoModelForCausalLM.from_pretrained(path)
    trainer = loop(model, reward, args, prompts, processing_class=tokenizer, callbacks=callbacks)
    trainer.train()
    return trainer


def main() -> None:
    """Train what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=RECIPES)
    parser.add_argument("--seeds", type=parse_seeds, default=(0, 1, 2))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--every", type=int, default=10, help="steps between evaluations")
    parser.add_argument("--out", type=Path, default=Path("trl_runs"))
    parser.add_argument("--set", action="append", default=[], help="overrides of the recipe")
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        recipe = load_recipe(RECIPES[arguments.method], [f"train.steps={arguments.steps}", *arguments.set], seed)
        folder = arguments.out / f"{NAMES[arguments.method]}-seed{seed}"
        train(arguments.method, recipe, lambda rollout: rollout % arguments.every == 0, folder)


if __name__ == "__main__":
    main()
