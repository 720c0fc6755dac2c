"""`python -m cvxrl.serve`: a vLLM server for a recipe or a policy, set up as `rollout.engine: {kind: vllm}` wants it.

What stands behind the options of this command is passed on to vLLM.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Literal

import typer

from cvxrl.commands import USER_ERROR, complain
from cvxrl.commands.help import SETTINGS
from cvxrl.errors import Problem, UserError
from cvxrl.policy.locate import is_adapter, locate
from cvxrl.recipe.load import load_recipe
from cvxrl.recipe.model import ModelSpec
from cvxrl.recipe.shipped import named_recipe
from cvxrl.rollout.vllm.versions import for_cpu, require_vllm

# vLLM's own default splits the prompts of a step into parts, which requests with seeds do not survive.
_PROMPT_TOKENS = 65536
_SHARE_OF_CPU = 0.3


def serve(
    context: typer.Context,
    policy: Annotated[str, typer.Argument(metavar="RECIPE|POLICY", help="Recipe, Hugging Face directory, or Hub id.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key; repeatable.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is all. Anyone who reaches it rules it.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    weights: Annotated[
        Literal["gloo", "nccl"], typer.Option(help="How weights arrive; gloo also takes them from a directory.")
    ] = "gloo",
    dtype: Annotated[
        Literal["float32", "bfloat16"] | None, typer.Option(help="Data type of the parameters. Default: the recipe's.")
    ] = None,
    memory: Annotated[
        float | None, typer.Option(min=0.01, max=1, help="Share of the memory that vLLM may take. Default: its own.")
    ] = None,
) -> None:
    """Start vLLM for the policy of a recipe; further options are vLLM's, e.g. --tensor-parallel-size 4."""
    require_vllm("vllm")
    spec, seed = _model(policy, set_ or [])
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", _directory(spec, seed)]
    command += ["--host", host, "--port", str(port), "--dtype", dtype or spec.dtype]
    # Of a CPU's memory, which everything else needs too, vLLM's default is nearly all.
    share = memory or (_SHARE_OF_CPU if for_cpu() else None)
    command += [] if share is None else ["--gpu-memory-utilization", f"{share:g}"]
    command += options(weights) + (["--trust-remote-code"] if spec.trust_remote_code else [])
    environment = {"VLLM_SERVER_DEV_MODE": "1", **os.environ}
    sys.stdout.flush()
    os.execve(sys.executable, [*command, *context.args], environment)


def options(weights: str) -> list[str]:
    """Options of vLLM that the sampler relies on."""
    backend = "nccl" if weights == "nccl" else "cvxrl"
    return [
        *("--weight-transfer-config", json.dumps({"backend": backend})),
        *("--logprobs-mode", "processed_logprobs"),
        *("--generation-config", "vllm"),
        *("--max-num-batched-tokens", str(_PROMPT_TOKENS)),
        "--enable-scale-out",  # the endpoint that takes and gives token ids
        "--disable-uvicorn-access-log",
    ]


def _model(given: str, overrides: list[str]) -> tuple[ModelSpec, int]:
    """The policy's section and the seed of its initial weights."""
    if named_recipe(given) is not None or given.endswith((".yaml", ".yml")):
        recipe = load_recipe(Path(given), overrides)
        return recipe.model, recipe.seed
    if overrides:
        raise UserError(Problem(f"`{given}` is no recipe, and has no keys", "--set", remedy="leave it out"))
    return ModelSpec(path=given), 0


def _directory(spec: ModelSpec, seed: int) -> str:
    """A directory or Hub id that vLLM loads: the policy's own, or a copy of what is made of it when it is loaded."""
    if spec.scratch is None:
        place = locate(spec)
        made = spec.lora or spec.adapter or place.gguf_file or (place.is_local and is_adapter(Path(place.path)))
        if not made:
            return place.path
    import torch

    from cvxrl.policy.load import load_policy

    folder = Path(tempfile.mkdtemp(prefix="cvxrl-serve-"))
    load_policy(spec, torch.device("cpu"), seed).save(folder)
    return str(folder)


def main() -> None:
    """Entry point: as `cvxrl`, a user's mistake is a message and exit code 2."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    settings = {**SETTINGS, "allow_extra_args": True, "ignore_unknown_options": True}
    app.command(context_settings=settings)(serve)
    try:
        app(prog_name="python -m cvxrl.serve")
    except UserError as error:
        for problem in error.problems:
            complain(f"error: {problem}")
        sys.exit(USER_ERROR)


if __name__ == "__main__":
    main()
