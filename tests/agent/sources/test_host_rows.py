"""Host readings, folded into rows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flopwatch_agent.sources.host import HostProbe, HostReading, host_rows
from flopwatch_proto.rows import HOST_QUANTITIES, Absence

START = 1_700_000_000_000


def test_a_row_has_the_rise_of_the_counters_and_the_highest_of_the_gauges() -> None:
    rows = host_rows(
        [
            HostReading(taken_unix_ms=START, cpu_busy_ms=100, memory_used_bytes=9, cpu_count=4),
            HostReading(
                taken_unix_ms=START + 4000, cpu_busy_ms=300, memory_used_bytes=7, cpu_count=4
            ),
            HostReading(
                taken_unix_ms=START + 8000, cpu_busy_ms=600, memory_used_bytes=5, cpu_count=4
            ),
        ]
    )
    assert list(rows.start_unix_ms) == [START]
    assert list(rows.duration_ms) == [8000]
    assert list(rows.cpu_busy_ms) == [500]
    assert list(rows.memory_used_bytes_max) == [7]
    assert list(rows.cpu_count) == [4]


def test_rows_tile_the_time_and_share_a_rise_at_the_cut() -> None:
    rows = host_rows(
        [
            HostReading(taken_unix_ms=START + 9000, nic_tx_bytes=0),
            HostReading(taken_unix_ms=START + 13_000, nic_tx_bytes=400),
            HostReading(taken_unix_ms=START + 20_000, nic_tx_bytes=400),
        ]
    )
    assert list(rows.start_unix_ms) == [START + 9000, START + 10_000]
    assert list(rows.duration_ms) == [1000, 10_000]
    assert list(rows.nic_tx_bytes) == pytest.approx([100, 300])


def test_a_counter_that_fell_has_no_value_and_one_that_nobody_reads_has_no_column() -> None:
    rows = host_rows(
        [
            HostReading(taken_unix_ms=START, nic_tx_bytes=50),
            HostReading(taken_unix_ms=START + 10_000, nic_tx_bytes=10),
            HostReading(taken_unix_ms=START + 20_000, nic_tx_bytes=30),
        ]
    )
    assert list(rows.nic_tx_bytes) == [0, 20]
    assert [(a.column, bytes(a.absences)) for a in rows.absences] == [
        ("nic_tx_bytes", bytes([Absence.MISSING, 0]))
    ]
    assert list(rows.nic_rx_bytes) == []


def test_one_reading_or_time_that_stands_still_makes_no_row() -> None:
    reading = HostReading(taken_unix_ms=START, cpu_busy_ms=1)
    assert not host_rows([reading]).start_unix_ms
    assert not host_rows([reading, reading]).start_unix_ms


async def test_this_host_answers_every_quantity_but_those_of_links_it_may_not_have() -> None:
    probe = HostProbe()
    first = await probe.take()
    second = replace(await probe.take(), taken_unix_ms=first.taken_unix_ms + 1000)
    rows = host_rows([first, second])
    assert first.agent_cpu_ms is not None
    assert first.agent_cpu_ms > 0
    assert first.agent_rss_bytes is not None
    assert first.agent_rss_bytes > 1 << 20
    links = ("nic_", "rdma_", "link_")
    columns = [q.name for q in HOST_QUANTITIES if not q.name.startswith(links)]
    assert all(len(getattr(rows, name)) == len(rows.start_unix_ms) for name in columns)
