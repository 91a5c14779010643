"""A real web process over a real store: filled once, asked by every test of this directory."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest

from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.telemetry.store import TelemetryStore
from web.web_server import Web, fill, outages, reads, running, said


@pytest.fixture(scope="session")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    directory = tmp_path_factory.mktemp("data")
    now = time.time_ns() // 1_000_000
    store = TelemetryStore.open(f"chdb://{directory}/telemetry")
    control = ControlStore.open(f"sqlite:///{directory}/control.db")
    with contextlib.ExitStack() as stack:
        stack.callback(store.close)
        stack.callback(control.close)
        end = fill(store, now)
        control.save(states=outages(now))
        ingest = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        stack.enter_context(reads(store, directory, f"127.0.0.1:{ingest.getsockname()[1]}"))
        process = stack.enter_context(running(directory, "--deployment", "lab"))
        yield Web(url=said(process), process=process, directory=directory, end=end)
