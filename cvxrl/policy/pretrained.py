"""Read a policy and its tokenizer from a directory, the Hub or a GGUF file, or say what is wrong with it."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cvxrl.errors import Mistakes, Problem, UserError
from cvxrl.policy.locate import Location, locate
from cvxrl.policy.weight_files import check_weight_files
from cvxrl.recipe.model import ModelSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Bytes; of the widest registers that there are, and what torch allocates at.
_ALIGNMENT = 64
_SHOWN = 5
_TOKENIZER_FILES = ("*token*", "vocab*", "merges.txt", "*.model", "*.tiktoken")


def load_pretrained(spec: ModelSpec) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Load what `model.path` names.

    Raises:
        UserError: files are missing, unreachable, damaged, do not fit each other, or are no causal language model.
    """
    location = locate(spec)
    if location.gguf_file is not None and importlib.util.find_spec("gguf") is None:
        remedy = 'pip install "cvxrl[gguf]"'
        raise UserError(Problem("reading a GGUF file needs the package `gguf`", "model.path", remedy=remedy))
    options = {
        "gguf_file": location.gguf_file,
        "revision": spec.revision or "main",
        "trust_remote_code": spec.trust_remote_code,
        "local_files_only": location.is_local,
    }
    mistakes = Mistakes()
    if location.is_local and location.gguf_file is None:
        mistakes.attempt(check_weight_files, Path(location.path))
    model = None if mistakes.problems else mistakes.attempt(_model, spec, location, options)
    tokenizer = mistakes.attempt(_tokenizer, location, options)
    if model is None or tokenizer is None:
        raise UserError(*mistakes.problems)
    return tokenizer, model


def _model(spec: ModelSpec, location: Location, options: dict[str, Any]) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    model: PreTrainedModel
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            location.path,
            dtype=DTYPES[spec.dtype],
            # Pickled weights can run code when read, so only safetensors (and GGUF) are read unless the recipe allows
            # more.
            use_safetensors=None if location.gguf_file or spec.allow_pickle else True,
            ignore_mismatched_sizes=True,  # told below, by name
            output_loading_info=True,
            **options,
        )
    except Exception as error:  # whatever a library or the model's own code makes of the user's files
        raise UserError(_load_problem(location, error)) from error
    _require_all(location, found["missing_keys"], found["mismatched_keys"])
    if location.gguf_file is not None:
        _forget_quantization(model)
    align(model)
    return model


def align(model: PreTrainedModel) -> None:
    """Put each weight where a vector register's load may begin, as torch does with tensors that it makes itself.

    What is read from a file lies as far from such a place as the file's header is long, and products of one row, with
    which the last reply of a batch is decoded, round otherwise there: equal weights of two files, or of a file and a
    copy in memory, would give other last bits.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % _ALIGNMENT:
            tensor.data = tensor.data.clone()


def _require_all(location: Location, missing: set[str], mismatched: Sequence[Sequence[Any]]) -> None:
    """Transformers makes up at random what the files lack.

    Raises:
        UserError: naming the tensors.
    """
    problems = []
    remedy = "take config.json and weights from the same place"
    if mismatched:
        known = sorted(mismatched, key=lambda entry: str(entry[0]))[:_SHOWN]
        shown = ", ".join(f"`{name}` {list(stored)} instead of {list(expected)}" for name, stored, expected in known)
        what = f"{len(mismatched)} tensors have not the shape that config.json says: {shown}"
        problems.append(Problem(what, "model.path", location.path, remedy))
    if missing:
        shown = ", ".join(sorted(missing)[:_SHOWN]) + (f" and {len(missing) - _SHOWN} more" * (len(missing) > _SHOWN))
        what = f"the weight files lack {len(missing)} of the model's tensors: {shown}"
        problems.append(Problem(what, "model.path", location.path, remedy))
    if problems:
        raise UserError(*problems)


def _tokenizer(location: Location, options: dict[str, Any]) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(location.path, **options)
    except Exception as error:  # see `_model`
        raise UserError(_no_tokenizer(location) or _load_problem(location, error)) from error
    # Without files some families give a tokenizer that knows its special tokens alone.
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise UserError(_no_tokenizer(location) or Problem("the tokenizer has no tokens", "model.path", location.path))
    return tokenizer


def _no_tokenizer(location: Location) -> Problem | None:
    """What to say of a directory without any tokenizer file."""
    if not location.is_local or any(True for kind in _TOKENIZER_FILES for _ in Path(location.path).glob(kind)):
        return None
    remedy = "copy tokenizer.json and tokenizer_config.json there, from where the model comes from"
    return Problem("the directory holds no tokenizer files", "model.path", location.path, remedy)


def _load_problem(location: Location, error: Exception) -> Problem:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = " ".join(lines)[:300] if lines else ""
    if "trust_remote_code" in str(error):
        remedy = "read its code first; model.trust_remote_code lets it run"
        return Problem(f"`{location.path}` comes with python code of its own", "model.trust_remote_code", "", remedy)
    if not isinstance(error, OSError | ValueError) or not reason:
        reason = f"{type(error).__name__}: {reason}"
    if location.is_local:
        remedy = "the directory must hold config.json, tokenizer files and model.safetensors"
        what = f"cannot load `{Path(location.path).name}`: {reason}"
        return Problem(what, "model.path", location.path, remedy)
    return Problem(
        f"cannot load `{location.path}` from the Hugging Face Hub: {reason}",
        "model.path",
        remedy="check the name and the network, or give a local directory; HF_HUB_OFFLINE=1 forbids downloads",
    )


def _forget_quantization(model: PreTrainedModel) -> None:
    """Make a de-quantized GGUF model an ordinary one: its weights are floats now, but it refuses to be saved."""
    for name in ("hf_quantizer", "quantization_method"):
        if hasattr(model, name):
            delattr(model, name)
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
