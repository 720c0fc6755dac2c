"""Imports of what is not ours: heavy libraries, optional packages, and functions that a recipe names."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from cvxrl.errors import Problem, UserError, suggest


@contextmanager
def loading_libraries() -> Iterator[None]:
    """Around the imports with which a command begins its work: quiet for as long as the process lives.

    Importing makes 640 000 objects that live as long as the process; looking through them for garbage meanwhile takes
    a fifth of the time, and once more later, so they are taken out of the collector's sight. A tokenizer's own threads
    would fight torch's over the cores, and progress bars of the libraries would tear the display.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    first, collecting = "torch" not in sys.modules, gc.isenabled()
    shown = first and sys.stderr.isatty()
    if shown:
        print("loading PyTorch and transformers ...", end="", file=sys.stderr, flush=True)
    gc.disable()
    try:
        # What loads policies imports it where it is used; here it is loaded beforehand.
        from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM  # noqa: F401
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        yield
    finally:
        if shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)  # the line is empty again
        if first:
            gc.freeze()
        if collecting:
            gc.enable()


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep transformers from showing progress bars and warnings in the block, in a process that is not ours."""
    from transformers.utils import logging as transformers_logging

    shown, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if shown:
            transformers_logging.enable_progress_bar()


def import_optional(module: str, package: str, extra: str, key: str) -> ModuleType:
    """Import a package that only some recipes need.

    Raises:
        UserError: it is not installed; the remedy names the extra that brings it.
    """
    require_installed(module, package, extra, key)
    return importlib.import_module(module)


def require_installed(module: str, package: str, extra: str, key: str) -> None:
    """Raise UserError unless `module` can be found; imports nothing."""
    if importlib.util.find_spec(module) is None:
        remedy = f'pip install "cvxrl[{extra}]"'
        raise UserError(Problem(f"this needs the package {package}, which is not installed", key=key, remedy=remedy))


def import_function(name: str, key: str) -> Callable[..., Any]:
    """Return what `module:function` names; the working directory is searched after the installed packages.

    Raises:
        UserError: there is no such module or function, it cannot be called, or importing the module fails.
    """
    module_name, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not f"{module_name}.".startswith(f"{error.name}."):
            raise UserError(Problem(f"importing `{module_name}` failed: {error}", key=key)) from error
        remedy = f"install it, or run from the directory that holds {module_name.split('.')[0]}"
        raise UserError(Problem(f"there is no module `{error.name}`", key=key, remedy=remedy)) from None
    except (Exception, SystemExit) as error:
        message = f"importing `{module_name}` failed: {blame(error)}"
        raise UserError(Problem(message, key=key, remedy="make the module importable on its own")) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            remedy = near_or_known(part, dir(found))
            raise UserError(Problem(f"`{module_name}` has no `{attribute}`", key=key, remedy=remedy))
        found = getattr(found, part)
    if not callable(found):
        raise UserError(Problem(f"`{name}` is not a function", key=key, remedy="name something that can be called"))
    return found  # type: ignore[no-any-return]


def blame(error: Exception | SystemExit) -> str:
    """Say what an exception of the user's code is, and at which file and line it arose."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"


def near_or_known(word: str, known: Sequence[str]) -> str:
    """Remedy that names the known word nearest to `word`, or some of those that there are."""
    near = suggest(word, known).strip()
    if near:
        return near
    shown = sorted(k for k in known if not k.startswith("_"))
    return "there are: " + ", ".join(shown[:20]) + (f" and {len(shown) - 20} more" if len(shown) > 20 else "")
