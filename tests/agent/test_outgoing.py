"""Where events are collected: the one place that says how bad they are and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

import flopwatch_agent
from flopwatch_agent.outgoing import Outgoing
from flopwatch_proto.v1 import telemetry_pb2 as pb


def told(*events: pb.Event) -> list[pb.Event]:
    """Return the events as they go out."""
    outgoing = Outgoing(node="n", dtype="bf16", interval_ms=10_000)
    outgoing.tell(events)
    payload = outgoing.take()
    return [] if payload is None else list(payload.events)


@pytest.mark.parametrize(
    ("kind", "code", "severity"),
    [
        ("xid", 79, "fatal"),
        ("xid", 13, "error"),
        ("sxid", 28006, "warning"),
        ("card_lost", 0, "fatal"),
        ("driver_absent", 0, "error"),
        ("driver_mismatch", 0, "error"),
        ("driver_lost", 0, "error"),
        ("kernel_log_unreadable", 0, "warning"),
        ("throttle_onset", 0x40, "error"),
        ("remap_failed", 1, "fatal"),
        ("pcie_degraded", 8, "warning"),
        ("counter_disagreement", 0, "warning"),
        ("capture_short", 5_000, "info"),
        ("capture_refused", 0, "info"),
        ("allocation_file", 0, "error"),
        ("meter_dispute", 0, "warning"),
        ("rogue", 0, "error"),
    ],
)
def test_an_event_goes_out_with_its_severity_and_what_to_do(
    kind: str, code: int, severity: str
) -> None:
    (event,) = told(pb.Event(kind=kind, code=code, text="words", time_unix_ms=5))
    assert (event.kind, event.severity, bool(event.action)) == (kind, severity, True)
    assert event.text.startswith("words")


def test_what_an_origin_knows_better_stands() -> None:
    (event,) = told(pb.Event(kind="sxid", code=28006, severity="fatal", action="wait"))
    assert (event.severity, event.action) == ("fatal", "wait")


def test_no_origin_explains_its_events_itself() -> None:
    root = Path(flopwatch_agent.__file__).parent
    users = {p.name for p in root.rglob("*.py") if "explained" in p.read_text()}
    assert users == {"catalogue.py", "outgoing.py"}
