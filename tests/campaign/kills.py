"""``python -m campaign.kills [KILLS [SEED]]``: kill -9 of the agent or its driver child at random moments.

A real agent runs on the fake driver against a collector that is a process of its own and is never harmed.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Final

import psutil

from campaign.recorder import recorded
from campaign.verdict import INTERVAL_MS, Kill, Verdict, judge
from fakenvml import Script, build, device, env
from processes import Process, awaited

SLOTS: Final = ("0000:18:00.0", "0000:19:00.0")
_STARTED: Final = re.compile(r"timestamp=(\S+) .*event=agent_started")


class Campaign:
    """One agent after the other on one data directory."""

    def __init__(self, home: Path, lib: Path, seed: int) -> None:
        self._home = home
        self._random = random.Random(seed)
        self._recording = home / "frames"
        script = Script(home / "script.txt").write(device(0), device(1))
        self._env = {
            **env(lib, script),
            "FLOPWATCH_SOCKET": str(home / "jobs.sock"),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        self._collector = Process(
            (sys.executable, "-m", "campaign.recorder", str(self._recording)),
            home / "collector.log",
            self._env,
        )
        self._target = self._collector.line("listening ")
        self._agent = self._start()
        self._dead_since: int | None = None
        self.kills: list[Kill] = []

    def run(self, kills: int) -> Verdict:
        """Kill that often, end all in good order, and judge."""
        awaited(self._when_started, "the agent starts")
        for _ in range(kills):
            # Also before the agent has read anything, and while its child starts.
            time.sleep(self._random.choice((0.3, 2.0, 8.0)) * (0.2 + self._random.random()))
            self._kill(self._random.choice(("agent", "child")))
        awaited(self._when_started, "the agent starts")
        time.sleep(3.0)
        self._note_start()
        assert self._agent.end() == 0, self._agent.said()
        self._collector.end()
        return judge(recorded(self._recording), self.kills, SLOTS)

    def close(self) -> None:
        """Leave no process behind."""
        self._agent.end(signal.SIGKILL)
        self._collector.end(signal.SIGKILL)

    def _start(self) -> Process:
        return Process(
            (
                *(sys.executable, "-m", "flopwatch_agent", "--collector", self._target),
                *("--data", str(self._home / "data"), "--interval", f"{INTERVAL_MS}ms"),
                *("--http", "127.0.0.1:0", "--cluster", "atlas", "--node", "n1"),
            ),
            self._home / "agent.log",
            self._env,
        )

    def _when_started(self) -> int | None:
        """Return when this agent said that it measures; None where it has not."""
        found = _STARTED.search(self._agent.said())
        return round(datetime.fromisoformat(found[1]).timestamp() * 1000) if found else None

    def _note_start(self) -> bool:
        """Note when the agent came back from the kill before; False where it did not yet."""
        started = self._when_started()
        if started is not None and self._dead_since is not None:
            kill = Kill(target="agent", at_unix_ms=self._dead_since, started_unix_ms=started)
            self.kills.append(kill)
            self._dead_since = None
        return started is not None

    def _child(self) -> psutil.Process | None:
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self._agent.pid).children():
                if "flopwatch_agent.driver" in child.cmdline():
                    return child
        return None

    def _kill(self, target: str) -> None:
        if target == "child":
            if (child := self._child()) is None:
                child = awaited(self._child, "the agent starts a child")
                time.sleep(2 * self._random.random())  # not always at its birth
            self.kills.append(Kill(target="child", at_unix_ms=time.time_ns() // 1_000_000))
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
            return
        at_unix_ms = time.time_ns() // 1_000_000
        if self._note_start() or self._dead_since is None:
            self._dead_since = at_unix_ms
        self._agent.end(signal.SIGKILL)
        time.sleep(self._random.random())
        self._agent = self._start()


@contextlib.contextmanager
def campaign(home: Path, lib: Path, seed: int) -> Iterator[Campaign]:
    """A campaign, and no process of it after the block."""
    made = Campaign(home, lib, seed)
    try:
        yield made
    finally:
        made.close()


def main(kills: int, seed: int) -> int:
    """Run one and say how it went; 0 where nothing is wrong."""
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        with campaign(home, build(home / "lib"), seed) as running:
            verdict = running.run(kills)
            children = sum(kill.target == "child" for kill in running.kills)
            sys.stdout.write(
                f"seed {seed}: {kills} kills ({kills - children} of the agent, {children} "
                f"of the child), {verdict.rows} rows in {verdict.batches} batches, {verdict.gaps} gaps\n"
                f"holes {verdict.holes} of {verdict.hole_ms} ms in all while the agent was dead, "
                f"{verdict.uncovered_ms} ms said to be unwatched\n"
            )
            sys.stdout.write("".join(f"WRONG {problem}\n" for problem in verdict.problems))
    return 1 if verdict.problems else 0


if __name__ == "__main__":
    chosen = [int(word) for word in sys.argv[1:]]
    sys.exit(main(*(chosen + [200, 1][len(chosen) :])))
