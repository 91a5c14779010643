"""One spool, two collectors: each gets every row or hears of its gap, whatever the other one does."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flopwatch_agent.spool import Spool, SpoolLimits
from flopwatch_agent.spool_reader import Reader
from flopwatch_proto import codec
from flopwatch_proto.v1 import telemetry_pb2 as pb

NAMES = ("one:9751", "two:9751")
LIMITS = SpoolLimits(bytes_max=5_000)


def payload(first: int, count: int) -> pb.Payload:
    """Return rows whose start is their number."""
    return pb.Payload(
        intervals=pb.IntervalRows(
            strings=["", "s"],
            slot=[1] * count,
            start_unix_ms=range(first, first + count),
            duration_ms=[1] * count,
            weight=[1.0] * count,
            bucket=[pb.BUCKET_FREE] * count,
        )
    )


def opened(directory: Path | None, names: tuple[str, ...] = NAMES) -> Spool:
    return Spool.open(directory, LIMITS, readers=names)


@dataclass
class Side:
    """One collector, and what it acknowledged: rows by seq, and gaps."""

    reader: Reader
    flight: list[pb.AgentFrame] = field(default_factory=list)
    rows: dict[int, list[int]] = field(default_factory=dict)
    gaps: list[pb.Gap] = field(default_factory=list)

    def fetch(self, count: int) -> None:
        sent = _last(self.flight[-1]) if self.flight else self.reader.state.acked_seq
        self.flight += self.reader.pending(sent, count, 1 << 30)

    def acknowledge(self, count: int) -> None:
        for frame in self.flight[:count]:
            if frame.HasField("batch"):
                starts = codec.unpack(frame.batch).intervals.start_unix_ms
                self.rows[frame.batch.seq] = list(starts)
            else:
                self.gaps.append(frame.gap)
            self.reader.acknowledge(_last(frame))
        del self.flight[:count]

    def drain(self) -> None:
        self.flight.clear()
        while not self.reader.is_drained:
            self.fetch(8)
            self.acknowledge(8)
        assert (self.reader.pending_batches, self.reader.pending_bytes) == (0, 0)

    def check(self, appended: dict[int, list[int]]) -> None:
        lost: dict[int, int] = {}
        for gap in self.gaps:
            seqs = range(gap.first_seq, gap.last_seq + 1)
            assert gap.row_count == sum(len(appended[seq]) for seq in seqs)
            lost.update(dict.fromkeys(seqs, 1))
        assert self.rows == {seq: appended[seq] for seq in self.rows}
        assert self.rows.keys() | lost.keys() == appended.keys()
        assert not self.rows.keys() & lost.keys()
        assert self.reader.state.dropped_rows == sum(gap.row_count for gap in self.gaps)
        assert self.reader.state.acked_rows == sum(map(len, appended.values()))


def _last(frame: pb.AgentFrame) -> int:
    return frame.batch.seq or frame.gap.last_seq


OPERATIONS = st.one_of(
    st.tuples(st.just("append"), st.integers(1, 40)),
    st.tuples(st.just("append"), st.integers(1, 40)),
    st.tuples(st.sampled_from(("fetch 0", "fetch 1")), st.integers(1, 12)),
    st.tuples(st.sampled_from(("acknowledge 0", "acknowledge 1")), st.integers(1, 12)),
    st.tuples(st.just("reopen"), st.just(0)),
)


@settings(max_examples=60, deadline=None)
@given(operations=st.lists(OPERATIONS, min_size=20, max_size=90), on_disk=st.booleans())
def test_no_collector_misses_a_row_unsaid_by_any_sequence_of_operations(
    tmp_path_factory: pytest.TempPathFactory, operations: list[tuple[str, int]], on_disk: bool
) -> None:
    directory = tmp_path_factory.mktemp("spool") if on_disk else None
    spool = opened(directory)
    sides = [Side(Reader(spool, name)) for name in NAMES]
    appended: dict[int, list[int]] = {}
    rows = 0
    for verb, number in operations:
        name, _, which = verb.partition(" ")
        if name == "append":
            appended[len(appended) + 1] = list(range(rows + 1, rows + number + 1))
            assert spool.append(payload(rows + 1, number)) == len(appended)
            rows += number
        elif name == "reopen" and directory is not None:
            spool.close()
            spool = opened(directory)
            for side, reader_name in zip(sides, NAMES, strict=True):
                side.reader, side.flight = Reader(spool, reader_name), []
        elif which:
            getattr(sides[int(which)], name)(number)
    for side in sides:
        side.drain()
        side.check(appended)
    assert spool.is_drained
    assert (spool.pending_batches, spool.pending_bytes) == (0, 0)
    spool.close()


def test_a_collector_that_is_gone_costs_itself_alone_and_half_of_the_spool(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    here, gone = (Side(Reader(spool, name)) for name in NAMES)
    appended = {}
    for seq in range(1, 121):
        appended[seq] = list(range(seq * 20, seq * 20 + 20))
        spool.append(payload(seq * 20, 20))
        here.fetch(8)
        here.acknowledge(8)
    assert 0 < spool.pending_bytes <= 2_500 * 1.2
    assert here.gaps == []
    here.check(appended)
    gone.drain()
    gone.check(appended)
    assert [gap.reason for gap in gone.gaps] == ["spool_full"]
    assert spool.state.dropped_rows == gone.gaps[0].row_count > 0
    assert here.reader.state.dropped_rows == 0
    spool.close()


def test_a_spool_of_one_collector_serves_two_and_one_again(tmp_path: Path) -> None:
    spool = opened(tmp_path, ())
    for number in (1, 2, 3):
        spool.append(payload(number, 1))
    spool.acknowledge(1)
    spool.close()

    spool = opened(tmp_path)  # what the first one has not acknowledged, the second one gets too
    identity = spool.spool_id
    one, two = (Reader(spool, name) for name in NAMES)
    assert [_last(f) for f in one.pending(0, 9, 1 << 20)] == [2, 3]
    one.acknowledge(3)
    two.acknowledge(2)
    assert (one.is_drained, two.is_drained, spool.pending_batches) == (True, False, 1)
    spool.close()

    spool = opened(tmp_path)
    marks = [Reader(spool, name).state.acked_seq for name in NAMES]
    assert (spool.spool_id, marks) == (identity, [3, 2])
    spool.close()

    spool = opened(tmp_path, NAMES[1:])
    assert [_last(f) for f in spool.pending(0, 9, 1 << 20)] == [3]
    spool.close()
    spool = opened(tmp_path, NAMES[1:])
    assert spool.state.marks == ()
    spool.close()


def test_what_one_collector_keeps_no_more_goes_when_the_other_keeps_it_no_more_either() -> None:
    spool = opened(None)
    sides = [Side(Reader(spool, name)) for name in NAMES]
    for number in range(1, 9):
        spool.append(payload(number, 1))
    sides[0].reader.drop_older_than(8)
    assert spool.pending_batches == 8
    sides[1].reader.drop_older_than(5)
    assert spool.pending_batches == 4
    for side in sides:
        side.drain()
        assert [(gap.row_count, gap.reason) for gap in side.gaps] == [(4, "too_old")]


def test_an_acknowledgement_that_frees_nothing_waits_for_the_next_transaction(
    tmp_path: Path,
) -> None:
    spool = opened(tmp_path)
    one, two = (Reader(spool, name) for name in NAMES)
    spool.append(payload(1, 1))
    generation = spool.state.generation
    one.acknowledge(1)
    assert spool.state.generation == generation
    two.acknowledge(1)
    assert spool.state.generation == generation + 1
    spool.close()
