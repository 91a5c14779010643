"""The conservation audit: agents' streams, what is lost on the way, and the command that finds it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from fake_api import Answering, answering
from flopwatch.cli import app
from flopwatch_agent.spool import Spool
from flopwatch_agent.stream import Backoff, Stream, StreamIdentity
from flopwatch_collector.audit import balance
from flopwatch_collector.audit.balance import Balance
from flopwatch_collector.listen import IngestServer
from flopwatch_collector.telemetry.store import TelemetryStore
from flopwatch_collector.web.records import shown_record
from flopwatch_proto import codec
from flopwatch_proto.v1 import telemetry_pb2 as pb
from wire_agent import Agent, batch, row

NOW_MS = time.time_ns() // 60_000_000_000 * 60_000
DAY_MS = 86_400_000


class Deaf:
    """A sink that takes everything and keeps nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    store: TelemetryStore
    server: IngestServer
    port: int

    async def audit(self, node: str) -> Balance:
        """Return the balance of the first spool of a node, by the words that came so far."""
        await asyncio.to_thread(self.server._ingest.keeper.flush)
        return min(balance.read(self.store, 0, node=node), key=lambda b: b.spool_id)


@pytest.fixture
async def served(store: TelemetryStore) -> AsyncIterator[Served]:
    server = IngestServer(store, Deaf(), registry=CollectorRegistry())
    yield Served(store=store, server=server, port=await server.start("127.0.0.1:0"))
    await server.stop(5.0)


def said(acked_seq: int, acked_rows: int, produced_rows: int) -> pb.AgentFrame:
    totals = pb.SpoolTotals(
        next_seq=99, acked_seq=acked_seq, acked_rows=acked_rows, produced_rows=produced_rows
    )
    return pb.AgentFrame(status=pb.Status(totals=totals))


async def heard(served: Served, node: str, acked_seq: int) -> Balance:
    """Wait for a word of that mark."""
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(ValueError):
                found = await served.audit(node)
                if found.acked_seq == acked_seq:
                    return found
            await asyncio.sleep(0.05)


async def test_what_an_agent_produced_is_stored_lost_quarantined_or_in_its_spool(
    served: Served,
) -> None:
    spool = Spool.open(None)
    for starts in ((-2 * DAY_MS,), (-20_000, -10_000), (7 * DAY_MS,), (0,)):
        rows = [row(NOW_MS + start) for start in starts]
        spool.append(pb.Payload(intervals=codec.encode_rows(rows)))
    spool.drop_older_than(NOW_MS - DAY_MS)
    stream = Stream(
        f"127.0.0.1:{served.port}",
        StreamIdentity(cluster="atlas", node_id="real", agent_version="0"),
        spool,
        random=random.Random(1),
        backoff=Backoff(base_seconds=0.01, max_seconds=0.05),
        status_seconds=0.1,
        idle_status_seconds=0.1,
    )
    running = asyncio.create_task(stream.run())
    await asyncio.wait_for(stream.drained(), 30)
    found = await heard(served, "real", 4)
    running.cancel()
    await asyncio.wait({running})
    assert found.verdict == "balanced"
    assert (found.produced_rows, found.stored_rows, found.gap_rows) == (5, 3, 1)
    assert (found.quarantined_rows, found.waiting_rows, found.before_rows) == (1, 0, 0)


async def test_rows_that_are_gone_are_named_with_their_spool_by_the_command(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    async with Agent(served.port, node_id="n1") as agent:
        await agent.send(*(batch(s, [row(NOW_MS + s * 10_000)]) for s in (1, 2)))
        await agent.acked(2)
        await agent.send(said(2, 2, 9))
        assert (await heard(served, "n1", 2)).verdict == "balanced"
        await agent.send(said(3, 4, 9))  # it was told that seq 3 is here, with two rows
        lost = await heard(served, "n1", 3)
    assert (lost.verdict, lost.missing_rows, lost.missing_batches) == ("missing", 2, 1)
    assert (lost.stored_rows, lost.waiting_rows) == (2, 5)

    class Api(Answering):
        """The answer of the collector, as its web process shows it."""

        def do_GET(self) -> None:
            shown: dict[str, Any] = balance.answer([lost])
            gaps = {"cluster": "atlas", "kind": "gap", "cause": "corrupt", "times": 2, "rows": 7}
            shown |= {"spools": [shown_record(s) for s in shown["spools"]], "losses": [gaps]}
            self.say(200, shown)

    with answering(Api) as url:
        assert app.run(["audit", "--api", url]) == 1
        out, err = capsys.readouterr()
        assert app.run(["audit", "--json", "--api", url]) == 1
    assert "55555555" in out
    assert "atlas: 7 rows lost in 2 gaps: corrupt" in out
    assert f"atlas/n1, spool {'5' * 32}: 2 rows missing, 1 batches not accounted for" in err
    assert '"missing_rows": 2' in capsys.readouterr().out


async def test_rows_that_vanish_from_the_table_are_missing_though_their_receipt_is_there(
    served: Served,
) -> None:
    served.store.append(
        "receipt",
        {
            "cluster": ["atlas"],
            "node": ["n1"],
            "spool_id": ["5" * 32],
            "seq": [1],
            "rows": [7],
            "sha": ["a"],
            "stored_unix_ms": [NOW_MS],
        },
    )
    async with Agent(served.port) as agent:
        await agent.send(said(1, 7, 7))
        found = await heard(served, "n1", 1)
    assert (found.verdict, found.missing_rows) == ("missing", 7)


async def test_a_row_of_two_spools_is_superseded_and_a_number_of_two_contents_is_cloned(
    served: Served,
) -> None:
    for spool in ("5" * 32, "6" * 32):
        async with Agent(served.port, spool_id=spool) as agent:
            await agent.send(batch(1, [row(NOW_MS)]))
            await agent.acked(1)
            await agent.send(said(1, 1, 1))
            found = await heard(served, "n1", 1)
    async with asyncio.timeout(30):
        while found.superseded_rows == 0:
            found = await served.audit("n1")
    assert (found.stored_rows, found.superseded_rows, found.verdict) == (0, 1, "balanced")
    async with Agent(served.port) as agent:
        await agent.send(batch(1, [row(NOW_MS + 10_000)]))
        await agent.acked(1)
    assert (await served.audit("n1")).verdict == "cloned"


async def test_a_spool_that_sent_rows_and_no_word_of_itself_is_listed(served: Served) -> None:
    async with Agent(served.port, node_id="mute") as agent:
        await agent.send(*(batch(s, [row(NOW_MS + s * 10_000)]) for s in (1, 2)))
        await agent.acked(2)
        found = await served.audit("mute")
        assert (found.verdict, found.stored_rows, found.missing_rows) == ("unspoken", 2, -2)
        assert not balance.answer([found])["balanced"]
        await agent.send(said(2, 2, 2))
        assert (await heard(served, "mute", 2)).verdict == "balanced"


def test_an_audit_that_could_not_compare_all_spools_balances_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert balance.answer([])["balanced"]
    monkeypatch.setattr(balance, "SPOOLS_MAX", 0)
    assert not balance.answer([])["balanced"]


def test_a_window_takes_what_came_before_it_from_its_first_receipt() -> None:
    place = {"cluster": "c", "node": "n", "spool_id": "s"}
    word = place | {
        "told": 1,
        "is_simulated": False,
        "next": 13,
        "acked": 12,
        "handed": 120,
        "produced": 130,
    }
    receipt = place | {"first": 10, "batches": 2, "total": 20, "before": 90, "twice": 0}
    gap = place | {"kind": "gap", "first_seq": 12, "last_seq": 12, "lost": 10}
    older = place | {"kind": "gap", "first_seq": 3, "last_seq": 4, "lost": 20}
    rows = place | {"total": 20}
    [found] = balance.balances([word], [receipt], [older, gap], [], [rows])
    assert (found.verdict, found.before_rows, found.gap_rows) == ("balanced", 90, 10)
    # Declared lost although it had been stored: counted once.
    wide = gap | {"first_seq": 11, "lost": 20}
    overlap = place | {"kind": "gap", "first_seq": 11, "batches": 1, "total": 10}
    [found] = balance.balances([word], [receipt], [wide], [overlap], [rows])
    assert (found.verdict, found.gap_rows) == ("balanced", 10)
    [found] = balance.balances([word], [receipt], [], [], [rows])
    assert (found.verdict, found.missing_rows, found.missing_batches) == ("missing", 10, 1)
    [idle] = balance.balances([word], [], [], [], [])
    assert (idle.verdict, idle.before_rows, idle.waiting_rows) == ("balanced", 120, 10)
