"""What the agent says of itself."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import get_args

import pytest
from prometheus_client.parser import text_string_to_metric_families

from flopwatch_agent.config import AgentConfig
from flopwatch_agent.health import DRIVER_STATES, Health
from flopwatch_agent.job_message import DropReason
from flopwatch_agent.jobs import JobTable, Message
from flopwatch_agent.newest import Newest
from flopwatch_agent.outgoing import EVENTS_MAX, Outgoing
from flopwatch_agent.probing.schedule import Probing
from flopwatch_agent.reading import Device, Reading
from flopwatch_agent.recorder import Recorder
from flopwatch_agent.sources.host import HostReading
from flopwatch_agent.sources.kernel_log import KernelLog
from flopwatch_agent.spool import Spool
from flopwatch_agent.stream import Stream, StreamIdentity
from flopwatch_proto.v1 import telemetry_pb2 as pb

SECOND = 1_000_000_000
OUTCOMES = ("answered", "refused", "repeated")


class Boot:
    """A clock whose time since boot the test sets."""

    def __init__(self) -> None:
        self.ns = 500 * SECOND

    def boottime_ns(self) -> int:
        return self.ns

    def wall_unix_ns(self) -> int:
        raise NotImplementedError

    def monotonic_seconds(self) -> float:
        raise NotImplementedError

    async def sleep(self, seconds: float) -> None:
        raise NotImplementedError


@pytest.fixture
def clock() -> Boot:
    return Boot()


@pytest.fixture
def health(clock: Boot) -> Health:
    return Health(clock)


def scrape(health: Health) -> dict[str, float]:
    content_type, page = health.page()
    assert content_type.startswith("text/plain")
    return {
        s.name + "".join(f"[{v}]" for v in s.labels.values()): s.value
        for family in text_string_to_metric_families(page.decode())
        for s in family.samples
    }


async def test_spool_and_stream_are_shown_as_they_stand(health: Health) -> None:
    spool = Spool.open(None)
    who = StreamIdentity(cluster="c", node_id="n", agent_version="0")
    stream = Stream("127.0.0.1:1", who, spool)
    outgoing = Outgoing(node="n", dtype="bf16", interval_ms=10_000)
    health.watch(spool, stream, outgoing)
    outgoing.tell([pb.Event()] * (EVENTS_MAX + 2))
    spool.append(
        pb.Payload(intervals=pb.IntervalRows(slot=[1, 1], start_unix_ms=[1, 2], duration_ms=[1, 1]))
    )
    stream.counters.rejects["bad_hash"] = 2
    stream.counters.skew_ms = 1500.0
    health.readings.inc(3)
    health.driver_state("mismatch")
    health.source_seconds.labels(source="nvml").observe(0.002)
    health.source_failures.labels(source="nvml").inc()
    values = scrape(health)
    assert values["flopwatch_agent_readings_total"] == 3
    assert values["flopwatch_source_duration_seconds_count[nvml]"] == 1
    assert values["flopwatch_source_failures_total[nvml]"] == 1
    assert values["flopwatch_agent_dropped_events_total"] == 2
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


def test_recorder_and_kernel_log_say_what_they_lost(health: Health) -> None:
    who = StreamIdentity(cluster="c", node_id="n", agent_version="0")
    spool, recorder, log = Spool.open(None), Recorder(bytes_max=1_000), KernelLog()
    stream = Stream("127.0.0.1:1", who, spool)
    outgoing = Outgoing(node="n", dtype="bf16", interval_ms=10_000)
    health.watch(spool, stream, outgoing, recorder)
    health.show_kernel_log(log)
    device = Device(slot="0", kind="gpu", sku=None, uuid=None)
    for second in range(256):
        values = {"power_watts": 300.0}
        reading = Reading(device=device, taken_unix_ms=second * 1000, boottime_ns=1, values=values)
        recorder.see(reading, ())
    stream.counters.captures_ignored = 4
    for capture in ("", "a", "a"):
        asked = pb.CaptureRequest(id=capture, from_unix_ms=1, to_unix_ms=2_000)
        recorder.request(asked, 10_000)
    recorder.due(10_000)
    for _ in range(3):
        outgoing.tell([pb.Event(kind="xid", slot="0", code=79, time_unix_ms=5)])
    log.dropped_total = 7
    values = scrape(health)
    assert 0 < values["flopwatch_recorder_held_bytes"] <= 1_000
    assert values["flopwatch_recorder_dropped_readings_total"] > 100
    outcomes = {o: values[f"flopwatch_recorder_captures_total[{o}]"] for o in OUTCOMES}
    assert outcomes == {"answered": 1, "refused": 1, "repeated": 1}
    assert values["flopwatch_stream_captures_ignored_total"] == 4
    assert values["flopwatch_agent_repeated_events_total"] == 2
    assert values["flopwatch_kernel_log_dropped_lines_total"] == 7


def test_what_jobs_said_and_what_became_of_probes_is_counted(
    health: Health, clock: Boot, tmp_path: Path
) -> None:
    jobs, probing = JobTable(), Probing(AgentConfig(data=tmp_path), clock)
    health.show_jobs(jobs)
    health.show_probing(probing)
    for message in (Message(v=1, pid=7), Message(v=2, pid=7), Message(v=1, pid=0)):
        jobs.apply(message, 0.0)
    (tmp_path / "probes").mkdir()
    (tmp_path / "probes" / "1-x.json").write_text("{")
    assert probing.results() == []
    probing.started = 2
    values = scrape(health)
    assert values["flopwatch_jobs_messages_total"] == 1
    dropped = {name: v for name, v in values.items() if name.startswith("flopwatch_jobs_dropped")}
    assert len(dropped) == len(get_args(DropReason))
    assert {name for name, count in dropped.items() if count == 1} == {
        "flopwatch_jobs_dropped_total[version]",
        "flopwatch_jobs_dropped_total[pid]",
    }
    assert sum(dropped.values()) == 2
    assert values["flopwatch_probing_started_total"] == 2
    assert values["flopwatch_probing_refused_results_total"] == 1


def test_a_source_that_never_comes_has_no_coverage_and_one_that_skips_has_its_part(
    health: Health, clock: Boot
) -> None:
    health.expect("nvml")
    health.expect("processor")
    for second in range(60):
        clock.ns += SECOND
        if second % 4:
            health.came("processor")
    values = scrape(health)
    assert values["flopwatch_source_coverage_ratio[nvml]"] == 0
    assert values["flopwatch_source_coverage_ratio[processor]"] == 0.75


def test_the_agent_says_what_it_costs_the_host(health: Health) -> None:
    newest = Newest()
    health.show_cards(newest, dtype="bf16")
    assert "flopwatch_agent_resident_bytes" not in scrape(health)
    newest.see_host(HostReading(taken_unix_ms=1, agent_cpu_ms=2500.0, agent_rss_bytes=1e6))
    values = scrape(health)
    assert values["flopwatch_agent_cpu_seconds_total"] == 2.5
    assert values["flopwatch_agent_resident_bytes"] == 1e6
    assert not [name for name in values if name.startswith("DCGM")]


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
