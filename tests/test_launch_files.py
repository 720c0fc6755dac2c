"""The launchers' files of docs/launch start what they say, on the machines that the scheduler names."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import yaml
from helpers import ROOT

from cvxrl.recipe.load import load_recipe

LAUNCH = ROOT / "docs" / "launch"


def started(script: str, folder: Path, words: list[str], **environment: str) -> Any:
    """Options as torchrun reads them from the command that a shell script ends in; nothing is started."""
    from torch.distributed.run import parse_args

    tools = {
        "srun": 'shift; printf "%s\\n" "$@"',  # the interpreter is left out
        "python": 'printf "%s\\n" "$@"',
        "scontrol": "printf 'node7\\nnode8\\nnode9\\n'",
    }
    for name, text in tools.items():
        tool = folder / name
        tool.write_text(f"#!/bin/sh\n{text}\n")
        tool.chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", script, "launch", *words],
        env={"PATH": f"{folder}:{os.environ['PATH']}", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    module, name, *options = done.stdout.splitlines()
    assert (module, name) == ("-m", "cvxrl.launch")
    return parse_args(options)


def test_slurm_starts_a_process_for_every_gpu_of_every_machine(tmp_path: Path) -> None:
    script = (LAUNCH / "slurm.sh").read_text()
    given = {"SLURM_JOB_NUM_NODES": "3", "SLURM_GPUS_ON_NODE": "4", "SLURM_JOB_ID": "17", "SLURM_SUBMIT_DIR": "/here"}
    recipe = ["paper/qwen25_7b_lco_kld", "--set", "optim.lr=2e-5"]
    options = started(script, tmp_path, recipe, **given, SLURM_JOB_NODELIST="node[7-9]")
    assert (options.nnodes, options.nproc_per_node, options.rdzv_id) == ("3", "4", "17")
    assert (options.rdzv_backend, options.rdzv_endpoint) == ("c10d", "node7:29500")
    assert options.training_script == "train"
    assert options.training_script_args == [*recipe, "--resume", "--out", "/here/outputs"]
    assert "#SBATCH --ntasks-per-node=1\n" in script, "a launcher for each machine starts the ranks there"


def test_skypilot_starts_a_process_for_every_gpu_of_every_machine(tmp_path: Path) -> None:
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    given = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NUM_GPUS_PER_NODE": "8", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"}
    options = started(task["run"], tmp_path, [], **given, **task["envs"])
    assert (options.nnodes, options.nproc_per_node, options.rdzv_endpoint) == ("2", "8", "10.0.0.1:29500")
    assert options.training_script_args == [task["envs"]["RECIPE"], "--resume", "--out", "/outputs"]
    assert "/outputs" in task["file_mounts"] and load_recipe(task["envs"]["RECIPE"]).placement.shard == "full"
