"""What ranks do on a machine with GPUs, in one call of at most ten minutes: bits, rounding, memory and time.

Small runs on one process and on a rank for each GPU, replicated and sharded, in fp32 and in bf16, gone on with
elsewhere; a random policy of half a billion parameters, whose memory and time are held against `--dry-run`'s count;
vLLM, where it is installed (or at VLLM_PYTHON, in an environment of its own). What a machine does not allow is said and
left out.

    python benchmarks/gpu_ranks.py OUT.json             # --seconds 540
    python benchmarks/gpu_ranks.py OUT.json --smoke     # two ranks on the CPU, a tiny policy: whether the script works
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HALF = ("model.dtype=bfloat16", "optim.master_weights=true", "train.gradient_checkpointing=true", "train.loss=chunked")
SHARDED = "placement.shard=full"
SMALL = ("train.minibatches=2", "eval.every=0", "checkpoint.every=2", "train.steps=4")
COMPARED = ("loss", "reward/mean", "grad/norm", "policy/entropy")
# Seconds that a check needs at least: imports, and a policy to load.
LEAST = 40
Numbers = dict[str, Any]


class LeftOutError(Exception):
    """Why a check is not made on this machine."""


@dataclass
class Session:
    """Checks one after the other, each within what is left of the time; the file is whole after each.

    Attributes:
        out: where the results go.
        folder: of the runs.
        until: monotonic time at which the call has to have ended.
        ranks: processes of a run on ranks: one a GPU, or two on a CPU.
        device: `cuda` or `cpu`.
        smoke: whether everything is as small as can be.
    """

    out: Path
    folder: Path
    until: float
    ranks: int
    device: str
    smoke: bool
    found: list[Numbers] = field(default_factory=list)

    def check(self, name: str, make: Callable[[], Numbers]) -> None:
        """Make one, and write and print what came of it."""
        start = time.monotonic()
        result: Numbers = {"name": name}
        try:
            if self.until - start < LEAST:
                raise LeftOutError("no time was left")
            result |= {"status": "done", **make()}
        except LeftOutError as why:
            result |= {"status": "left out", "why": str(why)}
        except Exception as error:
            result |= {"status": "failed", "why": f"{type(error).__name__}: {error}"}
        result["wall_s"] = round(time.monotonic() - start, 1)
        self.found.append(result)
        self.out.write_text(json.dumps({"machine": machine(), "ranks": self.ranks, "checks": self.found}, indent=1))
        told = {key: value for key, value in result.items() if key not in ("name", "status")}
        print(f"{result['status']:9} {name}: {json.dumps(told)}", flush=True)

    def run(self, name: str, recipe: str, settings: Sequence[str], ranks: int = 1) -> Numbers:
        """Train in fresh processes; peak bytes of the fullest rank, and what was logged."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        own = [sys.executable, __file__, "--child", str(folder)]
        if ranks > 1 or SHARDED in settings:
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
            own = [sys.executable, *launcher, *own[1:]]
        words = [
            "train",
            recipe,
            "--out",
            str(folder),
            "--resume",
            *options([f"train.device={self.device}", *settings]),
        ]
        log = folder / "log"
        with log.open("ab") as stream, group([*own, *words], stdout=stream, stderr=stream) as process:
            try:
                process.wait(timeout=max(1.0, self.until - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise LeftOutError("it did not end within the time of this call") from None
        ended = [json.loads(path.read_text()) for path in sorted(folder.glob("rank-*.json"))]
        if len(ended) < ranks or any(one["code"] for one in ended):
            lines = log.read_text(errors="replace").strip().splitlines()
            said = [line for line in lines if "error:" in line.lower()] or lines[-4:]
            raise RuntimeError(f"ended with {[one['code'] for one in ended]}: {' | '.join(said)}")
        (metrics,) = folder.glob("*/seed-*/metrics.jsonl")
        return {"peak_bytes": max(one["peak_bytes"] for one in ended), "records": read(metrics), "log": str(log)}


def machine() -> Numbers:
    """What it is."""
    import torch

    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    nccl = torch.cuda.nccl.version() if gpus else None
    shown = [{"name": gpu.name, "bytes": gpu.total_memory} for gpu in gpus]
    return {"torch": torch.__version__, "gpus": shown, "nccl": nccl, "cpus": os.cpu_count()}


@contextlib.contextmanager
def group(command: Sequence[str], **how: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is ended with all that it started."""
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": path_of_modules()}
    environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = "10"  # its ranks are in sessions of their own; it ends them
    process = subprocess.Popen(command, start_new_session=True, env=environment, cwd=ROOT, **how)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def path_of_modules() -> str:
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def options(settings: Sequence[str]) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def read(file: Path) -> list[Numbers]:
    """What each step logged, the evaluation before the first left out."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [line for line in lines if line["step"]]


def apart(one: list[Numbers], other: list[Numbers]) -> dict[str, float]:
    """Largest difference of each number over the steps, by the size of the first."""
    found = {}
    for key in COMPARED:
        pairs = [(a[key], b[key]) for a, b in zip(one, other, strict=True) if key in a and key in b]
        if pairs:
            found[key] = max(abs(a - b) / max(1e-3, abs(a)) for a, b in pairs)
    return found


def small_runs(session: Session) -> None:
    """The embedded policy on one process and on ranks: the same up to rounding, and bit for bit when repeated."""
    seen: dict[str, Numbers] = {}

    def case(name: str, settings: Sequence[str], ranks: int, like: str | None = None) -> None:
        def make() -> Numbers:
            if like is not None and like not in seen:
                raise LeftOutError(f"there is no `{like}` to compare it with")
            seen[name] = run = session.run(name, "math_lco_kld", [*SMALL, *settings], ranks)
            told = {"step_s": run["records"][-1]["time/step_s"], "peak_mib": run["peak_bytes"] / 2**20}
            return (
                told if like is None else {**told, "like": like, "apart": apart(seen[like]["records"], run["records"])}
            )

        session.check(name, make)

    n = session.ranks
    case("one", [], 1)
    case("replicated", [], n, "one")
    case("sharded", [SHARDED], n, "one")
    case("sharded-again", [SHARDED], n, "sharded")
    case("one-half", HALF, 1)
    case("sharded-half", [*HALF, SHARDED], n, "one-half")
    case("sharded-search", ["step.kind=line-search", SHARDED], n)
    session.check("resumed", lambda: resumed(session, seen))


def resumed(session: Session, seen: dict[str, Numbers]) -> Numbers:
    """A sharded run of two steps, gone on with by one process without sharding."""
    if "sharded" not in seen:
        raise LeftOutError("there is no `sharded` to compare it with")
    session.run("resumed", "math_lco_kld", [*SMALL, "train.steps=2", SHARDED], session.ranks)
    run = session.run("resumed", "math_lco_kld", SMALL)
    return {"like": "sharded", "apart": apart(seen["sharded"]["records"], run["records"])}


def large_run(session: Session) -> None:
    """A random policy whose memory is no longer that of the libraries, against what is counted."""
    sizes = {"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2}
    sizes |= {"intermediate_size": 4864, "vocab_size": 151936}
    length = 256
    if session.device == "cpu":
        sizes |= {"hidden_size": 280, "num_hidden_layers": 4, "intermediate_size": 768, "vocab_size": 32768}
        length = 16
    if session.smoke:
        sizes |= {"hidden_size": 56, "num_hidden_layers": 2, "intermediate_size": 128, "vocab_size": 512}

    def make() -> Numbers:
        from cvxrl.engine.plan import describe
        from cvxrl.engine.workload import Rates
        from cvxrl.recipe.load import load_recipe

        policy = session.folder / "policy"
        random_policy(policy, sizes)
        settings = [f"model.path={policy}", f"rollout.max_new_tokens={length}", "train.micro_batch=8", *HALF]
        settings += ["train.steps=3", "train.minibatches=2", "eval.every=0", "checkpoint.final=false", SHARDED]
        settings += ["train.check_every=0", "logging.kl_sequences=0", f"train.device={session.device}"]
        if session.device == "cpu":  # bf16 is slow there
            settings += ["rollout.prompts=4", "rollout.samples=4"]
        (planned,) = describe(load_recipe("math_lco_kld", settings), [session.ranks], rates=Rates()).ranks
        run = session.run("large", "math_lco_kld", settings, session.ranks)
        measured, records = run["peak_bytes"], run["records"]
        assert planned.seconds is not None
        return {
            "peak_gib": measured / 2**30,
            "counted_gib": planned.memory.peak / 2**30,
            "counted_of_peak": planned.memory.peak / measured,
            "step_s": records[-1]["time/step_s"],
            "sampling_and_reading_s": records[-1]["time/collect_s"],
            "counted_s_at_h100_rates": planned.seconds.step,
        }

    session.check("large", make)


def random_policy(folder: Path, sizes: dict[str, int]) -> None:
    """A new policy with the embedded one's tokenizer; most of its vocabulary is never written."""
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "cvxrl" / "assets" / "forgetful")
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    Qwen2ForCausalLM(Qwen2Config(**sizes, **ends)).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def vllm_run(session: Session) -> None:
    """Rollouts from a vLLM server beside the ranks, on the last GPU where there are several."""

    def make() -> Numbers:
        python = os.environ.get("VLLM_PYTHON", sys.executable)
        if importlib.util.find_spec("cvxrl.serve") is None:
            raise LeftOutError("this version has no vLLM server")
        if "VLLM_PYTHON" not in os.environ and importlib.util.find_spec("vllm") is None:
            raise LeftOutError("vLLM is not installed; VLLM_PYTHON can name an environment that has it")
        command = [python, "-m", "cvxrl.serve", "math_lco_kld", "--port", "8765", "--memory", "0.2"]
        log = session.folder / "vllm.log"
        with log.open("wb") as stream, group(command, stdout=stream, stderr=stream) as server:
            wait_for("http://127.0.0.1:8765/health", server, session.until - LEAST, log)
            engine = "rollout.engine={kind: vllm, url: 'http://127.0.0.1:8765'}"
            run = session.run("vllm", "math_lco_kld", [*SMALL, engine], 1)
        checked = {key: run["records"][-1][key] for key in run["records"][-1] if key.startswith(("check/", "rollout/"))}
        return {"step_s": run["records"][-1]["time/step_s"], **checked}

    session.check("vllm", make)


def wait_for(url: str, server: subprocess.Popen[bytes], until: float, log: Path) -> None:
    while time.monotonic() < until:
        if server.poll() is not None:
            raise RuntimeError(f"the server ended: {' | '.join(log.read_text(errors='replace').splitlines()[-4:])}")
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(1)
    raise LeftOutError("the server was not ready in time")


def child(folder: Path, words: list[str]) -> None:
    """One rank: the command, and then how it ended and what its device held at most; of a CPU, beyond the libraries."""
    import torch

    import cvxrl.engine.session  # noqa: F401
    from cvxrl.cli import main

    before = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    sys.argv, code = ["cvxrl", *words], 1
    try:
        main()
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
        raise
    finally:
        cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
        most = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        peak = torch.cuda.max_memory_allocated() if cuda else most
        file = folder / f"rank-{os.environ.get('RANK', '0')}.json"
        file.write_text(json.dumps({"code": code, "peak_bytes": peak}))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="the JSON file to write")
    parser.add_argument("--seconds", type=float, default=540.0, help="longest time of the call")
    parser.add_argument("--smoke", action="store_true", help="two ranks on the CPU, the tiniest policy")
    parser.add_argument("--only", action="append", choices=["small", "large", "vllm"], help="part; may be repeated")
    arguments = parser.parse_args()
    import torch

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended on the way out
    gpus = 0 if arguments.smoke else torch.cuda.device_count()
    with tempfile.TemporaryDirectory() as folder:
        until = time.monotonic() + arguments.seconds
        device = "cuda" if gpus else "cpu"
        session = Session(arguments.out, Path(folder), until, gpus or 2, device, arguments.smoke)
        if gpus == 1:
            print("one GPU: NCCL allows one rank on it, so that sharding and sums over ranks run with a single one")
        elif not gpus:
            print("no GPU: two ranks on the CPU over gloo, a tiny policy; nothing of NCCL, bf16 kernels or GPU memory")
        parts = {"small": small_runs, "large": large_run, "vllm": vllm_run}
        for name in arguments.only or parts:
            parts[name](session)
    return int(any(one["status"] == "failed" for one in session.found))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]), sys.argv[3:])
    else:
        sys.exit(main())
