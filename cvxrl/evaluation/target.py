"""What `--ckpt` names: a run directory, a Hugging Face directory or id, or files of a package. Imports no torch."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from cvxrl.errors import Problem, UserError
from cvxrl.policy.locate import ADAPTER_CONFIG, is_adapter, locate
from cvxrl.recipe.load import load_recipe
from cvxrl.recipe.model import ModelSpec
from cvxrl.recipe.schema import Recipe
from cvxrl.runs.checkpoint import list_checkpoints, step_of, verify_checkpoint
from cvxrl.runs.directory import RunDir

_OPTION = "--ckpt"
_WHAT = "give a run directory, a Hugging Face directory, a Hub id, or package:NAME/DIR"


@dataclass(frozen=True)
class Target:
    """A policy to evaluate.

    Attributes:
        given: what the user wrote.
        path: Hugging Face directory or id, `.gguf` file, or `package:NAME/...`.
        run: run directory that the policy belongs to, or None.
        recipe: recipe of that run.
        step: checkpoint's name if it is not the run's final policy, e.g. `step-000100`.
    """

    given: str
    path: str
    run: Path | None = None
    recipe: Recipe | None = None
    step: str | None = None

    @property
    def directory(self) -> Path:
        """Where the policy's files are, if that is a directory."""
        return Path(self.path)

    def model(self, dtype: str | None, revision: str | None, *, trust_remote_code: bool = False) -> ModelSpec:
        """Recipe section that loads the policy; the run's data type unless another is asked for.

        Code that comes with a policy runs where the run's recipe allows it, or the user does.

        An adapter of a run is not merged: the section is the run's own, and the adapter's weights are laid over what
        it loads (`Policy.load_trained`), so that the policy computes what it did in training, bit for bit.

        Raises:
            UserError: it is an adapter that does not say what it belongs to.
        """
        own = self.recipe.model if self.recipe else ModelSpec(path=self.path)
        trust = own.trust_remote_code or trust_remote_code
        if not is_adapter(self.directory):
            given = {"path": self.path, "dtype": dtype or own.dtype, "revision": revision, "trust_remote_code": trust}
            return ModelSpec.model_validate(given)
        changes = {"dtype": dtype or own.dtype, "trust_remote_code": trust} | (
            {"revision": revision} if revision else {}
        )
        if self.recipe and own.lora is not None:
            return own.model_copy(update=changes)
        base = own if self.recipe else ModelSpec(path=_base_of(self.directory))
        return base.model_copy(update=changes | {"lora": None, "adapter": self.path})

    def evaluated_at(self) -> int | None:
        """Training step after which the run was the policy, or None if that is unknown."""
        if self.step is not None:
            return step_of(Path(self.step))
        return self.recipe.train.steps if self.recipe else None

    def folder(self, task: str) -> Path:
        """Where an evaluation is written unless the user says otherwise."""
        if self.run is not None:
            return self.run / "evals" / (f"{task}-{self.step}" if self.step else task)
        name = self.given.rstrip("/")
        if Path(name).exists():
            name = Path(name).resolve().name
        return Path("outputs") / "eval" / re.sub(r"[^A-Za-z0-9._-]+", "--", name) / task


def find_target(given: str) -> Target:
    """Look at what the user named.

    Raises:
        UserError: nothing is there, or it holds no policy.
    """
    if not given:
        raise UserError(Problem("missing", _OPTION, remedy=f"{_WHAT}; or recompute with --from EVAL.json"))
    path = Path(given).expanduser()
    if path.is_dir():
        if _is_run(path):
            return _of_run(given, path)
        if (path / "config.json").is_file() or is_adapter(path) or any(path.glob("*.gguf")):
            return _of_directory(given, path)
        raise UserError(Problem(f"`{given}` holds neither a run nor a policy", _OPTION, remedy=_WHAT))
    # `outputs/typo` has the shape of a Hub id, but whoever has a folder `outputs` meant a path.
    if not path.exists() and "/" in given and path.parts[:1] and Path(path.parts[0]).is_dir():
        raise UserError(Problem(f"there is no `{given}`", _OPTION, remedy=_WHAT))
    try:
        locate(ModelSpec.model_validate({"path": given}))
    except UserError as error:
        raise renamed(error, {"model.path": _OPTION}) from None
    return Target(given, given)


def renamed(error: UserError, keys: dict[str, str]) -> UserError:
    """Same problems, with recipe keys replaced by the options that this command has for them."""
    return UserError(
        *(
            Problem(_in_words(p.message, keys), keys.get(p.key, p.key), p.file, _in_words(p.remedy, keys))
            for p in error.problems
        )
    )


def _in_words(text: str, keys: dict[str, str]) -> str:
    for key, option in keys.items():
        text = text.replace(key, option)
    return text


def _is_run(path: Path) -> bool:
    run = RunDir(path)
    return run.recipe.is_file() or run.record.is_file()


def _of_run(given: str, path: Path) -> Target:
    """The final policy, or else the newest checkpoint; of an adapter, what was trained rather than what was merged."""
    run = RunDir(path)
    recipe = load_recipe(run.recipe)
    if recipe.model.lora is not None and is_adapter(run.adapter) and _is_at_hand(recipe.model):
        return Target(given, str(run.adapter), path, recipe)
    if (run.policy / "config.json").is_file():
        return Target(given, str(run.policy), path, recipe)
    checkpoints = list_checkpoints(run.checkpoints)
    if not checkpoints:
        remedy = f"finish it with `cvxrl train {run.recipe} --resume`, or evaluate another run"
        raise UserError(Problem(f"the run ({_status(run)}) holds no policy and no checkpoint", _OPTION, given, remedy))
    verify_checkpoint(checkpoints[-1])
    return Target(given, str(checkpoints[-1]), path, recipe, checkpoints[-1].name)


def _of_directory(given: str, path: Path) -> Target:
    """A Hugging Face directory or an adapter; `policy/`, `adapter/` and `checkpoints/step-n/` know their run."""
    folder = path.resolve()
    if folder.name in ("policy", "adapter") and _is_run(folder.parent):
        return Target(given, str(path), folder.parent, load_recipe(RunDir(folder.parent).recipe))
    if folder.parent.name == "checkpoints" and _is_run(folder.parents[1]):
        verify_checkpoint(folder)
        run = folder.parents[1]
        return Target(given, str(path), run, load_recipe(RunDir(run).recipe), folder.name)
    return Target(given, str(path))


def _is_at_hand(model: ModelSpec) -> bool:
    """Whether the policy that an adapter lies over is still where the recipe says."""
    try:
        return model.scratch is not None or locate(model) is not None
    except UserError:
        return False


def _base_of(adapter: Path) -> str:
    """Policy that an adapter of no run belongs to, as its own file says."""
    try:
        base = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        base = None
    if not isinstance(base, str):
        what = f"`{ADAPTER_CONFIG}` does not say which policy the adapter belongs to"
        raise UserError(Problem(what, _OPTION, str(adapter), "write base_model_name_or_path into it"))
    return base


def _status(run: RunDir) -> str:
    try:
        return run.read_record().status
    except (OSError, ValidationError):
        return "no readable run.json"
