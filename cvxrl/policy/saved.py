"""Weights of a policy as files: transformers writes them under the names of the Hub and reads them back.

A model's tensors may have other names in memory than on the disk, and other shapes (experts are fused when they are
loaded), so nothing here looks into the files: `save_pretrained` and `from_pretrained` convert.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakSet

from cvxrl.errors import Problem, UserError
from cvxrl.policy.adapter import has_adapter, merged_weights

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

_SHOWN = 5
# Models of which a first copy was found whole; names and shapes are those of the later ones.
_found_whole: WeakSet[PreTrainedModel] = WeakSet()


def save_weights(model: PreTrainedModel, directory: Path) -> None:
    """Write a plain Hugging Face directory (safetensors); an adapter is merged.

    Raises:
        UserError: transformers would not find every tensor of the model in what it wrote, and make it up at random.
    """
    model.save_pretrained(directory, state_dict=merged_weights(model) if has_adapter(model) else None)
    if model not in _found_whole:
        _require_whole(model, directory)
        _found_whole.add(model)


def _require_whole(model: PreTrainedModel, directory: Path) -> None:
    # Names and shapes alone: no second model takes memory. For "meta" transformers needs the package accelerate.
    _, found = type(model).from_pretrained(directory, device_map="meta", output_loading_info=True)
    lost = sorted({*found["missing_keys"], *found["unexpected_keys"], *(key for key, *_ in found["mismatched_keys"])})
    if lost:
        raise UserError(
            Problem(
                f"a saved {type(model).__name__} does not load as it was: {', '.join(map(str, lost[:_SHOWN]))}",
                "model.path",
                remedy="take a model of another family, or another version of transformers",
            )
        )


def load_weights(model: PreTrainedModel, directory: Path) -> None:
    """Give ``model`` the weights that `save_weights` wrote of a model without adapters, bit for bit."""
    saved = type(model).from_pretrained(directory, dtype=model.dtype, local_files_only=True, use_safetensors=True)
    state: dict[str, Tensor] = saved.state_dict()
    model.load_state_dict(state)
