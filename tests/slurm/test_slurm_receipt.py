"""The receipt of a job in the accounting of a real Slurm, written by the controller's own epilog."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from slurm.accounting import accounting
from slurm.lab import Lab, LabError

SCRIPT = Path(__file__).parents[2] / "deploy/slurm/receipt.sh"
LINE = "8 x H100, 0.3 h, MFU 31.0 %, lost: input/idle 6.1 pt; both; culprit n3 0000:48:00.0 (slow clock)"


def executable(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_a_job_that_has_ended_carries_its_receipt(lab: Lab, tmp_path: Path) -> None:
    executable(tmp_path / "flopwatch", f'test "$3" = --receipt && echo "{LINE}"')
    settings = tmp_path / "receipt.env"
    settings.write_text(
        f"FLOPWATCH_PATH={tmp_path}:{os.environ['PATH']}\nFLOPWATCH_RECEIPT_DELAY=2\n"
        f"SLURM_CONF={lab.environ['SLURM_CONF']}\n"
    )
    # slurmctld hands over no environment: only a wrapper can say that the settings stand elsewhere.
    words = f"export FLOPWATCH_RECEIPT_ENV={settings}\nexec {SCRIPT}"
    epilog = executable(tmp_path / "epilog.sh", words)
    with accounting(lab, f"EpilogSlurmctld={epilog}\n"):
        job = lab.submit("--gres=gpu:8", script="true")
        lab.until_state(job, "CD")
        asked = ("sacct", "-X", "-n", "-P", "-j", job, "-o", "AdminComment")
        lab.until("the receipt stands", lambda: bool(lab.run(*asked).strip()))
        # The sacctmgr of this Slurm writes what it sets in lower case.
        assert lab.run(*asked).strip().lower() == LINE.lower()
        with pytest.raises(LabError, match="already finished"):
            lab.run("scontrol", "update", f"JobId={job}", "AdminComment=later")
