"""What the agent says of itself."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from flopwatch_agent.health import DRIVER_STATES, Health
from flopwatch_agent.spool import Spool
from flopwatch_agent.stream import Stream, StreamIdentity
from flopwatch_proto.errors import UsageError
from flopwatch_proto.v1 import telemetry_pb2 as pb


@pytest.fixture
def health() -> Iterator[Health]:
    made = Health()
    yield made
    made.close()


def scrape(address: str) -> dict[str, float]:
    with urllib.request.urlopen(f"http://{address}/metrics") as reply:
        text = reply.read().decode()
    return {
        s.name + "".join(f"[{v}]" for v in s.labels.values()): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


async def test_spool_and_stream_are_shown_as_they_stand(health: Health) -> None:
    spool = Spool.open(None)
    who = StreamIdentity(cluster="c", node_id="n", agent_version="0")
    stream = Stream("127.0.0.1:1", who, spool)
    health.watch(spool, stream)
    spool.append(
        pb.Payload(intervals=pb.IntervalRows(slot=[1, 1], start_unix_ms=[1, 2], duration_ms=[1, 1]))
    )
    stream.counters.rejects["bad_hash"] = 2
    stream.counters.skew_ms = 1500.0
    health.readings.inc(3)
    health.driver_state("mismatch")
    health.source_seconds.labels(source="nvml").observe(0.002)
    health.source_failures.labels(source="nvml").inc()
    values = scrape(health.serve("127.0.0.1:0"))
    assert values["flopwatch_agent_readings_total"] == 3
    assert values["flopwatch_source_duration_seconds_count[nvml]"] == 1
    assert values["flopwatch_source_failures_total[nvml]"] == 1
    assert values["flopwatch_spool_batches"] == 1
    assert values["flopwatch_spool_bytes"] > 100
    assert values["flopwatch_spool_produced_rows_total"] == 2
    for what in ("batches", "rows", "bytes"):
        assert values[f"flopwatch_spool_dropped_{what}_total"] == 0
    assert values["flopwatch_stream_connected"] == 0
    assert values["flopwatch_stream_acked_rows_total"] == 0
    assert values["flopwatch_stream_reconnects_total"] == 0
    assert values["flopwatch_stream_rejects_total[bad_hash]"] == 2
    assert values["flopwatch_stream_skew_seconds"] == 1.5
    states = {s: values[f"flopwatch_agent_driver_state[{s}]"] for s in DRIVER_STATES}
    assert [s for s, v in states.items() if v] == ["mismatch"]


def test_an_address_in_use_is_a_usage_error_that_names_the_key(health: Health) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UsageError, match=r"metrics\.listen"):
            health.serve(f"127.0.0.1:{taken.getsockname()[1]}")


def test_systemd_hears_ready_alive_and_stopping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        health = Health()
        health.ready()
        health.alive()
        health.stopping()
        heard = [listener.recv(100) for _ in range(3)]
    assert heard == [b"READY=1", b"WATCHDOG=1", b"STOPPING=1"]
