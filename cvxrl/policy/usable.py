"""What any use of a policy rests on: finite weights, a token that ends a text, and an embedding for every token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from cvxrl.errors import Problem, UserError
from cvxrl.policy.model import Policy
from cvxrl.recipe.model import ModelSpec

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SHOWN = 3


def settle_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, spec: ModelSpec) -> None:
    """Give the tokenizer the end and padding token of the recipe, and without one of its own the end token for padding.

    Raises:
        UserError: there is no end token, a token that is named does not exist, or tokens have no row in the embedding.
    """
    problems = [*_name_tokens(tokenizer, spec)]
    ends = Policy(model, tokenizer).end_ids
    if not ends and not problems:
        remedy = "set model.end_token in the recipe, or eos_token in the policy's tokenizer_config.json"
        what = "neither tokenizer nor generation_config.json name a token that ends a text"
        problems.append(Problem(what, "model.end_token", str(spec.path or ""), remedy))
    problems += _without_row(model, tokenizer, spec)
    if problems:
        raise UserError(*problems)
    if tokenizer.eos_token_id is None:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(ends[0])
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token


def require_finite_weights(model: nn.Module, file: str = "") -> None:
    """Look at every parameter once.

    Raises:
        UserError: names the first that holds a NaN or an infinity.
    """
    parameters = [p.detach() for p in model.parameters()]
    largest = [norm.float() for norm in torch._foreach_norm(parameters, torch.inf)]
    if bool(torch.isfinite(torch.stack(largest)).all()):
        return
    for (name, parameter), norm in zip(model.named_parameters(), largest, strict=True):
        if not bool(torch.isfinite(norm)):
            count = int((~torch.isfinite(parameter.detach())).sum())
            what = f"the policy's weights are not finite: {count} of {parameter.numel()} entries of `{name}`"
            raise UserError(Problem(what, "model.path", file, "take a checkpoint from before it broke"))


def _name_tokens(tokenizer: PreTrainedTokenizerBase, spec: ModelSpec) -> Iterator[Problem]:
    known = tokenizer.get_vocab()
    for kind, token in (("eos_token", spec.end_token), ("pad_token", spec.pad_token)):
        key = "model.end_token" if kind == "eos_token" else "model.pad_token"
        if token is None:
            continue
        if token not in known:
            remedy = "choose a token of its vocabulary"
            yield Problem(f"the tokenizer has no token `{token}`", key, remedy=remedy)
            continue
        setattr(tokenizer, kind, token)


def _without_row(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, spec: ModelSpec) -> Iterator[Problem]:
    """Tokens that the tokenizer may give and the model cannot read or say."""
    rows = min(_rows(layer) or 1 << 62 for layer in (_embedding(model), model.get_output_embeddings()))
    beyond = sorted((i, token) for token, i in tokenizer.get_vocab().items() if i >= rows)
    if beyond:
        shown = ", ".join(f"`{token}` ({i})" for i, token in beyond[:_SHOWN])
        what = f"{len(beyond)} tokens of the tokenizer have no row among the {rows} of the embedding: {shown}"
        remedy = "take the tokenizer that belongs to the model, or call model.resize_token_embeddings and save it again"
        yield Problem(what, "model.path", str(spec.path or ""), remedy)


def _embedding(model: PreTrainedModel) -> nn.Module | None:
    try:
        found: nn.Module | None = model.get_input_embeddings()
    except NotImplementedError:  # families whose embedding is more than one matrix
        return None
    return found


def _rows(layer: nn.Module | None) -> int | None:
    weight = getattr(layer, "weight", None)
    return int(weight.shape[0]) if isinstance(weight, torch.Tensor) and weight.ndim == 2 else None
