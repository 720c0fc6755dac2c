"""What a server says of itself, and all that is wrong with that for a policy, before anything is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from cvxrl.errors import Problem, UserError
from cvxrl.policy.model import Policy
from cvxrl.rollout.vllm.beside import within
from cvxrl.rollout.vllm.http import Garbled, Http, Refused, Trouble
from cvxrl.rollout.vllm.versions import is_tested, untested
from cvxrl.rollout.vllm.wire import PATH

_KEY = "rollout.engine"
_START = "start it with `python -m cvxrl.serve RECIPE`"
# Longest wait in seconds for what a server knows without computing.
_SOON = 30.0
# ... and for its configuration, for which it also looks at all that is installed.
_LATER = 180.0
_SHAPE = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "tie_word_embeddings")


@dataclass(frozen=True)
class Facts:
    """What a server says of itself.

    Attributes:
        version: of vLLM.
        backend: what it was started for as `--weight-transfer-config`; empty for none.
        workers: processes that hold weights.
        context: longest sequence, in tokens.
        dtype: data type of its parameters.
        problems: what is wrong with that.
    """

    version: str
    backend: str
    workers: int
    context: int
    dtype: torch.dtype
    problems: tuple[Problem, ...]

    @classmethod
    def ask(cls, http: Http, policy: Policy, *, bf16: bool, any_ratio: bool) -> Facts:
        """Look at a server.

        Args:
            http: where it is.
            policy: whose weights it is to have.
            bf16: whether the trainer's forward pass runs under autocast.
            any_ratio: whether the recipe says itself how far apart sampler and trainer may be.

        Raises:
            UserError: there is none, or one that tells nothing of itself.
        """
        quick = Http(http.url, min(http.timeout, _SOON))
        version = _version(quick)
        if not is_tested(version):
            raise UserError(untested(version, _KEY))
        config = _config(http)
        model, backend = _mapping(config, "model_config"), _mapping(config, "weight_transfer_config").get("backend")
        dtype = getattr(torch, str(model.get("dtype")).removeprefix("torch."), None)
        try:
            workers = int(within(_SOON, lambda: quick.get("/get_world_size"))["world_size"])
            context = int(model["max_model_len"])
        except (Trouble, KeyError, TypeError, ValueError) as error:
            raise UserError(Problem(f"{http.url} is no vLLM server: {error}", _KEY, remedy=_START)) from None
        if not isinstance(dtype, torch.dtype):
            raise UserError(Problem(f"{http.url} is no vLLM server: {model.get('dtype')}", _KEY, remedy=_START))
        wrong = [*_setup(backend, model.get("logprobs_mode"), quick)]
        if not any_ratio:
            wrong += _precision(dtype, torch.bfloat16 if bf16 else policy.model.dtype)
        problems = tuple(Problem(what, _KEY, remedy=remedy) for what, remedy in wrong)
        return cls(version, str(backend or ""), workers, context, dtype, problems)


def shape_of(policy: Policy) -> dict[str, int]:
    """What has to be the same for tensors to fit and for ids to mean the same tokens; the server's workers compare."""
    config = policy.model.config.get_text_config(decoder=True)
    found = {name: getattr(config, name, None) for name in _SHAPE}
    return {name: int(value) for name, value in found.items() if value is not None}


def _version(http: Http) -> str:
    try:
        found = within(_SOON, lambda: http.get("/version"))
        return str(found["version"])
    except Refused as trouble:
        raise UserError(Problem(f"{http.url} is no vLLM server ({trouble})", _KEY, remedy=_START)) from None
    except (Garbled, KeyError, TypeError):
        raise UserError(Problem(f"{http.url} is no vLLM server", _KEY, remedy=_START)) from None
    except Trouble as trouble:
        remedy = f"{_START}, wait until it listens, and name its address"
        raise UserError(Problem(f"nobody answers at {http.url}: {trouble}", _KEY, remedy=remedy)) from None


def _config(http: Http) -> Mapping[str, Any]:
    """VLLM's configuration, which it tells in its development mode alone."""
    try:
        found = within(_LATER, lambda: http.get("/server_info?config_format=json"))
        return _mapping(found, "vllm_config")
    except Refused:
        what = f"the server at {http.url} takes no weights: it does not run with VLLM_SERVER_DEV_MODE=1"
        raise UserError(Problem(what, _KEY, remedy=f"{_START}, which sets that")) from None
    except Trouble as trouble:
        raise UserError(Problem(f"{http.url} does not say what it is: {trouble}", _KEY, remedy=_START)) from None


def _setup(backend: Any, mode: Any, http: Http) -> Iterator[tuple[str, str]]:
    """What it was started without: messages and remedies."""
    if not backend:
        yield "the server takes no weights: it was started without --weight-transfer-config", f"{_START}, which sets it"
    if mode != "processed_logprobs":
        yield (
            f"the server's log-probabilities are `{mode}`, not of the distribution that tokens are drawn from",
            f"{_START}, which sets --logprobs-mode processed_logprobs",
        )
    try:
        within(_SOON, lambda: http.post(PATH, {}))
    except Refused as refused:
        if refused.status in (403, 404):
            yield f"the server does not take token ids: {refused}", f"{_START}, which sets --enable-scale-out"
    except Trouble as trouble:
        yield f"the server does not answer at {PATH}: {trouble}", _START


def _precision(theirs: torch.dtype, mine: torch.dtype) -> Iterator[tuple[str, str]]:
    """Whether it computes in fewer bits than the trainer."""
    if torch.finfo(theirs).eps > torch.finfo(mine).eps:
        name, other = (str(dtype).removeprefix("torch.") for dtype in (mine, theirs))
        yield (
            f"the server computes in {other}, the trainer in {name}: their probabilities differ",
            f"start it with --dtype {name}, set rollout.mismatch to correct, or say in "
            "train.ratio_tolerance how far off ratios may be",
        )


def _mapping(values: Any, key: str) -> Mapping[str, Any]:
    found = values.get(key) if isinstance(values, Mapping) else None
    return found if isinstance(found, Mapping) else {}
