"""The parts beside the policy that a recipe asks for: critic, reference, verifiers."""

from __future__ import annotations

from dataclasses import replace

from cvxrl.advantages import find_advantage
from cvxrl.engine.collectors import Collector, RolloutCollector
from cvxrl.engine.credit import CreditAssigner, Critic, SequenceCredit, ValueCredit, VerifierCredit
from cvxrl.engine.demonstrations import DemonstrationCollector
from cvxrl.engine.readers import Reader
from cvxrl.engine.world import SingleProcess, World
from cvxrl.errors import Mistakes, Problem, UserError
from cvxrl.evaluation.held_out import HeldOut
from cvxrl.objectives.callable import find_objective
from cvxrl.policy.load import load_policy
from cvxrl.policy.model import Policy
from cvxrl.recipe.advantage import CallableAdvantage, DenseAdvantage, DenseDpoAdvantage, GaeAdvantage
from cvxrl.recipe.engine import VllmSpec
from cvxrl.recipe.mismatch import StopMismatch
from cvxrl.recipe.model import ModelSpec
from cvxrl.recipe.objective import CallableObjective
from cvxrl.recipe.schema import Recipe
from cvxrl.rollout.choice import require_engine
from cvxrl.rollout.generator import Generator
from cvxrl.rollout.local_generator import LocalGenerator
from cvxrl.tasks import Grader, Task


def place(policy: Policy, recipe: Recipe, world: World) -> Policy:
    """The policy as it was loaded, or with its parameters split over the processes, as `placement.shard` says."""
    if recipe.placement.shard == "none" or world.size == 1:
        return policy
    return _sharded(policy)


def _sharded(policy: Policy) -> Policy:
    from cvxrl.policy.sharding import shard  # loads torch.distributed, which nothing else here needs

    return shard(policy)


def check_functions(recipe: Recipe) -> None:
    """Find the user's functions that the recipe names.

    Raises:
        UserError: one cannot be imported or called.
    """
    mistakes = Mistakes()
    if isinstance(recipe.objective, CallableObjective):
        mistakes.attempt(find_objective, recipe.objective)
    if isinstance(recipe.advantage, CallableAdvantage):
        mistakes.attempt(find_advantage, recipe.advantage)
    if mistakes.problems:
        raise UserError(*mistakes.problems)


def check_placement(recipe: Recipe, world: World) -> None:
    """Refuse processes that were not asked for, or that would have nothing to do.

    Raises:
        UserError: there are others than `placement.ranks` says, or more than a step has prompts.
    """
    asked, prompts, started = recipe.placement.ranks, recipe.rollout.prompts, world.size
    problems = []
    if asked not in ("auto", started):
        remedy = f"start them with `python -m cvxrl.launch --nproc-per-node {asked} train ...`, or set it to auto"
        problems.append(Problem(f"{asked} are asked for, and {started} started", "placement.ranks", remedy=remedy))
    if started > prompts:
        what = f"{started} ranks cannot share the {prompts} prompts of a step"
        remedy = f"start at most {prompts} ranks, or set it to {started} or more"
        problems.append(Problem(what, "rollout.prompts", remedy=remedy))
    if problems:
        raise UserError(*problems)


def build_critic(recipe: Recipe, policy: Policy) -> Critic | None:
    """A value head on the policy's hidden states, where the advantages need one.

    Raises:
        UserError: the policy's model does not give them.
    """
    if recipe.data != "rollouts" or not isinstance(recipe.advantage, GaeAdvantage):
        return None
    if not policy.ways.states:
        what = f"a critic reads hidden states, which this {type(policy.model).__name__} does not give"
        raise UserError(Problem(what, "advantage.kind", remedy="take an advantage without a critic, e.g. group"))
    return Critic(int(policy.model.config.get_text_config().hidden_size)).to(policy.device)


def build_reference(recipe: Recipe, policy: Policy) -> Reader | None:
    """The policy that training starts from, also in a resumed run, where something needs it.

    With an adapter it is the trained policy's own weights without it; else a frozen second copy.
    """
    if "reference_logprobs" not in recipe.objective.needs and not recipe.regularizer.kl_coefficient:
        return None
    start = policy.as_loaded()
    if start is not None:
        return Reader.of(start, recipe)
    return _frozen(load_policy(recipe.model, policy.device, recipe.seed), recipe, policy)


def build_generator(recipe: Recipe, policy: Policy, world: World | None = None) -> Generator:
    """What samples completions in training and evaluation.

    Args:
        recipe: names the engine.
        policy: samples.
        world: the processes that sample; this one alone by default.

    Raises:
        UserError: the server that the recipe names cannot serve this policy; of decoding here, `require_sampling`.
    """
    engine = recipe.rollout.engine
    if isinstance(engine, VllmSpec):
        from cvxrl.rollout.vllm.open import open_generator

        train = recipe.train
        bf16, tolerance = train.precision == "bf16", train.ratio_tolerance
        lower, ranks = not isinstance(recipe.rollout.mismatch, StopMismatch), world or SingleProcess()
        return open_generator(engine, policy, ranks, bf16=bf16, ratio_tolerance=tolerance, lower=lower)
    return LocalGenerator(policy, engine, recipe.rollout.batch)


def require_sampling(generator: Generator) -> None:
    """Refuse to decode here by an engine that cannot serve the policy.

    To be asked once the prompts are encoded: decoders are tried at the lengths that are known then.

    Raises:
        UserError: there is no such way.
    """
    if isinstance(generator, LocalGenerator):
        require_engine(generator.policy, generator.engine)


def build_held_out(
    recipe: Recipe, policy: Policy, generator: Generator, task: Task, grader: Grader, world: World
) -> HeldOut | None:
    """Held-out questions, encoded, if the recipe asks any.

    Raises:
        UserError: see `HeldOut.prepare`.
    """
    return HeldOut.prepare(recipe, policy, generator, task, grader, world) if recipe.eval.every else None


def build_collector(
    recipe: Recipe,
    policy: Policy,
    generator: Generator,
    task: Task,
    grader: Grader,
    critic: Critic | None,
    world: World,
) -> Collector:
    """What makes the experience of each step.

    Raises:
        UserError: a verifier cannot be loaded or has another vocabulary.
    """
    if recipe.data != "rollouts":
        return DemonstrationCollector(recipe, policy, task, world)
    assigner = build_assigner(recipe, policy, critic, world)
    return RolloutCollector(recipe, policy, generator, task, grader, assigner, world)


def build_assigner(recipe: Recipe, policy: Policy, critic: Critic | None, world: World) -> CreditAssigner:
    """What turns rewards into advantages.

    Raises:
        UserError: a verifier cannot be loaded or has another vocabulary.
    """
    spec, reader = recipe.advantage, Reader.of(policy, recipe)
    if isinstance(spec, GaeAdvantage):
        assert critic is not None
        return ValueCredit(spec, critic, reader, world)
    if isinstance(spec, DenseAdvantage):
        reference = spec.reference if isinstance(spec, DenseDpoAdvantage) else None
        return VerifierCredit(
            spec,
            reader,
            _verifier(spec.verifier, "advantage.verifier", recipe, policy),
            None if reference is None else _verifier(reference, "advantage.reference", recipe, policy),
        )
    return SequenceCredit(spec, world)


def _verifier(path: str, key: str, recipe: Recipe, policy: Policy) -> Reader:
    try:
        verifier = load_policy(
            ModelSpec(path=path, dtype=recipe.model.dtype, trust_remote_code=recipe.model.trust_remote_code),
            policy.device,
        )
    except UserError as error:
        remedy = "train a verifier first (recipes pref_qrm and pref_dpo) and name its `policy` folder"
        raise UserError(*(replace(p, key=key, remedy=remedy) for p in error.problems)) from error
    if verifier.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
        raise UserError(
            Problem(
                f"`{path}` has another vocabulary than the policy, so its scores are not of the policy's tokens",
                key,
                remedy="train the verifier from the same base model",
            )
        )
    return replace(_frozen(verifier, recipe, policy), temperature=1.0)


def _frozen(policy: Policy, recipe: Recipe, trained: Policy) -> Reader:
    """A policy that is not trained, sharded where the trained one is."""
    policy.model.requires_grad_(False)
    policy.model.eval()
    return Reader.of(policy if trained.sharding is None else _sharded(policy), recipe)
