"""The web process is nobody's crutch: it may die at any moment, and it never outlives its collector."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import psutil
import pytest

from processes import Collector, agent, awaited, collector, environment, running


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collector]:
    """A collector with an agent that sends a row every second."""
    tmp_path = tmp_path_factory.mktemp("served")
    with ExitStack() as stack:
        served = stack.enter_context(collector(tmp_path / "data"))
        env = environment(
            FLOPWATCH_SOCKET=str(tmp_path / "jobs.sock"), FLOPWATCH_NVML__ENABLED="false"
        )
        arguments = agent(served.grpc, tmp_path / "agent", cluster="host", node="n1", interval="1s")
        stack.enter_context(running(*arguments, log=tmp_path / "agent.log", env=env))
        awaited(lambda: served.rows("host") > 2, "rows of the agent")
        yield served


def web_of(collector: Collector) -> psutil.Process:
    (child,) = (
        each
        for each in psutil.Process(collector.process.pid).children()
        if "flopwatch_collector.web" in each.cmdline()
    )
    return child


def answers(collector: Collector, path: str = "/readyz") -> bool:
    try:
        return collector.ask(path).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def test_a_killed_web_process_stops_no_ingest_and_comes_back_on_its_port(
    served: Collector,
) -> None:
    before = served.rows("host")
    for _ in range(2):
        killed = web_of(served)
        killed.send_signal(signal.SIGKILL)
        awaited(lambda: answers(served), "the web process on its old port")
        assert web_of(served).pid != killed.pid
    awaited(lambda: served.rows("host") > before + 3, "rows that arrive meanwhile")
    assert served.process.running
    acked = served.ask("/metrics").text
    assert "flopwatch_ingest_rows_total" in acked


def test_ingest_goes_on_while_there_is_no_web_process_at_all(served: Collector) -> None:
    stopped = web_of(served)
    stopped.send_signal(signal.SIGSTOP)
    before = served.rows("host")
    awaited(lambda: served.rows("host") > before + 3, "rows while the web process hangs")
    stopped.send_signal(signal.SIGKILL)
    awaited(lambda: answers(served), "the web process on its old port")


def test_a_killed_collector_takes_its_web_process_and_its_ports_along(served: Collector) -> None:
    web = web_of(served)
    served.kill()
    web.wait(10)
    for address in (served.http, served.grpc):
        host, _, port = address.rpartition(":")
        with socket.socket() as free:  # without SO_REUSEADDR nothing may be left of it
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            free.bind((host, int(port)))
            free.listen()
    served.restart()
    awaited(lambda: answers(served), "the collector after its restart")
