"""What is replayed: recipes and their variants, cut down to three steps of a few seconds at most."""

from __future__ import annotations

from dataclasses import dataclass

# Sums of three and four digits fit 24 tokens, and the embedded policy gets about half of them right.
SMALL = (
    "rollout.prompts=4",
    "rollout.samples=4",
    "rollout.max_new_tokens=24",
    "task.source.terms=[3,4]",
    "train.steps=3",
    "optim.warmup_steps=0",
    "eval.every=3",
    "eval.prompts=4",
    "eval.samples=2",
    "checkpoint.every=0",
)
BASE = "package:cvxrl/assets/base"
RECIPES = (
    "base_sft",
    "math_awr",
    "math_base",
    "math_cispo",
    "math_dapo",
    "math_dr_grpo",
    "math_dro",
    "math_grpo",
    "math_gspo",
    "math_gvpo",
    "math_lco_kld",
    "math_lco_kld_dense",
    "math_lco_lch",
    "math_lco_mse",
    "math_lora",
    "math_pmd",
    "math_ppo",
    "math_rebel",
    "math_reinforce",
    "math_rloo",
    "math_tpo",
    "pref_dpo",
    "pref_qrm",
    "smoke",
)
TWICE, HALVES, CHUNKED = "train.inner_epochs=2", "train.minibatches=2", "train.loss=chunked"
UNEVALUATED = "eval.every=0"
# No sampled token in it: the responses are given and nothing is evaluated.
GIVEN = {
    "sft": ("base_sft", ()),
    "sft-chunked": ("base_sft", (CHUNKED, "train.chunk_tokens=11")),
    "sft-halves": ("base_sft", (TWICE, HALVES)),
    "sft-file": (
        "base_sft",
        (
            "task.source={kind: dataset, path: tests/fixtures/demonstrations.jsonl, held_out: 0, "
            "answer_field: null, demonstration_field: demonstration}",
            "train.micro_batch=3",
        ),
    ),
    "dpo": ("pref_dpo", ()),
    "dpo-twice-halves": ("pref_dpo", (TWICE, HALVES)),
    "dpo-micro": ("pref_dpo", (TWICE, "train.micro_batch=2")),
    "dpo-chunked": ("pref_dpo", (CHUNKED, "train.micro_batch_tokens=100")),
    "dpo-lora": ("pref_dpo", ("model.lora={rank: 4, alpha: 8}",)),
    "dpo-file": (
        "pref_dpo",
        (
            "task.source={kind: dataset, path: tests/fixtures/preferences.jsonl, held_out: 0, answer_field: null, "
            "chosen_field: chosen, rejected_field: rejected}",
        ),
    ),
    "qrm": ("pref_qrm", ()),
    "qrm-twice": ("pref_qrm", (TWICE,)),
    "qrm-chunked": ("pref_qrm", (CHUNKED,)),
}
# More than one optimizer step per rollout: old probabilities and logits, ratios and clips come into play.
_REPEATED = {
    f"{name}-twice": (f"math_{name}", (TWICE, "optim.lr=1e-3"))
    for name in (
        *("cispo", "dapo", "dro", "grpo", "gspo", "gvpo", "lco_kld", "lco_lch", "lco_mse", "lco_kld_dense"),
        *("lora", "pmd", "ppo", "rebel", "tpo"),
    )
}
_SPLIT = {
    "grpo-halves": ("math_grpo", (HALVES,)),
    "grpo-twice-halves": ("math_grpo", (TWICE, HALVES)),
    "lco_kld-halves": ("math_lco_kld", (HALVES,)),
    "lco_kld-twice-halves": ("math_lco_kld", (TWICE, HALVES)),
    "ppo-twice-halves": ("math_ppo", (TWICE, HALVES)),
    "rebel-twice-halves": ("math_rebel", (TWICE, HALVES)),
    "grpo-micro": ("math_grpo", (TWICE, "train.micro_batch=3")),
    "lco_kld-micro": ("math_lco_kld", (TWICE, "train.micro_batch=3")),
    "ppo-micro": ("math_ppo", ("train.micro_batch=3",)),
    "dense-micro": ("math_lco_kld_dense", (TWICE, "train.micro_batch=3")),
    "lco_kld-tokens": ("math_lco_kld", (TWICE, "train.micro_batch_tokens=100")),
    "gspo-tokens": ("math_gspo", (TWICE, "train.micro_batch_tokens=100")),
    "tpo-tokens": ("math_tpo", (TWICE, "train.micro_batch_tokens=200")),
}
_CHUNKED = {
    "grpo-chunked": ("math_grpo", (CHUNKED,)),
    "grpo-chunked-twice": ("math_grpo", (CHUNKED, TWICE, "train.chunk_tokens=7")),
    "lco_kld-chunked": ("math_lco_kld", (CHUNKED,)),
    "lco_kld-chunked-twice": ("math_lco_kld", (CHUNKED, TWICE, "train.chunk_tokens=7")),
    "lco_mse-chunked": ("math_lco_mse", (CHUNKED,)),
    "lco_mse-chunked-twice": ("math_lco_mse", (CHUNKED, TWICE)),
    "lco_lch-chunked": ("math_lco_lch", (CHUNKED, TWICE)),
    "ppo-chunked": ("math_ppo", (CHUNKED, TWICE)),
    "rebel-chunked": ("math_rebel", (CHUNKED, TWICE)),
    "lora-chunked": ("math_lora", (CHUNKED, TWICE)),
    "regularized-chunked": (
        "math_grpo",
        (CHUNKED, TWICE, "regularizer={kl_coefficient: 0.1, entropy_coefficient: 0.01}"),
    ),
}
_TARGETS = {
    "lco_kld-drift-free": ("math_lco_kld", (TWICE, "objective.shift=drift-free")),
    "lco_kld-linear": ("math_lco_kld", (TWICE, "objective.tilt=linear", "objective.negative_beta_scale=1")),
    "lco_kld-moving": ("math_lco_kld", (TWICE, "objective.target=moving")),
    "lco_kld-top-k": ("math_lco_kld", (TWICE, "objective.support={kind: top-k, k: 3}")),
    "lco_kld-authors": ("math_lco_kld", ("reading=authors-code",)),
    "lco_mse-authors": ("math_lco_mse", ("reading=authors-code", TWICE)),
    "lco_lch-authors": ("math_lco_lch", ("reading=authors-code",)),
}
_CREDIT = {
    "dense-dpo": (
        "math_lco_kld_dense",
        (
            f"advantage={{kind: dense-dpo, verifier: {BASE}, "
            "reference: tests/fixtures/v01/runs/tiny_sft/seed-0/policy, k: 3}",
            TWICE,
        ),
    ),
    "dense-grpo": ("math_grpo", (f"advantage={{kind: dense-logprob, verifier: {BASE}}}",)),
    "gae-unwhitened": (
        "math_ppo",
        ("advantage.gamma=0.99", "advantage.lam=0.5", "advantage.whiten=false", "advantage.value_clip=null", TWICE),
    ),
    "advantage-batch": ("math_grpo", ("advantage={kind: batch}", "reduction=sequence-mean")),
    "advantage-reward": ("math_lco_mse", ("advantage={kind: reward}", "reduction=constant")),
}
_REGULARIZED = {
    "kl-k1": ("math_grpo", ("regularizer={kl_coefficient: 0.1, kl_estimator: k1}", TWICE)),
    "kl-k2": ("math_lco_kld", ("regularizer={kl_coefficient: 0.1, kl_estimator: k2}", TWICE)),
    "kl-k3-entropy": ("math_grpo", ("regularizer={kl_coefficient: 0.1, entropy_coefficient: 0.01}", TWICE)),
    "kl-lora": ("math_lora", ("regularizer.kl_coefficient=0.1", TWICE)),
    "entropy": ("math_lco_kld", ("regularizer.entropy_coefficient=0.01",)),
}
_OPTIMIZERS = {
    "sgd": ("math_grpo", ("optim={kind: sgd, lr: 0.1}",)),
    "sgd-nesterov": (
        "math_grpo",
        ("optim={kind: sgd, lr: 0.1, momentum: 0.9, nesterov: true, weight_decay: 0.01, schedule: cosine}",),
    ),
    "adafactor": ("math_lco_kld", ("optim={kind: adafactor, lr: 1e-3, schedule: linear}",)),
    "adamw-warm-up": ("math_grpo", ("optim.warmup_steps=2", "optim.weight_decay=0.1", "optim.max_grad_norm=null")),
    "clipped": ("math_lco_mse", ("optim.max_grad_norm=0.01", "train.reset_optimizer=true")),
}
_PRECISION = {
    "autocast": ("math_lco_kld", ("train.precision=bf16", TWICE)),
    "autocast-ppo": ("math_ppo", ("train.precision=bf16",)),
    "bfloat16": ("math_grpo", ("model.dtype=bfloat16",)),
    "bfloat16-master": ("math_lco_kld", ("model.dtype=bfloat16", "optim.master_weights=true")),
    "adafactor-master": (
        "math_grpo",
        ("model.dtype=bfloat16", "optim={kind: adafactor, lr: 1e-3, master_weights: true}"),
    ),
}
_MEMORY = {
    "checkpointing": ("math_grpo", ("train.gradient_checkpointing=true", TWICE)),
    "checkpointing-chunked": ("math_lco_kld", ("train.gradient_checkpointing=true", CHUNKED)),
}
_SAMPLED = {
    "rollout-batch": ("math_lco_kld", ("rollout.batch=8",)),
    "rollout-rounds": ("math_lco_kld", ("rollout.rounds=3", "task.source.terms=[2,3]")),
    "rollout-temperature": ("math_grpo", ("rollout.temperature=0.7", TWICE)),
    "engine-transformers": ("math_grpo", ("rollout.engine=transformers",)),
    "engine-static": ("math_grpo", ("rollout.engine=static",)),
    "eval-nucleus": ("math_grpo", ("eval.top_p=0.6", "eval.temperature=1.5", "eval.prompts=16", "eval.samples=4")),
    "eval-greedy": ("math_grpo", ("eval.temperature=0", "eval.samples=1", "eval.every=1", "rollout.batch=3")),
}
_ELSE = {
    "gradients-grpo": ("math_grpo", ("logging.gradients=1",)),
    "gradients-lco_kld": ("math_lco_kld", ("logging.gradients=1", TWICE, HALVES)),
    "gradients-ppo": ("math_ppo", ("logging.gradients=2", "logging.kl_sequences=3")),
    "lora-dropout": ("math_lora", ("model.lora.dropout=0.1", TWICE)),
    "lora-targets": (
        "math_lora",
        ("model.lora={rank: 4, alpha: 8, scaling: sqrt-rank, targets: [q_proj, v_proj], init: gaussian}",),
    ),
    "seed": ("math_lco_kld", ("seed=7", TWICE, HALVES)),
}
# What the default suite replays: between them they pass through most of the engine.
QUICK = (
    "lco_kld-twice-halves",
    "ppo-twice-halves",
    "kl-k3-entropy",
    "sft-chunked",
)


@dataclass(frozen=True)
class Case:
    """A run of `cvxrl train`.

    Attributes:
        name: how the recording calls it.
        recipe: name of a shipped recipe.
        sets: `key=value` texts laid over it, later ones over earlier ones.
        sampled: whether the policy is asked for completions, in training or evaluation.
    """

    name: str
    recipe: str
    sets: tuple[str, ...] = ()
    sampled: bool = True

    def arguments(self, out: str) -> list[str]:
        """Command line, for the root of the checkout as working directory."""
        sets = [part for text in self.sets for part in ("--set", text)]
        return ["train", f"tests/trajectories/recipes/{self.recipe}.yaml", *sets, "--out", out]


def _case(name: str, recipe: str, extra: tuple[str, ...], sampled: bool = True) -> Case:
    verifier = (f"advantage.verifier={BASE}",) if recipe == "math_lco_kld_dense" and name != "dense-dpo" else ()
    without_terms = tuple(text for text in SMALL if not (text.startswith("task.source.") and name.endswith("-file")))
    return Case(name, recipe, (*without_terms, *verifier, *extra), sampled)


CASES = {
    case.name: case
    for case in (
        *(_case(name, name, ()) for name in RECIPES),
        *(_case(name, recipe, (*sets, UNEVALUATED), sampled=False) for name, (recipe, sets) in GIVEN.items()),
        *(
            _case(name, recipe, sets)
            for group in (
                *(_REPEATED, _SPLIT, _CHUNKED, _TARGETS, _CREDIT, _REGULARIZED),
                *(_OPTIMIZERS, _PRECISION, _MEMORY, _SAMPLED, _ELSE),
            )
            for name, (recipe, sets) in group.items()
        ),
    )
}
