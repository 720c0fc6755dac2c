"""What computes the logits while sampling: decoders of this process, or vLLM in a server or in this process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Discriminator, Field, PositiveFloat, PositiveInt, Tag, model_validator

from cvxrl.recipe.base import NEUTRAL, Section
from cvxrl.recipe.expand import PATH

LocalEngine = Literal["auto", "static", "transformers"]


class VllmSpec(Section):
    """Completions come from vLLM (docs/vllm.md), which gets the policy's weights before every step.

    Where it runs and how it is reached cannot change a result; that it is vLLM changes which tokens are drawn.
    """

    kind: Literal["vllm"] = Field("vllm", description="vLLM draws the tokens, from seeds of its own per completion.")
    mode: Annotated[Literal["server", "colocated"], NEUTRAL] = Field(
        "server", description="`server`: `python -m cvxrl.serve` at `url`. `colocated`: in the process that trains."
    )
    url: Annotated[str | None, NEUTRAL] = Field(None, description="Where the server is, e.g. http://gpu7:8000.")
    weights: Annotated[Literal["auto", "gloo", "nccl", "directory"], NEUTRAL] = Field(
        "auto",
        description="How weights reach the server. `gloo`: over TCP, through the memory of both machines; `nccl`: from "
        "GPU to GPU, with vLLM installed on this side too; `directory`: as files in `directory`. `auto` is what the "
        "server was started for.",
    )
    directory: Annotated[str | None, NEUTRAL, PATH] = Field(
        None, description="Folder that trainer and server see under the same path, for `weights: directory`."
    )
    timeout: Annotated[PositiveFloat, NEUTRAL] = Field(
        600.0,
        description="Longest wait in seconds for the next answer of the server. Until then one that is gone, hangs or "
        "fails is asked again; after it the run is interrupted, to be gone on with by `--resume`.",
    )
    requests: Annotated[PositiveInt, NEUTRAL] = Field(
        256, description="Completions asked for at a time; the server keeps as many as fit in its memory in a batch."
    )
    memory: Annotated[float, NEUTRAL] = Field(
        0.3, gt=0, lt=1, description="Share of the device's memory that a colocated vLLM takes."
    )

    @model_validator(mode="before")
    @classmethod
    def _known(cls, values: Any) -> Any:
        kind = values.get("kind", "vllm") if isinstance(values, Mapping) else "vllm"
        if kind in ("auto", "static", "transformers"):
            raise ValueError(f"`{kind}` has no fields; write `engine: {kind}`")
        if kind != "vllm":
            raise ValueError(f"unknown engine `{kind}`; choose one of auto, static, transformers, vllm")
        return values

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.mode == "colocated" and self.url is not None:
            raise ValueError("url is that of a server, and mode is colocated; leave out one of them")
        if self.mode == "server" and not _is_address(self.url):
            raise ValueError(
                "a server needs its url, http://HOST:PORT; start one with `python -m cvxrl.serve` and name it"
            )
        if (self.directory is not None) != (self.weights == "directory"):
            raise ValueError("`weights: directory` and `directory: PATH` go together; write both or neither")
        return self


def _is_address(url: str | None) -> bool:
    try:
        parts = urlsplit(url or "")
        return (
            parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and "@" not in parts.netloc
        )
    except ValueError:  # a port that is none
        return False


def _form(value: Any) -> str:
    return "name" if isinstance(value, str) else "vllm"


EngineSpec = Annotated[
    Annotated[LocalEngine, Tag("name")] | Annotated[VllmSpec, Tag("vllm")],
    Discriminator(_form),
]
