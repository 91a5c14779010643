"""`flopwatch up`: one command, and this host's own device is on the page."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import psutil

from flopwatch_agent.sources.processor import model_name
from processes import Process, awaited, done, environment, running

SHOWN_SECONDS_MAX: Final = 120.0
"""Until the page shows what this host has: seconds on an idle machine, more on a busy one."""


@contextmanager
def started(tmp_path: Path, *flags: str) -> Iterator[tuple[Process, str]]:
    """`flopwatch up` and the address that it prints."""
    env = environment(
        FLOPWATCH_SOCKET=str(tmp_path / "jobs.sock"),
        FLOPWATCH_NVML__ENABLED="false",
        FLOPWATCH_METRICS__LISTEN="127.0.0.1:0",
    )
    arguments = (
        *("up", "--data", str(tmp_path / "data")),
        *("--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", *flags),
    )
    with running(*arguments, log=tmp_path / "up.log", env=env) as up:
        yield up, up.line("dashboard ")


def clusters(url: str) -> dict[str, Any]:
    response = httpx.get(
        f"{url}/api/v1/fleet", params={"window": "1m"}, timeout=30, trust_env=False
    )
    if response.status_code != httpx.codes.OK:
        return {}
    return {entry["name"]: entry for entry in response.json()["clusters"]}


def ended_cleanly(up: Process) -> None:
    """Ctrl-C ends it with 0, and nothing that it started is left."""
    family = psutil.Process(up.pid).children(recursive=True)
    assert family
    up.interrupt()
    assert up.wait(60) == 0, up.said()
    _, alive = psutil.wait_procs(family, 5)
    assert alive == []
    assert "Traceback" not in up.said()


def test_up_shows_this_host_and_a_marked_simulated_cluster(tmp_path: Path) -> None:
    with started(tmp_path) as (up, url):
        assert httpx.get(f"{url}/readyz", timeout=30, trust_env=False).status_code == 200
        awaited(lambda: len(clusters(url)) == 2, "both clusters", SHOWN_SECONDS_MAX)
        shown = clusters(url)
        assert shown["sim"]["simulated"] is True
        assert shown["default"]["simulated"] is False
        assert shown["default"]["device_kind"] == "cpu"
        awaited(
            lambda: clusters(url)["sim"]["hfu"]["value"],
            "figures of the simulation",
            SHOWN_SECONDS_MAX,
        )
        page = httpx.get(url, timeout=30, trust_env=False, follow_redirects=True)
        assert page.status_code == 200
        assert "sim" in page.text
        assert "default" in page.text
        assert "simulated" in page.text
        ended_cleanly(up)


def test_up_without_the_simulation_shows_only_this_host_and_holds_its_port(tmp_path: Path) -> None:
    with started(tmp_path, "--no-sim") as (up, url):
        awaited(lambda: "default" in clusters(url), "this host", SHOWN_SECONDS_MAX)
        assert list(clusters(url)) == ["default"]
        name = httpx.get(f"{url}/api/v1/inventory", timeout=30, trust_env=False)
        assert name.status_code == 200
        assert (model_name() or "") in name.text
        busy = url.removeprefix("http://")
        other = done("up", "--data", str(tmp_path / "b"), "--http", busy, "--grpc", "127.0.0.1:0")
        assert other.returncode == 2
        assert other.stderr == f"flopwatch: --http {busy}: Address already in use\n"
        ended_cleanly(up)


def test_up_ends_cleanly_while_it_starts(tmp_path: Path) -> None:
    arguments = ("--data", str(tmp_path / "data"), "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0")
    with running("up", *arguments, log=tmp_path / "up.log") as up:
        family = awaited(lambda: psutil.Process(up.pid).children(recursive=True), "its children")
        up.send(signal.SIGTERM)
        assert up.wait(60) == 0
        assert psutil.wait_procs(family, 5)[1] == []
