"""Starts `cvxrl train` quickly: a process that has imported the libraries forks one child per request.

Requests come as JSON lines on stdin: {"argv": [...], "log": path, "fault": {...} or null}. For each it answers two
lines: {"pid": n} at once and {"status": n} (exit code, or minus the signal) when the child is gone. The child is an
ordinary process that runs the command line's `main` and can be killed like any other. Faults:

- {"watch": path, "kill_at": n}: SIGKILL itself at the n-th file operation (open, rename, mkdir, remove, ...) on paths
  that begin so, and say at a normal end how many there were, as `operations: n` in the log. {"event": name} counts
  operations of one kind.
- {"fsync_at": n, "errno": e}: the n-th os.fsync raises OSError(e).
- {"signal_after": [n, ...]}: send itself SIGINT (or {"signal": number}) as soon as the record of step n is written.
- {"tear_record": n}: write half of the line of step n to metrics.jsonl, then SIGKILL itself.
- {"signal_at_fsync": n}: from the first signal on, the n-th os.fsync sends SIGINT again before it syncs.
- {"clock": true}: every look at the wall clock finds it a day earlier than the last one.
- {"file_size": bytes}: no file may grow beyond (`ulimit -f`).

What is written need not outlive a power cut: nothing waits for the disk.
Without a fault that watches file operations, the learning curves are a picture that was drawn before.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import io
import json
import os
import resource
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

OPERATIONS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.listdir", "os.scandir", "shutil.rmtree"}


def inject(fault: dict[str, Any]) -> None:
    """Arm the fault in this process."""
    if "watch" in fault:
        folder, kill_at, count = fault["watch"], fault.get("kill_at", 0), 0
        counted = {fault["event"]} if "event" in fault else OPERATIONS

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count
            if event in counted and arguments and str(arguments[0]).startswith(folder):
                count += 1
                if count == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        atexit.register(lambda: print(f"operations: {count}", flush=True))
    if "fsync_at" in fault:
        real, calls = os.fsync, 0

        def fsync(descriptor: int) -> None:
            nonlocal calls
            calls += 1
            if calls == fault["fsync_at"]:
                raise OSError(fault["errno"], os.strerror(fault["errno"]))
            real(descriptor)

        os.fsync = fsync
    if "signal_after" in fault:
        import cvxrl.engine.bookkeeping as bookkeeping

        write = bookkeeping.append_record

        def append(path: Any, record: Any) -> None:
            write(path, record)
            for step in fault["signal_after"]:
                if step == record["step"]:
                    os.kill(os.getpid(), fault.get("signal", signal.SIGINT))

        bookkeeping.append_record = append
    if "tear_record" in fault:
        import cvxrl.engine.bookkeeping as bookkeeping

        whole = bookkeeping.append_record

        def tear(path: Any, record: Any) -> None:
            whole(path, record)
            if record["step"] == fault["tear_record"]:
                content = path.read_bytes()
                last = content.rstrip(b"\n").rfind(b"\n") + 1
                os.truncate(path, (last + len(content)) // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        bookkeeping.append_record = tear
    if "signal_at_fsync" in fault:
        sync, left = os.fsync, fault["signal_at_fsync"]

        def interrupted(descriptor: int) -> None:
            nonlocal left
            handler = getattr(signal.getsignal(signal.SIGINT), "__self__", None)
            if getattr(handler, "requested", False):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGINT)
            sync(descriptor)

        os.fsync = interrupted
    if "clock" in fault:
        turn_back_the_clock()
    if "file_size" in fault:
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault["file_size"], fault["file_size"]))


def turn_back_the_clock() -> None:
    """Let `time.time` and `datetime.now` fall by a day at every call; monotonic clocks go on."""
    import datetime
    import time

    import cvxrl.engine.records as records
    import cvxrl.runs.entry as lock

    now = time.time()
    days = 0

    def earlier() -> float:
        nonlocal days
        days += 1
        return now - 86400.0 * days

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Any:
            return datetime.datetime.fromtimestamp(earlier(), tz)

    time.time = earlier
    records.datetime = lock.datetime = Clock  # type: ignore[misc]


def copy_the_curves(picture: bytes) -> None:
    """Write this picture instead of drawing one, which takes longer than the training."""
    import cvxrl.report.curves as curves

    curves.plot_curves = lambda _, path, __: curves.write_bytes(path, picture)


def child(request: dict[str, Any], picture: bytes) -> int:
    """Run one command; returns its exit code."""
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.setsid()
    sys.argv = ["cvxrl", *request["argv"]]
    fault = request["fault"] or {}
    inject(fault)
    if "watch" not in fault:
        copy_the_curves(picture)
    from cvxrl.cli import main

    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


# Short, with all that later runs pass through.
FIRST = "train math_lora --set=train.steps=1 --set=rollout.prompts=2 --set=rollout.samples=2 --set=eval.prompts=2"
FIRST += " --set=rollout.max_new_tokens=4 --set=eval.samples=1 --set=checkpoint.every=1 --out"


def first_run(folder: str) -> bytes:
    """Train once here: a first run imports for seconds, which every child would do again. Returns its curves."""
    from cvxrl.cli import main

    sys.argv = ["cvxrl", *FIRST.split(), folder]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            main()
        except SystemExit as end:
            assert not end.code, said.getvalue()
    (picture,) = Path(folder).rglob("curves.png")
    return picture.read_bytes()


def serve() -> None:
    """Answer requests until stdin closes."""
    os.fsync = lambda _: None
    with tempfile.TemporaryDirectory() as folder:
        picture = first_run(folder)

    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            code = child(json.loads(line), picture)
            sys.stdout.flush()
            atexit._run_exitfuncs()
            os._exit(code)
        print(json.dumps({"pid": pid}), flush=True)
        while True:
            try:
                status = os.waitpid(pid, 0)[1]
                break
            except OSError as error:
                if error.errno != errno.EINTR:
                    raise
        print(json.dumps({"status": os.waitstatus_to_exitcode(status)}), flush=True)


if __name__ == "__main__":
    serve()
