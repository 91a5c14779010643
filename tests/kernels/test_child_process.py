"""A child is heard line by line, bounded, and gone with all it started."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flopwatch_kernels.child_process import ChildExit, run_child
from flopwatch_kernels.errors import ProbeError


def run(
    script: str,
    *,
    wall_seconds: float = 20.0,
    heard: list[bytes] | None = None,
    stop_reason: Callable[[], str | None] | None = None,
) -> ChildExit:
    lines: list[bytes] = [] if heard is None else heard
    return run_child(
        (sys.executable, "-c", script),
        environment=os.environ,
        wall_seconds=wall_seconds,
        on_line=lines.append,
        stop_reason=stop_reason,
    )


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_alive(pid)


def test_whole_lines_are_handed_on_in_order_and_half_a_line_is_not() -> None:
    heard: list[bytes] = []
    ended = run("import sys; sys.stdout.write('one\\ntwo\\nhalf')", heard=heard)
    assert heard == [b"one", b"two"]
    assert ended == ChildExit(returncode=0, stderr_tail="")


def test_the_exit_code_and_the_end_of_standard_error_are_kept() -> None:
    ended = run("import sys; sys.stderr.write('x' * 9000 + 'the end'); sys.exit(3)")
    assert ended.returncode == 3
    assert ended.stderr_tail.endswith("the end")
    assert len(ended.stderr_tail) == 2000


def test_a_child_over_its_wall_limit_is_killed() -> None:
    heard: list[bytes] = []
    script = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    with pytest.raises(ProbeError, match=r"wall limit of 1.5 s"):
        run(script, wall_seconds=1.5, heard=heard)
    wait_until_gone(int(heard[0]))


def test_a_child_that_closes_its_output_and_stays_is_killed_too() -> None:
    with pytest.raises(ProbeError, match="wall limit"):
        run("import os, time; os.close(1); time.sleep(60)", wall_seconds=1.0)


def test_what_the_child_started_does_not_outlive_it() -> None:
    heard: list[bytes] = []
    script = (
        "import subprocess, sys\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(p.pid, flush=True)"
    )
    started_at = time.monotonic()
    ended = run(script, heard=heard)
    assert ended.returncode == 0
    assert time.monotonic() - started_at < 15
    wait_until_gone(int(heard[0]))


def test_a_reason_to_stop_kills_the_child_and_is_told() -> None:
    reasons = iter([None, None, "a job was placed on the card"])
    with pytest.raises(ProbeError, match="a job was placed on the card"):
        run("import time; time.sleep(60)", stop_reason=lambda: next(reasons))


def test_a_child_that_writes_without_end_is_killed() -> None:
    with pytest.raises(ProbeError, match="more than 1048576 bytes"):
        run("while True: print('x' * 1000)")


def test_an_error_in_the_listener_leaves_no_child() -> None:
    pids: list[int] = []

    def refuse(line: bytes) -> None:
        pids.append(int(line))
        raise ProbeError("not a message")

    with pytest.raises(ProbeError, match="not a message"):
        run_child(
            (
                sys.executable,
                "-c",
                "import os, time; print(os.getpid(), flush=True); time.sleep(60)",
            ),
            environment=os.environ,
            wall_seconds=20,
            on_line=refuse,
        )
    wait_until_gone(pids[0])


def test_a_program_that_is_not_there_is_an_error_in_words() -> None:
    with pytest.raises(ProbeError, match="cannot start /nowhere/python"):
        run_child(("/nowhere/python",), environment={}, wall_seconds=1, on_line=lambda line: None)
