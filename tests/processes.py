"""Real processes of flopwatch on loopback, started for a test and ended by their own pid."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx

from flopwatch_collector.telemetry.remote import RemoteStore
from flopwatch_proto.errors import RetryableError

SECONDS_MAX: Final = 90.0
"""How long something that must happen may take on a machine that is busy with other things."""

FLOPWATCH: Final = (sys.executable, "-m", "flopwatch")

T = TypeVar("T")


def environment(**more: str) -> dict[str, str]:
    """This environment without any word to flopwatch in it, and with what the test says.

    A Slurm that a test beside this one has started on this host is nobody else's.
    """
    kept = {name: text for name, text in os.environ.items() if not name.startswith("FLOPWATCH")}
    quiet = {"FLOPWATCH_ALLOCATION__SLURM": "off", "FLOPWATCH_JOBS__OTLP": ""}
    return {**kept, **quiet, **more}


def awaited(look: Callable[[], T | None], what: str, seconds_max: float = SECONDS_MAX) -> T:
    """Return the first thing that `look` finds; a false one is none."""
    give_up = time.monotonic() + seconds_max
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < give_up, f"never: {what}"
        time.sleep(0.1)


class Process:
    """A process with its output in a file. Attributes: log: standard output and error."""

    def __init__(
        self, command: tuple[str, ...], log: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self.log = log
        self.command = command
        self._offset = log.stat().st_size if log.exists() else 0
        with log.open("ab") as output:
            self.popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment() if env is None else dict(env),
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def running(self) -> bool:
        return self.popen.poll() is None

    def said(self) -> str:
        """Everything this process wrote so far."""
        with self.log.open("rb") as output:
            output.seek(self._offset)
            return output.read().decode(errors="replace")

    def line(self, start: str) -> str:
        """Wait for a line that starts so; return what follows."""

        def look() -> str | None:
            lines = self.said().splitlines(keepends=True)
            found = [x for x in lines if x.startswith(start) and x.endswith("\n")]
            assert found or self.running, f"ended with {self.popen.poll()}: {self.said()}"
            return found[0].removeprefix(start).strip() if found else None

        return awaited(look, f"{start!r} of {self.command}")

    def send(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def interrupt(self) -> None:
        """Ctrl-C: SIGINT to it and to all that it started and left in its group."""
        os.killpg(self.pid, signal.SIGINT)

    def wait(self, seconds_max: float = SECONDS_MAX) -> int:
        return self.popen.wait(seconds_max)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it and return its exit code; by force where it does not listen."""
        if self.running:
            self.send(number)
            try:
                self.wait(30)
            except subprocess.TimeoutExpired:
                self.send(signal.SIGKILL)
        return self.popen.wait()


def await_readings(agent: Process, source: str) -> None:
    """Wait until an agent's own metrics say that a source was read."""

    def address() -> str | None:
        assert agent.running, agent.said()
        found = re.search(r"metrics_listening address=(\S+)", agent.said())
        return found[1] if found else None

    url = f"http://{awaited(address, 'the address of the metrics')}/metrics"
    read = re.compile(rf'^flopwatch_source_duration_seconds_count{{source="{source}"}} [1-9]', re.M)
    awaited(lambda: read.search(httpx.get(url, timeout=30, trust_env=False).text), "a reading")


class Collector:
    """A collector process that keeps its data and its ports over its restarts."""

    def __init__(self, data: Path, config: str = "", env: Mapping[str, str] | None = None) -> None:
        self.data = data
        self.grpc = self.http = "127.0.0.1:0"
        self._env = environment() if env is None else dict(env)
        self._config = data.with_suffix(".toml")
        self._config.write_text(config, encoding="utf-8")
        self.process = self._start()

    def _start(self) -> Process:
        process = Process(
            (
                *(*FLOPWATCH, "collector", "--config", str(self._config)),
                *("--data", str(self.data), "--http", self.http, "--grpc", self.grpc),
            ),
            self.data.with_suffix(".log"),
            self._env,
        )
        self.grpc = process.line("ingest ")
        self.http = process.line("dashboard http://")
        return process

    @property
    def url(self) -> str:
        return f"http://{self.http}"

    def kill(self) -> None:
        """SIGKILL: what it had not made durable is gone."""
        self.process.end(signal.SIGKILL)

    def restart(self) -> None:
        """Start it again on the same data and the same ports."""
        self.process = self._start()

    def stop(self) -> int:
        return self.process.end()

    def ask(self, path: str, **parameters: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", params=parameters, timeout=30, trust_env=False)

    def get(self, path: str, **parameters: str) -> Any:
        """The JSON that the API answers; asked again where it was too busy to."""

        def look() -> httpx.Response | None:
            response = self.ask(path, **parameters)
            return None if response.status_code == httpx.codes.SERVICE_UNAVAILABLE else response

        response = awaited(look, f"{path} {parameters}")
        assert response.status_code == httpx.codes.OK, response.text
        return response.json()

    def cluster(self, name: str, start: str, end: str) -> Any:
        """One cluster's entry of `/api/v1/fleet`."""
        fleet = self.get("/api/v1/fleet", start=start, end=end)
        (found,) = (entry for entry in fleet["clusters"] if entry["name"] == name)
        return found

    def sql(self, query: str, **parameters: Any) -> list[dict[str, Any]]:
        """Rows of the store, by the way that the web process reads them."""
        found: list[dict[str, Any]] = []

        def look() -> bool:
            try:
                found[:] = RemoteStore(self.data / "read.sock").query(query, parameters).to_pylist()
            except RetryableError:
                return False
            return True

        awaited(look, query)
        return found

    def rows(self, cluster: str) -> int:
        """How many interval rows it holds of a cluster."""
        query = "SELECT count() AS n FROM interval FINAL WHERE cluster = {cluster:String}"
        return int(self.sql(query, cluster=cluster)[0]["n"])


@contextmanager
def collector(
    data: Path, config: str = "", env: Mapping[str, str] | None = None
) -> Iterator[Collector]:
    """A collector for the length of a block."""
    started = Collector(data, config, env)
    try:
        yield started
    finally:
        started.stop()


@contextmanager
def running(*arguments: str, log: Path, env: Mapping[str, str] | None = None) -> Iterator[Process]:
    """`flopwatch ARGUMENTS…` for the length of a block."""
    process = Process((*FLOPWATCH, *arguments), log, env)
    try:
        yield process
    finally:
        process.end()


def done(
    *arguments: str, env: Mapping[str, str] | None = None, seconds_max: float = 200
) -> subprocess.CompletedProcess[str]:
    """`flopwatch ARGUMENTS…`, run to its end."""
    return subprocess.run(
        (*FLOPWATCH, *arguments),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds_max,
        env=environment() if env is None else dict(env),
        check=False,
    )


def agent(
    to: str, data: Path, *, cluster: str, node: str, interval: str = "10s"
) -> tuple[str, ...]:
    """The arguments of an agent that disturbs no other one on this host."""
    return (
        *("agent", "--collector", to, "--data", str(data), "--cluster", cluster, "--node", node),
        *("--interval", interval, "--http", "127.0.0.1:0"),
    )


def backfill(
    to: Collector, scenario: Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`flopwatch simulate --backfill` to a collector."""
    return done(
        *("simulate", "--collector", to.grpc, "--scenario", str(scenario)),
        *("--backfill", "--api", to.url),
        env=env,
    )
