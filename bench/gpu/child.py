"""One check in a process of its own: the two sides.

The parent passes the context as JSON on standard input, the child answers one `CheckResult` as JSON on
standard output; whatever libraries print goes to standard error. At the deadline the parent kills the
child and everything below it; a process inside a driver call that never returns is left behind.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import psutil
from gpu.check_driver import result_of
from gpu.checks import BY_NAME, Check
from gpu.load_child import die_with_parent
from gpu.result import CheckResult, Context, NotSupportedHere, context_from, plain, result_from

ENTRY: Final = str(Path(__file__).resolve().parent / "verify.py")
_REAP_SECONDS: Final = 5.0
_SELF_DESTRUCT_SECONDS: Final = 10.0


def run_check(check: Check, context: Context, deadline_seconds: float) -> CheckResult:
    """Run a check and return its result, whatever becomes of its process."""
    began = time.monotonic()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            (sys.executable, ENTRY, "--child", check.name, f"{deadline_seconds:.0f}"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            start_new_session=True,
        )
        text, late = b"", False
        try:
            text, _ = process.communicate(
                json.dumps(plain(asdict(context))).encode(), deadline_seconds
            )
        except subprocess.TimeoutExpired:
            late = True
        finally:
            _kill_tree(process)
        said.seek(0)
        last = said.read().decode("utf-8", "replace").strip().splitlines()[-1:]
    seconds = round(time.monotonic() - began, 1)
    try:
        return result_from({**json.loads(text), "seconds": seconds})
    except (ValueError, TypeError, KeyError):
        ending = f"killed at its deadline of {deadline_seconds:.0f} s" if late else _ending(process)
        error = "; ".join([ending, *last])
        return CheckResult(name=check.name, status="failed", seconds=seconds, error=error)


def _ending(process: subprocess.Popen[bytes]) -> str:
    code = process.returncode
    return (
        f"ended by signal {-code}" if code is not None and code < 0 else f"ended with code {code}"
    )


def _kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Kill the child and all below it; wait a little, never for ever."""
    if process.poll() is not None:
        return
    try:
        below = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        below = []
    process.kill()
    for one in below:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    try:
        process.wait(timeout=_REAP_SECONDS)
    except subprocess.TimeoutExpired:
        return


def child_main(name: str, deadline_seconds: float) -> int:
    """Run one check in this process and write its result."""
    out = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    die_with_parent()
    # Should the parent's kill not come: SIGALRM ends a process that has no handler for it.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, deadline_seconds + _SELF_DESTRUCT_SECONDS)
    result = checked(BY_NAME[name], context_from(json.load(sys.stdin)))
    os.write(out, b"")
    with os.fdopen(out, "wb") as answer:
        answer.write(json.dumps(plain(asdict(result))).encode())
    return 0


def checked(check: Check, context: Context) -> CheckResult:
    """Run a check; what it raises is its result."""
    began = time.monotonic()

    def ended(status: Any, error: str) -> CheckResult:
        seconds = round(time.monotonic() - began, 1)
        return CheckResult(name=check.name, status=status, seconds=seconds, error=error)

    try:
        return result_of(check.name, round(time.monotonic() - began, 1), check.run(context))
    except NotSupportedHere as exc:
        return ended("not_supported", str(exc))
    except Exception as exc:  # the whole point: one check's trouble is its answer
        place = traceback.extract_tb(exc.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno} {place.name}"
        return ended("failed", f"{type(exc).__name__}: {exc} ({where})".replace("\n", " "))
