"""The daemons run under what their units say, and tell systemd what it waits for."""

from __future__ import annotations

import re
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import httpx
import pytest

from fakenvml import Script, build, device, env
from processes import FLOPWATCH, Process, await_readings, awaited, environment

SANDBOX: Final = Path(__file__).with_name("sandbox.py")
UNITS: Final = Path(__file__).parents[2] / "systemd"


class Systemd:
    """The end of the notification socket that systemd holds, and what came over it."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(str(path))
        self.heard: list[str] = []

    def hears(self, word: str) -> bool:
        try:
            while True:
                self.heard += self._socket.recv(4096).decode().splitlines()
        except BlockingIOError:
            return word in self.heard

    def waits_for(self, word: str, process: Process) -> None:
        def look() -> bool:
            assert process.running, process.said()
            return self.hears(word)

        awaited(look, word)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    opened = Systemd(tmp_path / "notify")
    yield opened
    opened.close()


@contextmanager
def started(tmp_path: Path, daemon: str, *flags: str, **more: str) -> Iterator[Process]:
    """A daemon in the sandbox of its unit, with the environment that systemd gives it."""
    state = tmp_path / "state"
    state.mkdir()
    command = (
        *("unshare", "--mount", "--propagation", "private", sys.executable, str(SANDBOX)),
        *(str(UNITS / f"flopwatch-{daemon}.service"), str(state), *FLOPWATCH, daemon, *flags),
    )
    told = environment(
        NOTIFY_SOCKET=str(tmp_path / "notify"),
        STATE_DIRECTORY=str(state),
        GRPC_ENABLE_FORK_SUPPORT="0",
        **more,
    )
    process = Process(command, tmp_path / "log", told)
    try:
        yield process
        assert process.end() == 0, process.said()
    finally:
        process.end(signal.SIGKILL)


def in_the_sandbox(process: Process) -> dict[str, str]:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return dict(re.findall(r"^(Seccomp|NoNewPrivs|CapBnd|CapEff):\s*(\w+)$", status, re.M))


SEALED: Final = {
    "Seccomp": "2",
    "NoNewPrivs": "1",
    "CapBnd": "0000000000000000",
    "CapEff": "0000000000000000",
}


def test_the_collector_and_its_web_process_serve_inside_their_unit(
    tmp_path: Path, systemd: Systemd
) -> None:
    with started(
        tmp_path, "collector", "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"
    ) as process:
        url = process.line("dashboard ")
        systemd.waits_for("READY=1", process)
        systemd.waits_for("WATCHDOG=1", process)
        assert in_the_sandbox(process) == SEALED
        its_proc = Path("/proc", str(process.pid), "root", "proc")
        assert not (its_proc / "meminfo").exists()
        assert (its_proc / str(process.pid)).exists()
        ready = httpx.get(f"{url}/readyz", timeout=30, trust_env=False)
        assert ready.status_code == 200, ready.text
    assert systemd.hears("STOPPING=1")


def test_the_agent_and_its_driver_child_measure_inside_their_unit(
    tmp_path: Path, systemd: Systemd, tmp_path_factory: pytest.TempPathFactory
) -> None:
    library = build(tmp_path_factory.mktemp("library"))
    script = Script(tmp_path / "script").write(device(0))
    fake = env(library, script)
    with started(
        tmp_path,
        "agent",
        *("--http", "127.0.0.1:0"),
        FLOPWATCH_SOCKET=str(tmp_path / "state/jobs.sock"),
        **{name: fake[name] for name in ("LD_LIBRARY_PATH", "FAKENVML_SCRIPT")},
    ) as process:
        systemd.waits_for("READY=1", process)
        systemd.waits_for("WATCHDOG=1", process)
        await_readings(process, "nvml")
        mode = (tmp_path / "state/jobs.sock").stat().st_mode
        assert mode & 0o777 == 0o666  # for every user's jobs
        assert in_the_sandbox(process) == SEALED
    assert systemd.hears("STOPPING=1")
