"""The agent's own HTTP, as clients of all kinds meet it."""

from __future__ import annotations

import asyncio
import socket
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from flopwatch_agent import local_http
from flopwatch_agent.local_http import LocalHttp
from flopwatch_agent.newest import Newest
from flopwatch_agent.now import Now
from flopwatch_agent.present import Present
from flopwatch_agent.reading import Device, Process, Reading, Share
from flopwatch_agent.sources.host import HostReading
from flopwatch_agent.spool import Spool
from flopwatch_agent.stream import Stream, StreamIdentity
from flopwatch_proto.errors import UsageError
from flopwatch_proto.rows import Absence, Bucket

SECOND = 1_000_000_000
PAGES = {"/metrics": lambda: ("text/plain", b"a 1\n"), "/now": lambda: ("application/json", b"{}")}


@asynccontextmanager
async def serving() -> AsyncIterator[str]:
    server = LocalHttp(PAGES)
    try:
        yield await server.start("127.0.0.1:0")
    finally:
        await server.close()


async def raw(address: str, said: bytes) -> bytes:
    """What comes back on a connection until it closes."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(said)
        return await reader.read()
    finally:
        writer.close()


async def test_an_ordinary_client_gets_each_page_and_its_type() -> None:
    def ask(url: str) -> tuple[bytes, str]:
        with urllib.request.urlopen(url) as reply:
            return reply.read(), reply.headers["Content-Type"]

    async with serving() as address:
        url = f"http://{address}"
        assert await asyncio.to_thread(ask, f"{url}/metrics?x=1") == (b"a 1\n", "text/plain")
        assert await asyncio.to_thread(ask, f"{url}/now") == (b"{}", "application/json")
        with pytest.raises(urllib.error.HTTPError, match="404"):
            await asyncio.to_thread(ask, f"{url}/other")


@pytest.mark.parametrize(
    ("said", "starts"),
    [
        (b"GET /now HTTP/1.0\r\n\r\n", b"HTTP/1.1 200 OK\r\n"),
        (b"POST /now HTTP/1.1\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 405 "),
        (b"\xff\xfe\r\n\r\n", b"HTTP/1.1 405 "),
        (b"GET\r\n\r\n", b"HTTP/1.1 40"),
        (b"GET /" + b"x" * local_http.HEAD_BYTES_MAX * 4, b""),
    ],
    ids=["old", "post", "bytes", "bare", "endless"],
)
async def test_every_request_ends_in_an_answer_or_a_closed_connection(
    said: bytes, starts: bytes
) -> None:
    async with serving() as address:
        assert (await raw(address, said)).startswith(starts)
        assert (await raw(address, b"GET /metrics HTTP/1.1\r\n\r\n")).endswith(b"\r\n\r\na 1\n")


async def test_head_has_the_length_and_no_body() -> None:
    async with serving() as address:
        answer = await raw(address, b"HEAD /metrics HTTP/1.1\r\n\r\n")
    assert b"Content-Length: 4\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


async def test_those_who_connect_and_say_nothing_are_bounded_and_let_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(local_http, "SECONDS_MAX", 0.3)
    async with serving() as address:
        silent = local_http.CONNECTIONS_MAX + 4
        assert await asyncio.gather(*(raw(address, b"") for _ in range(silent))) == [b""] * silent
        assert b"a 1" in await raw(address, b"GET /metrics HTTP/1.1\r\n\r\n")


async def test_an_address_in_use_is_a_usage_error_that_names_the_key() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UsageError, match=r"metrics\.listen"):
            await LocalHttp(PAGES).start(f"127.0.0.1:{taken.getsockname()[1]}")


def test_now_is_the_host_its_cards_and_what_waits() -> None:
    spool = Spool.open(None)
    identity = StreamIdentity(cluster="c", node_id="n", agent_version="0")
    stream = Stream("127.0.0.1:1", identity, spool)
    newest = Newest()
    present = Present(newest=newest, spool=spool, stream=stream, dtype="bf16")
    empty = present.now(SECOND, 1, "")
    assert (empty.host, empty.cards, empty.delivery.connected) == (None, [], False)
    device = Device(slot="0000:18:00.0", kind="gpu", sku="NVIDIA H100 80GB HBM3", uuid="GPU-1")
    reading = Reading(
        device=device,
        taken_unix_ms=1,
        boottime_ns=SECOND,
        values={
            "tensor_active_ratio": 0.5,
            "sm_clock_mhz": 1830.0,
            "power_watts": Absence.NOT_SUPPORTED,
        },
        processes=(Process(pid=7, memory_bytes=5),),
    )
    newest.see(reading, (Share(bucket=Bucket.ACTIVE, job="41", team="vision"),))
    for ms, busy in ((1_000, 0.0), (6_000, 20_000.0)):
        newest.see_host(HostReading(taken_unix_ms=ms, cpu_busy_ms=busy, cpu_count=8.0))
    # Through JSON and back: the shape is strict on the way in.
    now = msgspec.json.decode(msgspec.json.encode(present.now(2 * SECOND, 5, "ok")), type=Now)
    assert (now.node, now.cluster, now.driver_state) == ("n", "c", "ok")
    assert now.host is not None
    assert now.host.cpu_busy_ratio == 0.5
    assert now.host.rdma_tx_bytes_per_second is None
    (card,) = now.cards
    assert (card.age_seconds, card.failure) == (1.0, None)
    assert card.absent == {"power_watts": "not_supported"}
    assert card.estimate.hfu == pytest.approx(0.5)
    assert card.estimate.hfu_lo == pytest.approx(0.5 * (1 - 0.02327), abs=1e-5)
    assert card.estimate.hfu_hi == pytest.approx(0.5 * (1 + 0.02327), abs=1e-5)
    assert card.estimate.mfu is None
    assert card.estimate.mfu_lo == pytest.approx(0.36 * (1 - 0.02327), abs=1e-5)
    assert [(h.job, h.team, h.bucket) for h in card.holders] == [("41", "vision", "ACTIVE")]
    assert card.processes is not None
    assert [process.pid for process in card.processes] == [7]
    (late,) = present.now(60 * SECOND, 5, "ok").cards
    assert (late.failure, late.values) == ("not_read", {})
