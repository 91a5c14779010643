"""deploy/slurm/receipt.sh: one line into AdminComment, and never a failed or a held epilog."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "deploy/slurm/receipt.sh"
LINE = "24 x H100, 0.3 h, MFU 31.0 %, HFU 40.5 %; machine"


def command(directory: Path, name: str, script: str) -> None:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def run(directory: Path, job: str | None = "81") -> None:
    """Run the script as slurmctld does; a script that fails or stays raises."""
    settings = directory / "receipt.env"
    settings.write_text(
        f"# a comment\nFLOPWATCH_PATH={directory}:{os.environ['PATH']}\n"
        "FLOPWATCH_RECEIPT_DELAY=0\nFLOPWATCH_API=http://collector:1\n"
    )
    environ = {"FLOPWATCH_RECEIPT_ENV": str(settings)}
    if job is not None:
        environ["SLURM_JOB_ID"] = job
    subprocess.run([SCRIPT], env=environ, check=True, timeout=60, capture_output=True)


def written(path: Path) -> list[str]:
    deadline = time.monotonic() + 30
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return path.read_text().splitlines()


@pytest.mark.parametrize("accounting", [True, False])
def test_the_line_goes_to_the_accounting_else_to_the_log(tmp_path: Path, accounting: bool) -> None:
    asked = 'test "$* $FLOPWATCH_API" = "job 81 --receipt http://collector:1"'
    command(tmp_path, "flopwatch", f'{asked} && echo "{LINE}"')
    said = (
        f'for w; do echo "$w"; done > {tmp_path}/said.new && mv {tmp_path}/said.new {tmp_path}/said'
    )
    command(tmp_path, "sacctmgr", said if accounting else "exit 1")
    command(tmp_path, "logger", said)
    run(tmp_path)
    words = written(tmp_path / "said")
    if accounting:
        assert words[-1] == f"AdminComment={LINE}"
        assert "jobid=81" in words
    else:
        assert words == ["-t", "flopwatch", f"job 81: {LINE}"]


def test_an_epilog_never_fails_and_never_waits(tmp_path: Path) -> None:
    command(tmp_path, "flopwatch", f"echo asked > {tmp_path}/asked; exit 1")
    command(tmp_path, "sacctmgr", f"echo told > {tmp_path}/told")
    run(tmp_path)
    assert written(tmp_path / "asked") == ["asked"]
    run(tmp_path, job=None)
    run(tmp_path, job="81; touch /tmp/hurt")
    assert not (tmp_path / "told").exists()
