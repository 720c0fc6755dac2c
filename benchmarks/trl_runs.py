"""Runs of TRL's own loop on a recipe's policy and task, for `cvxrl compare` to read beside `cvxrl train`'s.

pip install -c constraints.txt -e ".[trl]"
python benchmarks/trl_runs.py grpo --seeds 0-2 --steps 40         # TRL's GRPOTrainer and its own loss
python benchmarks/trl_runs.py lco --seeds 0-2 --steps 40          # the same loop with LCOTrainer
cvxrl compare trl_runs/* outputs/math_grpo outputs/math_lco_kld --html page.html
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cvxrl.comparison.options import parse_seeds
from cvxrl.recipe.load import load_recipe

RECIPES = {"grpo": "math_grpo", "lco": "math_lco_kld"}
NAMES = {"grpo": "trl_grpo", "lco": "trl_lco_kld"}


def train(method: str, seed: int, steps: int, every: int, out: Path, sets: list[str]) -> None:
    """One run, with an evaluation on the recipe's held-out prompts before training and every so many steps."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    from cvxrl.integrations.trl import LCOConfig, LCOTrainer, recipe_task
    from cvxrl.policy.locate import locate

    recipe = load_recipe(RECIPES[method], [f"train.steps={steps}", *sets], seed)
    path = locate(recipe.model).path
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    prompts, held_out, reward = recipe_task(recipe, tokenizer)
    settings: dict[str, Any] = {
        **{"output_dir": str(out / f"{NAMES[method]}-seed{seed}"), "report_to": [], "disable_tqdm": True},
        **{"use_cpu": True, "logging_steps": 1, "save_strategy": "steps", "save_steps": steps, "log_completions": True},
        **{"num_completions_to_print": 0, "eval_strategy": "steps", "eval_steps": every, "eval_on_start": True},
        **{"num_generations_eval": recipe.eval.samples, "per_device_eval_batch_size": recipe.sequences_per_step},
    }
    model = AutoModelForCausalLM.from_pretrained(path)
    if method == "lco":
        args = LCOConfig.from_recipe(recipe, **settings)
        LCOTrainer(model, reward, args, prompts, held_out, tokenizer).train()
        return
    same = LCOConfig.from_recipe(recipe, **settings).to_dict()
    shared = ("num_generations", "per_device_train_batch_size", "max_completion_length", "temperature", "max_steps")
    optimizer = ("learning_rate", "lr_scheduler_type", "weight_decay", "max_grad_norm", "seed")
    taken = {name: same[name] for name in (*shared, *optimizer)}
    GRPOTrainer(model, reward, GRPOConfig(**settings, **taken, beta=0.0), prompts, held_out, tokenizer).train()


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
        train(arguments.method, seed, arguments.steps, arguments.every, arguments.out, arguments.set)


if __name__ == "__main__":
    main()
