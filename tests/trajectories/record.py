"""Record trajectories, or replay one: `python -m tests.trajectories.record OUT.json [--only NAME...]`.

Nothing but the command line and the files of a run directory is relied on, so the same script runs on any version. A
trajectory is every number of metrics.jsonl but the times, and digests of the weights that training ended with.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from typing import Any
from unittest import mock

# Before torch is loaded: sums are split by threads.
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import torch
from safetensors.torch import load_file

from .cases import CASES, Case
from .draws import replace_draws

ROOT = Path(__file__).resolve().parents[2]
RECORDING = ROOT / "tests" / "fixtures" / "trajectories.json"
Trajectory = dict[str, Any]


def trajectory(case: Case, *, fixed_draws: bool) -> Trajectory:
    """Run a case in this process."""
    with tempfile.TemporaryDirectory() as folder:
        with replace_draws() if fixed_draws else contextlib.nullcontext():
            code, said = run_here(case.arguments(folder))
        return _read(Path(folder), code, said)


def trajectory_of_a_process(case: Case) -> Trajectory:
    """Run a case with its own draws in a process of its own, on the package that this process would import."""
    package = util.find_spec("cvxrl")
    assert package is not None and package.origin is not None
    environment = os.environ | {"PYTHONPATH": str(Path(package.origin).parents[1]), "PYTHONSAFEPATH": "1"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "cvxrl", *case.arguments(folder)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        return _read(Path(folder), done.returncode, done.stdout + done.stderr)


def run_here(arguments: list[str], folder: Path = ROOT) -> tuple[int, str]:
    """Run the command in this process and in `folder`, on one thread: exit code, and what it printed."""
    from cvxrl.cli import main

    said = io.StringIO()
    with one_thread(), contextlib.chdir(folder), mock.patch.object(sys, "argv", ["cvxrl", *arguments]):
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                main()
            except SystemExit as stopped:
                return int(stopped.code or 0), said.getvalue()
    return 0, said.getvalue()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Sums are not split over threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def machine() -> dict[str, str]:
    """What the last bits depend on: torch, the instructions that it uses here, and what they give."""
    return {
        "torch": torch.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "arithmetic": _arithmetic(),
    }


def _arithmetic() -> str:
    """Digest of a few operations of the kind that training consists of: libraries choose kernels by processor too."""
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    total = hashlib.sha256()
    with one_thread():
        for rows in (1, 3, 16, 250):
            x, weight = numbers(rows, 128).requires_grad_(), numbers(384, 128)
            hidden = torch.nn.functional.silu(x @ weight.T)
            logits = (hidden @ numbers(384, 15)).log_softmax(-1)
            logits.exp().cumsum(-1).square().mean().backward()
            query, low = numbers(2, 4, rows, 32), (hidden.bfloat16() @ numbers(384, 15).bfloat16()).float()
            mixed = torch.nn.functional.scaled_dot_product_attention(query, query, query, is_causal=True)
            for result in (logits, x.grad, mixed, low, hidden.norm()):
                assert result is not None
                total.update(result.detach().contiguous().numpy().tobytes())
    return total.hexdigest()[:16]


def _read(out: Path, code: int, said: str) -> Trajectory:
    """What a run left behind."""
    runs = list(out.glob("*/seed-*"))
    if code or len(runs) != 1:
        raise RuntimeError(f"exit code {code}, {len(runs)} run directories\n{said}")
    lines = (runs[0] / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [{key: value for key, value in json.loads(line).items() if not key.startswith("time/")} for line in lines]
    digests = {name: weights for name in ("policy", "adapter") if (weights := _digest(runs[0] / name))}
    return {"records": records, **digests}


def _digest(folder: Path) -> str | None:
    """SHA-256 of names, data types, shapes and bytes of all tensors; None where there are none."""
    tensors = {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest() if tensors else None


def _record(case: Case, separately: bool) -> dict[str, Any]:
    """Both layers of a case; they are one where nothing is sampled."""
    recorded: dict[str, Any] = {"arguments": case.arguments("OUT"), "sampled": case.sampled}
    own = trajectory_of_a_process(case) if separately else trajectory(case, fixed_draws=False)
    fixed = trajectory(case, fixed_draws=True)
    if not case.sampled:
        assert own == fixed, case.name
        return recorded | {"fixed_draws": fixed}
    return recorded | {"own_draws": own, "fixed_draws": fixed}


def _text(version: str, cases: dict[str, dict[str, Any]]) -> str:
    """JSON with a line per case."""
    head = json.dumps({"version": version, "machine": machine()})[:-1]
    lines = (f"{json.dumps(name)}: {json.dumps(case, separators=(',', ':'))}" for name, case in cases.items())
    return head + ', "cases": {\n' + ",\n".join(lines) + "\n}}\n"


def main() -> None:
    """Record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), metavar="NAME", help="cases")
    parser.add_argument("--separately", action="store_true", help="own draws: a process per case")
    options = parser.parse_args()
    import cvxrl

    print(f"cvxrl {cvxrl.__version__} in {Path(cvxrl.__file__).parent}")
    cases = {}
    for number, name in enumerate(options.only, start=1):
        print(f"{number}/{len(options.only)} {name}", flush=True)
        cases[name] = _record(CASES[name], options.separately)
    options.out.write_text(_text(cvxrl.__version__.removesuffix(".0"), cases), encoding="utf-8")


if __name__ == "__main__":
    main()
