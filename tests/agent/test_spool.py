"""The spool: bounds, losses that are said, damage, and disks that refuse."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from flopwatch_agent.split import split
from flopwatch_agent.spool import Spool, SpoolLimits
from flopwatch_agent.spool_disk import DiskStore
from flopwatch_proto import codec
from flopwatch_proto.errors import UsageError
from flopwatch_proto.rows import Absence, Bucket
from flopwatch_proto.v1 import telemetry_pb2 as pb


def payload(first: int, count: int) -> pb.Payload:
    rows = range(first, first + count)
    return pb.Payload(
        intervals=pb.IntervalRows(
            strings=["", "slot"],
            slot=[1] * count,
            start_unix_ms=rows,
            duration_ms=[1] * count,
            weight=[1.0] * count,
            bucket=[pb.BUCKET_FREE] * count,
        )
    )


def fill(spool: Spool, batches: int, rows: int = 3) -> None:
    for _ in range(batches):
        spool.append(payload(spool.rows_produced + 1, rows))


def frames(spool: Spool) -> list[pb.AgentFrame]:
    sent: list[pb.AgentFrame] = []
    after = spool.state.acked_seq
    while found := spool.pending(after, 10**6, 1 << 40):
        sent += found
        after = max(found[-1].batch.seq, found[-1].gap.last_seq)
    return sent


def rows_of(spool: Spool) -> tuple[int, int]:
    """Return (rows pending, rows in gaps)."""
    sent = frames(spool)
    return sum(f.batch.row_count for f in sent), sum(f.gap.row_count for f in sent)


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wall_unix_ns(self) -> int:
        return int(self.seconds * 1e9)

    def boottime_ns(self) -> int:
        return int(self.seconds * 1e9)

    def monotonic_seconds(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        self.seconds += seconds


def test_numbers_and_identity_survive_a_restart(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path)
    fill(spool, 3)
    spool.acknowledge(3)
    identity, before = spool.spool_id, spool.state
    spool.close()
    spool = Spool.open(tmp_path)
    assert spool.spool_id == identity
    assert len(bytes.fromhex(identity)) == 16
    assert spool.next_seq == 4
    assert spool.state.produced_rows == before.produced_rows == 9
    assert spool.is_drained
    spool.close()


def test_a_full_spool_drops_the_oldest_and_says_so_in_one_gap() -> None:
    spool = Spool.open(None, SpoolLimits(bytes_max=2500))
    fill(spool, 50)
    sent = frames(spool)
    assert sent[0].gap.first_seq == 1
    assert sent[0].gap.reason == "spool_full"
    assert [f.WhichOneof("frame") for f in sent].count("gap") == 1
    assert sent[1].batch.seq == sent[0].gap.last_seq + 1
    assert sent[-1].batch.seq == 50
    assert rows_of(spool)[0] + sent[0].gap.row_count == 150
    assert spool.state.dropped_rows == sent[0].gap.row_count
    assert spool.state.dropped_batches == sent[0].gap.last_seq
    assert spool.pending_bytes <= 2500 + 1000


def test_batches_that_were_sent_are_not_dropped_before_their_fate_is_known() -> None:
    spool = Spool.open(None, SpoolLimits(bytes_max=2500))
    fill(spool, 2)
    assert [f.batch.seq for f in spool.pending(0, 2, 1 << 20)] == [1, 2]
    fill(spool, 50)
    sent = frames(spool)
    assert [f.batch.seq for f in sent[:2]] == [1, 2]
    assert sent[2].gap.first_seq == 3


def test_pending_is_bounded_by_batches_and_bytes() -> None:
    spool = Spool.open(None)
    fill(spool, 9)
    assert len(spool.pending(0, 4, 1 << 20)) == 4
    assert spool.pending(0, 4, 10) == []
    assert len(spool.pending(0, 4, 10, at_least_one=True)) == 1
    assert spool.pending(0, 0, 1 << 20) == []
    assert spool.pending(9, 4, 1 << 20) == []


def test_an_acknowledgement_beyond_what_was_ever_appended_is_cut() -> None:
    spool = Spool.open(None)
    fill(spool, 2)
    spool.acknowledge(99)
    assert spool.state.acked_seq == 2
    fill(spool, 1)
    assert [f.batch.seq for f in frames(spool)] == [3]


def test_rows_older_than_the_collector_keeps_become_a_gap() -> None:
    spool = Spool.open(None)
    fill(spool, 10)  # rows 1 … 30, each ends at its number + 1
    spool.drop_older_than(13)
    sent = frames(spool)
    assert sent[0].gap.reason == "too_old"
    assert (sent[0].gap.first_seq, sent[0].gap.last_seq, sent[0].gap.row_count) == (1, 4, 12)


def test_a_large_payload_is_split_into_batches_that_hold_every_record() -> None:
    rows = [
        codec.IntervalRow(
            slot=f"slot-{i % 8}",
            start_unix_ms=i,
            duration_ms=1,
            bucket=Bucket.FREE,
            values={"energy_joules": i * 1.7 if i > 1 else Absence.NOT_SUPPORTED},
        )
        for i in range(1, 5001)
    ]
    whole = pb.Payload(intervals=codec.encode_rows(rows))
    for i in range(40):
        whole.events.add(kind="xid", code=i)
    parts = [codec.unpack(batch) for batch in split(whole, 512)]
    assert len(parts) > 2
    starts = [s for p in parts for s in p.intervals.start_unix_ms]
    assert starts == list(range(1, 5001))
    assert [e.code for p in parts for e in p.events] == list(range(40))
    joules = [j for p in parts for j in p.intervals.energy_joules]
    assert joules == list(whole.intervals.energy_joules)
    assert [len(p.intervals.absences) for p in parts[:2]] == [1, 0]
    for part in parts:
        codec.decode_rows(part.intervals)


def test_a_record_too_large_for_any_batch_is_counted_and_passed() -> None:
    spool = Spool.open(None, SpoolLimits(batch_bytes_max=1000))
    spool.append(pb.Payload(events=[pb.Event(kind="xid", text=os.urandom(3000).hex())]))
    fill(spool, 1)
    sent = frames(spool)
    assert (sent[0].gap.first_seq, sent[0].gap.reason) == (1, "too_large")
    assert sent[1].batch.seq == 2
    assert spool.state.dropped_batches == 1


def test_a_directory_that_cannot_be_written_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="--data DIR"):
        Spool.open(tmp_path / "file" / "spool")


def test_a_second_process_on_one_spool_is_refused_and_told_the_holder(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path)
    with pytest.raises(UsageError, match=str(os.getpid())):
        Spool.open(tmp_path)
    spool.close()
    Spool.open(tmp_path).close()


def test_a_damaged_record_is_skipped_and_its_rows_are_counted(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path)
    fill(spool, 5)
    spool.close()
    with sqlite3.connect(tmp_path / "spool.db") as db:
        db.execute("update record set frame = zeroblob(length(frame)) where first_seq in (2, 3)")
        db.execute("delete from record where first_seq = 5")
    db.close()
    spool = Spool.open(tmp_path)
    sent = frames(spool)
    kinds = [f.WhichOneof("frame") for f in sent]
    assert kinds == ["batch", "gap", "batch", "gap"]
    assert (sent[1].gap.first_seq, sent[1].gap.last_seq, sent[1].gap.row_count) == (2, 3, 6)
    assert sent[1].gap.reason == "corrupt"
    assert sent[3].gap.row_count == 3
    assert spool.state.dropped_rows == 9
    spool.close()


def test_a_file_that_is_no_database_is_set_aside_and_a_new_spool_begins(tmp_path: Path) -> None:
    names = []
    for _ in range(5):
        spool = Spool.open(tmp_path)
        fill(spool, 2)
        names.append(spool.spool_id)
        spool.close()
        (tmp_path / "spool.db").write_bytes(b"not a database" * 1000)
    spool = Spool.open(tmp_path)
    assert spool.spool_id not in names
    assert [kind for kind, _ in spool.take_notices()] == ["spool_corrupt"]
    assert len(list(tmp_path.glob("*.corrupt"))) == 3
    fill(spool, 1)
    assert [f.batch.seq for f in frames(spool)] == [1]
    spool.close()


@pytest.mark.parametrize("seed", range(12))
def test_flipped_pages_never_stop_a_start_and_every_row_is_accounted(
    tmp_path: Path, seed: int
) -> None:
    spool = Spool.open(tmp_path)
    fill(spool, 60, rows=40)
    identity = spool.spool_id
    spool.close()
    file = tmp_path / "spool.db"
    damaged = bytearray(file.read_bytes())
    page = 4096 * (1 + seed * (len(damaged) // 4096 - 1) // 12)
    damaged[page : page + 512] = bytes(byte ^ 0x5A for byte in damaged[page : page + 512])
    file.write_bytes(damaged)
    spool = Spool.open(tmp_path)
    fill(spool, 1, rows=40)
    held, lost = rows_of(spool)
    if spool.spool_id == identity:
        assert held + lost == 61 * 40
    else:
        assert held == spool.rows_produced
    assert held >= 40
    spool.close()


def test_a_salvage_that_a_crash_interrupted_is_finished(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path)
    fill(spool, 2)
    identity = spool.spool_id
    spool.close()
    (tmp_path / "spool.db").rename(tmp_path / "spool.db.new")
    spool = Spool.open(tmp_path)
    assert spool.spool_id == identity
    assert rows_of(spool) == (6, 0)
    spool.close()


class Refusal:
    """Makes commits to the database fail while ``on``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.on = False
        commit = DiskStore.commit

        def refuse(store: DiskStore, change: object) -> None:
            if self.on:
                raise sqlite3.OperationalError("database or disk is full")
            commit(store, change)  # type: ignore[arg-type]

        monkeypatch.setattr(DiskStore, "commit", refuse)


def test_a_disk_that_refuses_is_bridged_in_memory_without_a_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, refusal = Clock(), Refusal(monkeypatch)
    spool = Spool.open(tmp_path, clock=clock)
    fill(spool, 2)
    refusal.on = True
    fill(spool, 3)
    assert spool.degraded
    assert [f.batch.seq for f in spool.pending(0, 2, 1 << 20)] == [1, 2]
    assert [f.batch.seq for f in spool.pending(2, 9, 1 << 20)] == [3, 4, 5]
    spool.acknowledge(3)
    refusal.on = False
    fill(spool, 1)
    assert spool.degraded  # not yet due
    clock.seconds += 11
    fill(spool, 1)
    assert not spool.degraded
    kinds = [kind for kind, _ in spool.take_notices()]
    assert kinds == ["spool_degraded", "spool_recovered"]
    spool.close()
    spool = Spool.open(tmp_path)
    assert [f.batch.seq for f in frames(spool)] == [4, 5, 6, 7]
    assert spool.pending_batches == 4
    spool.close()


def test_the_ring_is_bounded_by_ten_minutes_and_counts_what_it_drops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, refusal = Clock(), Refusal(monkeypatch)
    spool = Spool.open(tmp_path, clock=clock)
    fill(spool, 1)
    refusal.on = True
    for _ in range(100):
        fill(spool, 1)
        clock.seconds += 10
    refusal.on = False
    fill(spool, 1)
    sent = frames(spool)
    assert sent[0].batch.seq == 1
    assert sent[1].gap.first_seq == 2
    assert sent[1].gap.reason == "disk_error"
    assert 35 <= sent[1].gap.last_seq <= 45
    assert sum(rows_of(spool)) == 306
    spool.close()


def test_numbers_of_a_ring_that_died_are_not_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = Refusal(monkeypatch)
    spool = Spool.open(tmp_path)
    fill(spool, 2)
    refusal.on = True
    fill(spool, 3)
    spool.close()  # as a kill would: the ring is gone, the journal is not
    refusal.on = False
    spool = Spool.open(tmp_path)
    sent = frames(spool)
    assert spool.next_seq == 6
    assert (sent[2].gap.first_seq, sent[2].gap.last_seq) == (3, 5)
    assert (sent[2].gap.reason, sent[2].gap.row_count) == ("disk_error", 9)
    assert spool.state.dropped_rows == 9
    spool.close()


def test_a_start_on_a_full_disk_begins_in_memory_and_moves_in_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, refusal = Clock(), Refusal(monkeypatch)
    refusal.on = True
    spool = Spool.open(tmp_path, clock=clock)
    fill(spool, 2)
    assert spool.degraded
    refusal.on = False
    clock.seconds += 11
    fill(spool, 1)
    assert spool.degraded  # what is in memory must be delivered under its own identity first
    clock.seconds += 11
    spool.acknowledge(3)
    assert not spool.degraded
    fill(spool, 1)
    spool.close()
    spool = Spool.open(tmp_path)
    assert [f.batch.seq for f in frames(spool)] == [1]
    spool.close()


def test_a_small_file_system_that_fills_up_costs_nothing_but_memory(tmp_path: Path) -> None:
    limits = SpoolLimits(bytes_max=10_000, bytes_floor=0)
    spool = Spool.open(tmp_path, limits)
    fill(spool, 200, rows=20)
    assert sum(rows_of(spool)) == 4000
    assert (tmp_path / "spool.db").stat().st_size < 400_000
    spool.close()
