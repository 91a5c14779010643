"""A collector ends within a bound, whatever one of its threads hangs in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HANGS = """
import asyncio, os, signal, sys, threading
from flopwatch_collector import __main__ as main, app

async def run(self, stop):
    os.kill(os.getpid(), signal.SIGTERM)
    await stop.wait()
    threading.Thread(target=threading.Event().wait).start()  # the interpreter waits for it at its end

app.Collector.run = run
main.STOP_SECONDS_MAX = 0.5
sys.exit(main.main(["--data", sys.argv[1]]))
"""


def test_a_thread_that_hangs_does_not_keep_the_process(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", HANGS, str(tmp_path)],
        timeout=120,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert "Timeout" in ended.stderr
    assert "wait" in ended.stderr  # what the thread was at
