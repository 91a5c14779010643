"""The stream against a collector of a hundred lines, over real gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from fake_collector import FakeCollector
from flopwatch_agent import channel
from flopwatch_agent.session import Window
from flopwatch_agent.spool import Spool, SpoolLimits
from flopwatch_agent.stream import (
    Backoff,
    Stream,
    StreamIdentity,
    send_offset_ms,
)
from flopwatch_proto.v1 import telemetry_pb2 as pb

SOON = Backoff(base_seconds=0.01, max_seconds=0.05)
WHO = StreamIdentity(cluster="atlas", node_id="atlas-0001", agent_version="0", boot_id="b")


def payload(first: int, count: int = 2) -> pb.Payload:
    rows = range(first, first + count)
    return pb.Payload(
        intervals=pb.IntervalRows(slot=[1] * count, start_unix_ms=rows, duration_ms=[1] * count)
    )


def fill(spool: Spool, batches: int) -> None:
    for _ in range(batches):
        spool.append(payload(spool.rows_produced + 1))


class Delivery:
    """A spool in memory, its stream, and the collector."""

    def __init__(self, collector: FakeCollector) -> None:
        self.collector = collector
        self.spool = Spool.open(None)
        self.tasks: list[asyncio.Task[None]] = []

    def stream(self, target: str | None = None, **given: object) -> Stream:
        made = Stream(
            target or self.collector.target,
            WHO,
            self.spool,
            random=random.Random(1),
            backoff=SOON,
            **given,  # type: ignore[arg-type]
        )
        self.tasks.append(asyncio.create_task(made.run()))
        return made


@pytest.fixture
async def delivery() -> AsyncIterator[Delivery]:
    collector = FakeCollector()
    await collector.start()
    made = Delivery(collector)
    yield made
    for task in made.tasks:
        task.cancel()
    await asyncio.gather(*made.tasks, return_exceptions=True)
    await collector.kill()


async def drained(stream: Stream) -> None:
    await asyncio.wait_for(stream.drained(), 30)


async def test_everything_in_the_spool_arrives_once_and_in_order(delivery: Delivery) -> None:
    fill(delivery.spool, 20)
    stream = delivery.stream()
    await drained(stream)
    hello = delivery.collector.hellos[0]
    assert (hello.cluster, hello.node_id, hello.boot_id) == ("atlas", "atlas-0001", "b")
    assert (hello.spool_id, hello.next_seq) == (delivery.spool.spool_id, 21)
    assert list(delivery.collector.stored) == list(range(1, 21))
    assert stream.counters.acked_rows == 40
    assert stream.counters.acked_batches == 20
    assert delivery.spool.pending_batches == 0


async def test_no_more_than_the_credits_is_in_flight(delivery: Delivery) -> None:
    fill(delivery.spool, 40)
    delivery.collector.hold.clear()
    stream = delivery.stream()
    await delivery.collector.until(lambda: delivery.collector.in_flight_max == 4)
    delivery.collector.hold.set()
    await drained(stream)
    assert delivery.collector.in_flight_max == 4


async def test_the_window_bounds_what_generous_credits_would_allow(delivery: Delivery) -> None:
    delivery.collector.welcome.credit_batches = delivery.collector.ack_credit = 1000
    fill(delivery.spool, 100)
    await drained(delivery.stream(window=Window(batches_max=3)))
    assert delivery.collector.in_flight_max <= 3


async def test_a_batch_above_the_bytes_of_the_window_still_goes_alone(delivery: Delivery) -> None:
    fill(delivery.spool, 5)
    await drained(delivery.stream(window=Window(bytes_max=10)))
    assert delivery.collector.in_flight_max == 1


async def test_thousands_of_batches_flow_bound_by_credits_alone(delivery: Delivery) -> None:
    delivery.collector.welcome.credit_batches = delivery.collector.ack_credit = 64
    delivery.collector.welcome.send_spread_ms = 9500
    fill(delivery.spool, 3000)
    await drained(delivery.stream(window=Window(batches_max=64, bytes_max=1 << 22)))
    assert len(delivery.collector.stored) == 3000


async def test_a_killed_collector_is_found_again_and_nothing_is_missing(delivery: Delivery) -> None:
    collector = delivery.collector
    fill(delivery.spool, 30)
    collector.answer = lambda batch: [] if batch.seq > 10 else None
    stream = delivery.stream()
    await collector.until(lambda: len(collector.seen) > 12)
    await collector.kill()
    collector.answer = None
    fill(delivery.spool, 5)
    stream.wake()
    await collector.start()
    await drained(stream)
    assert sorted(collector.stored) == list(range(1, 36))
    assert stream.counters.reconnects >= 1
    assert stream.counters.connected


async def test_an_absent_collector_is_a_state_and_not_an_error(delivery: Delivery) -> None:
    collector = delivery.collector
    await collector.kill()
    fill(delivery.spool, 2)
    stream = delivery.stream()
    while stream.counters.reconnects < 3:
        await asyncio.sleep(0.005)
    assert not stream.counters.connected
    assert "UNAVAILABLE" in stream.counters.last_error
    await collector.start()
    await drained(stream)
    assert sorted(collector.stored) == [1, 2]


async def test_a_rejected_batch_is_counted_and_passed(delivery: Delivery) -> None:
    def reject(batch: pb.Batch) -> list[pb.CollectorFrame] | None:
        if batch.seq not in (1, 3, 6):
            return None
        return [pb.CollectorFrame(reject=pb.Reject(seq=batch.seq, code="bad_hash", permanent=True))]

    delivery.collector.answer = reject
    fill(delivery.spool, 6)
    stream = delivery.stream()
    await drained(stream)
    assert sorted(delivery.collector.stored) == [2, 4, 5]
    assert stream.counters.rejects == {"bad_hash": 3}
    assert delivery.spool.is_drained


async def test_codes_of_rejects_are_a_bounded_set(delivery: Delivery) -> None:
    delivery.collector.answer = lambda b: [
        pb.CollectorFrame(reject=pb.Reject(seq=b.seq, code=f"x{b.seq}", permanent=True))
    ]
    fill(delivery.spool, 3)
    stream = delivery.stream()
    await drained(stream)
    assert stream.counters.rejects == {"other": 3}


async def test_a_busy_store_gets_everything_again_after_the_wait(delivery: Delivery) -> None:
    collector = delivery.collector
    busy = pb.Ack(through_seq=0, credit_batches=0, retry_after_ms=50)
    refused: list[int] = []

    def answer(batch: pb.Batch) -> list[pb.CollectorFrame] | None:
        if len(refused) < 3:
            refused.append(batch.seq)
            return [pb.CollectorFrame(ack=busy)]
        return None

    collector.answer = answer
    fill(delivery.spool, 10)
    await drained(delivery.stream())
    assert sorted(collector.stored) == list(range(1, 11))


async def test_no_credits_and_no_word_of_when_is_probed_with_one_batch(delivery: Delivery) -> None:
    delivery.collector.welcome.credit_batches = 0
    fill(delivery.spool, 5)
    delivery.collector.hold.clear()
    stream = delivery.stream()
    await delivery.collector.until(
        lambda: len(delivery.collector.stored) + delivery.collector.in_flight_max > 0
    )
    assert delivery.collector.in_flight_max == 1
    delivery.collector.hold.set()
    await drained(stream)


async def test_drain_lets_acknowledgements_in_and_comes_back_when_told(delivery: Delivery) -> None:
    collector = delivery.collector
    collector.hold.clear()
    fill(delivery.spool, 10)
    stream = delivery.stream()
    await collector.until(lambda: len(collector.seen) == 4)
    collector.send(pb.CollectorFrame(drain=pb.Drain(reconnect_after_ms=20)))
    collector.hold.set()
    await drained(stream)
    assert len(collector.hellos) == 2
    batches = [f.batch.seq for f in collector.seen if f.HasField("batch")]
    assert batches == list(range(1, 11))


async def test_gaps_travel_like_batches_and_pass_the_watermark(delivery: Delivery) -> None:
    delivery.spool = Spool.open(None, SpoolLimits(bytes_max=1500))
    fill(delivery.spool, 30)
    stream = delivery.stream()
    await drained(stream)
    gap = delivery.collector.gaps[0]
    assert gap.first_seq == 1
    assert gap.row_count + sum(delivery.collector.stored.values()) == 60


async def test_rows_the_collector_no_longer_keeps_are_declared_and_not_sent(
    delivery: Delivery,
) -> None:
    delivery.collector.welcome.oldest_start_unix_ms = 9
    fill(delivery.spool, 6)
    await drained(delivery.stream())
    assert delivery.collector.gaps[0].reason == "too_old"
    assert sorted(delivery.collector.stored) == [5, 6]


async def test_a_status_with_the_newest_rows_goes_beside_a_backlog(delivery: Delivery) -> None:
    collector = delivery.collector
    collector.hold.clear()
    fill(delivery.spool, 20)
    stream = delivery.stream(status_seconds=0.01)
    stream.tell(pb.IntervalRows(slot=[1], start_unix_ms=[77]), "ok")
    await collector.until(lambda: any(f.HasField("status") for f in collector.seen[5:]))
    status = next(f.status for f in collector.seen if f.HasField("status"))
    assert status.spool_batches == 20
    assert status.spool_oldest_unix_ms == 1
    assert list(status.newest.start_unix_ms) == [77]
    assert (status.driver_state, status.rows_produced) == ("ok", 40)
    collector.hold.set()
    await drained(stream)


async def test_without_a_backlog_a_status_tells_driver_and_spool_and_carries_no_rows(
    delivery: Delivery,
) -> None:
    stream = delivery.stream(status_seconds=60.0, idle_status_seconds=0.2)
    stream.tell(pb.IntervalRows(slot=[1], start_unix_ms=[77]), "ok")

    def said() -> list[tuple[str, int]]:
        frames = [f.status for f in delivery.collector.seen if f.HasField("status")]
        assert max((f.ByteSize() for f in frames), default=0) < 40
        assert not any(f.spool_batches for f in frames)
        return [(f.driver_state, f.rows_produced) for f in frames]

    await delivery.collector.until(lambda: said() == [("ok", 0)])
    delivery.collector.hold.clear()
    fill(delivery.spool, 1)
    stream.wake()
    await delivery.collector.until(lambda: delivery.collector.in_flight_max == 1)
    await asyncio.sleep(0.3)  # a batch that is on its way is no backlog: Status waits for it
    stream.wake()
    delivery.collector.hold.set()
    await drained(stream)
    await asyncio.sleep(0.3)
    stream.wake()
    await delivery.collector.until(lambda: said()[-1] == ("ok", 2))


async def test_another_state_of_the_driver_is_told_before_the_minute_is_over(
    delivery: Delivery,
) -> None:
    stream = delivery.stream(status_seconds=0.01, idle_status_seconds=3600.0)
    for state in ("ok", "lost"):
        stream.tell(pb.IntervalRows(), state)
        stream.wake()
        await delivery.collector.until(
            lambda s=state: any(f.status.driver_state == s for f in delivery.collector.seen)  # type: ignore[misc]
        )
    assert sum(f.HasField("status") for f in delivery.collector.seen) == 2


@pytest.mark.parametrize("steps", range(4))  # of the loop in between
async def test_a_stream_that_is_woken_and_cancelled_at_one_moment_ends(
    delivery: Delivery, steps: int
) -> None:
    stream = delivery.stream()
    await delivery.collector.until(lambda: bool(delivery.collector.seen))
    await asyncio.sleep(0.1)
    stream.wake()
    for _ in range(steps):
        await asyncio.sleep(0)
    delivery.tasks[0].cancel()
    done, _ = await asyncio.wait({delivery.tasks[0]}, timeout=30)
    assert done


async def test_goodbye_is_the_last_word_and_ends_the_stream(delivery: Delivery) -> None:
    fill(delivery.spool, 3)
    stream = delivery.stream()
    await drained(stream)
    await stream.goodbye("upgrade", back_in_ms=60_000)
    await asyncio.wait_for(delivery.tasks[0], 10)
    last = delivery.collector.seen[-1].goodbye
    assert (last.reason, last.back_in_ms) == ("upgrade", 60_000)


async def test_goodbye_without_a_collector_returns_at_once(delivery: Delivery) -> None:
    await delivery.collector.kill()
    stream = delivery.stream()
    while stream.counters.reconnects < 1:
        await asyncio.sleep(0.005)
    await stream.goodbye("stop")
    await asyncio.wait_for(delivery.tasks[0], 20)


async def test_a_collector_that_never_welcomes_is_left(delivery: Delivery) -> None:
    class Mute(FakeCollector):
        async def _take(self, frames: object, out: object) -> None:
            await asyncio.sleep(60)

    mute = Mute()
    await mute.start()
    delivery.collector, real = mute, delivery.collector
    stream = delivery.stream(welcome_seconds=0.05)
    while stream.counters.reconnects < 2:
        await asyncio.sleep(0.01)
    assert "did not answer Hello" in stream.counters.last_error
    delivery.collector = real
    await mute.kill()


def test_jitter_is_full_and_bounded() -> None:
    backoff, chance = Backoff(), random.Random(3)
    for failures in range(40):
        waits = [backoff.seconds(failures, chance) for _ in range(200)]
        ceiling = min(60.0, 2.0**failures)
        assert max(waits) <= ceiling
        assert min(waits) < ceiling / 10


def test_nodes_are_spread_over_the_interval_and_stay_where_they_are() -> None:
    offsets = [send_offset_ms(f"node-{i}", 9500) for i in range(2000)]
    assert offsets == [send_offset_ms(f"node-{i}", 9500) for i in range(2000)]
    assert all(0 <= o < 9500 for o in offsets)
    counts = [sum(1 for o in offsets if o // 950 == k) for k in range(10)]
    assert min(counts) > 150


def test_a_new_interval_waits_for_its_turn_and_a_drain_does_not() -> None:
    class Noon:
        milliseconds = 1_700_000_000_000

        def wall_unix_ns(self) -> int:
            return self.milliseconds * 1_000_000

        def boottime_ns(self) -> int:
            return 0

        def monotonic_seconds(self) -> float:
            return 0.0

        async def sleep(self, seconds: float) -> None:
            raise AssertionError

    clock = Noon()
    stream = Stream("127.0.0.1:1", WHO, Spool.open(None), clock=clock)
    offset = send_offset_ms(WHO.node_id, 9500)
    assert stream.hold_seconds(9500) == offset / 1000
    clock.milliseconds += offset
    assert stream.hold_seconds(9500) == 0
    assert stream.hold_seconds(0) == 0


async def test_a_link_that_goes_dead_is_noticed(
    delivery: Delivery, monkeypatch: pytest.MonkeyPatch
) -> None:
    soon = replace(channel.CONFIGURATION, _keepalive_time=0.2, _keepalive_timeout=0.2)
    soon = replace(soon, _http2_min_sent_ping_interval_without_data=0.1)
    monkeypatch.setattr(channel, "CONFIGURATION", soon)
    delivery.collector.ping_interval_ms = 50
    await delivery.collector.kill()
    await delivery.collector.start()
    alive = asyncio.Event()
    alive.set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await alive.wait()
                writer.write(data)
        writer.close()

    async def link(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner, outer = await asyncio.open_connection(*delivery.collector.target.split(":"))
        await asyncio.gather(pump(reader, outer), pump(inner, writer))

    server = await asyncio.start_server(link, "127.0.0.1", 0)
    stream = delivery.stream(target=f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    async with asyncio.timeout(20):
        while not stream.counters.connected:
            await asyncio.sleep(0.01)
        await asyncio.sleep(1.0)
        assert stream.counters.sessions == 1  # a living one stays
        alive.clear()
        while stream.counters.connected:
            await asyncio.sleep(0.01)
        alive.set()
        while stream.counters.sessions < 2:
            await asyncio.sleep(0.01)
    server.close()


async def test_requests_for_readings_reach_whoever_takes_them_and_break_nothing(
    delivery: Delivery,
) -> None:
    stream = delivery.stream()
    await delivery.collector.until(lambda: bool(delivery.collector.hellos))
    wanted = pb.CaptureRequest(id="c", from_unix_ms=1, to_unix_ms=2, slots=["0"])
    delivery.collector.send(pb.CollectorFrame(capture=wanted))
    fill(delivery.spool, 1)
    await drained(stream)
    assert stream.counters.captures_ignored == 1
    taken: list[pb.CaptureRequest] = []

    def take(capture: pb.CaptureRequest) -> None:
        if not capture.id:
            raise ValueError("nonsense")
        taken.append(capture)

    stream.on_capture = take
    for frame in (
        pb.CollectorFrame(capture=pb.CaptureRequest()),
        pb.CollectorFrame(),
        pb.CollectorFrame.FromString(b"\xfa\x07\x03abc"),  # a frame of a newer collector
        pb.CollectorFrame(capture=wanted),
    ):
        delivery.collector.send(frame)
    fill(delivery.spool, 1)
    await drained(stream)
    assert taken == [wanted]
    assert stream.counters.captures_ignored == 2
    assert (stream.counters.sessions, len(delivery.collector.stored)) == (1, 2)
