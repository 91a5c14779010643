"""A real telemetry store in a directory of its own for every test that asks, and one real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from flopwatch_collector.telemetry.store import TelemetryStore
from postgres import Postgres, postgres


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TelemetryStore]:
    """The embedded engine: one path per process at a time, so it is closed after each test."""
    opened = TelemetryStore.open(f"chdb://{tmp_path}/telemetry")
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Postgres]:
    """One server; a test makes a database of its own in it."""
    with postgres() as server:
        yield server
