"""A simulator whose collector is not there; it began to look for one before other tests."""

from __future__ import annotations

import subprocess


def test_a_backfill_without_a_collector_gives_up_in_one_line(
    in_vain: subprocess.Popen[str], nobody: str
) -> None:
    _, stderr = in_vain.communicate(timeout=120)
    assert in_vain.returncode == 1
    last = stderr.splitlines()[-1]
    assert last.startswith(f"flopwatch: cannot reach a collector at {nobody}: no answer in 60 s")
    assert "Traceback" not in stderr
