"""Settings of `LCOTrainer`: TRL's, and the sections of a recipe that are the loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar

from cvxrl.errors import Problem, UserError
from cvxrl.integrations.sections import LossSections, as_problem, check_sections
from cvxrl.recipe.advantage import DenseAdvantage, GaeAdvantage
from cvxrl.recipe.load import load_recipe
from cvxrl.recipe.schema import Recipe, optimizer_steps
from cvxrl.recipe.training import AdamwSpec

MINOR = "1.16"


def require_trl() -> None:
    """Refuse to go on without the one minor version of TRL whose trainer this was made for.

    Raises:
        UserError: TRL is missing, or of another version.
    """
    remedy = 'pip install "cvxrl[trl]"'
    try:
        installed = version("trl")
    except PackageNotFoundError:
        raise UserError(Problem("LCOTrainer needs the package trl, which is not installed", remedy=remedy)) from None
    if installed.split(".")[:2] != MINOR.split("."):
        what = f"LCOTrainer overrides what is inside TRL {MINOR}'s GRPOTrainer, and TRL {installed} is installed"
        raise UserError(Problem(what, remedy=remedy))


require_trl()

from trl import GRPOConfig  # noqa: E402

# Settings of GRPOConfig that only GRPO's own loss reads, or that the exact losses leave no room for.
_UNREAD = (
    *("loss_type", "epsilon", "epsilon_high", "delta", "importance_sampling_level", "scale_rewards"),
    *("multi_objective_aggregation", "beta", "top_entropy_quantile", "off_policy_mask_threshold", "entropy_coef"),
    *("use_adaptive_entropy", "use_liger_kernel", "router_aux_loss_coef", "use_bias_correction_kl"),
    *("top_p", "top_k", "min_p", "repetition_penalty"),
)


@dataclass
class LCOConfig(GRPOConfig):  # type: ignore[misc]
    """`GRPOConfig` with a recipe's `objective`, `advantage` and `reduction` in the place of GRPO's loss.

    What GRPO's loss alone would read (`loss_type`, `epsilon`, `scale_rewards`, `beta`, ...) is refused if it is set: it
    would be ignored. So are truncated sampling distributions (`top_p`, `top_k`, ...), under which the policy that is
    trained is not the one that sampled.

    Attributes:
        objective: as in a recipe, `lco-kld` or `{"kind": "lco-kld", "beta": 1.0, "shift": "drift-free"}`; any objective
            of a token or a sequence.
        advantage: as in a recipe, of those that are functions of the rewards.
        reduction: `token-mean`, `sequence-mean` or `constant`, over the whole optimizer step.
        chunk_tokens: tokens whose logits are formed at a time; None for as many as fit 160 MiB.
        disable_dropout: on, unlike in GRPOConfig: the policy that is trained is the one that sampled.
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [*GRPOConfig._VALID_DICT_FIELDS, "objective", "advantage"]

    objective: dict[str, Any] | str = field(default="lco-kld", metadata={"help": "Section of a recipe."})
    advantage: dict[str, Any] | str = field(default="group", metadata={"help": "Section of a recipe."})
    reduction: str = field(default="token-mean", metadata={"help": "token-mean, sequence-mean or constant."})
    chunk_tokens: int | None = field(default=None, metadata={"help": "Tokens whose logits are formed at a time."})
    disable_dropout: bool = field(default=True, metadata={"help": "Train the policy that sampled."})

    def __post_init__(self) -> None:
        """Check all settings together.

        Raises:
            UserError: with every mistake in what is ours.
        """
        super().__post_init__()
        problems = list(self._refused())
        try:
            self.sections  # noqa: B018
        except UserError as error:
            problems += error.problems
        if problems:
            raise UserError(*problems)

    @property
    def sections(self) -> LossSections:
        """Objective, advantage and reduction as checked sections.

        Raises:
            UserError: with every mistake.
        """
        values = {"objective": self.objective, "advantage": self.advantage, "reduction": self.reduction}
        return check_sections(values, _unfit)

    def _refused(self) -> Iterator[Problem]:
        for known in fields(GRPOConfig):
            default = known.default if known.default is not MISSING else None
            if known.name in _UNREAD and getattr(self, known.name) != default:
                what = f"{getattr(self, known.name)!r} would be ignored: the loss is that of `objective`"
                yield Problem(what, known.name, remedy=f"leave it at {default!r}")
        accumulated, generated = self.gradient_accumulation_steps, self.steps_per_generation
        if generated % accumulated:
            what = f"an optimizer step takes {accumulated} batches and a generation gives {generated}"
            remedy = "make steps_per_generation a multiple of gradient_accumulation_steps"
            yield Problem(
                f"{what}, so that its tokens cannot be counted beforehand", "steps_per_generation", "", remedy
            )

    @classmethod
    def from_recipe(
        cls, recipe: Recipe | Path | str, sets: Sequence[str] = (), seed: int | None = None, **settings: Any
    ) -> LCOConfig:
        """Settings that train as a recipe does, its task left to the caller (`recipe_task`).

        Args:
            recipe: a recipe, its file, or its name.
            sets: overrides, as of `--set`.
            seed: instead of the recipe's.
            settings: of TRL, laid over what the recipe says: `output_dir`, `save_strategy`, `logging_steps`, ...

        Raises:
            UserError: the recipe is wrong, or asks for what TRL's loop does not do; all of it at once.
        """
        loaded = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, sets, seed)
        lines = list(_beyond_trl(loaded))
        if lines:
            raise UserError(*map(as_problem, lines))
        return cls(**{**_as_trl(loaded), **settings})


def _unfit(sections: LossSections) -> list[str]:
    """What a batch of TRL cannot give a loss."""
    found = []
    objective, advantage = sections.objective, sections.advantage
    if objective.needs & {"demonstrations", "preferences"}:
        found.append(f"objective.kind: `{objective.kind}` does not learn from rollouts; name another")
    elif objective.coupling == "group":
        found.append(
            f"objective.kind: `{objective.kind}` compares samples of a prompt, which TRL shuffles; name another"
        )
    if isinstance(advantage, GaeAdvantage | DenseAdvantage):
        found.append(f"advantage.kind: `{advantage.kind}` is no function of the rewards; name another, such as group")
    return found


def _beyond_trl(recipe: Recipe) -> Iterator[str]:
    """Lines of the form `key: what is wrong; remedy`."""
    yield from _unfit(LossSections(objective=recipe.objective, advantage=recipe.advantage, reduction=recipe.reduction))
    for key, value, usual in (
        ("regularizer.kl_coefficient", recipe.regularizer.kl_coefficient, 0.0),
        ("regularizer.entropy_coefficient", recipe.regularizer.entropy_coefficient, 0.0),
        ("step.kind", recipe.step.kind, "fixed"),
        ("optim.kind", recipe.optim.kind, "adamw"),
        ("optim.master_weights", recipe.optim.master_weights, False),
        ("optim.schedule", recipe.optim.schedule, "constant"),
        ("optim.warmup_steps", recipe.optim.warmup_steps, 0),
        ("rollout.rounds", recipe.rollout.rounds, 1),
        ("rollout.lag", recipe.rollout.lag, 0),
        ("train.reset_optimizer", recipe.train.reset_optimizer, False),
    ):
        if value != usual:
            yield f"{key}: TRL's loop does not do `{value}` as the recipe means it; set it to {usual}"


def _as_trl(recipe: Recipe) -> dict[str, Any]:
    train, optim, rollout = recipe.train, recipe.optim, recipe.rollout
    assert isinstance(optim, AdamwSpec)
    return {
        "objective": recipe.objective.model_dump(mode="json"),
        "advantage": recipe.advantage.model_dump(mode="json"),
        "reduction": recipe.reduction,
        "chunk_tokens": train.chunk_tokens,
        "disable_dropout": not recipe.model.dropout,
        "num_generations": rollout.samples,
        "per_device_train_batch_size": recipe.sequences_per_step // train.minibatches,
        "gradient_accumulation_steps": 1,
        "steps_per_generation": train.minibatches,
        "num_iterations": train.inner_epochs,
        "max_completion_length": rollout.max_new_tokens,
        "temperature": rollout.temperature,
        "max_steps": optimizer_steps(train),
        "learning_rate": optim.lr,
        "lr_scheduler_type": "constant",
        "weight_decay": optim.weight_decay,
        "adam_beta1": optim.betas[0],
        "adam_beta2": optim.betas[1],
        "adam_epsilon": optim.eps,
        "max_grad_norm": optim.max_grad_norm or 0.0,
        "gradient_checkpointing": train.gradient_checkpointing,
        "bf16": train.precision == "bf16",
        "seed": recipe.seed,
    }
