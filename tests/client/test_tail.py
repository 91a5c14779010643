"""`flopwatch tail` as people run it: every byte passes, the exit code is the trainer's, the agent hears."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flopwatch_agent.job_intake import Intake
from flopwatch_agent.jobs import JobTable

TRAINER = """
    import sys, time
    for step in range(1, 4):
        print(f"iter {step}: loss 7.0, time 500.00ms, mfu 40.00%", flush=True)
        sys.stderr.write(f"stderr {step}\\n")
    sys.stdout.buffer.write(b"\\xff\\x00 no newline")
    sys.exit(7)
"""


@pytest.fixture
async def intake(tmp_path: Path) -> AsyncIterator[Intake]:
    listener = Intake(tmp_path / "jobs.sock", JobTable(), lambda: 0.0)
    await listener.start()
    yield listener
    await listener.close()


async def tail(
    intake: Intake, *arguments: str, stdin: bytes | None = None, **env: str
) -> tuple[int | None, bytes, bytes]:
    """Run the command; return its exit code, stdout and stderr."""
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("FLOPWATCH_", "SLURM_"))}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "flopwatch", "tail", *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**kept, "FLOPWATCH_SOCKET": str(intake.path), **env},
    )
    out, err = await process.communicate(stdin)
    return process.returncode, out, err


async def test_a_wrapped_trainers_output_and_exit_code_pass_and_its_lines_are_counted(
    intake: Intake,
) -> None:
    program = textwrap.dedent(TRAINER)
    code, out, err = await tail(
        intake, "--job", "gpt", "--dtype", "bf16", "--", sys.executable, "-c", program
    )
    lines = b"".join(b"iter %d: loss 7.0, time 500.00ms, mfu 40.00%%\n" % n for n in (1, 2, 3))
    assert (code, out) == (7, lines + b"\xff\x00 no newline")
    assert err == b"stderr 1\nstderr 2\nstderr 3\n"
    counted = intake.table.counters("*", "gpt")
    assert counted["steps_count"] == 3
    assert counted["step_ms"] == pytest.approx(1500)
    assert counted["model_flops"] == pytest.approx(1.5 * 0.4 * 312e12)
    assert counted["reported_mfu_ms"] / counted["reported_ms"] == pytest.approx(0.4)
    assert intake.table.drops == {}


async def test_output_piped_into_it_passes_and_counts(intake: Intake) -> None:
    line = b"completed step: 4, seconds: 2.0, TFLOP/s/device: 400.0, Tokens/s/device: 9000.0, loss: 1\n"
    code, out, _ = await tail(intake, "--job", "piped", stdin=b"hello\n" + line)
    assert (code, out) == (0, b"hello\n" + line)
    assert intake.table.counters("*", "piped")["tokens_count"] == 18_000


async def test_the_wrapped_trainer_hears_the_jobs_name_and_the_signals(intake: Intake) -> None:
    program = (
        "import os, signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(3));"
        "print(os.environ['FLOPWATCH_JOB'], flush=True); time.sleep(60)"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "flopwatch", "tail", "--", sys.executable, "-c", program),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "FLOPWATCH_SOCKET": str(intake.path)},
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == f"pid-{process.pid}\n".encode()
    process.send_signal(signal.SIGTERM)
    assert await process.wait() == 3


async def test_wrong_usage_is_one_line_and_code_2(intake: Intake) -> None:
    for arguments in ((), ("--job", "x", "--seq", "4096"), ("--", "/no/such/program")):
        code, _, err = await tail(intake, *arguments, stdin=b"")
        assert (code, err.count(b"\n"), err.startswith(b"flopwatch: ")) == (2, 1, True)


async def test_without_an_agent_the_trainer_runs_all_the_same(
    intake: Intake, tmp_path: Path
) -> None:
    code, out, _ = await tail(
        intake, "--job", "x", "--", "echo", "hi", FLOPWATCH_SOCKET=str(tmp_path / "none")
    )
    assert (code, out) == (0, b"hi\n")
