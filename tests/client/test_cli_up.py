"""`up`: addresses are checked before anything starts, and nothing it started is left behind."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flopwatch.cli import up
from flopwatch_proto.errors import UsageError

PART = """
import pathlib, signal, sys, time
name, log = sys.argv[1], pathlib.Path(sys.argv[2])
def leave(*_):
    with log.open("a") as file:
        file.write(name + "\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
(log.parent / (name + ".up")).touch()
if name == "fails":
    sys.exit(3)
while True:
    time.sleep(0.05)
"""


def parts() -> up.Children:
    return up.Children((sys.executable, "-c", PART))


def await_file(path: Path) -> None:
    give_up = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def test_port_0_picks_a_free_one() -> None:
    address = up.listening("--http", "127.0.0.1:0")
    assert (address.host, address.flag) == ("127.0.0.1", "--http")
    assert address.port > 0


def test_an_ipv6_address_keeps_its_brackets() -> None:
    address = up.listening("--http", "[::1]:0")
    assert str(address) == f"[::1]:{address.port}"


def test_a_taken_port_is_refused_by_its_flag() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(UsageError, match=rf"--grpc {taken}: Address already in use"):
            up.listening("--grpc", taken)


@pytest.mark.parametrize("text", ["9750", "host:", ":9750", "127.0.0.1:70000", "127.0.0.1:x"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"--http: .* is no HOST:PORT"):
        up.listening("--http", text)


def test_children_are_ended_the_last_one_first(tmp_path: Path) -> None:
    children, log = parts(), tmp_path / "log"
    processes = []
    for name in ("collector", "agent", "simulate"):
        processes.append(children.start(name, str(log)))
        await_file(tmp_path / f"{name}.up")
    assert children.ended() is None
    children.end()
    assert log.read_text().split() == ["simulate", "agent", "collector"]
    assert all(isinstance(p, subprocess.Popen) and p.poll() == 0 for p in processes)


def test_a_child_that_died_is_noticed_with_its_code(tmp_path: Path) -> None:
    children = parts()
    children.start("fails", str(tmp_path / "log")).wait()
    assert children.ended() == ("fails", 3)
    children.end()
