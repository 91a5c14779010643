"""Logs: where they go, and that a disk which takes none of them ends nothing."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import structlog
from flopwatch_proto import logs

logs.configure()
for _ in range(3):
    structlog.get_logger().error("disk_full", free_bytes=0)
print("goes on")
"""


def test_a_log_line_that_nobody_takes_ends_nothing() -> None:
    with open("/dev/full", "w") as full:
        command = (sys.executable, "-c", PROGRAM)
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=full, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "goes on\n")


def test_events_are_lines_of_keys_on_standard_error() -> None:
    done = subprocess.run(
        (sys.executable, "-c", PROGRAM), capture_output=True, text=True, check=True
    )
    assert done.stderr.count("level=error event=disk_full free_bytes=0\n") == 3
