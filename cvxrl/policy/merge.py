"""A saved LoRA adapter, added to the weights of the policy that it was trained on when they are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cvxrl.errors import Problem, UserError
from cvxrl.policy.adapter import (
    NAME,
    adapted_layers,
    cast_adapter,
    load_adapter,
    merged_weights,
    name_without_adapter,
    require_peft,
    untie,
)
from cvxrl.policy.locate import ADAPTER_CONFIG, ADAPTER_WEIGHTS, is_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def merge_saved(model: PreTrainedModel, path: str) -> None:
    """Add the adapter in the directory ``path`` to the weights of ``model``.

    Raises:
        UserError: PEFT is not installed, or there is no adapter in safetensors that fits the policy.
    """
    require_peft("model.adapter")
    from peft import inject_adapter_in_model

    directory = Path(path).expanduser()
    config = _plain_config(directory, path)
    try:
        untie(model, config.target_modules)
        inject_adapter_in_model(config, model, NAME)
        cast_adapter(model, torch.float32)
        load_adapter(model, directory)
    except (AssertionError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:200]
        remedy = "name the policy in model.path that the adapter was trained on"
        raise UserError(Problem(f"`{path}` does not fit the policy: {reason}", "model.adapter", "", remedy)) from error
    _replace_by_base(model, merged_weights(model))


def _plain_config(directory: Path, path: str) -> Any:
    """Settings of a saved adapter, if it is one that `merged_weights` can add up."""
    from peft import PeftConfig

    if not is_adapter(directory) or not (directory / ADAPTER_WEIGHTS).is_file():
        remedy = f"name a directory with {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}"
        raise UserError(Problem(f"`{path}` holds no adapter", "model.adapter", remedy=remedy))
    try:
        config = PeftConfig.from_pretrained(str(directory))
    except (ValueError, TypeError, KeyError) as error:
        reason = str(error).splitlines()[0][:200]
        raise UserError(
            Problem(f"`{path}` cannot be read: {reason}", "model.adapter", remedy="save it again")
        ) from error
    more = [name for name in ("use_dora", "modules_to_save", "lora_bias") if getattr(config, name, None)]
    if config.peft_type != "LORA" or more or config.bias != "none":
        what = f"`{path}` is more than low-rank matrices ({', '.join([str(config.peft_type.value), *more])})"
        raise UserError(Problem(what, "model.adapter", remedy="merge it with PEFT and name the merged policy"))
    return config


def _replace_by_base(model: PreTrainedModel, weights: dict[str, Tensor]) -> None:
    """Take the adapters out again and load ``weights``."""
    for name, layer in adapted_layers(model).items():
        # Of wrappers inside each other the outermost has the name that the layer had; it unwraps all of them.
        if name == name_without_adapter(name):
            model.set_submodule(name, layer.get_base_layer())
    del model.peft_config
    model.requires_grad_(True)
    model.load_state_dict(weights)
