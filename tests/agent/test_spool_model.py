"""The spool against a plain model: every appended row is acknowledged, pending or in a gap, exactly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flopwatch_agent.spool import Spool, SpoolLimits
from flopwatch_proto import codec
from flopwatch_proto.v1 import telemetry_pb2 as pb

LIMITS = SpoolLimits(bytes_max=6000)


def payload(first: int, count: int) -> pb.Payload:
    """Return rows whose start is their number."""
    rows = range(first, first + count)
    return pb.Payload(
        intervals=pb.IntervalRows(
            strings=["", "s"],
            slot=[1] * count,
            start_unix_ms=rows,
            duration_ms=[1] * count,
            weight=[1.0] * count,
            bucket=[pb.BUCKET_FREE] * count,
        )
    )


@dataclass
class Model:
    """What was appended: seq → numbers of its rows."""

    batches: dict[int, list[int]] = field(default_factory=dict)
    rows: int = 0
    acked_seq: int = 0

    def append(self, spool: Spool, count: int) -> None:
        first = self.rows + 1
        seq = spool.append(payload(first, count))
        assert seq == len(self.batches) + 1
        self.batches[seq] = list(range(first, first + count))
        self.rows += count

    def check(self, spool: Spool) -> None:
        """The oracle."""
        assert spool.next_seq == len(self.batches) + 1
        assert spool.rows_produced == self.rows
        expected = self.acked_seq + 1
        for frame in spool.pending(self.acked_seq, 10**6, 1 << 40):
            if frame.HasField("batch"):
                assert frame.batch.seq == expected
                unpacked = codec.unpack(frame.batch)
                assert list(unpacked.intervals.start_unix_ms) == self.batches[expected]
                assert frame.batch.rows_before == sum(
                    len(rows) for seq, rows in self.batches.items() if seq < expected
                )
                expected += 1
                continue
            gap = frame.gap
            assert gap.first_seq <= expected
            lost = range(gap.first_seq, gap.last_seq + 1)
            assert gap.row_count == sum(len(self.batches[seq]) for seq in lost)
            expected = gap.last_seq + 1
        assert expected == spool.next_seq


OPERATIONS = st.one_of(
    st.tuples(st.just("append"), st.integers(1, 40)),
    st.tuples(st.just("append"), st.integers(1, 40)),
    st.tuples(st.just("acknowledge"), st.integers(0, 6)),
    st.tuples(st.just("send"), st.integers(1, 3)),
    st.tuples(st.just("reopen"), st.just(0)),
    st.tuples(st.just("too_old"), st.integers(0, 30)),
)


@settings(max_examples=60, deadline=None)
@given(operations=st.lists(OPERATIONS, max_size=40), on_disk=st.booleans())
def test_no_row_is_lost_or_doubled_by_any_sequence_of_operations(
    tmp_path_factory: pytest.TempPathFactory, operations: list[tuple[str, int]], on_disk: bool
) -> None:
    directory = tmp_path_factory.mktemp("spool") if on_disk else None
    spool = Spool.open(directory, LIMITS)
    model = Model()
    for name, number in operations:
        if name == "append":
            model.append(spool, number)
        elif name == "acknowledge":
            through = min(model.acked_seq + number, len(model.batches))
            spool.acknowledge(through)
            model.acked_seq = max(model.acked_seq, through)
        elif name == "send":
            spool.pending(model.acked_seq, number, 1 << 20)
        elif name == "too_old":
            spool.drop_older_than(model.rows - number)
        elif directory is not None:
            identity = spool.spool_id
            spool.close()
            spool = Spool.open(directory, LIMITS)
            assert spool.spool_id == identity
    model.check(spool)
    spool.close()


WRITER = """
    import sys
    from pathlib import Path
    from flopwatch_agent.spool import Spool, SpoolLimits
    from test_spool_model import payload
    spool = Spool.open(Path(sys.argv[1]), SpoolLimits(bytes_max=1 << 30))
    while True:
        first = spool.rows_produced + 1
        count = first % 5 + 1
        seq = spool.append(payload(first, count))
        print(seq, first, count, flush=True)
        if seq % 3 == 0:
            spool.acknowledge(seq - 5)
"""


def test_what_append_returned_survives_kill_9(tmp_path: Path) -> None:
    model = Model()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    for lines in (1, 7, 40, 3, 90):
        child = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), str(tmp_path)],
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        assert child.stdout is not None
        told = [child.stdout.readline() for _ in range(lines)]
        child.send_signal(signal.SIGKILL)
        told += child.stdout.readlines()
        child.wait()
        child.stdout.close()
        for line in told:
            if not line.endswith("\n"):
                continue
            seq, first, count = map(int, line.split())
            model.batches[seq] = list(range(first, first + count))
        spool = Spool.open(tmp_path, LIMITS)
        if spool.next_seq == len(model.batches) + 2:  # stored, and killed before it could say so
            first = sum(map(len, model.batches.values())) + 1
            model.batches[spool.next_seq - 1] = list(range(first, first + first % 5 + 1))
        model.rows = sum(map(len, model.batches.values()))
        model.acked_seq = spool.state.acked_seq
        model.check(spool)
        spool.close()
