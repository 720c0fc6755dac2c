"""Files of a policy that are damaged, missing or do not fit: exit code 2, which file and why, in every command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import save_family

from cvxrl.errors import UserError
from cvxrl.policy.load import load_policy
from cvxrl.recipe.model import ModelSpec

CPU = torch.device("cpu")
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family("llama", tmp_path_factory.mktemp("whole") / "policy")


@pytest.fixture
def policy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "policy"))


def refusal(policy: Path, **values: Any) -> str:
    with pytest.raises(UserError) as error:
        load_policy(ModelSpec.model_validate({"path": str(policy), **values}), CPU)
    assert all(problem.remedy for problem in error.value.problems)
    return str(error.value)


def change(file: Path, **values: Any) -> None:
    content = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in {**content, **values}.items() if value != "GONE"}))


def spoil(policy: Path, name: str, value: float) -> None:
    weights = load_file(policy / WEIGHTS)
    weights[name].view(-1)[3] = value
    save_file(weights, policy / WEIGHTS, {"format": "pt"})


def cut(policy: Path) -> None:
    data = (policy / WEIGHTS).read_bytes()
    (policy / WEIGHTS).write_bytes(data[: len(data) // 2])


def index(policy: Path) -> None:
    (policy / WEIGHTS).rename(policy / "model-00001-of-00002.safetensors")
    shards = {"model.norm.weight": "model-00001-of-00002.safetensors", "x": "model-00002-of-00002.safetensors"}
    (policy / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))


def without_tokenizer(policy: Path) -> None:
    for file in policy.glob("token*"):
        file.unlink()


DAMAGES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "cut off": (cut, [WEIGHTS, "cut off"]),
    "empty": (lambda p: (p / WEIGHTS).write_bytes(b""), [WEIGHTS, "is empty"]),
    "something else": (lambda p: (p / WEIGHTS).write_bytes(b"no weights" * 50), [WEIGHTS, "no safetensors file"]),
    "a shard is missing": (index, ["index.json", "model-00002-of-00002.safetensors"]),
    "no index": (lambda p: (p / "model.safetensors.index.json").write_text("[]"), ["index.json", "no index"]),
    "another vocabulary": (
        lambda p: change(p / "config.json", vocab_size=60),
        ["model.embed_tokens.weight", "[64, 32]", "[60, 32]", "config.json"],
    ),
    "too few layers stored": (
        lambda p: change(p / "config.json", num_hidden_layers=3),
        ["lack 9", "model.layers.2.input_layernorm.weight"],
    ),
    "no JSON": (lambda p: (p / "config.json").write_text("{"), ["config.json"]),
    "no object": (lambda p: (p / "config.json").write_text("[]"), ["policy"]),
    "text for a number": (lambda p: change(p / "config.json", hidden_size="a"), ["hidden_size"]),
    "no tokenizer": (without_tokenizer, ["holds no tokenizer files", "tokenizer.json"]),
    "a broken tokenizer": (lambda p: (p / "tokenizer.json").write_text("{"), ["policy"]),
    "a NaN": (lambda p: spoil(p, "model.norm.weight", float("nan")), ["not finite", "1 of 32", "`model.norm.weight`"]),
    "an infinity": (lambda p: spoil(p, "model.embed_tokens.weight", -float("inf")), ["`model.embed_tokens.weight`"]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_named_with_the_reason(damage: str, policy: Path) -> None:
    do, words = DAMAGES[damage]
    do(policy)
    said = refusal(policy)
    for word in [str(policy), *words]:
        assert word in said, said


def test_a_family_that_makes_a_tokenizer_of_nothing_is_refused(tmp_path: Path) -> None:
    policy = save_family("qwen3", tmp_path)
    without_tokenizer(policy)
    assert "holds no tokenizer files" in refusal(policy)


def test_all_damages_are_told_at_once(policy: Path) -> None:
    cut(policy)
    without_tokenizer(policy)
    said = refusal(policy)
    assert WEIGHTS in said and "holds no tokenizer files" in said


def test_a_text_needs_an_end_token(policy: Path) -> None:
    change(policy / "tokenizer_config.json", eos_token="GONE", pad_token="GONE")
    change(policy / "generation_config.json", eos_token_id="GONE")
    said = refusal(policy)
    assert "model.end_token" in said and "tokenizer_config.json" in said
    assert "no token `<end>`" in refusal(policy, end_token="<end>")
    named = load_policy(ModelSpec(path=str(policy), end_token=";"), CPU)
    semicolon = named.tokenizer.convert_tokens_to_ids(";")
    assert named.end_ids == (semicolon,) and named.pad_id == semicolon
    both = load_policy(ModelSpec(path=str(policy), end_token=";", pad_token="?"), CPU)
    assert both.pad_id == both.tokenizer.convert_tokens_to_ids("?")


def test_the_end_token_of_the_generation_config_is_enough(policy: Path) -> None:
    change(policy / "tokenizer_config.json", eos_token="GONE", pad_token="GONE")
    change(policy / "generation_config.json", eos_token_id=[5, 1])
    found = load_policy(ModelSpec(path=str(policy)), CPU)
    assert found.end_ids == (1, 5) and found.pad_id == 1


def test_every_token_needs_a_row_in_the_embedding(policy: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(policy)
    tokenizer.add_tokens([f"<{i}>" for i in range(30)])
    tokenizer.save_pretrained(policy)
    said = refusal(policy)
    assert "21 tokens" in said and "64" in said and "`<9>` (64)" in said and "resize_token_embeddings" in said


@pytest.mark.parametrize("damage", ["cut off", "a NaN", "another vocabulary"])
def test_every_command_refuses_damaged_weights(damage: str, policy: Path, cvxrl: Any) -> None:
    do, words = DAMAGES[damage]
    do(policy)
    recipe = ["--recipe", "math_grpo"]
    task = ["--task", "arithmetic", "--questions", "2", "--device", "cpu"]
    for call in (
        ["train", "math_grpo", "--set", f"model.path={policy}", "--set", "train.device=cpu"],
        ["eval", "--ckpt", str(policy), *task],
        ["inspect-grads", str(policy), *recipe, "--prompts", "4", "--device", "cpu"],
    ):
        done = cvxrl(*call)
        assert done.code == 2 and "Traceback" not in done.err, done.err
        for word in words:
            assert word in " ".join(done.err.split()), done.err
    if damage == "cut off":
        done = cvxrl("train", "math_grpo", "--dry-run", "--set", f"model.path={policy}")
        assert done.code == 2 and WEIGHTS in done.err
