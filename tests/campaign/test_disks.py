"""Disks that fill up under a spool, and calls that fail, a few times.

A store whose disk fills up is left to `python -m campaign.disks 50 1 store`.
"""

from __future__ import annotations

import subprocess
import sys


def done(*arguments: str) -> str:
    command = (sys.executable, "-m", *arguments)
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, timeout=300)
    assert ran.returncode == 0, ran.stdout
    return ran.stdout


def test_full_disks_cost_what_is_said_and_nothing_more() -> None:
    said = done("campaign.disks", "3", "2", "tmpfs", "ext4", "fsize")
    assert "rounds {'tmpfs': 3, 'ext4': 3, 'fsize': 3}" in said
    assert said.endswith("0 problems\n")


def test_calls_that_fail_lose_nothing_unsaid() -> None:
    assert done("campaign.failing", "80").endswith("0 problems\n")
