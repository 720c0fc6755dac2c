"""What a dry run says of memory and time: against transformers, against arithmetic by hand, and what cannot fit."""

from __future__ import annotations

import json
import random
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, new_model, tiny

from cvxrl.engine import device
from cvxrl.engine.memory import footprint
from cvxrl.engine.placed import Placed, planned_ranks
from cvxrl.engine.plan import describe
from cvxrl.engine.sizes import Shape, shape_of
from cvxrl.engine.workload import Rates, seconds
from cvxrl.errors import UserError
from cvxrl.policy.architecture import known_config, parameter_shapes
from cvxrl.recipe.load import load_recipe
from cvxrl.recipe.model import LoraSpec, ModelSpec

PAPER = sorted(file.stem for file in (ROOT / "recipes" / "paper").glob("*.yaml"))
KNOWN = json.loads((ROOT / "cvxrl" / "assets" / "architectures.json").read_text())
OF_THE_PAPER = {
    "Qwen/Qwen2.5-3B": 3_085_938_688,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
}
SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
SMALL |= {"intermediate_size": 40, "vocab_size": 50}


def on_meta(config: dict[str, Any]) -> dict[str, list[int]]:
    """What transformers makes of a configuration, without memory for it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    return {name: list(parameter.shape) for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llama", **SMALL, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
        {"model_type": "qwen2", **SMALL, "tie_word_embeddings": True},
        {"model_type": "qwen3", **SMALL, "head_dim": 8},
        {"model_type": "mistral", **SMALL},
        *(
            pytest.param({**config}, id=name, marks=[] if name in OF_THE_PAPER else pytest.mark.slow)
            for name, config in KNOWN.items()
        ),
    ],
)
def test_a_configuration_names_every_parameter_as_transformers_does(config: dict[str, Any]) -> None:
    assert parameter_shapes(config) == on_meta(config)


def test_sizes_of_the_paper_s_models_need_no_network_and_no_file() -> None:
    for name, parameters in OF_THE_PAPER.items():
        for path in (name, f"{name}-Instruct"):
            shape = shape_of(ModelSpec(path=path))
            assert shape is not None and shape.parameters == shape.trainable == parameters
            assert shape.tied == (name == "Qwen/Qwen2.5-3B")
            assert shape.trunk == parameters - shape.vocab * shape.hidden * (1 if shape.tied else 2)
    adapted = shape_of(ModelSpec(path="Qwen/Qwen2.5-7B", lora=LoraSpec(rank=4, targets=("q_proj", "down_proj"))))
    assert adapted is not None and adapted.trainable == 28 * 4 * (3584 + 3584 + 18944 + 3584)
    assert shape_of(ModelSpec(path="somebody/unheard-of")) is None and not parameter_shapes({"model_type": "t5"})
    assert not parameter_shapes({"model_type": "llama"}) and not known_config("Qwen")


def test_what_the_hub_s_cache_holds_is_read_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--Qwen--Qwen2.5-3B"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    config = {"model_type": "qwen2", **SMALL, "tie_word_embeddings": False}
    (snapshot / "config.json").write_text(json.dumps(config))
    counted = shape_of(ModelSpec(path="Qwen/Qwen2.5-3B"))
    assert counted is not None and counted.hidden == 24 and not counted.tied
    new_model("Llama", **SMALL).save_pretrained(snapshot)
    stored = shape_of(ModelSpec(path="Qwen/Qwen2.5-3B"))
    assert stored is not None and stored.parameters == counted.parameters - 2 * (24 + 12 + 12), "no biases in that file"
    # An interrupted download: the index names a file that is not there, so that the configuration is counted.
    (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-2.safetensors"}}))
    assert shape_of(ModelSpec(path="Qwen/Qwen2.5-3B")) is not None
    shutil.rmtree(repository)
    table = shape_of(ModelSpec(path="Qwen/Qwen2.5-3B"))
    assert table is not None and table.parameters == OF_THE_PAPER["Qwen/Qwen2.5-3B"]


@pytest.mark.parametrize("name", PAPER)
def test_a_recipe_of_the_paper_s_scale_is_planned_on_a_laptop(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        raise AssertionError("a plan asks nobody")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    plan = describe(load_recipe(f"paper/{name}"))
    assert [planned.ranks for planned in plan.ranks] == [1, 8, 64] and plan.updates == 12
    peaks = [planned.memory.peak for planned in plan.ranks]
    steps = [planned.seconds.step for planned in plan.ranks if planned.seconds is not None]
    assert peaks == sorted(peaks, reverse=True) and steps == sorted(steps, reverse=True)
    assert peaks[1] < 75 * 2**30, "what the recipe is made for: eight GPUs of 80 GB"
