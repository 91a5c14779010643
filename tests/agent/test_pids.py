"""A pid and its start: which process it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from flopwatch_agent import pids


def test_a_process_is_known_by_its_start_and_gone_once_it_was_waited_for() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        ours, its = pids.started_ticks(os.getpid()), pids.started_ticks(child.pid)
        assert ours is not None
        assert its is not None
        assert ours < its
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        ended = pids.stat_of(child.pid)
        assert ended is not None
        assert (pids.running(ended), pids.exists(child.pid)) == (False, True)
        assert int(ended[pids.PARENT]) == os.getpid()
    assert (pids.started_ticks(child.pid), pids.exists(child.pid)) == (None, False)


def test_a_process_of_somebody_else_exists() -> None:
    assert pids.exists(1)


def test_a_command_with_blanks_and_brackets_shifts_nothing(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    fields = ["S", "3", *"0" * 17, "4711", "0"]
    (tmp_path / "7" / "stat").write_text(f"7 (a) b) {' '.join(fields)}\n")
    assert pids.started_ticks(7, tmp_path) == 4711
    (tmp_path / "7" / "stat").write_text("")
    assert pids.started_ticks(7, tmp_path) is None
