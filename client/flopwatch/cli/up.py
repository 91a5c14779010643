"""`up`: collector, this host's agent and, without an accelerator, a simulated cluster, in one go."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import FrameType
from typing import Annotated, Final

import httpx
import typer

from flopwatch.cli.host import data_directory, has_accelerator
from flopwatch_agent.config import default_jobs_socket
from flopwatch_proto.errors import FlopwatchError, UsageError

READY_SECONDS_MAX: Final = 120.0
STOP_SECONDS_MAX: Final = 15.0
_TICK_SECONDS: Final = 0.1
_WRONG_USAGE: Final = 2
_METRICS: Final = "127.0.0.1:9752"
_METRICS_VARIABLE: Final = "FLOPWATCH_METRICS__LISTEN"
_JOBS_VARIABLE: Final = "FLOPWATCH_JOBS__SOCKET"


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where to listen. Attributes: flag: the one that named it."""

    flag: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def up(
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where everything is kept.")
    ] = None,
    http: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Dashboard and API; port 0 picks a free one.")
    ] = "127.0.0.1:9750",
    grpc: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Ingest; port 0 picks a free one.")
    ] = "127.0.0.1:9751",
    no_sim: Annotated[
        bool, typer.Option("--no-sim", help="No simulated cluster, accelerator or not.")
    ] = False,
) -> int:
    """Collector and this host's agent in one go; Ctrl-C ends them cleanly."""
    web, ingest = listening("--http", http), listening("--grpc", grpc)
    directory = data or data_directory()
    children = Children()
    # A script that starts us in the background has us ignore Ctrl-C; the daemons do not, so we must not.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, children.stop)
    try:
        return _run(children, directory, web, ingest, simulate=not no_sim)
    finally:
        children.end()


def listening(flag: str, text: str) -> Address:
    """The address of a flag, with a free port picked for 0.

    Raises:
        UsageError: no address, or somebody listens there already.
    """
    host, _, port_text = text.rpartition(":")
    if not host or not port_text.isdigit() or int(port_text) > 65_535:
        raise UsageError(f"{flag}: {text!r} is no HOST:PORT")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port_text)))
        except OSError as exc:
            raise UsageError(f"{flag} {text}: {exc.strerror or exc}") from exc
        return Address(flag=flag, host=host, port=int(probe.getsockname()[1]))


class Children:
    """The processes that `up` started, in order. Args: command: what starts a part, by its name.

    Attributes:
        stopping: somebody asked us to end. Looked at between two steps: an exception raised by a signal
            may fall between the start of a child and our knowing of it.
    """

    def __init__(self, command: tuple[str, ...] = (sys.executable, "-m", "flopwatch")) -> None:
        self._command = command
        self._running: list[tuple[str, subprocess.Popen[bytes]]] = []
        self.stopping = False

    def stop(self, signum: int, frame: FrameType | None) -> None:
        """Ask for the end: the handler of signals."""
        self.stopping = True

    def start(self, name: str, *arguments: str, quiet: bool = False) -> subprocess.Popen[bytes]:
        """Start `flopwatch NAME …` in our process group: whoever ends the group ends all of it."""
        child = subprocess.Popen(
            (*self._command, name, *arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if quiet else None,
        )
        self._running.append((name, child))
        return child

    def ended(self) -> tuple[str, int] | None:
        """A child that is no more, with its exit code."""
        for name, child in self._running:
            code = child.poll()
            if code is not None:
                return name, code
        return None

    def end(self) -> None:
        """End the children, the last one first, each within 15 s; then by force."""
        while self._running:
            _, child = self._running.pop()
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
            try:
                child.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _run(
    children: Children, directory: Path, web: Address, ingest: Address, *, simulate: bool
) -> int:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise UsageError(f"--data {directory}: {exc.strerror}") from exc
    collector = ("--data", str(directory), "--http", str(web), "--grpc", str(ingest))
    children.start("collector", *collector, quiet=True)  # we say where it listens, once
    code = _await_ready(children, web)
    if code is not None:
        return code
    agent = ("--collector", str(ingest), "--data", str(directory / "agent"))
    _make_room_for_jobs(directory / "agent")
    children.start("agent", *agent, *_agent_metrics())
    if simulate and not has_accelerator(os.environ):
        scenario = resources.files("flopwatch.simulate") / "default.toml"
        with resources.as_file(scenario) as path:
            children.start("simulate", "--collector", str(ingest), "--scenario", str(path))
            return _serve(children, web, ingest)
    return _serve(children, web, ingest)


def _agent_metrics() -> tuple[str, ...]:
    """A free port for the agent's own metrics where another agent of this host has the usual one."""
    if _METRICS_VARIABLE in os.environ:
        return ()
    try:
        listening("--http", _METRICS)
    except UsageError:
        return ("--http", "127.0.0.1:0")
    return ()


def _make_room_for_jobs(data: Path) -> None:
    """Give the agent a job socket of its own where another agent of this host answers on the usual one."""
    usual = default_jobs_socket()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(str(usual))
        except OSError:
            return
    own = data / "jobs.sock"
    if os.environ.setdefault(_JOBS_VARIABLE, str(own)) == str(own):
        typer.echo(
            f"another agent holds {usual}: jobs reach this one with FLOPWATCH_SOCKET={own}",
            err=True,
        )


def _await_ready(children: Children, web: Address) -> int | None:
    """Wait until the collector serves; its exit code where it gave up instead."""
    give_up = time.monotonic() + READY_SECONDS_MAX
    while time.monotonic() < give_up:
        if children.stopping:
            return 0
        ended = children.ended()
        if ended is not None:
            return _report(*ended)
        try:
            if httpx.get(f"http://{web}/readyz", timeout=2.0, trust_env=False).status_code == 200:
                return None
        except httpx.HTTPError:
            pass  # it is still starting
        time.sleep(_TICK_SECONDS)
    raise FlopwatchError(f"the collector did not become ready within {READY_SECONDS_MAX:.0f} s")


def _serve(children: Children, web: Address, ingest: Address) -> int:
    """Say where everything is; return when a child has ended."""
    sys.stdout.write(f"ingest {ingest}\ndashboard http://{web}\n")
    sys.stdout.flush()  # whoever reads it from a pipe waits for it
    while not children.stopping:
        ended = children.ended()
        if ended is not None:
            return _report(*ended)
        time.sleep(_TICK_SECONDS)
    return 0


def _report(name: str, code: int) -> int:
    """Say which child ended, unless it was wrong usage, of which the child wrote its own line."""
    if code == _WRONG_USAGE:
        return _WRONG_USAGE
    how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    typer.echo(f"flopwatch up: the {name} {how}; stopping", err=True)
    return 1
