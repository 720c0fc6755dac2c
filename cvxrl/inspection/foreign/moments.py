"""The state of a foreign optimizer, parameter by parameter, as the state of ours.

transformers' Trainer numbers parameters group by group: those that are decayed in the model's order, then the others in
that order. Which are decayed is a rule on names and kinds of layers that has changed between versions. Every rule is
tried, and one is taken only if numbers and shapes of all groups fit, and no other rule fits in another way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cvxrl.engine.optimizer import build_optimizer, stepped_parameters
from cvxrl.errors import Problem, UserError
from cvxrl.recipe.training import AdamwSpec, OptimSpec, SgdSpec

State = dict[str, Tensor]
_FRESH = "--set train.reset_optimizer=true measures with a fresh optimizer"
# What wraps a model puts before the names of its parameters.
_WRAPPERS = re.compile(r"^(module\.|_orig_mod\.|_fsdp_wrapped_module\.|base_model\.model\.)+")
_NEEDED: dict[type[OptimSpec], tuple[str, ...]] = {AdamwSpec: ("exp_avg", "exp_avg_sq"), SgdSpec: ("momentum_buffer",)}
_UNDECAYED = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")


@dataclass(frozen=True)
class Moments:
    """What an optimizer had learned of each parameter.

    Attributes:
        by_name: its state; parameters that it never stepped are missing.
        rate: learning rate of the next step.
        how: how its entries were told apart, in words.
    """

    by_name: dict[str, State]
    rate: float | None
    how: str

    @property
    def steps(self) -> int:
        """Steps that the optimizer took."""
        return max((int(state["step"]) for state in self.by_name.values() if "step" in state), default=0)

    def fits(self, spec: OptimSpec) -> bool:
        """Whether a recipe's optimizer keeps such a state."""
        needed = _NEEDED.get(type(spec))
        return needed is not None and all({*needed} <= state.keys() for state in self.by_name.values())


def read_moments(file: Path, model: nn.Module) -> Moments:
    """Read a state, tensors and numbers alone, and find out which entry is whose.

    Raises:
        UserError: it holds other things than tensors, or its entries are not those of this model's parameters.
    """
    try:
        saved = torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises what it meets: pickle's errors, of zip archives, of its own
        what = f"is not read: it is damaged, or holds other things than tensors ({str(error).splitlines()[0][:120]})"
        raise UserError(Problem(what, file=str(file), remedy=_FRESH)) from None
    if not isinstance(saved, Mapping) or not {"state", "param_groups"} <= saved.keys():
        raise UserError(Problem("is no state of an optimizer", file=str(file), remedy=_FRESH))
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    groups = saved["param_groups"]
    keys, how = _keys(saved, model, named, file)
    by_name = {name: saved["state"][key] for name, key in keys.items() if key in saved["state"]}
    rates = {group.get("lr") for group in groups}
    return Moments(by_name, float(rates.pop()) if len(rates) == 1 and None not in rates else None, how)


def as_our_state(moments: Moments, model: nn.Module, others: Sequence[nn.Module], spec: OptimSpec) -> dict[str, Any]:
    """State of the recipe's optimizer over the model, and over modules beside it, which start without any."""
    modules = [model, *others]
    optimizer = build_optimizer(modules, spec)
    names = {id(p): name for name, p in model.named_parameters()}
    state: dict[str, Any] = optimizer.state_dict()
    for number, (_, parameter) in enumerate(stepped_parameters(modules, optimizer)):
        found = moments.by_name.get(names.get(id(parameter), ""))
        if found is not None:
            state["state"][number] = {key: value.clone() for key, value in found.items()}
    return state


def _keys(
    saved: Mapping[str, Any], model: nn.Module, named: Mapping[str, Tensor], file: Path
) -> tuple[dict[str, Any], str]:
    """Key of each parameter's state."""
    state, groups = saved["state"], saved["param_groups"]
    written = [name for group in groups for name in group.get("param_names", ())]
    numbers = [key for group in groups for key in group["params"]]
    if len(written) == len(numbers) and written:
        keys = {_WRAPPERS.sub("", name): key for name, key in zip(written, numbers, strict=True)}
        how = "by their names"
    elif all(isinstance(key, str) for key in state) and state:
        keys, how = {_WRAPPERS.sub("", key): key for key in state}, "by their names"
    else:
        return _by_order(saved, model, named, file)
    wrong = [name for name in keys if name not in named] + [
        name for name, key in keys.items() if name in named and not _has_shape(state.get(key), named[name])
    ]
    if wrong or not keys:
        raise _refusal(file, f"{len(wrong)} of its {len(keys)} entries are of other parameters, e.g. {wrong[:1]}")
    return keys, how


def _by_order(
    saved: Mapping[str, Any], model: nn.Module, named: Mapping[str, Tensor], file: Path
) -> tuple[dict[str, Any], str]:
    state, groups = saved["state"], saved["param_groups"]
    fitting: dict[tuple[tuple[str, Any], ...], str] = {}
    reasons = []
    for rule, is_decayed in _RULES.items():
        decayed = is_decayed(model, named)
        parts = [[n for n in named if n in decayed], [n for n in named if n not in decayed]]
        parts = parts if len(groups) == 2 else [list(named)]
        reason = _misfit(parts, groups, state, named)
        if reason is None:
            pairs = (zip(part, group["params"], strict=True) for part, group in zip(parts, groups, strict=True))
            keys = tuple(sorted(pair for part in pairs for pair in part))
            fitting.setdefault(keys, f"by their order ({rule})" if len(groups) == 2 else "by their order")
        else:
            reasons.append(reason)
    if len(fitting) > 1:
        raise _refusal(file, f"its entries fit the parameters in {len(fitting)} ways: {'; '.join(fitting.values())}")
    if not fitting:
        raise _refusal(file, reasons[0])
    ((found, how),) = fitting.items()
    return dict(found), how


def _misfit(
    parts: list[list[str]], groups: Sequence[Any], state: Mapping[Any, Any], named: Mapping[str, Tensor]
) -> str | None:
    """Why entries are not those of these parameters in this order; None where they can be."""
    have, want = [len(group["params"]) for group in groups], [len(part) for part in parts]
    if have != want:
        return f"it has {' + '.join(map(str, have))} entries, and the policy {' + '.join(map(str, want))} parameters"
    for part, group in zip(parts, groups, strict=True):
        for name, key in zip(part, group["params"], strict=True):
            if not _has_shape(state.get(key), named[name]):
                shapes = {tuple(value.shape) for value in state[key].values() if torch.is_tensor(value) and value.ndim}
                return f"entry {key} has shape {sorted(shapes)}, and `{name}` {tuple(named[name].shape)}"
    return None


def _has_shape(state: Mapping[str, Any] | None, parameter: Tensor) -> bool:
    """Whether all that is kept of a parameter has its shape; nothing need be kept."""
    kept = () if state is None else state.values()
    return all(value.shape == parameter.shape for value in kept if torch.is_tensor(value) and value.ndim)


def _refusal(file: Path, what: str) -> UserError:
    return UserError(Problem(f"is not the state of this policy's optimizer: {what}", file=str(file), remedy=_FRESH))


Rule = Callable[[nn.Module, Mapping[str, Tensor]], set[str]]


def _decayed_by_name(_: nn.Module, named: Mapping[str, Tensor]) -> set[str]:
    return {name for name in named if not _UNDECAYED.search(name.lower())}


def _decayed_but_layer_norms(model: nn.Module, named: Mapping[str, Tensor]) -> set[str]:
    inside = {
        f"{prefix}.{name}"
        for prefix, module in model.named_modules()
        if isinstance(module, nn.LayerNorm)
        for name, _ in module.named_parameters(recurse=False)
    }
    return {name for name in named if name not in inside and "bias" not in name}


def _decayed_matrices(_: nn.Module, named: Mapping[str, Tensor]) -> set[str]:
    return {name for name, p in named.items() if p.ndim >= 2}


_RULES: dict[str, Rule] = {
    "decayed: all but biases and norms": lambda model, named: (
        _decayed_by_name(model, named) & _decayed_but_layer_norms(model, named)
    ),
    "decayed: all but biases and LayerNorm layers": _decayed_but_layer_norms,
    "decayed: matrices": _decayed_matrices,
}


def _same_shape(names: Mapping[str, Tensor]) -> Iterator[list[str]]:
    """Names of matrices that could be taken for one another: those of one shape, where there are several."""
    classes: dict[torch.Size, list[str]] = {}
    for name, parameter in names.items():
        if parameter.ndim >= 2:
            classes.setdefault(parameter.shape, []).append(name)
    return (members for members in classes.values() if len(members) > 1)


@torch.no_grad()
def likeness(moments: Moments, gradients: Mapping[str, Tensor]) -> tuple[int, int]:
    """How many matrices' gradients resemble their own second moments most, among those of the same shape.

    Where a mapping is right most do, since sizes of gradients differ from matrix to matrix, and within each from row to
    row; where matrices have been exchanged, few do. Resemblance is the distance of the logarithms of these sizes.

    Args:
        moments: with Adam's second moments; otherwise nothing is counted.
        gradients: of the same parameters, on some batch.

    Returns:
        Those, and of how many.
    """
    known = {n: g for n, g in gradients.items() if "exp_avg_sq" in moments.by_name.get(n, {}) and bool(g.any())}
    hits = total = 0
    for members in _same_shape(known):
        sizes_KD = torch.stack([_profile(known[name].abs()) for name in members])
        kept_KD = torch.stack(
            [_profile(moments.by_name[name]["exp_avg_sq"].to(known[name]).sqrt()) for name in members]
        )
        # Clipping, the batch and the decay of moments scale all of them alike.
        nearest_K = torch.cdist(sizes_KD - sizes_KD.mean(), kept_KD - kept_KD.mean()).argmin(dim=1)
        hits += int((nearest_K.cpu() == torch.arange(len(members))).sum())
        total += len(members)
    return hits, total


def _profile(sizes: Tensor) -> Tensor:
    """Logarithms of the root mean squares of rows and of columns, one after another."""
    square = sizes.double().square().flatten(1)
    return torch.cat([square.mean(dim=1), square.mean(dim=0)]).clamp(min=1e-30).sqrt().log()
