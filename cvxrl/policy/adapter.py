"""LoRA: low-rank matrices put beside a frozen policy's layers, in place, so that the model keeps its class and names.

PEFT makes the layers and the files; nothing here wraps the model, so `base_model`, `get_output_embeddings` and the
like mean what they mean without an adapter.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cvxrl.errors import Problem, UserError
from cvxrl.policy.locate import ADAPTER_CONFIG, ADAPTER_WEIGHTS, is_adapter
from cvxrl.recipe.model import LoraSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NAME = "default"
# PEFT's own files name every tensor as inside its wrapper.
_PREFIX = "base_model.model."
_BASE, _LORA = ".base_layer", ".lora_"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def add_adapter(model: PreTrainedModel, spec: LoraSpec, seed: int) -> None:
    """Freeze ``model`` and put trainable adapters beside its layers; it computes what it did, bit for bit.

    Args:
        model: changed in place.
        spec: recipe section `model.lora`.
        seed: seed of A's initial values.

    Raises:
        UserError: PEFT is not installed, or a target names no layer that can be adapted.
    """
    _require_peft("model.lora")
    from peft import LoraConfig, TaskType, inject_adapter_in_model

    targets = spec.targets if isinstance(spec.targets, str) else _found(model, spec.targets)
    _untie(model, targets)
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=spec.rank,
        lora_alpha=spec.alpha,
        use_rslora=spec.scaling == "sqrt-rank",
        lora_dropout=spec.dropout,
        target_modules=targets,
        init_lora_weights=True if spec.init == "kaiming" else "gaussian",
        base_model_name_or_path=getattr(model.config, "_name_or_path", None) or None,
    )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inject_adapter_in_model(config, model, _NAME)
    except ValueError as error:
        reason = str(error).splitlines()[0][:200]
        raise UserError(
            Problem(f"cannot be adapted: {reason}", "model.lora.targets", remedy="name linear layers, or all-linear")
        ) from error
    _cast(model, _DTYPES[spec.dtype])


def has_adapter(model: nn.Module) -> bool:
    """Whether the model has adapters (`add_adapter`)."""
    return bool(getattr(model, "peft_config", None))


@contextmanager
def without_adapter(model: nn.Module) -> Iterator[None]:
    """The policy as it was loaded, for the length of the block."""
    layers = [layer for layer in _layers(model).values() if not layer.disable_adapters]  # blocks may be nested
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def save_adapter(model: PreTrainedModel, directory: Path) -> None:
    """Write the adapter alone, in PEFT's format."""
    from peft import get_peft_model_state_dict

    config = copy.copy(_config(model))
    # A set, whose order differs from process to process.
    config.target_modules = sorted(config.target_modules)
    config.inference_mode = True
    config.save_pretrained(str(directory))
    weights = get_peft_model_state_dict(model, adapter_name=_NAME, save_embedding_layers=False)
    kept = {_PREFIX + name: tensor.detach().contiguous() for name, tensor in weights.items()}
    save_file(kept, directory / ADAPTER_WEIGHTS, {"format": "pt"})


def load_adapter(model: PreTrainedModel, directory: Path) -> None:
    """Restore what `save_adapter` wrote into a model that `add_adapter` prepared in the same way, bit for bit."""
    from peft import set_peft_model_state_dict

    outcome = set_peft_model_state_dict(model, load_file(directory / ADAPTER_WEIGHTS), adapter_name=_NAME)
    missing = [name for name in outcome.missing_keys if _LORA in name]
    assert not missing and not outcome.unexpected_keys, (missing, outcome.unexpected_keys)


def merge_saved(model: PreTrainedModel, path: str) -> None:
    """Add the adapter in the directory ``path`` to the weights of ``model``.

    Raises:
        UserError: PEFT is not installed, or there is no adapter in safetensors that fits the policy.
    """
    _require_peft("model.adapter")
    from peft import inject_adapter_in_model

    directory = Path(path).expanduser()
    config = _plain_config(directory, path)
    try:
        _untie(model, config.target_modules)
        inject_adapter_in_model(config, model, _NAME)
        _cast(model, torch.float32)
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
    for name, layer in _layers(model).items():
        model.set_submodule(name, layer.get_base_layer())
    del model.peft_config
    model.requires_grad_(True)
    model.load_state_dict(weights)


def merged_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """State of the model that the adapters amount to, under the names it had without them; the model is unchanged."""
    layers = _layers(model)
    merged = {}
    for name, tensor in model.state_dict().items():
        owner, inside, rest = name.rpartition(f"{_BASE}.")
        if inside and rest == "weight":
            delta = layers[owner].get_delta_weight(_NAME).detach()
            # One rounding, at the end.
            merged[f"{owner}.{rest}"] = (tensor.to(delta.dtype) + delta).to(tensor.dtype)
        elif inside:
            merged[f"{owner}.{rest}"] = tensor
        elif _LORA not in name:
            merged[name] = tensor
    return merged


def name_without_adapter(name: str) -> str | None:
    """What a tensor of an adapted model was called before `add_adapter`; None for the adapter's own."""
    return None if _LORA in name else name.replace(f"{_BASE}.", ".")


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Give the adapters a data type; PEFT makes them in that of the weights."""
    for name, parameter in model.named_parameters():
        if _LORA in name:
            parameter.data = parameter.data.to(dtype)


def _layers(model: nn.Module) -> dict[str, Any]:
    """Adapted layers by the names they had before."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "get_delta_weight")}


def _config(model: PreTrainedModel) -> Any:
    return model.peft_config[_NAME]


def _require_peft(key: str) -> None:
    if importlib.util.find_spec("peft") is None:
        raise UserError(
            Problem("this needs the package peft, which is not installed", key, remedy='pip install "cvxrl[lora]"')
        )


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _found(model: nn.Module, targets: tuple[str, ...]) -> list[str]:
    """The targets, each of which must be the end of some layer's name: PEFT is content if one of them is."""
    names = [name for name, module in model.named_modules() if _is_matrix(getattr(module, "weight", None))]
    unknown = [t for t in targets if not any(_matches(name, t) for name in names)]
    if unknown:
        known = ", ".join(sorted({name.rpartition(".")[2] for name in names}))
        raise UserError(
            *(
                Problem(f"the policy has no layer `{t}` with a matrix", "model.lora.targets", remedy=f"it has {known}")
                for t in unknown
            )
        )
    return sorted(targets)


def _is_matrix(weight: Any) -> bool:
    return isinstance(weight, Tensor) and weight.ndim == 2


def _untie(model: PreTrainedModel, targets: Any) -> None:
    """Give the output layer a matrix of its own if it or the embedding it is tied to is to be adapted alone.

    Args:
        model: changed in place.
        targets: ends of modules' names; a text (a pattern, or `all-linear`, which leaves both out) changes nothing.
    """
    if isinstance(targets, str) or not targets:
        return
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or getattr(head, "weight", None) is not getattr(embedding, "weight", None):
        return
    names = [name for name, module in model.named_modules() if module is head or module is embedding]
    if any(_matches(name, target) for name in names for target in targets):
        head.weight = nn.Parameter(head.weight.detach().clone())
        model.config.tie_word_embeddings = False
