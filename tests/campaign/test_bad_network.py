"""A few connections under each toxic, a hundred hostile clients: nothing lost, and the honest are heard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from campaign import hostile, keepalive, network
from campaign.nodes import collector
from campaign.proxy import TOXICS
from flopwatch_agent import channel
from flopwatch_collector import ingest, listen
from processes import Process

PATIENCE_SECONDS = 2.0


@pytest.fixture
def serving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Process]:
    for module, name in ((channel, "CONFIGURATION"), (ingest, "HELLO_SECONDS")):
        monkeypatch.setattr(module, name, getattr(module, name))
    monkeypatch.setattr(listen, "SERVER_OPTIONS", listen.SERVER_OPTIONS)
    keepalive.shorten(PATIENCE_SECONDS)
    with collector(tmp_path, str(PATIENCE_SECONDS)) as process:
        yield process


async def test_bad_connections_lose_nothing_and_double_nothing(
    tmp_path: Path, serving: Process
) -> None:
    verdict = await network.run(tmp_path, serving, 1, seed=5, nodes=2, pace_seconds=0.5)
    assert verdict.problems == []
    assert verdict.hits.keys() == set(TOXICS)
    assert verdict.client_seconds > 0
    assert verdict.server_seconds > 0


async def test_hostile_clients_are_sent_away_and_harm_nobody(
    tmp_path: Path, serving: Process
) -> None:
    kinds = ("silent", "mute", "pinging", "headers", "deaf")
    verdict = await hostile.run(tmp_path, serving, 100, 5, kinds)
    assert verdict.problems == []
    assert (verdict.ended["silent"], verdict.ended["mute"]) == (100, 25)
    assert verdict.rows > 0
