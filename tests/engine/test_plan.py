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


# Two layers of width 8: small enough to count by hand, and no file to read.
BY_HAND = Shape(
    parameters=1000, trainable=1000, hidden=8, layers=2, vocab=30, queries=8, keys=4, feed_forward=16, query_norm=False
)
PLAIN = (
    "rollout.prompts=16", "rollout.samples=4", "rollout.max_new_tokens=100", "task.template=question-answer",
    "eval.every=0", "logging.kl_sequences=0", "train.micro_batch=2",
)  # fmt: skip
PROMPT = 48  # tokens that a prompt of unknown length is taken to have


def test_a_rank_holds_its_share_of_what_is_sharded_and_all_of_what_is_not() -> None:
    half = ("model.dtype=bfloat16", "optim.master_weights=true", "train.loss=chunked", "train.minibatches=2")
    one, copied, sharded = (
        footprint(recipe, BY_HAND, Placed.of(recipe, ranks))
        for recipe, ranks in (
            (tiny("math_lco_kld", *PLAIN, *half), 1),
            (tiny("math_lco_kld", *PLAIN, *half), 4),
            (tiny("math_lco_kld", *PLAIN, *half, "placement.shard=full"), 4),
        )
    )
    # bf16 weights and gradients; moments and copies in fp32, and gradients in fp32 in place of the others.
    assert (one.weights, one.gradients, one.optimizer) == (2000, 2000, (4 + 4 + 4 + 4 - 2) * 1000)
    assert (copied.weights, copied.gradients, copied.optimizer) == (one.weights, one.gradients, one.optimizer)
    assert (sharded.weights, sharded.gradients, sharded.optimizer) == (500, 500, 3500)
    # Hidden states of 4 prompts x 4 replies of 100 tokens, and the output matrix as it was.
    assert copied.kept == sharded.kept == (4 * 4 * 100 + 30) * 8 * 2 and one.kept == (16 * 4 * 100 + 30) * 8 * 2
    assert (one.whole, copied.whole, sharded.whole) == (0, 0, 2000) and one.gathered == copied.gathered == 0
    # The embedding and one of two layers with weights, gradients and their fp32 sums; the next layer's weights.
    assert sharded.gathered == (240 + 380) * (2 + 2 + 4) + 380 * 2
    assert sharded.activations == copied.activations, "micro-batches are as large as before"
    assert copied.cache * 4 == one.cache


def test_frozen_policies_copies_of_a_searched_step_and_adapters_are_shared_too() -> None:
    def planned(*overrides: str, name: str = "math_grpo") -> Any:
        recipe = tiny(name, *PLAIN, "placement.shard=full", *overrides)
        return footprint(recipe, BY_HAND, Placed.of(recipe, 4))

    plain, referred = planned(), planned("regularizer.kl_coefficient=0.1")
    assert (plain.frozen, referred.frozen) == (0, 1000)
    searched = planned("step.kind=trust-region")
    assert searched.tried == 2 * 4 * 1000 // 4 + plain.logits + 4000, "where it was, where it ended, the weights whole"
    dense = planned(
        "advantage={kind: dense-dpo, verifier: package:cvxrl/assets/base, reference: package:cvxrl/assets/base}",
        name="math_lco_kld_paper",
    )
    assert dense.frozen == 2 * 1000
    assert planned(name="math_ppo").weights == plain.weights, "a value head is a vector"


def test_time_is_what_the_operations_come_to() -> None:
    rates = Rates(flops=1e6, fp32=1e5, bandwidth=1e4, link=1e3, network=1e2)
    recipe = tiny("math_grpo", *PLAIN, "train.gradient_checkpointing=true")
    found = seconds(recipe, BY_HAND, Placed.of(recipe), rates)
    rows, reply = 64, 100
    attended = rows * (PROMPT**2 / 2 + reply * (PROMPT + reply / 2))
    forward = 2 * 760 * rows * (PROMPT + reply) + 4 * 2 * 8 * attended
    head = 2 * 240 * rows * reply
    # Forward, backward twice as much, forward again; the output layer is not checkpointed. In fp32.
    assert found.update == pytest.approx((4 * forward + 3 * head) / 1e5)
    # 100 tokens of one batch: all weights for each, and the keys and values that each row has by then.
    read = reply * (1000 * 4 + rows * 2 * 2 * 4 * 4 * (PROMPT + reply / 2))
    assert found.sampling == pytest.approx(max(read / 1e4, (forward + head) / 1e5)) and read / 1e4 > 1e3
    # AdamW in fp32: weights and two moments read and written, gradients read.
    assert found.optimizer == pytest.approx(1000 * 4 * (2 + 1 + 4) / 1e4)
    assert found.reading == found.exchange == 0
    assert found.step == pytest.approx(found.sampling + found.update + found.optimizer)
    packed = seconds(tiny("math_grpo", *PLAIN), BY_HAND, Placed.of(recipe), rates)
    alike = forward - (2 * 760 * PROMPT + 4 * 2 * 8 * PROMPT**2 / 2) * (rows - 16)  # each of 16 prompts once
    assert packed.update == pytest.approx(3 * (alike + head) / 1e5)


@pytest.mark.parametrize(
    ("name", "overrides", "products", "trunks", "heads"),
    [
        ("math_grpo", (), 3, 1, 1),
        ("math_lco_kld", (), 4, 1, 0),
        ("math_lco_mse", (), 1, 1, 0),
        ("math_gspo", (), 4, 1, 1),
        ("math_ppo", (), 3, 2, 1),
        ("math_grpo", ("regularizer.kl_coefficient=0.1",), 6, 2, 2),
    ],
)
def test_what_is_read_and_projected_is_the_objective_s(
    name: str, overrides: tuple[str, ...], products: int, trunks: int, heads: int
) -> None:
    recipe = tiny(name, *PLAIN, *overrides, "train.loss=chunked", "train.minibatches=2", "model.dtype=bfloat16")
    rates = Rates(flops=1e12, fp32=1.0, bandwidth=1e12)  # chunks are projected in fp32: that is all one sees
    found, head = seconds(recipe, BY_HAND, Placed.of(recipe), rates), 2 * 240 * 64 * 100
    assert found.update == pytest.approx(products * head, rel=1e-3)
    assert found.reading == pytest.approx(heads * head, rel=1e-3, abs=1)
    layers = seconds(recipe, BY_HAND, Placed.of(recipe), Rates(flops=1.0, fp32=1e12, bandwidth=1e12))
    assert layers.reading == pytest.approx(trunks * layers.update / 3, rel=1e-3)


def test_ranks_exchange_gradients_and_sharded_ones_weights_too() -> None:
    rates = Rates(link=1.0, network=0.5)
    recipe = tiny("math_grpo", *PLAIN)
    assert seconds(recipe, BY_HAND, Placed.of(recipe, 4), rates).exchange == pytest.approx(2 * 0.75 * 4000)
    assert seconds(recipe, BY_HAND, Placed.of(recipe, 16), rates).exchange == pytest.approx(2 * 15 / 16 * 4000 / 0.5)
    sharded = tiny("math_grpo", *PLAIN, "placement.shard=full")
    # 8 passes of 2 of 16 sequences: weights twice, gradients once; and the weights whole, to sample and to read.
    moved = 8 * 3 * 4000 + 2 * 4000
    assert seconds(sharded, BY_HAND, Placed.of(sharded, 4), rates).exchange == pytest.approx(0.75 * moved)


def test_a_server_takes_the_cache_and_the_sampling_to_a_device_of_its_own() -> None:
    server = tiny("math_grpo", *PLAIN, "rollout.engine={kind: vllm, url: 'http://x:1', requests: 8}")
    inside = tiny("math_grpo", *PLAIN, "rollout.engine={kind: vllm, mode: colocated, memory: 0.25}")
    elsewhere, here = (footprint(recipe, BY_HAND, Placed.of(recipe, 2), 10**6) for recipe in (server, inside))
    assert (elsewhere.cache, elsewhere.engine, here.cache, here.engine) == (0, 0, 0, 250_000)
    rates = Rates(bandwidth=1e4, network=1e2)
    one, two = (seconds(server, BY_HAND, Placed.of(server, ranks), rates) for ranks in (1, 2))
    caches = 64 * 2 * 2 * 4 * 4 * (PROMPT + 50)
    # All 64 replies, 8 of each rank at a time.
    assert one.sampling == pytest.approx(100 * (64 / 8 * 4000 + caches) / 1e4)
    assert two.sampling == pytest.approx(100 * (64 / 16 * 4000 + caches) / 1e4)
    assert one.exchange == pytest.approx(4000 / 1e2), "the weights, to the server"
    late = tiny(
        "math_grpo", *PLAIN, "rollout.engine={kind: vllm, url: 'http://x:1'}", "rollout.lag=1", "rollout.ahead=true"
    )
    both = seconds(late, BY_HAND, Placed.of(late), Rates())
    assert both.step == max(both.sampling, both.reading + both.update + both.optimizer + both.exchange)


def test_weights_that_sample_beside_the_updates_are_a_second_set() -> None:
    def planned(*overrides: str) -> Any:
        recipe = tiny("math_grpo", *PLAIN, "rollout.lag=1", "train.micro_batch=1", *overrides)
        return footprint(recipe, BY_HAND, Placed.of(recipe))

    after, beside = planned(), planned("rollout.ahead=true")
    assert (after.second, beside.second) == (0, 4000)
    both = beside.update + beside.cache + beside.gradients
    assert beside.peak == beside.state + both > after.peak


def test_the_fullest_rank_of_a_minibatch_is_foretold() -> None:
    recipe = tiny("math_grpo", "rollout.prompts=768", "rollout.samples=4", "train.minibatches=12")
    draws = random.Random(0)
    for ranks in (8, 64):
        per_rank, most = 3072 // ranks, []
        for _ in range(40):
            drawn = draws.sample(range(3072), 256)
            most.append(max(sum(unit // per_rank == rank for unit in drawn) for rank in range(ranks)))
        assert Placed.of(recipe, ranks).fullest == pytest.approx(sum(most) / len(most), rel=0.15)
    assert Placed.of(recipe).fullest == 256 and Placed.of(tiny("math_grpo"), 4).fullest == 4


def test_ranks_to_plan_for_are_the_recipe_s_or_the_launcher_s(monkeypatch: pytest.MonkeyPatch) -> None:
    assert planned_ranks(tiny("math_grpo"), 10**6) == [1]
    assert planned_ranks(tiny("math_grpo", "rollout.prompts=8"), 10**9) == [1, 8], "no more than there are prompts"
    assert planned_ranks(tiny("math_grpo", "train.device=cpu"), 10**9) == [1]
    assert planned_ranks(tiny("math_grpo", "placement.ranks=3"), 10**9) == [3]
    for name, value in zip(
        ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"), ("0", "2", "0", "here", "1"), strict=True
    ):
        monkeypatch.setenv(name, value)
    assert planned_ranks(tiny("math_grpo"), 10**6) == [2]


NAME = "paper/qwen25_3b_grpo"


def test_a_table_has_a_column_for_each_number_of_ranks(cvxrl: Any) -> None:
    done = cvxrl("train", NAME, "--dry-run", "--ranks", "8, 16,768", "--device-memory", "80GiB")
    assert done.code == 0
    table = done.out[done.out.index("\nranks ") :].splitlines()[1:]
    assert table[0].split() == ["ranks", "8", "16", "768"] and max(map(len, table)) <= 80
    assert next(line for line in table if "fits into 80.0 GiB" in line).split()[-3:] == ["yes"] * 3
    assert any("TFLOP/s" in line for line in table)
    document = json.loads(cvxrl("train", NAME, "--dry-run", "--ranks", "8", "--json").out)
    (one,) = document["plan"]["ranks"]
    assert (one["fits"] is None and document["device"]["memory"] is None) or shutil.which("nvidia-smi")
    assert f"{one['memory']['peak'] / 2**30:.2f}" in next(line for line in table if "largest" in line)
    assert one["seconds"]["step"] == pytest.approx(
        sum(v for k, v in one["seconds"].items() if k not in ("step", "beside"))
    )
    faster = cvxrl(
        "train", NAME, "--dry-run", "--ranks=8", "--device-flops=792T", "--device-bandwidth=9T", "--json"
    ).out
    (two,) = json.loads(faster)["plan"]["ranks"]
    rates = document["device"]["rates"]
    assert two["seconds"]["update"] == pytest.approx(one["seconds"]["update"] * rates["flops"] / 792e12)
    assert two["seconds"]["optimizer"] == pytest.approx(one["seconds"]["optimizer"] * rates["bandwidth"] / 9e12)


def test_small_recipes_are_planned_as_ever(cvxrl: Any) -> None:
    plain = cvxrl("train", "math_grpo", "--dry-run").out
    assert "MiB (estimate)" in plain and "ranks " not in plain.splitlines()[-1] and "TFLOP" not in plain
    assert "optimizer steps   100, 1 on each rollout" in plain
    assert "TFLOP/s" in cvxrl("train", "math_grpo", "--dry-run", "--ranks", "1,4").out


def test_what_cannot_fit_is_refused_with_changes_that_are_enough(cvxrl: Any) -> None:
    refused = cvxrl("train", NAME, "--dry-run", "--ranks", "2", "--device-memory", "34GiB")
    assert refused.code == 2 and "largest at one time" in refused.out, "the plan is shown all the same"
    message, remedy = refused.err.splitlines()[-2:]
    assert "placement: each of 2 ranks takes" in message and "has 34.0 GiB" in message
    offered = [part.strip(" ->").rpartition(" (")[0] for part in remedy.split("; or ")]
    assert len(offered) > 1 and offered[-1] == "4 ranks with placement.shard full"
    for change in offered[:-1]:
        settings = [word for pair in change.split(" with ") for word in ("--set", pair)]
        arguments = ("train", NAME, "--dry-run", "--ranks", "2", "--device-memory", "34GiB", *settings)
        assert cvxrl(*arguments).code == 0, change
    assert cvxrl("train", NAME, "--dry-run", "--ranks", "4", "--device-memory", "34GiB").code == 0
    tight = cvxrl("train", NAME, "--dry-run", "--ranks", "1", "--device-memory", "1GiB", "--set", "rollout.prompts=3")
    assert tight.code == 2 and "take a smaller policy" in tight.err
    few = ("--set", "rollout.prompts=3", "--set", "rollout.engine=auto")
    together = cvxrl("train", NAME, "--dry-run", "--ranks", "1", "--device-memory", "10GiB", *few)
    assert together.code == 2 and "rollout.batch=32, model.lora.rank=16" in together.err
    assert "all together" in together.err


def test_one_column_that_fits_is_enough(cvxrl: Any) -> None:
    done = cvxrl("train", NAME, "--dry-run", "--device-memory", "40GiB")
    assert done.code == 0 and next(line for line in done.out.splitlines() if "fits" in line).split()[-3:] == [
        "no",
        "yes",
        "yes",
    ]


def test_mistakes_in_what_is_planned_for_are_told_together(cvxrl: Any) -> None:
    done = cvxrl("train", NAME, "--dry-run", "--ranks", "0,x", "--device-memory", "80 apples", "--device-flops", "-1")
    assert done.code == 2 and done.err.count("error:") == 3
    done = cvxrl(
        *("train", NAME, "--dry-run", "--device-memory", "huge", "--set", "optim.lrr=1", "--resume", "--overwrite")
    )
    assert done.code == 2 and done.err.count("error:") == 3
    assert all(word in done.err for word in ("--device-memory", "optim.lrr", "--overwrite"))
    crowded = cvxrl("train", "math_grpo", "--dry-run", "--ranks", "64")
    assert crowded.code == 2 and "64 ranks, but a step has 16 prompts" in crowded.err


def test_the_device_s_memory_is_the_smallest_gpu_s_or_the_machine_s(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 81559\necho 40960\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert device.device_memory("auto") == device.device_memory("cuda") == 40960 * 2**20
    assert device.device_memory("cpu") == device.physical_memory()
    tool.write_text("#!/bin/sh\necho no driver; exit 9\n")
    assert device.device_memory("cuda") is None, "planned for another machine"
    assert device.device_memory("auto") == device.physical_memory()


def test_sizes_are_read_with_their_units() -> None:
    texts = {"80GiB": 80 * 2**30, "80 GB": 80e9, "400T": 4e14, "2.3e12": 2.3e12, "3.35TB/s": 3.35e12, "7": 7.0}
    assert {text: device.parsed_size(text, "--x") for text in texts} == pytest.approx(texts)
    for wrong in ("", "GiB", "0", "1e400x", "80 apples"):
        with pytest.raises(UserError, match="is no size"):
            device.parsed_size(wrong, "--x")


def test_a_rollout_that_is_used_once_and_a_small_held_out_set_are_warned_of(tmp_path: Path) -> None:
    def warnings(name: str, *overrides: str) -> str:
        return " ".join(describe(load_recipe(name, overrides)).warnings)

    assert "used for one optimizer step" in warnings("math_lco_kld") and "held" not in warnings("math_lco_kld")
    for reused in ("train.minibatches=2", "train.inner_epochs=2", "rollout.lag=1", "step.kind=line-search"):
        assert "one optimizer step" not in warnings("math_lco_kld", reused)
    assert "one optimizer step" not in warnings("math_grpo"), "has no convexity to exercise"
    assert "eval.prompts is 256, the task holds 10 out" in warnings("math_grpo", "task.source.terms=[2,2]")
    assert "held" not in warnings("math_grpo", "task.source.terms=[2,2]", "eval.every=0")
    few, rows = tmp_path / "few.jsonl", tmp_path / "rows.jsonl"
    for path, count in ((few, 20), (rows, 200)):
        path.write_text("".join(f'{{"prompt": "{i}+{count}?", "answer": "{i + count}"}}\n' for i in range(count)))
    file = f"task.source={{kind: dataset, path: {rows}, eval_path: {few}}}"
    assert "the task holds 20 out: all 20 are asked" in warnings("math_grpo", file)
    assert "held" not in warnings("math_grpo", "task.source={kind: dataset, path: nowhere.jsonl}")
