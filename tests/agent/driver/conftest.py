"""A driver child as a process of its own, on a fake of NVIDIA's library."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from fakenvml import Script, build, device, env
from flopwatch_agent.driver.messages import (
    LENGTH_BYTES,
    DeviceReading,
    InventoryReply,
    InventoryRequest,
    QuitRequest,
    ReadReply,
    ReadRequest,
    Reply,
    Request,
    body_length,
    frame,
    parse_reply,
)

GPM = {2: 90, 5: 45, 6: 1, 7: 44, 9: 2, 10: 30, 11: 3, 12: 4, 13: 5, 20: 10, 21: 20, 60: 30, 61: 40}


class Child:
    """A driver child and the pipes to it."""

    def __init__(self, lib: Path, script: Script, log: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flopwatch_agent.driver"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**env(lib, script), "FAKENVML_LOG": str(log)},
        )
        self._log = log

    def ask(self, request: Request) -> Reply:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(frame(request))
        self.process.stdin.flush()
        prefix = self.process.stdout.read(LENGTH_BYTES)
        return parse_reply(self.process.stdout.read(body_length(prefix)))

    def inventory(self) -> InventoryReply:
        reply = self.ask(InventoryRequest())
        assert isinstance(reply, InventoryReply)
        return reply

    def read(self) -> ReadReply:
        # The fake looks at its script every 10 ms, and the metrics want 200 ms between two samples.
        time.sleep(0.22)
        reply = self.ask(ReadRequest())
        assert isinstance(reply, ReadReply)
        return reply

    def card(self, index: int = 0) -> DeviceReading:
        return self.read().devices[index]

    def quit(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.write(frame(QuitRequest()))
        self.process.stdin.flush()
        return self.process.wait(timeout=30)

    def calls(self) -> Counter[str]:
        return Counter(line.split()[2] for line in self._log.read_text().splitlines())


@pytest.fixture
def script(tmp_path: Path) -> Script:
    return Script(tmp_path / "script.txt").write(device(0, gpm=GPM))


@pytest.fixture
def start(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, script: Script
) -> Iterator[Callable[..., Child]]:
    children: list[Child] = []

    def start_child(*missing: str) -> Child:
        lib = build(tmp_path_factory.getbasetemp() / "fakenvml", missing=missing)
        children.append(Child(lib, script, tmp_path / "calls.log"))
        return children[-1]

    yield start_child
    for child in children:
        with suppress(ProcessLookupError):
            child.process.kill()
        child.process.communicate()
