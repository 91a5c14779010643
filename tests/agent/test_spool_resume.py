"""What a spool remembers for the next run: where its rows ended; and a disk that is slow."""

from __future__ import annotations

import asyncio
import threading
from hashlib import blake2b
from pathlib import Path

import msgspec

from flopwatch_agent.interval import Fold
from flopwatch_agent.reading import Device, Reading
from flopwatch_agent.spool import Spool, SpoolLimits
from flopwatch_agent.spool_record import Change, MemoryStore, State
from flopwatch_agent.spool_salvage import new_state
from flopwatch_proto.codec import IntervalRow, encode_rows
from flopwatch_proto.rows import Bucket
from flopwatch_proto.v1 import telemetry_pb2 as pb

NOON = 1_790_000_000_000
SLOT = "0000:18:00.0"


def payload(start_unix_ms: int) -> pb.Payload:
    row = IntervalRow(
        slot=SLOT, start_unix_ms=start_unix_ms, duration_ms=10_000, bucket=Bucket.FREE
    )
    return pb.Payload(intervals=encode_rows([row]))


def reading(taken_unix_ms: int, boot_seconds: int) -> Reading:
    return Reading(
        device=Device(slot=SLOT, kind="gpu", sku=None),
        taken_unix_ms=taken_unix_ms,
        boottime_ns=10**9 * boot_seconds,
        values={"power_watts": 72.0},
        processes=(),
    )


def test_a_clock_that_stepped_back_over_a_restart_repeats_no_time(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path)
    assert spool.newest_unix_ms == 0
    spool.append(payload(NOON))
    spool.append(pb.Payload(events=[pb.Event(kind="clock_step")]))
    spool.acknowledge(spool.next_seq - 1)  # nothing is pending any more, and still it is known
    spool.close()

    spool = Spool.open(tmp_path)
    assert spool.newest_unix_ms == NOON + 10_000
    fold = Fold(resume_unix_ms=spool.newest_unix_ms)
    rows = [
        row
        for second in range(60)  # the clock begins 20 s before the end of what was stored
        for row in fold.add(reading(NOON - 10_000 + 1000 * second, 100 + second), ())
    ]
    assert rows[0].start_unix_ms == NOON + 10_000
    spool.close()


def test_a_state_of_another_version_is_read(tmp_path: Path) -> None:
    state = State(spool_id="1" * 32, next_seq=7, newest_unix_ms=NOON)
    assert State.decode(state.encode()) == state
    fields = msgspec.json.decode(state.encode()[16:])
    del fields["newest_unix_ms"]
    fields["from_the_future"] = 1
    assert _decoded(fields) == State(spool_id="1" * 32, next_seq=7)


class StalledStore(MemoryStore):
    """A disk whose fsync returns when a test says so."""

    def __init__(self) -> None:
        super().__init__(1 << 20)
        self.entered, self.go_on = threading.Event(), threading.Event()

    def commit(self, change: Change) -> None:
        self.entered.set()
        assert self.go_on.wait(60)
        super().commit(change)


async def test_a_disk_that_stalls_holds_up_neither_the_loop_nor_the_order() -> None:
    store = StalledStore()
    spool = Spool(store, new_state(), SpoolLimits())
    first = asyncio.create_task(asyncio.to_thread(spool.append, payload(NOON)))
    while not store.entered.is_set():
        await asyncio.sleep(0)
    second = asyncio.create_task(asyncio.to_thread(spool.append, payload(NOON + 10_000)))
    for _ in range(100):  # the loop turns, and what it asks is answered
        await asyncio.sleep(0.001)
        assert (spool.next_seq, spool.pending_batches, spool.is_drained) == (1, 0, True)
    store.go_on.set()
    assert [await first, await second] == [1, 2]
    assert [frame.batch.seq for frame in spool.pending(0, 8, 1 << 20)] == [1, 2]


async def test_appends_in_threads_and_acknowledgements_lose_nothing(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path)
    count, got = 200, list[int]()

    async def append() -> None:
        for n in range(count):
            await asyncio.to_thread(spool.append, payload(NOON + 10_000 * n))

    appending = asyncio.create_task(append())
    while len(got) < count:
        for frame in spool.pending(got[-1] if got else 0, 8, 1 << 20):
            got.append(frame.batch.seq)
            spool.acknowledge(frame.batch.seq)
        await asyncio.sleep(0)
    await appending
    assert got == list(range(1, count + 1))
    assert spool.is_drained
    assert (spool.state.produced_rows, spool.state.acked_rows) == (count, count)
    spool.close()


def _decoded(fields: dict[str, object]) -> State | None:
    body = msgspec.json.encode(fields)
    return State.decode(blake2b(body, digest_size=16).digest() + body)
