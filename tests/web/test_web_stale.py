"""The fleet page when the collector is gone: the last known figures, marked as such."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import httpx

from flopwatch_collector.telemetry.remote import RemoteStore
from flopwatch_collector.web.answers import Answers
from flopwatch_collector.web.app import create_app
from flopwatch_collector.web.sources import Control, Sources
from web.web_server import Web


async def test_the_last_known_figures_stay_and_say_so(web: Web, tmp_path: Path) -> None:
    now = [web.end + 12_000]
    sources = Sources(
        collector=RemoteStore(web.directory / "read.sock"),
        control=Control(f"sqlite:///{web.directory}/control.db"),
        answers=Answers(time.monotonic),
        now_unix_ms=lambda: now[0],
    )
    transport = httpx.ASGITransport(app=create_app(sources, asyncio.Event()))
    async with httpx.AsyncClient(transport=transport, base_url="http://web") as client:
        fresh = await client.get("/")
        sources.collector = RemoteStore(tmp_path / "nobody.sock")
        now[0] += 60_000
        stale = await client.get("/")
        never_seen = await client.get("/?window=5m")
    sources.control.close()
    assert fresh.status_code == stale.status_code == 200
    assert "NOT ANSWERING" not in fresh.text
    assert "NOT ANSWERING" in stale.text
    assert "last known" in stale.text
    assert ">75.0<" in stale.text
    assert never_seen.status_code == 503
    assert never_seen.headers["retry-after"]
