"""From the section `rollout.engine` to a generator; every mistake that can be seen before a run begins."""

from __future__ import annotations

from pathlib import Path

import torch

from cvxrl.errors import Mistakes, Problem, UserError
from cvxrl.policy.model import Policy
from cvxrl.recipe.engine import VllmSpec
from cvxrl.rollout.vllm.check import Check
from cvxrl.rollout.vllm.colocated import Colocated
from cvxrl.rollout.vllm.facts import Facts, shape_of
from cvxrl.rollout.vllm.generator import Ranks, VllmGenerator
from cvxrl.rollout.vllm.http import Http, Trouble
from cvxrl.rollout.vllm.server import VllmServer
from cvxrl.rollout.vllm.transport import DirectoryTransport, GlooTransport, NcclTransport, Transport
from cvxrl.rollout.vllm.versions import installed, require_vllm


def open_generator(
    spec: VllmSpec,
    policy: Policy,
    ranks: Ranks,
    *,
    bf16: bool = False,
    ratio_tolerance: float | None = None,
    lower: bool = False,
) -> VllmGenerator:
    """A generator whose place is there and fits the policy.

    Args:
        spec: recipe section `rollout.engine`.
        policy: whose weights it samples from.
        ranks: the processes that train together.
        bf16: whether the trainer's forward pass runs under autocast.
        ratio_tolerance: `train.ratio_tolerance`.
        lower: whether a server may compute in fewer bits than the trainer, as `rollout.mismatch` then deals with.

    Raises:
        UserError: the place is not there, is another version, has another model, or takes no weights.
    """
    vocabulary = int(policy.model.config.get_text_config(decoder=True).vocab_size)
    own = policy.model.dtype
    if spec.mode == "colocated":
        return VllmGenerator(
            place=Colocated.start(spec, policy, vocabulary),
            where="the colocated vLLM",
            policy=policy,
            check=Check(bf16, _lower(own, bf16), ratio_tolerance),
            ranks=ranks,
            brings=True,
            context=policy.context,
            dtype=own,
            timeout=spec.timeout,
            vllm=installed(),
        )
    assert spec.url is not None
    http = Http(spec.url, spec.timeout)
    facts = Facts.ask(http, policy, bf16=bf16, any_ratio=lower or ratio_tolerance is not None)
    mistakes = Mistakes()
    mistakes.problems += facts.problems
    transport = mistakes.attempt(_transport, spec, facts, http, policy) if facts.backend else None
    if transport is not None and ranks.is_main:
        mistakes.attempt(_try, transport, http)
    if transport is None or mistakes.problems:
        raise UserError(*mistakes.problems)
    dtype = facts.dtype if torch.finfo(facts.dtype).eps > torch.finfo(own).eps else own
    return VllmGenerator(
        place=VllmServer(http, transport, vocabulary, spec.requests),
        where=f"the vLLM server at {spec.url}",
        policy=policy,
        check=Check(bf16, _lower(dtype, bf16), ratio_tolerance),
        ranks=ranks,
        brings=ranks.is_main,
        context=facts.context,
        dtype=dtype,
        timeout=spec.timeout,
        vllm=facts.version,
    )


def _transport(spec: VllmSpec, facts: Facts, http: Http, policy: Policy) -> Transport:
    """The way that the recipe asks for, or that the server was started for.

    Raises:
        UserError: the server was started for another one, or this side lacks what it needs.
    """
    wanted = spec.weights if spec.weights != "auto" else "nccl" if facts.backend == "nccl" else "gloo"
    needed = "nccl" if wanted == "nccl" else "cvxrl"
    key = "rollout.engine.weights"
    if facts.backend != needed:
        option = "nccl" if wanted == "nccl" else "gloo"
        what = f"the server was started for weights by `{facts.backend}`, and `{wanted}` needs `{needed}`"
        raise UserError(Problem(what, key, remedy=f"start it with `python -m cvxrl.serve ... --weights {option}`"))
    if wanted == "nccl":
        require_vllm(key)
        if policy.device.type != "cuda":
            remedy = "train on CUDA, or start the server with --weights gloo"
            raise UserError(Problem("NCCL is between GPUs, and the policy is on a CPU", key, remedy=remedy))
        return NcclTransport(http, facts.workers)
    if wanted == "directory":
        return DirectoryTransport(http, Path(spec.directory or ""), shape_of(policy))
    return GlooTransport(http, facts.workers, shape_of(policy))


def _try(transport: Transport, http: Http) -> None:
    """Meet the server's workers once, since a firewall between the two sides is a mistake of the set-up."""
    try:
        transport.connect()
    except Trouble as trouble:
        other = "another model" in str(trouble)
        remedy = (
            "start it with `python -m cvxrl.serve` for this recipe"
            if other
            else ("let its machine reach this one on any port, or use `weights: directory`")
        )
        what = f"the server at {http.url} does not take the policy's weights: {trouble}"
        raise UserError(Problem(what, "rollout.engine.weights", remedy=remedy)) from None


def _lower(dtype: torch.dtype, bf16: bool) -> torch.dtype:
    """The lower of two formats of activations."""
    return torch.bfloat16 if bf16 and torch.finfo(dtype).eps < torch.finfo(torch.bfloat16).eps else dtype
