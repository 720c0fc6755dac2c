"""Runs of TRL's trainers: `trainer_state.json` of the output folder or its newest checkpoint, or the completions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cvxrl.comparison.foreign.log import Log, Row, refuse
from cvxrl.comparison.foreign.names import TRL
from cvxrl.comparison.foreign.pickled import plain_settings

_STATE, _ARGUMENTS = "trainer_state.json", "training_args.bin"
# What of the arguments can change a result; the rest says where and how often something is written.
_SETTINGS = (
    *("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "warmup_steps"),
    *("num_generations", "max_completion_length", "temperature", "top_p", "beta", "epsilon", "epsilon_high"),
    *("num_iterations", "steps_per_generation", "gradient_accumulation_steps", "per_device_train_batch_size"),
    *("loss_type", "scale_rewards", "importance_sampling_level", "max_steps", "bf16", "fp16"),
)
_OWN_COLUMNS = ("step", "prompt", "completion", "advantage")


def owns(path: Path) -> bool:
    """Whether this is an output folder of TRL, one of its checkpoints, or its `trainer_state.json`."""
    return path.name == _STATE if not path.is_dir() else bool(_states(path)) or bool(_completions(path))


def read(path: Path) -> Log:
    """Read the newest state that there is.

    Raises:
        UserError: it is damaged.
    """
    folder = path if path.is_dir() else path.parent
    states = _states(folder) if path.is_dir() else [path]
    if not states:
        return _from_completions(folder)
    file = max(states, key=lambda state: _of(state, "global_step"))
    history, given = _of(file, "log_history"), _arguments(folder, file.parent)
    planned, reached = _of(file, "max_steps"), _of(file, "global_step")
    return Log(
        path=path,
        name=folder.absolute().parent.name if folder.name.startswith("checkpoint-") else folder.absolute().name,
        program="TRL",
        rows=list(_rows(file, history)),
        aliases=TRL,
        seed=given.get("seed"),
        steps=planned if planned > 0 else None,
        reached=reached,
        settings={key: given[key] for key in _SETTINGS if key in given} or None,
        doubts=() if given else (f"has no readable {_ARGUMENTS}, so that its seed and settings are not known",),
    )


def _states(folder: Path) -> list[Path]:
    return [file for file in (folder / _STATE, *sorted(folder.glob(f"checkpoint-*/{_STATE}"))) if file.is_file()]


def _completions(folder: Path) -> list[Path]:
    return sorted((folder / "completions").glob("completions_*.parquet"))


def _of(file: Path, key: str) -> Any:
    """One entry of a state, of its own kind."""
    kind = list if key == "log_history" else int
    try:
        state = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        refuse(file, f"cannot be read: {error}")
    if not isinstance(state, Mapping) or not isinstance(state.get(key), kind):
        refuse(file, f"is no state of a trainer: it has no `{key}`")
    return state[key]


def _rows(file: Path, history: list[Any]) -> Iterator[Row]:
    for number, entry in enumerate(history, start=1):
        step = entry.get("step") if isinstance(entry, Mapping) else None
        if not isinstance(step, int | float) or isinstance(step, bool):
            refuse(file, f"entry {number} of its history has no step")
        # The summary at the end of training has a loss over all steps, which is no value of its last one.
        if "train_runtime" not in entry:
            yield float(step), {key: value for key, value in entry.items() if key not in ("step", "epoch")}


def _arguments(*folders: Path) -> dict[str, Any]:
    """Settings of the run, without unpickling them; none where the file is missing or of another kind."""
    for folder in folders:
        for file in (folder / _ARGUMENTS, *sorted(folder.glob(f"checkpoint-*/{_ARGUMENTS}"))):
            try:
                return plain_settings(file, ("seed", *_SETTINGS))
            except ValueError:
                continue
    return {}


def _from_completions(folder: Path) -> Log:
    """Where nothing was saved but what was sampled: mean rewards by step."""
    from pyarrow import ArrowException
    from pyarrow.parquet import read_table

    rows: list[Row] = []
    for file in _completions(folder):
        try:
            table = read_table(file).to_pydict()
        except (OSError, ArrowException) as error:
            refuse(file, f"cannot be read: {str(error).splitlines()[0]}")
        rewards = {name: _numbers(values) for name, values in table.items() if name not in _OWN_COLUMNS}
        rewards = {name: values for name, values in rewards.items() if values}
        if not table.get("step") or not rewards:
            refuse(file, "is no table of completions: it has no step and reward in its columns")
        means = {f"rewards/{name}/mean": sum(values) / len(values) for name, values in rewards.items()}
        if len(means) == 1:  # weights of several are not stored
            means["reward"] = next(iter(means.values()))
        rows.append((float(table["step"][0]), means))
    said = f"has no {_STATE}: rewards are those of its completions, and whether it ended is not known"
    given = _arguments(folder)
    return Log(folder, folder.absolute().name, "TRL", rows, TRL, seed=given.get("seed"), doubts=(said,))


def _numbers(values: list[Any]) -> list[float]:
    """The column's numbers; none if it holds anything else."""
    kept = [value for value in values if value is not None]
    is_numeric = all(isinstance(value, int | float) for value in kept)
    return [float(value) for value in kept] if is_numeric else []
