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
from cvxrl.policy.locate import ADAPTER_WEIGHTS
from cvxrl.policy.weight_files import stored_shapes
from cvxrl.recipe.model import LoraSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "default"
# PEFT's own files name every tensor as inside its wrapper.
_PREFIX = "base_model.model."
_BASE, _LORA = "base_layer", "lora_"
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
    require_peft("model.lora")
    from peft import LoraConfig, TaskType, inject_adapter_in_model

    targets = spec.targets if isinstance(spec.targets, str) else _found(model, spec.targets)
    untie(model, targets)
    before = _shapes(model)
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=spec.rank,
        lora_alpha=spec.alpha,
        use_rslora=spec.scaling == "sqrt-rank",
        lora_dropout=spec.dropout,
        target_modules=targets,
        exclude_modules=_not_only_linear(model) or None,
        init_lora_weights=True if spec.init == "kaiming" else "gaussian",
        base_model_name_or_path=getattr(model.config, "_name_or_path", None) or None,
    )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inject_adapter_in_model(config, model, NAME)
    except (ValueError, NotImplementedError, TypeError) as error:
        raise UserError(_not_adaptable(error, spec)) from error
    cast_adapter(model, _DTYPES[spec.dtype])
    _require_mergeable(model, before)


def has_adapter(model: nn.Module) -> bool:
    """Whether the model has adapters (`add_adapter`)."""
    return bool(getattr(model, "peft_config", None))


@contextmanager
def without_adapter(model: nn.Module) -> Iterator[None]:
    """The policy as it was loaded, for the length of the block."""
    layers = [layer for layer in adapted_layers(model).values() if not layer.disable_adapters]  # blocks may be nested
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

    config = copy.copy(model.peft_config[NAME])
    # Sets, whose order differs from process to process.
    for kind in ("target_modules", "target_parameters"):
        if getattr(config, kind, None) is not None:
            setattr(config, kind, sorted(getattr(config, kind)))
    config.inference_mode = True
    config.save_pretrained(str(directory))
    weights = get_peft_model_state_dict(model, adapter_name=NAME, save_embedding_layers=False)
    kept = {_PREFIX + name: tensor.detach().contiguous() for name, tensor in weights.items()}
    save_file(kept, directory / ADAPTER_WEIGHTS, {"format": "pt"})


def load_adapter(model: PreTrainedModel, directory: Path) -> None:
    """Restore what `save_adapter` wrote into a model that `add_adapter` prepared in the same way, bit for bit."""
    from peft import set_peft_model_state_dict

    list(stored_shapes(directory / ADAPTER_WEIGHTS))  # refuses a damaged file
    stored = load_file(directory / ADAPTER_WEIGHTS)
    own = {_stored_name(name): name for name in model.state_dict() if name_without_adapter(name) is None}
    if own.keys() == stored.keys():
        model.load_state_dict({own[name]: tensor for name, tensor in stored.items()}, strict=False)
        return
    # Of another version of the family, whose layers had other names.
    outcome = set_peft_model_state_dict(model, stored, adapter_name=NAME)
    missing = [name for name in outcome.missing_keys if _LORA in name]
    assert not missing and not outcome.unexpected_keys, (missing, outcome.unexpected_keys)


def merged_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """State of the model that the adapters amount to, under the names it had without them; the model is unchanged."""
    layers = {_adapted_tensor(name, layer): layer for name, layer in adapted_layers(model).items()}
    sums: dict[int, Tensor] = {}  # a layer that is used in two places stays one tensor
    merged = {}
    for name, tensor in model.state_dict().items():
        plain = name_without_adapter(name)
        if plain is None:
            continue
        layer = layers.get(plain)
        if layer is not None and id(layer) not in sums:
            delta = layer.get_delta_weight(NAME).detach()
            # One rounding, at the end.
            sums[id(layer)] = (tensor.to(delta.dtype) + delta).to(tensor.dtype)
        merged[plain] = tensor if layer is None else sums[id(layer)]
    return merged


def name_without_adapter(name: str) -> str | None:
    """What a tensor or module of an adapted model was called before `add_adapter`; None for the adapter's own.

    Parameters of one module are adapted by wrappers inside each other, so there may be several `base_layer`.
    """
    parts = name.split(".")
    if any(part.startswith(_LORA) for part in parts):
        return None
    return ".".join(part for part in parts if part != _BASE)


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """Every wrapper that PEFT put in, by its name now; one that the model uses in two places has both names."""
    modules = model.named_modules(remove_duplicate=False)
    return {name: module for name, module in modules if hasattr(module, "get_delta_weight")}


def cast_adapter(model: nn.Module, dtype: torch.dtype) -> None:
    """Give the adapters a data type; PEFT makes them in that of the weights."""
    for name, parameter in model.named_parameters():
        if name_without_adapter(name) is None:
            parameter.data = parameter.data.to(dtype)


def _stored_name(name: str) -> str:
    """What PEFT calls a tensor of an adapter in its files."""
    before, lora, after = name.partition(f".{_LORA}")
    return f"{_PREFIX}{before}{lora}{after.replace(f'.{NAME}', '', 1)}"


def _not_only_linear(model: nn.Module) -> list[str]:
    """Layers that hold a matrix as a linear layer does but compute something else with it, e.g. routers."""
    layers = ((name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear))
    return [name for name, module in layers if type(module).forward is not nn.Linear.forward]


def _adapted_tensor(name: str, layer: Any) -> str:
    """Name before `add_adapter` of the tensor that a wrapper adds to: a layer's matrix, or one parameter of many."""
    return f"{name_without_adapter(name)}.{getattr(layer, 'parameter_name', 'weight')}"


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    state = {name_without_adapter(name): tensor.shape for name, tensor in model.state_dict().items()}
    return {name: shape for name, shape in state.items() if name is not None}


def _require_mergeable(model: PreTrainedModel, before: dict[str, torch.Size]) -> None:
    """The weights with the adapter added must be those of the model as it was loaded, tensor by tensor.

    Raises:
        UserError: names the layers for which they would not be.
    """
    wrong = before.keys() ^ _shapes(model).keys()
    for name, layer in adapted_layers(model).items():
        tensor = _adapted_tensor(name, layer)
        if before.get(tensor) != layer.get_delta_weight(NAME).shape:
            wrong.add(tensor)
    if wrong:
        what = (
            f"an adapter of {', '.join(sorted(wrong)[:5])} cannot be merged into the weights, so it could not be saved"
        )
        raise UserError(Problem(what, "model.lora.targets", remedy="name other layers, e.g. [q_proj, v_proj]"))


def _not_adaptable(error: Exception, spec: LoraSpec) -> Problem:
    reason = str(error).strip().splitlines()[0][:200]
    if spec.dropout and "lora_dropout" in reason:
        what = "parameters that are no layers (fused experts, routers) cannot be adapted with dropout"
        return Problem(what, "model.lora.dropout", remedy="set it to 0, or name only layers in model.lora.targets")
    return Problem(f"cannot be adapted: {reason}", "model.lora.targets", remedy="name other linear layers")


def require_peft(key: str) -> None:
    """Raise UserError, for a recipe's ``key``, unless PEFT is installed."""
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
    special = [t for t in targets for name in _not_only_linear(model) if _matches(name, t)]
    if special:
        what = f"`{special[0]}` does more than multiply with its matrix, which an adapter cannot follow"
        raise UserError(Problem(what, "model.lora.targets", remedy="name other layers"))
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


def untie(model: PreTrainedModel, targets: Any) -> None:
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
